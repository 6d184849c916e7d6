"""Tables of a report as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lic.codec.benchmark.quality import Metric
from lic.codec.benchmark.report.content import Content, Section
from lic.codec.benchmark.report.deltas import LITTLE_OVERLAP, Delta, deltas
from lic.codec.benchmark.schema import DirectionTimes, SpeedRun
from lic.codec.benchmark.speed import size_of

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings.

    Attributes:
        name: of its files.
        columns: heading, and digits of its numbers; None for words and whole numbers.
        rows: cells, None where nothing was measured.
        note: what a reader must know.
    """

    name: str
    columns: tuple[tuple[str, int | None], ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def table_files(content: Content) -> dict[str, bytes]:
    """Return files by their names: every table in each of three forms."""
    forms: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": csv_text}
    return {
        f"{table.name}.{suffix}": write(table).encode()
        for table in make_tables(content)
        for suffix, write in forms.items()
    }


def make_tables(content: Content) -> Iterator[Table]:
    """Yield points, BD-rates by metric, pictures, and speed, as far as they are there."""
    for section in content.sections:
        slug = slug_of(section.label)
        yield _points(section, slug)
        yield from (_deltas(section, metric, slug) for metric in section.metrics if section.anchors)
        yield _pictures(section, slug)
    if content.runs:
        yield _speed([run for _, run in content.runs])


def slug_of(label: str) -> str:
    """Return a label as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "results"


def _points(section: Section, slug: str) -> Table:
    metrics = section.metrics
    rows: list[tuple[Cell, ...]] = []
    for curve in section.shown:
        for point in curve.points:
            numbers = (metric.of(point.mean) for metric in metrics)
            setting = "" if curve.kind == "published" else point.setting
            origin = "published" if curve.kind == "published" else "measured"
            rows.append((curve.system, origin, setting, point.mean.get("bpp"), *numbers))
    return Table(
        name=f"{slug}-points",
        columns=(
            ("system", None), ("origin", None), ("setting", None), ("bpp", 4),
            *((metric.axis, metric.digits) for metric in metrics),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _deltas(section: Section, metric: Metric, slug: str) -> Table:
    found = {(d.system, d.anchor): d for d in deltas(section, metric)}
    refused = [f"{d.system} against {d.anchor}: {d.refusal}" for d in found.values() if d.refusal]
    few = f"* the curves share less than {LITTLE_OVERLAP:.0%} of the narrower one's quality"
    notes = [few] if any(_little(d) for d in found.values()) else []
    rows = tuple(
        (curve.system, *(_delta(found.get((curve.system, anchor))) for anchor in section.anchors))
        for curve in section.shown
    )
    key = slug_of(metric.label)
    return Table(
        name=f"{slug}-bd-rate-{key}",
        columns=(
            (f"BD-rate by {metric.label} (%)", None),
            *((anchor, None) for anchor in section.anchors),
        ),
        rows=rows,
        note="; ".join(notes + refused),
    )


def _delta(delta: Delta | None) -> str:
    if delta is None:
        return ""
    if delta.percent is None:
        return "refused"
    return f"{delta.percent:+.1f}{'*' if _little(delta) else ''}"


def _little(delta: Delta) -> bool:
    return delta.overlap is not None and delta.overlap < LITTLE_OVERLAP


def _pictures(section: Section, slug: str) -> Table:
    metrics = section.metrics
    rows: list[tuple[Cell, ...]] = []
    for curve in section.measured:
        for point in curve.points:
            for row in point.rows:
                numbers = {
                    "psnr": row.psnr,
                    "psnr_y": row.psnr_y,
                    "ms_ssim": row.ms_ssim,
                    "lpips": row.lpips,
                }
                named = (row.picture, curve.system, point.setting, row.bytes, row.bpp)
                rows.append((*named, *(metric.of(numbers) for metric in metrics), row.error or ""))
    return Table(
        name=f"{slug}-pictures",
        columns=(
            ("picture", None), ("system", None), ("setting", None), ("bytes", None), ("bpp", 4),
            *((metric.axis, metric.digits) for metric in metrics), ("error", None),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _speed(runs: Sequence[SpeedRun]) -> Table:
    directions = ("encode", "decode")
    columns: list[tuple[str, int | None]] = [
        (name, None)
        for name in (
            "system",
            "setting",
            "backend",
            "provider",
            "precision",
            "threads",
            "picture",
            "HxW",
        )
    ]
    for way in directions:
        columns += [(f"{way} median (ms)", 1), (f"{way} p95 (ms)", 1), (f"{way} Mpx/s", 2)]
    columns += [
        ("peak memory (MB)", 1), ("cold start (ms)", 0), ("kMAC/px", 1), ("parameters", None),
        ("error", None),
    ]  # fmt: skip
    return Table(
        name="speed",
        columns=tuple(columns),
        rows=tuple(_speed_row(run) for run in runs),
        note="kMAC/px and parameters are counted, everything else was measured",
    )


def _speed_row(run: SpeedRun) -> tuple[Cell, ...]:
    # Of a classic codec, what Pillow takes is not told.
    automatic = "" if run.backend == "Pillow" else "automatic"
    where = (run.backend, run.provider or run.device, run.precision, run.threads or automatic)
    macs = sum(run.kmac_per_pixel.values()) if run.kmac_per_pixel else None
    memory = None if run.peak_memory is None else run.peak_memory / 1e6
    counted = (memory, run.cold_start, macs, run.parameters, run.error or "")
    named = (run.system, run.setting, *where, run.picture, size_of(run))
    return (*named, *_times(run.encode), *_times(run.decode), *counted)


def _times(times: DirectionTimes | None) -> tuple[Cell, ...]:
    if times is None:
        return (None, None, None)
    return (times.wall.median, times.wall.p95, times.mpx_per_s)


def _text(cell: Cell, digits: int | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str) or digits is None:
        return str(cell)
    return f"{cell:.{digits}f}"


def _texts(table: Table, escape: Callable[[str], str]) -> list[list[str]]:
    digits = [each for _, each in table.columns]
    return [
        [escape(_text(cell, d)) for cell, d in zip(row, digits, strict=True)] for row in table.rows
    ]


def markdown(table: Table) -> str:
    """Return a table for Markdown; numbers stand to the right."""
    heads = [_markdown(name) for name, _ in table.columns]
    rules = ["---" if digits is None else "---:" for _, digits in table.columns]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *_texts(table, _markdown))]
    return "\n".join(lines + (["", _markdown(table.note)] if table.note else [])) + "\n"


def _markdown(text: str) -> str:
    one_line = " ".join(text.split())
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", one_line)


def latex(table: Table) -> str:
    """Return a tabular environment that needs booktabs."""
    layout = "".join("l" if digits is None else "r" for _, digits in table.columns)
    heads = [_latex(name) for name, _ in table.columns]
    rows = [" & ".join(row) + r" \\" for row in (heads, *_texts(table, _latex))]
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    note = [f"% {' '.join(table.note.split())}"] if table.note else []
    return "\n".join([*note, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def csv_text(table: Table) -> str:
    """Return CSV with all digits; what was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for name, _ in table.columns])
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return buffer.getvalue()
