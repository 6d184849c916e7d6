"""What activations are like: pictures to look at, and ranges from what was seen.

Shapes: N batch, C channels, H W height and width of the tensor at hand, h = H / 16, w = W / 16.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization.calibrate import HistogramCollector

from lic.codec.benchmark.datasets import find_pictures, read_plain
from lic.codec.errors import ConfigError, ExportError
from lic.codec.tiling import Padding, to_network
from lic.export.graph_check import session

Method = Literal["minmax", "entropy", "percentile", "rd"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "rd")
Ranges = dict[str, tuple[float, float]]
# Crops and their sides: as many pixels as three Kodak pictures.
CROPS, SIDE = 16, 256
# Share of values that "percentile" keeps, in percent. 99.99 clips what a codec needs.
PERCENTILE = 99.999
# Bins of histograms of absolute values and sign, and of what "entropy" compares them with.
BINS, LEVELS = 2048, 256


def calibration_crops(
    folder: Path, *, padding: Padding, count: int = CROPS, side: int = SIDE
) -> list[NDArray[np.float32]]:
    """Return crops (1, 3, H, W) in [0, 1] from the middle of pictures of a folder.

    Of more than `count` pictures those are taken that lie evenly in the order of their names; the
    same folder gives the same crops. Sides are at most `side` pixels, in multiples of the padding.

    Raises:
        ImageError: no pictures, or one that cannot be read; names it.
        ConfigError: a count or side that cannot work.
    """
    if count < 1 or side < padding.multiple:
        raise ConfigError(
            f"calibration with {count} crops of {side} pixels; expected at least 1 of at least "
            f"{padding.multiple}"
        )
    pictures = find_pictures(folder)
    if len(pictures) > count:
        pictures = [pictures[i * len(pictures) // count] for i in range(count)]
    side -= side % padding.multiple
    crops = []
    for path in pictures:
        pixels = read_plain(path).pixels
        top, left = (max(0, (s - side) // 2) for s in pixels.shape[:2])
        crop = np.ascontiguousarray(pixels[top : top + side, left : left + side])
        crops.append(to_network(crop, padding))
    return crops


def observe(
    graph: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[NDArray[Any]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the values of inner tensors, by name, for each input.

    Raises:
        ExportError: one has NaN or infinite values.
    """
    if not tensors:
        return
    open_graph = onnx.ModelProto()
    open_graph.CopyFrom(graph)
    del open_graph.graph.output[:]
    for name in tensors:
        kind = onnx.TensorProto.FLOAT
        open_graph.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    running = session(open_graph)
    for value in inputs:
        fed = {running.get_inputs()[0].name: value}
        found = dict(zip(tensors, running.run(list(tensors), fed), strict=True))
        for name, seen in found.items():
            if not np.isfinite(seen).all():
                raise ExportError(
                    f"{name}: NaN or infinite values on a calibration picture; the network's "
                    "weights are at fault"
                )
        yield found


def ranges_of(
    method: Method,
    graph: onnx.ModelProto,
    tensors: Sequence[str],
    inputs: Iterable[NDArray[Any]],
) -> Ranges:
    """Return lowest and highest value that 8 bits are to hold of each tensor.

    "minmax" keeps all that was seen, and is where "rd" begins; "percentile" and "entropy" (least
    relative entropy) are those of onnxruntime.quantization.

    Raises:
        ConfigError: no such method.
        ExportError: as `observe`.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method in ("minmax", "rd"):
        return _extremes(observe(graph, tensors, inputs))
    collector = HistogramCollector(method, False, BINS, LEVELS, PERCENTILE, "same")
    # It reports its progress on the terminal.
    with contextlib.redirect_stdout(io.StringIO()):
        alive: set[str] = set()
        for seen in observe(graph, tensors, inputs):
            # Zero is on every grid, and of what follows ReLU it would be most of the histogram.
            values = {name: v[v != 0] for name, v in seen.items()}
            values = {name: v for name, v in values.items() if v.size}
            alive |= values.keys()
            if values:
                collector.collect(values)
        found = collector.compute_collection_result().items() if alive else ()
    ranges = {name: (float(ends[0]), float(ends[1])) for name, ends in found}
    return {name: ranges.get(name, (0.0, 0.0)) for name in tensors}


def _extremes(observed: Iterable[Mapping[str, NDArray[np.float32]]]) -> Ranges:
    found: Ranges = {}
    for seen in observed:
        for name, values in seen.items():
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def channel_means(
    graph: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[NDArray[Any]]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean (C,) of each channel of tensors (N, C, H, W) over all inputs' pixels.

    Raises:
        ExportError: as `observe`.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    pixels: dict[str, int] = {}
    for seen in observe(graph, tensors, inputs):
        for name, values in seen.items():
            total = values.sum(axis=(0, 2, 3), dtype=np.float64)
            sums[name] = sums.get(name, np.zeros_like(total)) + total
            pixels[name] = pixels.get(name, 0) + values[:, 0].size
    return {name: sums[name] / pixels[name] for name in sums}
