"""lic bench: measure, compare, report."""

import typer

from lic.cli import bench_report

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure codecs, compare them, and show the results.",
)


@app.callback()
def _bench() -> None:
    pass


app.command("report")(bench_report.report)
