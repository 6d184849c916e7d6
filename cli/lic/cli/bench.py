"""lic bench: numbers that can be checked, codecs side by side."""

import typer

from lic.cli import bench_compare, bench_rd, bench_report, bench_speed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Measure codecs side by side, on whole files; codec/BENCH.md tells how."""


app.command("rd")(bench_rd.rd)
app.command("compare")(bench_compare.compare)
app.command("anchors")(bench_compare.anchors)
app.command("import")(bench_compare.import_)
app.command("export")(bench_compare.export)
app.command("speed")(bench_speed.speed)
app.command("report")(bench_report.report)
