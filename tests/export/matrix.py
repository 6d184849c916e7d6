"""Every model, part, size and precision: exported, checked, timed; one line each.

    python -m tests.export.matrix PHOTOS [--models relu,hpcm-tiny] [--repeats 5] [--side 256]

Models other than the embedded one are untrained. Errors and flips of graphs: float32 against torch,
float16 in torch's arithmetic against its float32, int8 against float32 on the calibration's crops;
of what is rounded, before it is. Of bundles: two engines' decodings of the same files, and their
analyses of a photo. Times are the least processor time on one thread, of graphs for one picture, of
bundles for whole calls there and back. A cell that cannot be says why.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from lic.codec.backends.torch_backend import load_model
from lic.codec.benchmark.datasets import read_plain
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, ExportError
from lic.codec.image_io import Picture
from lic.codec.library import select
from lic.codec.models import HPCM, FactorizedPrior, HyperpriorConfig, ScaleHyperprior, hpcm_config
from lic.codec.models.bmshj2018 import factorized_config
from lic.codec.pipeline import Codec
from lic.codec.tiling import to_network
from lic.export.graph_check import session
from lic.export.int8_bundle import quantise_bundle, quantise_part
from lic.export.make_bundle import Description, make_bundle
from lic.export.parts import (
    PARTS,
    Exported,
    GraphOptions,
    Model,
    Part,
    example_of,
    export_part,
    module_of,
)
from lic.export.variants import half_bundle

EMBEDDED = "bmshj2018-factorized-relu-lite"
PRECISIONS = ("float32", "float16", "int8")
SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"


def _untrained(act: Any) -> Callable[[], Model]:
    return lambda: FactorizedPrior(factorized_config("lite", act))


def _hpcm(size: str) -> Callable[[], Model]:
    return lambda: HPCM(hpcm_config(size))


MODELS: dict[str, Callable[[], Any]] = {
    "relu": lambda: load_model(select(EMBEDDED, 3)),
    **{act: _untrained(act) for act in ("gdn", "igdn1", "gdnish")},
    "hyperprior": lambda: ScaleHyperprior(HyperpriorConfig(N=64, M=96)),
    **{f"hpcm-{size}": _hpcm(size) for size in ("tiny", "phi", "base", "large")},
}
HEAD = (
    "| model | part | size | precision | largest error | flips | MB | ONNX Runtime, ms | torch |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def least(run: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of a call in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def timed(model: Model, part: Part, data: bytes, options: argparse.Namespace) -> str:
    """Return both engines' times of a graph as cells."""
    made = module_of(model, part)
    scale = 1 if made.input == "x" else 16
    side = max(options.side, model.stride) // scale
    example = example_of(made, (side, side), torch.Generator().manual_seed(1))
    running = session(onnx.load_from_string(data))
    given = {running.get_inputs()[0].name: example.numpy()}
    with torch.inference_mode():
        made.module(example)
        running.run(None, given)
        of_torch = least(lambda: made.module(example), options.repeats)
        of_ort = least(lambda: running.run(None, given), options.repeats)
    return f"{of_ort:.1f} | {of_torch:.1f}"


def cells(name: str, model: Model, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a model's single graphs."""
    side = max(options.side, model.stride)
    with tempfile.TemporaryDirectory() as folder:
        # What int8 is made from, without the many graphs of models that cannot become it.
        bundle = functools.cache(lambda: float_bundle(name, model, Path(folder), graphs=False))
        for part in PARTS:
            for size in (None, (side, side)):
                for precision in PRECISIONS:
                    start = f"| {name} | {part} | {f'{side}x{side}' if size else 'any'} |"
                    graph_options = GraphOptions(size=size, half=precision == "float16")

                    def export(
                        part: Part = part,
                        precision: str = precision,
                        graph_options: GraphOptions = graph_options,
                    ) -> Exported:
                        if precision == "int8":
                            return quantise_part(
                                bundle(), part, options.photos, None, graph_options
                            )
                        return export_part(model, part, graph_options)

                    yield f"{start} {precision} | {cell(export, model, part, options)}"


def cell(
    export: Callable[[], Exported], model: Model, part: Part, options: argparse.Namespace
) -> str:
    """Return what a graph came to, or why there is none."""
    try:
        graph, agreement = export()
    except (ConfigError, ExportError) as error:
        return f"{str(error).splitlines()[0]} | | | | |"
    data = graph.SerializeToString()
    flips = f"{agreement.flips} of {agreement.symbols}" if agreement.symbols else ""
    size = f"{len(data) / 1e6:.1f}"
    times = timed(model, part, data, options)
    return f"{agreement.error:.1e} | {flips} | {size} | {times} |"


def float_bundle(name: str, model: Model, folder: Path, *, graphs: bool = True) -> Bundle:
    """Return a bundle."""
    description = Description(name=name, rate_point=3, lmbda=0.0067)
    return make_bundle(model, folder / "float", description, graphs=graphs)


def bundle_cells(name: str, model: Model, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a model's bundles, each of which has coded a picture on both engines."""
    side = max(options.side, model.stride)
    shot = read_plain(SAMPLE)
    picture = replace(shot, pixels=np.ascontiguousarray(shot.pixels[:side, :side]))
    with tempfile.TemporaryDirectory() as folder:
        floating = float_bundle(name, model, Path(folder))
        make: dict[str, Callable[[], Bundle]] = {
            "float32": lambda: floating,
            "float16": lambda: half_bundle(floating, Path(folder) / "half"),
            "int8": lambda: quantise_bundle(floating, Path(folder) / "int8", options.photos),
        }
        for precision in PRECISIONS:
            start = f"| {name} | bundle | any | {precision} |"
            try:
                made = make[precision]()
            except (ConfigError, ExportError) as error:
                yield f"{start} {str(error).splitlines()[0]} | | | | |"
                continue
            size = sum(entry["bytes"] for entry in made.manifest.files.values())
            agree, flips, times = both_engines(made, picture, options.repeats)
            yield f"{start} {agree} | {flips} | {size / 1e6:.1f} | {times} |"


def both_engines(made: Bundle, picture: Picture, repeats: int) -> tuple[str, str, str]:
    """Return how far two engines' pictures of one file are apart, flips, and whole calls' times."""
    codecs = [Codec(made, backend=name, threads=1) for name in ("onnx", "torch")]
    files = [codec.compress(picture).data for codec in codecs]
    decoded = [
        codec.decompress(parse(data)).picture.pixels.astype(int)
        for codec in codecs
        for data in files
    ]
    gap = max(int(np.abs(decoded[i] - decoded[i + 2]).max()) for i in (0, 1))
    x = to_network(picture.pixels, made.manifest.padding)
    flips = ""
    if not made.manifest.graphs.get("plan"):
        symbols = [np.asarray(codec.backend.analyze(x)) for codec in codecs]
        flips = f"{np.count_nonzero(symbols[0] != symbols[1])} of {symbols[0].size}"

    def there_and_back(codec: Codec) -> None:
        codec.decompress(parse(codec.compress(picture).data))

    times = [least(functools.partial(there_and_back, codec), repeats) for codec in codecs]
    return f"{gap} level(s)", flips, " | ".join(f"{t:.1f}" for t in times)


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)  # noqa: T201
    for name in options.models.split(","):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for lines in (cells, bundle_cells):
            for line in lines(name, model, options):
                print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
