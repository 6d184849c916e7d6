"""Every model, part, size and precision: exported, checked, timed; one line each.

    python -m tests.export.matrix PHOTOS [--models relu,hpcm-tiny] [--repeats 5] [--side 256]

Models other than the embedded one are untrained. Times are the least processor time of runs of one
picture on one thread, ONNX Runtime and torch in turns. A cell that cannot be says why.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, ENCODER
from lic.codec.errors import ConfigError, ExportError
from lic.codec.library import select
from lic.codec.models import HPCM, FactorizedPrior, HyperpriorConfig, ScaleHyperprior, hpcm_config
from lic.codec.models.bmshj2018 import factorized_config
from lic.export.int8_bundle import Int8Options, quantise_bundle
from lic.export.make_bundle import Description, make_bundle
from lic.export.parts import PARTS, GraphOptions, Model, Part, example_of, export_part, module_of

EMBEDDED = "bmshj2018-factorized-relu-lite"


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
    """Return both engines' times as cells."""
    made = module_of(model, part)
    scale = 1 if made.input == "x" else 16
    side = max(options.side, model.stride) // scale
    example = example_of(made, (side, side), torch.Generator().manual_seed(1))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, settings)
    given = {session.get_inputs()[0].name: example.numpy()}
    with torch.inference_mode():
        made.module(example)
        session.run(None, given)
        of_torch = least(lambda: made.module(example), options.repeats)
        of_ort = least(lambda: session.run(None, given), options.repeats)
    return f"{of_ort:.1f} | {of_torch:.1f}"


def cells(name: str, model: Model, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a model's single graphs."""
    side = max(options.side, model.stride)
    for part in PARTS:
        for kind, size in (("any", None), (f"{side}x{side}", (side, side))):
            for half in (False, True):
                start = f"| {name} | {part} | {kind} | {'float16' if half else 'float32'} |"
                try:
                    exported = export_part(model, part, GraphOptions(size=size, half=half))
                    data = exported.graph.SerializeToString()
                    agreement = exported.agreement
                    flips = f"{agreement.flips} of {agreement.symbols}" if agreement.symbols else ""
                    yield (
                        f"{start} {agreement.error:.1e} | {flips} | {len(data) / 1e6:.1f} | "
                        f"{timed(model, part, data, options)} |"
                    )
                except (ConfigError, ExportError) as error:
                    yield f"{start} {str(error).splitlines()[0][:150]} | | | | |"


def int8_cells(name: str, model: Model, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a model's int8 graphs, which are those of a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        start = f"| {name} | encoder, decoder | any | int8 |"
        try:
            description = Description(name=name, rate_point=3, lmbda=0.0067)
            bundle = make_bundle(model, Path(folder) / "float", description)
            made = quantise_bundle(bundle, Path(folder) / "int8", options.photos, Int8Options())
        except (ConfigError, ExportError) as error:
            yield f"{start} {str(error).splitlines()[0][:150]} | | | | |"
            return
        for part, file in (("encoder", ENCODER), ("decoder", DECODER)):
            data = made.read(file)
            onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
            checked = "codes a picture for float32, and back"
            yield (
                f"| {name} | {part} | any | int8 | {checked} | | {len(data) / 1e6:.1f} | "
                f"{timed(model, part, data, options)} |"  # type: ignore[arg-type]
            )


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
        for lines in (cells, int8_cells):
            for line in lines(name, model, options):
                print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
