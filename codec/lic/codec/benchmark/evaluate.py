"""What a model does to a folder of pictures, measured on whole files that are decoded again.

Shapes: H W pixels, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import ARCHITECTURES, Tiling
from lic.codec.benchmark.datasets import read_plain
from lic.codec.bundle import Bundle
from lic.codec.container import Header, parse
from lic.codec.errors import NumericsError
from lic.codec.image_io import Picture
from lic.codec.metrics import bpp, ms_ssim, psnr
from lic.codec.pipeline import Codec
from lic.codec.results import Decoded, Encoded
from lic.codec.tiling import places, tile_to_network, to_network

Estimate = Callable[[NDArray[np.uint8], Header], float]
# What a file may exceed its likelihood estimate by: headers and checksums, beyond half a percent.
ALLOWED_BYTES = 80


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture at one rate point, coded by every backend and decoded by every backend.

    Attributes:
        picture: file name.
        size: bytes of the whole file that the first backend wrote.
        bpp: the same in bits per pixel.
        estimated_bpp: from the model's likelihoods in torch, over the file's tiles; None where
            torch is missing.
        psnr, ms_ssim: of that file decoded; None where no backend could decode it.
        same_symbols: every backend's file decoded on every backend with the encoder's symbols.
        failures: what was said where one did not.
        flips: symbols in which the backends' own analyses differ.
        pixel_gap: largest difference in levels between two backends' decodings of one file.
        encode, decode: backend -> stage -> milliseconds; without a decoder that failed.
    """

    picture: str
    size: int
    bpp: float
    estimated_bpp: float | None
    psnr: float | None
    ms_ssim: float | None
    same_symbols: bool
    failures: tuple[str, ...]
    flips: int
    pixel_gap: int
    encode: dict[str, dict[str, float]]
    decode: dict[str, dict[str, float]]


def installed_backends(bundle: Bundle) -> list[str]:
    """Return the backends that can run a bundle here; that of torch needs safetensors.

    Without graphs only torch can, which, where it is missing, says so itself.
    """
    graphs = ["onnx"] if bundle.has_graphs else []
    return [*graphs, "torch"] if _has_torch() or not graphs else graphs


def _has_torch() -> bool:
    return all(find_spec(package) is not None for package in ("torch", "safetensors"))


def evaluate(
    bundle: Bundle,
    pictures: Sequence[Path],
    backends: Sequence[str],
    *,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "float32",
    repeats: int = 3,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Code every picture with every backend, decode every file with every backend.

    A decoder that gets other symbols than the encoder's is a finding, told in the picture's row.
    Times are medians of `repeats` after one run that does not count. `progress` is called after
    every picture. Estimates are computed on `device` too, unless only ONNX Runtime is to use it.
    """
    codecs = {
        name: Codec(bundle, backend=name, device=device, threads=threads, precision=precision)
        for name in backends
    }
    estimate = _estimator(bundle, device if "torch" in codecs else "cpu")
    rows = []
    for path in pictures:
        rows.append(_row(path.name, read_plain(path), codecs, estimate, repeats))
        progress()
    return rows


def _row(
    name: str,
    picture: Picture,
    codecs: dict[str, Codec],
    estimate: Estimate | None,
    repeats: int,
) -> Row:
    encoded: dict[str, Encoded] = {}
    encode_times, decode_times = {}, {}
    for backend, codec in codecs.items():
        runs = [codec.compress(picture) for _ in range(repeats + 1)]
        encoded[backend] = runs[0]
        encode_times[backend] = _medians([run.stages for run in runs[1:]])
    gap, failures = 0, []
    decoded: list[NDArray[np.uint8] | None] = []
    for writer, file in encoded.items():
        results = []
        for reader, codec in codecs.items():
            outcome = _decode(file, codec, repeats)
            if isinstance(outcome, NumericsError):
                failures.append(f"{writer}'s file on {reader}: {outcome}")
                continue
            decode_times[reader] = _medians([run.stages for run in outcome[1:]])
            results.append(outcome[0].picture.pixels)
        gap = max([gap, *(_gap(results[0], other) for other in results[1:])])
        decoded.append(results[0] if results else None)
    shown = decoded[0]
    first = next(iter(encoded.values()))
    size = len(first.data)
    bits = estimate(picture.pixels, first.header) if estimate else None
    pixels = picture.width * picture.height
    return Row(
        picture=name,
        size=size,
        bpp=bpp(size, picture.width, picture.height),
        estimated_bpp=None if bits is None else bits / pixels,
        psnr=None if shown is None else psnr(picture.pixels, shown),
        ms_ssim=None if shown is None else ms_ssim(picture.pixels, shown),
        same_symbols=not failures,
        failures=tuple(failures),
        flips=_flips(picture, list(codecs.values())),
        pixel_gap=gap,
        encode=encode_times,
        decode=decode_times,
    )


def _decode(file: Encoded, codec: Codec, repeats: int) -> list[Decoded] | NumericsError:
    """Decode a file several times, or return why it gave other symbols than the encoder's."""
    try:
        return [codec.decompress(parse(file.data)) for _ in range(repeats + 1)]
    except NumericsError as error:
        return error


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: median(run[stage] for run in runs) for stage in runs[0]}


