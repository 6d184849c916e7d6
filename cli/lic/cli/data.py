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
from lic.trainers.shard_writer import Sharded, index_shards, write_shards
from lic.trainers.shards import INDEX

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
    _list_skipped(out, found.skipped, f"; {target} lists all")
    values = {
        "folder": str(target), "photos": found.photos, "crops": found.crops, "made": found.made,
        "skipped": {str(path): reason for path, reason in found.skipped.items()},
    }  # fmt: skip
    text = f"{found.crops} crops of {found.photos} photos ({found.made} new) -> {target}"
    out.result(values, text)
    if not found.crops:
        raise typer.Exit(Exit.BATCH)


@app.command("shards")
def shards(
    source: Annotated[
        Path, typer.Argument(help="Folder of photos, or one with train2017, as COCO has.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder of the shards; 'lic train' takes it.")],
    shard_mib: Annotated[
        int, typer.Option(min=1, max=2**20, help="Most MiB of a shard, unless by one photo alone.")
    ] = 1024,
    prefix: Annotated[list[str] | None, typer.Option(help=_HELP["prefix"])] = None,
    force: Annotated[
        bool,
        typer.Option("-f", "--force", help="Replace shards of other photos or another size."),
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write photos as they are into tar archives of the WebDataset layout, with an index.

    Goes on where it stopped.
    """
    out = Output(-1 if quiet else 0, as_json)
    with _told_if_stopped(out) as done, _bar(out, done) as progress:
        found = write_shards(
            source, target,
            shard_bytes=shard_mib * 2**20, prefixes=tuple(prefix or ()), force=force,
            progress=progress,
        )  # fmt: skip
    _list_skipped(out, found.skipped)
    text = f"{found.photos} photos in {found.shards} shards ({found.made} new) -> {target}"
    skipped = {str(path): reason for path, reason in found.skipped.items()}
    out.result({"folder": str(target), **_counts(found), "skipped": skipped}, text)


@app.command("index")
def index(
    places: Annotated[
        list[str],
        typer.Argument(metavar="SHARD...", help="Archives: paths or URLs, in their order."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The index.")] = Path(INDEX),
    base: Annotated[
        str,
        typer.Option(
            help="URL or folder that the shards will be read from. Default: where they are now."
        ),
    ] = "",
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the index of shards that are there, for 'lic train'; reads each once, to its end."""
    out = Output(-1 if quiet else 0, as_json)
    with _bar(out, [0, 0]) as progress:
        found = index_shards(places, output, base=base, force=force, progress=progress)
    text = f"{found.photos} photos in {found.shards} shards -> {output}"
    out.result({"index": str(output), **_counts(found)}, text)


def _counts(found: Sharded) -> dict[str, int]:
    return {
        "photos": found.photos, "shards": found.shards, "made": found.made, "bytes": found.bytes,
    }  # fmt: skip


def _list_skipped(out: Output, skipped: dict[Path, str], where: str = "") -> None:
    for path, reason in list(skipped.items())[:_LISTED]:
        out.note(f"left out {path}: {reason}")
    if len(skipped) > _LISTED:
        out.note(f"left out {len(skipped) - _LISTED} more{where}")


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
