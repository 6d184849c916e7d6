"""lic bench report: a page, plots and tables of results."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lic.cli import options, outputs
from lic.cli.console import Output
from lic.cli.extras import require
from lic.codec.errors import ConfigError, ImageError, OutputError

if TYPE_CHECKING:
    from lic.codec.benchmark.report.content import Content
    from lic.codec.benchmark.report.views import View
    from lic.codec.benchmark.schema import Results


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Files that lic bench rd and lic bench speed wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            "--anchors",
            help="System to compare with, measured or published; repeatable, the first is that of "
            "the headline. Default: classic codecs and some published ones.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures: some are coded again, to be looked at."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(help="Picture to look at, by name; repeatable. Default: the first three."),
    ] = None,
    view_bpp: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Rate of the files to look at. Default: that of the first system's middle one.",
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the plots as PNG and SVG; needs matplotlib.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for the tables as Markdown, LaTeX and CSV.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Show results as one HTML page that needs no network, and as plots and tables for papers."""
    from lic.codec.benchmark.anchors import published_beside
    from lic.codec.benchmark.report.content import gather
    from lic.codec.benchmark.report.page import make_page

    out = Output()
    if pictures is None and (view or view_bpp):
        raise ConfigError("--view and --view-bpp need --pictures FOLDER, where the pictures lie")
    if plots is not None:
        require("report", "matplotlib")
    outputs.check_target(output, force=force)
    for folder in (plots, tables):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; expected a folder")
    content = gather(_read(results), published_beside, anchor)
    views = _views(content, pictures, view or [], view_bpp, out) if pictures else []
    command = _command(
        results,
        {
            "--anchor": anchor or [],
            "--pictures": [pictures] if pictures else [],
            "--view": view or [],
            "--view-bpp": [] if view_bpp is None else [view_bpp],
            "--plots": [plots] if plots else [],
            "--tables": [tables] if tables else [],
            "-o": [output],
        },
    )
    extra: dict[Path, bytes] = {}
    if tables:
        from lic.codec.benchmark.report.tables import table_files

        extra |= {tables / name: data for name, data in table_files(content).items()}
    if plots:
        from lic.codec.benchmark.report.plots import plot_files

        extra |= {plots / name: data for name, data in plot_files(content).items()}
    for path in extra:
        outputs.check_target(path, force=force)
    page = make_page(content, views, command)
    for path, data in {**extra, output: page}.items():
        outputs.write_output(data, path, force=force)
    for folder in filter(None, (plots, tables)):
        out.note(f"{folder}: {sum(path.parent == folder for path in extra)} files")
    out.note(f"{output}: {len(page) / 1e6:.1f} MB, opens in any browser")


def _read(paths: Sequence[Path]) -> "Mapping[str, Results]":
    """Read results; files of one name are told apart by their paths.

    Raises:
        ImageError: a file cannot be read.
        ConfigError: it holds no results.
    """
    from lic.codec.benchmark.schema import read_results

    names = [path.name for path in paths]
    found: dict[str, Results] = {}
    for path in dict.fromkeys(paths):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
        name = path.name if names.count(path.name) == 1 else str(path)
        found[name] = read_results(data, str(path))
    return found


def _views(
    content: "Content", folder: Path, names: list[str], rate: float | None, out: Output
) -> "list[View]":
    from lic.codec.benchmark.report.reconstruct import reconstruct
    from lic.codec.benchmark.report.views import make_views

    if not content.sections:
        raise ConfigError("--pictures: found no results of lic bench rd; expected a file of them")
    views = make_views(content.sections, folder, names, reconstruct, rate=rate)
    for shown in views:
        for version in shown.versions:
            if version.note:
                out.note(f"{shown.picture}, {version.system} {version.setting}: {version.note}")
    return views


def _command(results: Sequence[Path], chosen: Mapping[str, Sequence[object]]) -> str:
    """Return the command line that makes this report."""
    words = ["lic", "bench", "report", *map(str, results)]
    for name, values in chosen.items():
        for value in values:
            words += [name, str(value)]
    return shlex.join(words)
