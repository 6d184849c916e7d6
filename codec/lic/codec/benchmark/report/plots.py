"""Plots of a report for papers, as PNG and SVG: the page's, without its controls."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lic.codec.benchmark.quality import Metric, points_of
from lic.codec.benchmark.report.content import Content, Section
from lic.codec.benchmark.report.drawing import (
    measured_style,
    new_figure,
    plain,
    published_style,
    saved,
)
from lic.codec.benchmark.report.speed_plots import speed_figures
from lic.codec.benchmark.report.tables import slug_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond lic's rates, where classic codecs go on.
_ROOM = 1.35


def plot_files(content: Content) -> dict[str, bytes]:
    """Return pictures by their names: rate and distortion by metric, and those of speed.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    files: dict[str, bytes] = {}
    for name, figure in _figures(content):
        for form in ("png", "svg"):
            files[f"{name}.{form}"] = saved(figure, form)
    return files


def _figures(content: Content) -> "Iterator[tuple[str, Figure]]":
    for section in content.sections:
        for metric in section.metrics:
            name = f"{slug_of(section.label)}-{slug_of(metric.label)}"
            yield name, _rate_distortion(section, metric)
    yield from speed_figures(content)


def _rate_distortion(section: Section, metric: Metric) -> "Figure":
    figure, axes = new_figure(7.2, 4.8)
    ours, theirs = 0, 0
    for curve in section.shown:
        label = curve.system
        if curve.kind == "published":
            style, theirs = published_style(theirs), theirs + 1
            label += "" if "published" in label else " (published)"
        else:
            style, ours = measured_style(ours), ours + 1
        points = [(rate, quality) for _, rate, quality in points_of(curve, metric)]
        if points:
            axes.plot(*zip(*points, strict=True), label=plain(label), **style)
    _limit(axes, section, metric)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(metric.axis + (", less is better" if metric.falls else ""))
    axes.set_title(plain(section.label), loc="left", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="upper right" if metric.falls else "lower right")
    return figure


def _limit(axes: "Axes", section: Section, metric: Metric) -> None:
    """Show the rates of lic's systems, and the qualities that curves have there."""
    ours = [c for c in section.measured if c.kind == "lic"] or section.measured
    most = _ROOM * max((rate for c in ours for _, rate, _ in points_of(c, metric)), default=1.0)
    seen = [q for c in section.shown for _, rate, q in points_of(c, metric) if rate <= most]
    axes.set_xlim(0, most)
    if seen:
        room = 0.05 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - room, max(seen) + room)
