"""lic bench: numbers that one command repeats."""

import typer

from lic.cli import bench_speed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure codecs on this machine.",
)


@app.callback()
def _group() -> None:
    pass


app.command("speed")(bench_speed.speed)
