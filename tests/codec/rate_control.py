"""What rate control reaches, and how good files between the rate points are.

    make rate-control KODAK=/path/to/kodak

Prints, for every embedded family: how near files come to targets; by how much a rate point in a
large step is better than the one below it at the same size, which says up to which step it should
be taken (`SWITCH_STEP`); the BD-rate of files between the rate points against the rate points; and
what the choice among the sets of tables saves. Fails where a file misses its target.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lic.codec import Picture, RateControl, Target, read_picture
from lic.codec.backends.torch_backend import load_model
from lic.codec.benchmark.bd_rate import bd_rate
from lic.codec.container import parse
from lic.codec.entropy import build_tables, cheapest_set
from lic.codec.latents import quantise
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec
from lic.codec.quantisation_step import nearest_step
from lic.codec.self_test import embedded_models
from lic.codec.stages import Stages
from lic.export.rate_distortion import symbol_bits

BPP = (0.15, 0.3, 0.5)
WITHIN = 0.01
STEPS = (1.0, 1.25, 1.5, 1.75, 2.0)
DENSE = (0.6, 0.8, *STEPS)


def print_row(*cells: object) -> None:
    """Write a row of a table."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def reached(control: RateControl, pictures: Sequence[Picture]) -> int:
    """Print how near files come to targets; returns how many miss."""
    missed = 0
    print_row("target", "pictures", "in range", "within 1 %", "worst", "trials")
    for bpp in BPP:
        found = [control.compress(p, Target(kind="bpp", value=bpp)) for p in pictures]
        inside = [f for f in found if not any("as near as" in n for n in f.encoded.notes)]
        off = [abs(f.reached / bpp - 1) for f in inside]
        good = sum(each <= WITHIN for each in off)
        missed += len(inside) - good
        trials = f"{fmean(f.trials for f in found):.1f}"
        worst = f"{max(off):.2%}" if off else ""
        print_row(f"{bpp} bpp", len(found), len(inside), good, worst, trials)
    for size in (6000, 12000, 24000):
        target = Target(kind="size", value=size, strict=True)
        sizes = [len(control.compress(p, target).encoded.data) for p in pictures]
        missed += sum(each > size for each in sizes)
        full = [each for each in sizes if each >= 0.99 * size]
        worst = f"{1 - max(sizes) / size:.2%} below"
        print_row(f"{size} bytes, strict", len(sizes), len(full), len(full), worst, "")
    return missed


Curve = list[tuple[float, float]]


def curve(codec: Codec, picture: Picture, steps: Iterable[float]) -> Curve:
    """Return bpp and PSNR of one rate point in several steps."""
    pixels, points = picture.width * picture.height, []
    for step in map(nearest_step, steps):
        data = codec.compress(picture, step=step).data
        decoded = codec.decompress(parse(data)).picture
        points.append((8 * len(data) / pixels, psnr(picture.pixels, decoded.pixels)))
    return points


def between(curves: Sequence[Sequence[Curve]]) -> None:
    """Print what larger steps gain, from a curve for each rate point of each picture."""
    print_row("step", *(f"{step:g}" for step in STEPS))
    for point in range(1, len(curves[0])):
        gains: dict[float, list[float]] = {step: [] for step in STEPS}
        for own in curves:
            below = sorted(own[point - 1])
            for step, (bpp, quality) in zip(DENSE, own[point], strict=True):
                if step in gains and below[0][0] <= bpp <= below[-1][0]:
                    x = np.log([each[0] for each in below])
                    other = np.interp(np.log(bpp), x, [each[1] for each in below])
                    gains[step].append(quality - float(other))
        cells = (f"{fmean(v):+.2f} dB" if v else "" for v in gains.values())
        print_row(f"point {point + 1} against {point}", *cells)


def envelope(
    control: RateControl, pictures: Sequence[Picture], curves: Sequence[Sequence[Curve]]
) -> float:
    """Return the BD-rate in percent of files between the rate points against the rate points."""
    one = DENSE.index(1.0)
    anchor = [
        (fmean(own[q][one][0] for own in curves), fmean(own[q][one][1] for own in curves))
        for q in range(len(control.bundles))
    ]
    tested = []
    for share in np.linspace(0, 1, 7):
        rates, qualities = [], []
        for picture, own in zip(pictures, curves, strict=True):
            ends = np.log([own[0][one][0], own[-1][one][0]])
            bpp = float(np.exp(ends[0] + share * (ends[1] - ends[0])))
            found = control.compress(picture, Target(kind="bpp", value=bpp))
            point = next(
                n for n, b in enumerate(control.bundles)
                if b.manifest.rate_point == found.encoded.header.rate_point
            )  # fmt: skip
            decoded = control.codec(point).decompress(parse(found.encoded.data)).picture
            rates.append(found.reached)
            qualities.append(psnr(picture.pixels, decoded.pixels))
        tested.append((fmean(rates), fmean(qualities)))
    return bd_rate(anchor, tested).percent


def tables(codec: Codec, pictures: Sequence[Picture]) -> None:
    """Print what sets of tables cost, against the one that was made for the step."""
    model: Any = load_model(codec.bundle)
    print_row("step", "set of its own", "best of the sets")
    for step in map(nearest_step, (0.7, 1.0, 1.3, 1.75)):
        exact = build_tables(*model.entropy_bottleneck.pmfs(step))
        shares = []
        for picture in pictures:
            ((_, y),) = codec.analyze_tiles(codec.header(picture), picture.pixels, Stages())
            symbols = quantise(y, step)
            best = codec.bundle.tables.of_set(cheapest_set(codec.bundle.tables, symbols))
            shares.append(symbol_bits(symbols[None], best) / symbol_bits(symbols[None], exact) - 1)
        print_row(f"{step:.3f}", "0 %", f"{fmean(shares):+.2%} ({min(shares):+.2%} at best)")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take one of so many pictures")
    options = parser.parse_args()
    paths = sorted(options.pictures.glob("*.png"))[:: options.every]
    pictures = [read_picture(path) for path in paths]
    missed = 0
    for bundle in embedded_models():
        sys.stdout.write(f"\n{bundle.manifest.name}, {len(pictures)} pictures\n\n")
        control = RateControl.open(bundle.manifest.name, backend="onnx", threads=1)
        missed += reached(control, pictures)
        sys.stdout.write("\n")
        tables(control.codec(control.first), pictures)
        codecs = [control.codec(point) for point in range(len(control.bundles))]
        curves = [[curve(codec, p, DENSE) for codec in codecs] for p in pictures]
        sys.stdout.write("\n")
        between(curves)
        change = envelope(control, pictures, curves)
        sys.stdout.write(f"\nbetween the rate points: BD-rate {change:+.2f} %\n")
    if missed:
        sys.exit(f"{missed} files miss their target")


if __name__ == "__main__":
    main()