def _gap(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())


def _flips(picture: Picture, codecs: Sequence[Codec]) -> int:
    """Return in how many symbols the backends' own analyses of a picture differ."""
    if len(codecs) == 1:
        return 0
    x = to_network(picture.pixels, codecs[0].bundle.manifest.padding)
    states = [codec.backend.analyze(x) for codec in codecs]
    return max(int(np.count_nonzero(states[0] != state)) for state in states)


def _estimator(bundle: Bundle, device: str) -> Estimate | None:
    """Return what tells the bits of a picture by the model's likelihoods, where torch is there.

    It takes pixels (H, W, C) and the header of their file, and adds up the tiles of that file.

    Raises:
        ConfigError: torch has no such device.
    """
    if not _has_torch():
        return None
    import torch

    from lic.codec.backends.torch_backend import load_model
    from lic.codec.backends.torch_device import memory_errors, torch_device
    from lic.codec.models import bits

    there = torch_device(device)
    model = load_model(bundle).to(there)

    def estimate(pixels: NDArray[np.uint8], header: Header) -> float:
        total = 0.0
        for x in _seen(bundle, pixels, header):
            with torch.inference_mode(), memory_errors():
                total += float(bits(model(torch.from_numpy(x).to(there)).likelihoods))
        return total

    return estimate


def _seen(
    bundle: Bundle, pixels: NDArray[np.uint8], header: Header
) -> Iterator[NDArray[np.float32]]:
    """Yield x (1, 3, H, W) of all that is coded as a picture of its own."""
    padding = bundle.manifest.padding
    if ARCHITECTURES[bundle.manifest.architecture].tiling is Tiling.LATENTS:
        yield to_network(pixels, padding)
        return
    for place in places(header):
        yield tile_to_network(pixels, place, padding)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means over pictures, the worst excess, and the median stage times."""
    estimated = [(r, r.estimated_bpp) for r in rows if r.estimated_bpp is not None]
    over = [r.size - 1.005 * r.size * rate / r.bpp for r, rate in estimated]
    return {
        "pictures": len(rows),
        "bpp": fmean(r.bpp for r in rows),
        "estimated_bpp": _mean([rate for _, rate in estimated]),
        "worst_bytes_over_half_percent": max(over) if over else None,
        "psnr": _mean([r.psnr for r in rows if r.psnr is not None]),
        "ms_ssim": _mean([r.ms_ssim for r in rows if r.ms_ssim is not None]),
        "same_symbols": sum(r.same_symbols for r in rows),
        "flips": sum(r.flips for r in rows),
        "pixel_gap": max(r.pixel_gap for r in rows),
        "encode": _stage_medians([r.encode for r in rows]),
        "decode": _stage_medians([r.decode for r in rows]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _stage_medians(
    times: Sequence[dict[str, dict[str, float]]],
) -> dict[str, dict[str, float]]:
    backends = dict.fromkeys(backend for entry in times for backend in entry)
    return {
        backend: _medians([entry[backend] for entry in times if backend in entry])
        for backend in backends
    }
