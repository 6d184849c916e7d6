"""lic export check: what an NPU will run of a model."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.extras import require
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.export.targets.source import Graph

# Larger pictures make compilers slow and say nothing else; graphs of lic want multiples of 16.
_MOST = 4096
_STEP = 16


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def check(
    source: Annotated[
        str, typer.Argument(help="Name or path of a bundle, all its graphs; or an .onnx file.")
    ],
    target: Annotated[
        list[str] | None, typer.Option(help="What to check for; repeatable. Default: all.")
    ] = None,
    rate: options.RatePoint = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="Also ask the vendors' compilers that are installed; see the guide."
        ),
    ] = False,
    size: Annotated[
        str, typer.Option(help="HxW of the pictures that --compiled compiles for.")
    ] = "256x256",
    as_json: options.AsJson = False,
) -> None:
    """Tell for every operator whether a target's NPU runs it, why not, and what cures it."""
    require("export", "onnx")
    from lic.export.targets import compilers, report, rules

    # Before anything is read: a wrong name should not cost time.
    targets = [rules.load(name) for name in dict.fromkeys(target or rules.TARGETS)]
    pixels = _size(size)
    out = Output(as_json=as_json)
    for graph in _graphs(source, rate):
        reports = [report.check(graph, one) for one in targets]
        if compiled:
            reports = compilers.compile_reports(graph, reports, size=pixels)
        for done in reports:
            if as_json:
                out.result(done.to_dict(), "")
            else:
                out.out.print(done.render())


def _graphs(source: str, rate: int | None) -> "list[Graph]":
    from lic.codec.library import select
    from lic.export.targets.source import of_bundle, of_file

    if source.endswith(".onnx"):
        if rate is not None:
            raise ConfigError(f"-q is for bundles, but {source} is one graph; leave it out")
        return [of_file(Path(source))]
    return of_bundle(select(source, rate))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    sides = [int(side) for side in found.groups()] if found else []
    if not sides or any(not _STEP <= s <= _MOST or s % _STEP for s in sides):
        raise ConfigError(
            f"--size is {text!r}; expected HxW, multiples of {_STEP} up to {_MOST}, as 256x256"
        )
    return sides[0], sides[1]
