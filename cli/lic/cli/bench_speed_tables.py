"""The tables of lic bench speed: several narrow ones, so that each fits into 100 columns."""

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from lic.codec.benchmark.schema import DirectionTimes, SpeedResults, SpeedRun
from lic.codec.benchmark.speed import engine_of, growth, size_of

Numbered = list[tuple[int, SpeedRun]]


def print_tables(results: SpeedResults, console: Console) -> None:
    """Print what was measured, times, stages, growth with the size, and what failed."""
    numbered = list(enumerate(results.runs, 1))
    good = [(number, row) for number, row in numbered if row.encode and row.decode]
    here = results.machine
    where = ", ".join([here.cpu, f"{here.cores} cores", here.system, *here.accelerators])
    console.print(f"[bold]{escape(where)}[/bold]")
    if good:
        for table in (_rows(good), _times(good), _stages(good), *_growth(good)):
            console.print(table)
        _say_notes(good, console)
    _say_failures(numbered, console)


def _rows(rows: Numbered) -> Table:
    table = _table("what was measured")
    several = len({row.picture for _, row in rows}) > 1
    numbers = ("HxW", "bytes", "cold ms", "MB", "kMAC/px", "param.")
    for heading in ("#", "system", "engine", *(["picture"] if several else []), *numbers):
        # Names may break, numbers may not.
        name = heading in ("system", "engine", "picture")
        side: JustifyMethod = "left" if name else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=not name)
    for number, row in rows:
        macs = row.kmac_per_pixel
        table.add_row(
            str(number),
            escape(f"{row.system} {row.setting}"),
            escape(engine_of(row)),
            *([escape(row.picture)] if several else []),
            size_of(row),
            _number(row.bytes, "{:,}"),
            _number(row.cold_start, "{:.0f}"),
            _number(row.peak_memory, "{:.0f}", 1e6),
            f"{macs['encode']:.4g} + {macs['decode']:.4g}" if macs else "",
            _number(row.parameters, "{:.2f} M", 1e6),
        )
    return table


def _times(rows: Numbered) -> Table:
    energy = any(d.energy is not None for _, row in rows for _, d in _directions(row))
    table = _table("milliseconds; CPU time is of all threads", "#", "direction")
    for heading in ("median", "p90", "p95", "p99", "CPU median", "CPU p90", "Mpx/s"):
        table.add_column(heading, justify="right")
    if energy:
        table.add_column("J", justify="right")
    for number, row in rows:
        for name, d in _directions(row):
            wall, cpu = d.wall, d.cpu
            spent = [wall.median, wall.p90, wall.p95, wall.p99, cpu.median, cpu.p90]
            cells = [*(f"{each:.1f}" for each in spent), f"{d.mpx_per_s:.3g}"]
            if energy:
                cells.append(_number(d.energy, "{:.3f}"))
            table.add_row(str(number), name, *cells)
    return table


def _stages(rows: Numbered) -> Table:
    table = _table("stages, median ms of wall time", "#", "direction", "stages")
    for number, row in rows:
        for name, d in _directions(row):
            text = ", ".join(f"{stage} {t.median:.1f}" for stage, t in d.stages.items())
            table.add_row(str(number), name, text)
    return table


def _growth(rows: Numbered) -> list[Table]:
    found = growth([row for _, row in rows])
    if not found:
        return []
    table = _table("growth: time ~ pixels ^ exponent")
    for heading in ("system", "engine", "sizes, Mpx"):
        table.add_column(heading, overflow="fold")
    for heading in ("encode", "decode", "encode CPU", "decode CPU"):
        table.add_column(heading, justify="right")
    for fit in found:
        exponents = [spent[name] for spent in (fit.wall, fit.cpu) for name in ("encode", "decode")]
        table.add_row(
            escape(f"{fit.row.system} {fit.row.setting}"),
            escape(engine_of(fit.row)),
            f"{fit.sizes}, {fit.low / 1e6:.3g} to {fit.high / 1e6:.3g}",
            *(f"{each:.2f}" for each in exponents),
        )
    return [table]


def _say_notes(rows: Numbered, console: Console) -> None:
    for number, row in rows:
        for note in row.fallbacks:
            console.print(f"{number} fell back: {escape(note)}")
        if row.peak_device_memory:
            console.print(f"{number} held {row.peak_device_memory / 1e6:.0f} MB on the device")


def _say_failures(rows: Numbered, console: Console) -> None:
    """Say each reason once, with all that it kept from being measured."""
    reasons: dict[str, list[str]] = {}
    for number, row in rows:
        if row.error:
            engine = f"{row.backend} {row.device}"
            named = f"{number} ({row.system} {row.setting}, {engine}, {size_of(row)})"
            reasons.setdefault(row.error, []).append(named)
    for reason, which in reasons.items():
        console.print(f"failed: {escape('; '.join(which))}: {escape(reason)}")


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=None, title_style="bold")


def _directions(row: SpeedRun) -> list[tuple[str, DirectionTimes]]:
    both = (("encode", row.encode), ("decode", row.decode))
    return [(name, times) for name, times in both if times]


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else form.format(value / unit if unit != 1 else value)
