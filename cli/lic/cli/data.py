"""lic data: photos made ready for training."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from lic.cli import options
from lic.cli.console import Exit, Output
from lic.trainers.prepare import PrepareConfig, prepare

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_DEFAULT = PrepareConfig()
_HELP = {item.name: item.metadata["help"] for item in fields(PrepareConfig)}
_LISTED = 20


@app.callback()
def _group() -> None:
    """Prepare photos for training."""


@app.command("prepare")
def prepare_crops(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of photos, or one with train2017 (and val2017), as COCO has."),
    ],
    target: Annotated[Path, typer.Argument(help="Folder of the crops; 'lic train --prepared'.")],
    width: Annotated[int, typer.Option(help=_HELP["width"])] = _DEFAULT.width,
    height: Annotated[int, typer.Option(help=_HELP["height"])] = _DEFAULT.height,
    per_photo: Annotated[int, typer.Option(help=_HELP["per_photo"])] = _DEFAULT.per_photo,
    scale_short_side: Annotated[
        int, typer.Option(help=_HELP["scale_short_side"])
    ] = _DEFAULT.scale_short_side,
    seed: Annotated[int, typer.Option(help=_HELP["seed"])] = _DEFAULT.seed,
    prefix: Annotated[list[str] | None, typer.Option(help=_HELP["prefix"])] = None,
    include_val: Annotated[
        bool, typer.Option("--include-val", help="Also make crops of val2017, to validate on.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", min=0, help="Processes; 0: one for each CPU.")
    ] = 0,
    force: Annotated[
        bool,
        typer.Option("-f", "--force", help="Remove the crops that are there and start over."),
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Make crops of photos for 'lic train --prepared'.

    Goes on where it stopped, and takes photos that were added since.
    """
    config = PrepareConfig(
        width=width, height=height, per_photo=per_photo, scale_short_side=scale_short_side,
        seed=seed, prefix=tuple(prefix or ()),
    )  # fmt: skip
    out = Output(-1 if quiet else 0, as_json)
    with _told_if_stopped(out) as done, _bar(out, done) as progress:
        found = prepare(
            source, target, config,
            include_val=include_val, force=force, jobs=jobs or _cpus(), progress=progress,
        )  # fmt: skip
    for path, reason in list(found.skipped.items())[:_LISTED]:
        out.note(f"left out {path}: {reason}")
    if len(found.skipped) > _LISTED:
        out.note(f"left out {len(found.skipped) - _LISTED} more; {target} lists all")
    values = {
        "folder": str(target), "photos": found.photos, "crops": found.crops, "made": found.made,
        "skipped": {str(path): reason for path, reason in found.skipped.items()},
    }  # fmt: skip
    text = f"{found.crops} crops of {found.photos} photos ({found.made} new) -> {target}"
    out.result(values, text)
    if not found.crops:
        raise typer.Exit(Exit.BATCH)


def _cpus() -> int:
    """Return how many CPUs this process may use, which in a container are not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _told_if_stopped(out: Output) -> Iterator[list[int]]:
    """Give a place for [photos done, photos]; if something ends the work early, say what stays."""
    done = [0, 0]
    try:
        yield done
    except BaseException:
        if done[0]:
            out.note(f"{done[0]} of {done[1]} photos done; the same command goes on from there")
        raise


@contextlib.contextmanager
def _bar(out: Output, done: list[int]) -> Iterator[Callable[[int, int], None]]:
    """Give what takes the progress; it shows on a terminal, unless nobody wants to see it."""

    def count(now: int, total: int) -> None:
        done[:] = now, total

    if out.verbosity < 0 or not sys.stderr.isatty():
        yield count
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output is for results, whatever else shows on the terminal.
    with Progress(*columns, console=out.err, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None)

        def show(now: int, total: int) -> None:
            count(now, total)
            bar.update(task, completed=now, total=total)

        yield show
