"""lic export: models for devices."""

import typer

from lic.cli.export_check import check

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Prepare models for devices."""


app.command()(check)
