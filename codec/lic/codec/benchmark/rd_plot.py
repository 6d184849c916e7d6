"""Rate-distortion curves of evaluations and published points: a plot, and a table in Markdown.

    python -m lic.codec.benchmark.rd_plot runs/*.json --anchors kodak.json --anchor NAME -o rd.png

Evaluations are what `lic eval -o` writes: whole files, decoded again. Points of one model are a
curve, called as the model or, for LABEL=FILE, as the label; BD-rates are against the first anchor,
of curves with four points.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lic.codec.benchmark.bd_rate import LEAST_POINTS, bd_rate
from lic.codec.errors import ConfigError

Curve = list[tuple[float, float]]
Curves = dict[str, Curve]

METRICS = {"psnr": "PSNR (dB)", "ms_ssim": "MS-SSIM"}
DIGITS = {"psnr": 2, "ms_ssim": 4}


def evaluated(files: Sequence[str], metric: str) -> Curves:
    """Return curves (bpp, quality) by the models' names or the files' labels, rate points joined.

    Raises:
        ConfigError: a file that `lic eval -o` did not write.
    """
    curves: Curves = {}
    for file in files:
        label, _, rest = ("", "", file) if Path(file).exists() else file.rpartition("=")
        path = Path(rest)
        try:
            for row in json.loads(path.read_text()):
                name = label or str(row["model"]).rpartition(" q")[0]
                curves.setdefault(name, []).append((float(row["bpp"]), float(row[metric])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is not what lic eval -o writes ({error})") from None
    return {name: sorted(points) for name, points in curves.items()}


def published(path: Path, names: Sequence[str], metric: str) -> Curves:
    """Return published curves from a file of {name: {"bpp": [...], "psnr_db": [...]}}.

    Raises:
        ConfigError: another kind of file, no such curve, or not with this metric; says which there
            are.
    """
    key = {"psnr": "psnr_db"}.get(metric, metric)
    try:
        found = json.loads(path.read_text())
        curves = {
            name: sorted(
                (float(rate), float(quality))
                for rate, quality in zip(values["bpp"], values[key], strict=True)
            )
            for name, values in found.items()
            if key in values
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--anchors {path}: is not a file of published curves ({error})"
        ) from None
    missing = [name for name in names if name not in curves]
    if missing:
        known = ", ".join(sorted(curves))
        raise ConfigError(f"--anchor {missing[0]}: {path} has no such curve; it has {known}")
    return {name: curves[name] for name in names}


def gap(anchor: Curve, bpp: float, quality: float) -> float | None:
    """Return quality minus the anchor's at this rate (over log rate), None where it has none."""
    rates, qualities = np.array(anchor).T
    if not rates[0] <= bpp <= rates[-1]:
        return None
    return quality - float(np.interp(np.log(bpp), np.log(rates), qualities))


def table(curves: Curves, anchors: Curves, metric: str) -> str:
    """Return the points, their distance to the first anchor at equal rate, and BD-rates."""
    first, digits = next(iter(anchors.values()), []), DIGITS[metric]
    lines = [
        f"| model | bpp | {METRICS[metric]} | at equal rate | BD-rate |",
        "|---|---|---|---|---|",
    ]
    for name, points in curves.items():
        delta = "" if metric != "psnr" else _delta(first, points)
        for i, (bpp, quality) in enumerate(points):
            distance = gap(first, bpp, quality) if first else None
            told = "" if distance is None else f"{distance:+.{digits}f}"
            cells = (name, f"{bpp:.4f}", f"{quality:.{digits}f}", told, delta if i == 0 else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _delta(anchor: Curve, points: Curve) -> str:
    if len(points) < LEAST_POINTS or not anchor:
        return ""
    found = bd_rate(anchor, points)
    return f"{found.percent:+.1f} % ({found.low:.1f} to {found.high:.1f} dB)"


def plot(curves: Curves, anchors: Curves, metric: str, target: Path, *, most: float) -> None:
    """Draw all curves up to `most` bits per pixel; the suffix of `target` says the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    shown: Mapping[str, Curve] = {**anchors, **curves}
    for name, points in shown.items():
        kept = [point for point in points if point[0] <= most]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.8}
        if name in anchors:
            style = {"linestyle": "--", "linewidth": 1.1}
        if kept:
            axes.plot(*zip(*kept, strict=True), label=name, **style)
    axes.set_xlabel("bits per pixel (whole files)")
    axes.set_ylabel(METRICS[metric])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, draw and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("evaluations", nargs="+", help="[LABEL=]FILE, what lic eval -o wrote")
    parser.add_argument("--anchors", type=Path, help="published points as JSON")
    parser.add_argument("--anchor", action="append", default=[], help="a curve of it; repeatable")
    parser.add_argument("--metric", choices=tuple(METRICS), default="psnr")
    parser.add_argument("--most", type=float, default=1.2, help="greatest rate of the plot, bpp")
    parser.add_argument("-o", "--output", type=Path, help="picture: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    anchors: Curves = {}
    try:
        curves = evaluated(options.evaluations, options.metric)
        if options.anchors:
            anchors = published(options.anchors, options.anchor, options.metric)
    except ConfigError as error:
        parser.error(str(error))
    print(table(curves, anchors, options.metric))  # noqa: T201
    if options.output:
        try:
            plot(curves, anchors, options.metric, options.output, most=options.most)
        except ModuleNotFoundError as error:
            name = (error.name or "matplotlib").partition(".")[0]
            parser.error(f"-o needs {name}, which is not installed; pip install {name}")


if __name__ == "__main__":
    main()
