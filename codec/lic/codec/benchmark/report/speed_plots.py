"""Plots of speed for papers: stages, quality against speed, and growth with the picture's size."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lic.codec.benchmark.report.content import Content, Section, curve_of
from lic.codec.benchmark.report.deltas import deltas
from lic.codec.benchmark.report.drawing import COLOURS, MARKS, new_figure, plain
from lic.codec.benchmark.report.tables import slug_of
from lic.codec.benchmark.schema import SpeedRun
from lic.codec.benchmark.speed import by_size, engine_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def speed_figures(content: Content) -> "Iterator[tuple[str, Figure]]":
    """Yield figures and their names; none of what was not measured."""
    runs = [run for _, run in content.runs if not run.error]
    for height, width, batch in dict.fromkeys(map(_size, runs)):
        same = [run for run in runs if _size(run) == (height, width, batch)]
        name = f"{height}x{width}" + (f"-batch-{batch}" if batch > 1 else "")
        yield f"stages-{name}", _stages(same)
        drawn = [
            (section, figure)
            for section in content.sections
            if section.anchors and (figure := _quality(same, section)) is not None
        ]
        for section, figure in drawn:
            over = f"{slug_of(section.label)}-" if len(drawn) > 1 else ""
            yield f"speed-and-bd-rate-{over}{name}", figure
    grown = [
        sorted(same, key=_megapixels)
        for same in by_size(run for run in runs if run.batch == 1)
        if len({_megapixels(run) for run in same}) > 1
    ]
    if grown:
        yield "growth", _growth(grown)


def _size(run: SpeedRun) -> tuple[int, int, int]:
    return run.height, run.width, run.batch


def _name(run: SpeedRun, among: Iterable[SpeedRun]) -> str:
    several = len({other.picture for other in among}) > 1
    return f"{run.system} {run.setting}, {engine_of(run)}" + f", {run.picture}" * several


def _stages(runs: Sequence[SpeedRun]) -> "Figure":
    """Draw medians by stage, encode and decode of every run below each other."""
    bars = [
        (f"{_name(run, runs)}, {way}", times.stages)
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
        if run.decode is not None
        and (curve := curve_of(section, run)) is not None
        and (found := percent.get(curve.system)) is not None
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
    legend = axes.legend(fontsize=7, frameon=False, loc="best")
    for handle in legend.legend_handles:
        # As large as dots, they would lie upon each other.
        handle.set_sizes([40.0])  # type: ignore[union-attr]
    axes.set_xlabel("decoded megapixels a second; area: peak memory")
    axes.set_ylabel(plain(f"BD-rate against {anchor}, {metric.label} (%)"))
    return figure


def _megapixels(run: SpeedRun) -> float:
    return run.width * run.height / 1e6


def _growth(grown: Sequence[Sequence[SpeedRun]]) -> "Figure":
    figure, axes = new_figure(7.2, 4.4)
    for i, runs in enumerate(grown):
        name = _name(runs[0], [run for same in grown for run in same])
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
