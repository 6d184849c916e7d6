"""What int8 costs and gains: rate, distortion and time against float32, in ONNX Runtime.

    python -m tests.export.int8_costs PICTURES --calibration PHOTOS [--model NAME] [--rate-point 4]
        [--methods minmax,percentile,entropy,rd] [--forms k5,k6,subpixel,...] [--crops 16]

Rate and distortion: whole files of all pictures, decoded again, 8-bit pixels; loss is
bpp + lambda 255^2 MSE, its mean over pictures. Time: graphs alone, one thread, on the first
`--timed` pictures, float32 and int8 in turns; medians. On a shared machine look at processor time.
Pictures of the calibration must not be among those measured.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lic.codec.backends.torch_backend import load_model
from lic.codec.benchmark.datasets import find_pictures, read_plain
from lic.codec.bundle import DECODER, EMBEDDED, ENCODER, Bundle
from lic.codec.container import parse
from lic.codec.image_io import Picture
from lic.codec.metrics import bpp, psnr
from lic.codec.models import FactorizedPrior
from lic.codec.pipeline import Codec
from lic.codec.tiling import to_network
from lic.export.forms import FORMS
from lic.export.graph_check import run, session
from lic.export.int8_bundle import Int8Options, quantise_bundle
from lic.export.parts import GraphOptions
from lic.export.variants import part_graphs

Say = Callable[[str], None]
REPEATS = 5


class Measured:
    """Rate, distortion and loss of files and their decoder."""

    def __init__(self, files: Sequence[bytes], decoder: Codec, pictures: Sequence[Picture]) -> None:
        rates, qualities, losses = [], [], []
        lmbda = decoder.bundle.manifest.lmbda
        assert lmbda is not None, "the embedded bundles say their lambda"
        for data, picture in zip(files, pictures, strict=True):
            decoded = decoder.decompress(parse(data)).picture.pixels
            error = np.square(decoded.astype(np.float64) - picture.pixels).mean()
            rates.append(bpp(len(data), picture.width, picture.height))
            qualities.append(psnr(decoded, picture.pixels))
            losses.append(rates[-1] + lmbda * error)
        self.bpp = statistics.fmean(rates)
        self.psnr = statistics.fmean(qualities)
        self.loss = statistics.fmean(losses)

    def row(self, name: str, size: int, floating: "Measured") -> str:
        """Return a row of the table."""
        change = 100 * (self.loss / floating.loss - 1)
        return (
            f"| {name} | {size / 1e6:.2f} | {self.bpp:.4f} | {self.psnr:.2f} | {self.loss:.4f} | "
            f"{100 * (self.bpp / floating.bpp - 1):+.2f} % | {self.psnr - floating.psnr:+.3f} | "
            f"{change:+.2f} % |"
        )


def times(
    sessions: dict[str, Any], inputs: dict[str, list[np.ndarray[Any, Any]]]
) -> dict[str, tuple[float, float]]:
    """Return processor and wall milliseconds of each session, medians, in turns."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for turn in range(REPEATS + 1):
        for i in range(len(next(iter(inputs.values())))):
            for name, running in sessions.items():
                processor, wall = time.process_time(), time.perf_counter()
                run(running, inputs[name][i])
                taken = time.process_time() - processor, time.perf_counter() - wall
                # The first turn makes memory arenas.
                spent[name] += [taken] if turn else []
    return {
        name: (1e3 * statistics.median(p for p, _ in t), 1e3 * statistics.median(w for _, w in t))
        for name, t in spent.items()
    }


def report(options: argparse.Namespace, say: Say) -> None:
    """Measure and print."""
    bundle = Bundle.open(EMBEDDED / options.model / str(options.rate_point))
    pictures = [read_plain(path) for path in find_pictures(options.pictures)]
    floating = Codec(bundle, backend="onnx", threads=1)
    files = [floating.compress(picture).data for picture in pictures]
    reference = Measured(files, floating, pictures)
    say(f"{bundle.label}, {len(pictures)} pictures, {options.crops} calibration crops\n")
    say("| | graphs MB | bpp | PSNR | loss | bpp | dB | loss |")
    say("|---|---|---|---|---|---|---|---|")
    weights = sum(e["bytes"] for n, e in bundle.manifest.files.items() if n != "tables.npz")
    say(reference.row("float32", weights, reference))
    graphs: dict[str, dict[str, onnx.ModelProto]] = {}
    # All methods in the last form; of the others the decoder, which is what differs.
    wanted = [(method, options.forms[-1], True) for method in options.methods]
    wanted += [(options.methods[0], form, False) for form in options.forms[:-1]]
    for method, form, whole in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            settings = Int8Options(
                method=method, upsample=form, crops=options.crops, float_ends=not options.int8_ends
            )
            made = quantise_bundle(bundle, Path(scratch) / "int8", options.calibration, settings)
            quantised = Codec(made, backend="onnx", threads=1)
            made_graphs = {name: made.read(name) for name in (ENCODER, DECODER)}
            parsed = {name: onnx.load_from_string(data) for name, data in made_graphs.items()}
            graphs.setdefault(form, parsed)
            pairs: list[tuple[str, list[bytes], Codec, tuple[str, ...]]]
            pairs = [("decoder", files, quantised, (DECODER,))]
            if whole:
                own = [quantised.compress(picture).data for picture in pictures]
                pairs += [("encoder", own, floating, (ENCODER,))]
                pairs += [("both", own, quantised, (ENCODER, DECODER))]
            for side, coded, decoder, held in pairs:
                found = Measured(coded, decoder, pictures)
                size = sum(len(made_graphs[name]) for name in held)
                say(found.row(f"{method}, {form}, {side}", size, reference))
    report_times(options, bundle, graphs, pictures, say)


def report_times(
    options: argparse.Namespace,
    bundle: Bundle,
    graphs: dict[str, dict[str, onnx.ModelProto]],
    pictures: Sequence[Picture],
    say: Say,
) -> None:
    """Measure and print how long graphs take."""
    model = load_model(bundle)
    assert isinstance(model, FactorizedPrior)
    xs = [to_network(p.pixels, bundle.manifest.padding) for p in pictures[: options.timed]]
    say("\n| graph | float32 CPU ms | int8 CPU ms | float32 k5 : int8 | wall |")
    say("|---|---|---|---|---|")
    plain = part_graphs(model, GraphOptions(upsample="k5"))
    start = session(plain[ENCODER])
    seen = {ENCODER: xs, DECODER: [run(start, x) for x in xs]}
    for side in (ENCODER, DECODER):
        running = {"float32 k5": session(plain[side])}
        for form, made_graphs in graphs.items():
            running[f"{form} int8"] = session(made_graphs[side])
            running[form] = session(part_graphs(model, GraphOptions(upsample=form))[side])
        spent = times(running, dict.fromkeys(running, seen[side]))
        for form in graphs:
            own, quick, base = spent[form], spent[f"{form} int8"], spent["float32 k5"]
            say(
                f"| {side}, {form} | {own[0]:.0f} | {quick[0]:.0f} | {base[0] / quick[0]:.2f} | "
                f"{base[1] / quick[1]:.2f} |"
            )


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--model", default="bmshj2018-factorized-relu-lite")
    parser.add_argument("--rate-point", type=int, default=4)
    parser.add_argument("--methods", type=lambda s: s.split(","), default=["minmax"])
    parser.add_argument("--forms", type=lambda s: s.split(","), default=list(FORMS))
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--timed", type=int, default=1)
    parser.add_argument("--int8-ends", action="store_true", help="the encoder's last layer, too")
    report(parser.parse_args(), lambda line: print(line, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
