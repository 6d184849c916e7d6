"""lic: the command line's entry point."""

import io
import sys
from typing import Annotated

import typer

from lic.cli import compress, decompress, evaluate, info, models
from lic.cli.console import Exit, Output, exit_code

app = typer.Typer(
    name="lic",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learned image codecs: compress, decompress, train, export.",
    epilog="Exit codes: 0 ok, 1 unexpected, 2 usage, 3 cannot read input, 4 corrupt or truncated, "
    "5 model missing or mismatch, 6 limit exceeded, 7 output exists or cannot be written, 8 batch "
    "finished with failures, 9 training or export failed, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lic {version('lic')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command()(compress.compress)
app.command()(decompress.decompress)
app.command()(info.info)
app.command()(info.verify)
app.add_typer(models.app, name="models")
app.command("eval")(evaluate.evaluate)
app.command()(evaluate.demo)


# Their many options cost every other command a tenth of a second, so they are read when wanted.
_LATER = {
    "allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False
}  # fmt: skip


@app.command("train", add_help_option=False, context_settings=_LATER)
def _train(context: typer.Context) -> None:
    """Train models."""
    from lic.cli.train import app as later

    later(context.args, prog_name="lic train")


@app.command("data", add_help_option=False, context_settings=_LATER)
def _data(context: typer.Context) -> None:
    """Prepare photos for training."""
    from lic.cli.data import app as later

    later(context.args, prog_name="lic data")


@app.command("export", add_help_option=False, context_settings=_LATER)
def _export(context: typer.Context) -> None:
    """Make ONNX graphs and bundles; 'export check' tells what an NPU will run of them."""
    if context.args[:1] == ["check"]:
        from lic.cli.export_check import app as check

        check(context.args[1:], prog_name="lic export check")
    else:
        from lic.cli.export import app as later

        later(context.args, prog_name="lic export")


@app.command("bench", add_help_option=False, context_settings=_LATER)
def _bench(context: typer.Context) -> None:
    """Measure codecs, compare them, and show the results."""
    from lic.cli.bench import app as later

    later(context.args, prog_name="lic bench")


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code; every failure becomes a message."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # File names may have letters that a redirected stream's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="lic")
    except SystemExit as finished:
        # Typer turns Ctrl-C into this exit without a word.
        if finished.code == Exit.INTERRUPTED:
            Output().error(KeyboardInterrupt())
        return finished.code if isinstance(finished.code, int) else int(Exit.UNEXPECTED)
    except (Exception, KeyboardInterrupt) as error:
        verbosity = sum(a.count("v") for a in arguments if a in ("-v", "-vv", "-vvv"))
        Output(verbosity + arguments.count("--verbose")).error(error)
        return int(exit_code(error))
    return int(Exit.OK)


def main() -> None:
    """Entry point of the `lic` command."""
    sys.exit(run())
