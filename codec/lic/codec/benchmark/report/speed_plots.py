"""Plots of speed for papers: stages, quality against speed, and growth with the picture's size."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lic.codec.benchmark.report.content import Content, Section
from lic.codec.benchmark.report.deltas import deltas
from lic.codec.benchmark.report.drawing import COLOURS, MARKS, new_figure, plain
from lic.codec.benchmark.schema import SpeedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def speed_figures(content: Content) -> "Iterator[tuple[str, Figure]]":
    """Yield figures and their names; none of what was not measured."""
    runs = [run for _, run in content.runs if not run.error]
    sizes = dict.fromkeys((run.width, run.height, run.batch) for run in runs)
    for width, height, batch in sizes:
        same = [r for r in runs if (r.width, r.height, r.batch) == (width, height, batch)]
        name = f"{width}x{height}" + (f"-batch-{batch}" if batch > 1 else "")
        yield f"stages-{name}", _stages(same)
        if content.sections and content.sections[0].anchors:
            figure = _quality(same, content.sections[0])
            if figure is not None:
                yield f"speed-and-bd-rate-{name}", figure
    grown = _grown(runs)
    if grown:
        yield "growth", _growth(grown)


def _name(run: SpeedRun) -> str:
    return f"{run.system} {run.setting}, {run.backend}, {run.device}"


def _stages(runs: Sequence[SpeedRun]) -> "Figure":
    """Draw medians by stage, encode and decode of every run below each other."""
    bars = [
        (f"{_name(run)}, {way}", times.stages)
        for run in runs
        for way, times in (("encode", run.encode), ("decode", run.decode))
        if times is not None
    ]
    figure, axes = new_figure(7.2, 1.1 + 0.32 * len(bars))
    names = list(dict.fromkeys(stage for _, stages in bars for stage in stages))
    for i, (_, stages) in enumerate(bars):
        left = 0.0
        for stage, spent in stages.items():
            colour, hatch = _fill(names.index(stage))
            axes.barh(i, spent.median, left=left, height=0.7, color=colour, hatch=hatch)
            left += spent.median
    axes.set_yticks(range(len(bars)), [plain(label) for label, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, medians of the stages")
    _legend(axes, names)
    return figure


def _fill(i: int) -> tuple[str, str | None]:
    """Return colour and hatch; there are more stages than colours."""
    return COLOURS[i % len(COLOURS)], "///" if i >= len(COLOURS) else None


def _legend(axes: "Axes", names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = []
    for i, name in enumerate(names):
        colour, hatch = _fill(i)
        patches.append(Patch(facecolor=colour, hatch=hatch, label=plain(name)))
    axes.legend(handles=patches, fontsize=7, frameon=False, ncols=2)


def _quality(runs: Sequence[SpeedRun], section: Section) -> "Figure | None":
    """Draw BD-rate against decoding speed, the area of a mark for peak memory."""
    anchor, metric = section.anchors[0], section.metrics[0]
    percent = {d.system: d.percent for d in deltas(section, metric) if d.anchor == anchor}
    percent[anchor] = 0.0
    dots = [
        (run, run.decode.mpx_per_s, found)
        for run in runs
        if run.decode is not None and (found := percent.get(run.system)) is not None
    ]
    if not dots:
        return None
    figure, axes = new_figure(7.2, 4.4)
    systems = list(dict.fromkeys(run.system for run, _, _ in dots))
    named: set[str] = set()
    most = max((run.peak_memory or 0 for run, _, _ in dots), default=0) or 1
    for run, speed, found in dots:
        i = systems.index(run.system)
        area = 30.0 if run.peak_memory is None else 250 * run.peak_memory / most
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        # The first of a system names all: its engines share the mark.
        label = plain(run.system) if run.system not in named else None
        named.add(run.system)
        axes.scatter(speed, found, s=area, alpha=0.6, label=label, **look)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.15)
    axes.legend(fontsize=7, frameon=False, loc="best")
    axes.set_xlabel("decoded megapixels a second; area: peak memory")
    axes.set_ylabel(plain(f"BD-rate against {anchor}, {metric.label} (%)"))
    return figure


def _grown(runs: Sequence[SpeedRun]) -> dict[str, list[SpeedRun]]:
    """Return runs of one system and engine, where there are several sizes."""
    found: dict[str, list[SpeedRun]] = {}
    for run in runs:
        if run.batch == 1:
            found.setdefault(_name(run), []).append(run)
    return {
        name: sorted(same, key=_megapixels)
        for name, same in found.items()
        if len({_megapixels(run) for run in same}) > 1
    }


def _megapixels(run: SpeedRun) -> float:
    return run.width * run.height / 1e6


def _growth(grown: dict[str, list[SpeedRun]]) -> "Figure":
    figure, axes = new_figure(7.2, 4.4)
    for i, (name, runs) in enumerate(grown.items()):
        for way, line in (("encode", "-"), ("decode", ":")):
            points = [
                (_megapixels(run), times.wall.median)
                for run in runs
                if (times := getattr(run, way)) is not None
            ]
            if points:
                look: dict[str, Any] = {
                    "color": COLOURS[i % len(COLOURS)],
                    "marker": MARKS[i % len(MARKS)],
                }
                label = plain(f"{name}, {way}")
                axes.plot(*zip(*points, strict=True), line, markersize=4, label=label, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("megapixels")
    axes.set_ylabel("milliseconds, median")
    axes.legend(fontsize=6, frameon=False)
    return figure
