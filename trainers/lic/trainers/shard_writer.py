"""Photos written into shards, as they are, and indexes of shards that others wrote.

What a shard holds depends on the names and sizes of the photos alone, so that a run that was
killed finds what is finished, and the same photos give the same bytes.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from lic.codec.errors import ConfigError, ImageError, OutputError, TrainingError
from lic.trainers import ranges
from lic.trainers.files import TEMPORARY, write_whole, writing
from lic.trainers.photos import find_photos, training_part
from lic.trainers.shards import (
    INDEX,
    Shard,
    is_below,
    make_shard,
    read_index,
    scan_shard,
    write_index,
)
from lic.trainers.tar_headers import END, header, padded

_NAME = "photos-{:05}.tar"
_SHARD = re.compile(r"photos-\d{5,}\.tar")
_LEFTOVER = re.compile(rf"({_SHARD.pattern}|{re.escape(INDEX)})\.\w+{re.escape(TEMPORARY)}")
_STAYS = "; finished shards stay, and the same command goes on from there"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What came of a run.

    Attributes:
        photos: in the shards.
        shards: that are there.
        made: of them, by this run.
        bytes: of all shards.
        skipped: photos that could not be taken, and why.
    """

    photos: int
    shards: int
    made: int
    bytes: int
    skipped: dict[Path, str] = field(default_factory=dict)


def write_shards(
    source: Path,
    target: Path,
    *,
    shard_bytes: int,
    prefixes: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Sharded:
    """Write the photos below `source` into shards in `target`, or go on where a run was killed.

    Args:
        source: folder of photos, or one with train2017 in it.
        target: gets the shards and their index; made if missing.
        shard_bytes: size that a shard does not exceed, unless by one photo alone.
        prefixes: take only photos whose name starts so.
        force: replace shards of other photos or another size.
        progress: is told how many photos are in finished shards, and of how many.

    Raises:
        ImageError: no photos.
        TrainingError: a photo changed under way.
        OutputError: `target` holds something else, or cannot be written.
    """
    photos = find_photos(source, prefixes)
    skipped = {path: why for path in photos if (why := _trouble(path))}
    plans = list(_plan(training_part(source), [p for p in photos if p not in skipped], shard_bytes))
    if not plans:
        path, why = next(iter(skipped.items()))
        raise ImageError(
            f"{source}: none of {len(photos)} photos can be read, such as {path}: {why}"
        )
    todo = _open(target, plans, force=force)
    total = len(photos) - len(skipped)
    done = total - sum(len(plan.paths) for plan in todo)
    for plan in todo:
        path = target / plan.shard.name
        with writing(path, stays=_STAYS):
            write_whole(path, plan.write)
        done += len(plan.paths)
        if progress:
            progress(done, total)
    shards = [plan.shard for plan in plans]
    if not _is_indexed(target, shards):
        write_index(target / INDEX, "", shards)
    return Sharded(
        photos=total, shards=len(plans), made=len(todo),
        bytes=sum(shard.length for shard in shards), skipped=skipped,
    )  # fmt: skip


def _trouble(path: Path) -> str:
    """Return why a photo cannot be taken; nothing if it can."""
    if not path.is_file():
        return "no file"
    try:
        path.open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@dataclass(frozen=True)
class _Plan:
    """A shard before it is written."""

    shard: Shard
    root: Path
    paths: list[Path]

    def write(self, file: BinaryIO) -> None:
        """Write the shard.

        Raises:
            TrainingError: a photo is not what it was when this was planned.
        """
        for path, size in zip(self.paths, self.shard.sizes.tolist(), strict=True):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise TrainingError(
                    f"{path}: cannot be read any more ({error.strerror}); run the same command "
                    "again once it can, or once it is gone"
                ) from None
            if len(data) != size:
                raise TrainingError(
                    f"{path}: found {len(data)} bytes; expected {size}, as when the command began; "
                    "run it again once nothing writes there"
                )
            file.write(header(_member(path, self.root), size))
            file.write(data)
            file.write(bytes(padded(size) - size))
        file.write(END)


def _member(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _plan(root: Path, photos: Sequence[Path], most: int) -> Iterator[_Plan]:
    """Yield shards of at most so many bytes, photos in their order."""
    found: dict[str, tuple[int, int]] = {}
    first, end, number = 0, 0, 0
    for place, path in enumerate(photos):
        name, size = _member(path, root), path.stat().st_size
        start = len(header(name, size))
        if found and end + start + padded(size) + len(END) > most:
            shard = make_shard(_NAME.format(number), end + len(END), found)
            yield _Plan(shard, root, list(photos[first:place]))
            found, first, end, number = {}, place, 0, number + 1
        found[name] = end + start, size
        end += start + padded(size)
    if found:
        shard = make_shard(_NAME.format(number), end + len(END), found)
        yield _Plan(shard, root, list(photos[first:]))


def _open(target: Path, plans: Sequence[_Plan], *, force: bool) -> list[_Plan]:
    """Return the shards that are still to be written, in a folder ready for them.

    Until they are, its index says that it is not complete.

    Raises:
        OutputError: it holds what this command did not write, or other shards.
    """
    shards = [plan.shard for plan in plans]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for leftover in target.glob(f"*.*{TEMPORARY}"):
            if _LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()
        present = _shards_in(target)
        finished = [shard for shard in shards if _is_written(target, shard)]
        other = present - {target / shard.name for shard in finished}
        if other and not force:
            raise OutputError(
                f"{min(other)}: is damaged, or holds other photos than it would now: some were "
                "added or changed, or --shard-mib or --prefix was another; name another folder, or "
                "replace such shards with --force"
            )
        if other or not _is_indexed(target, shards):
            write_index(target / INDEX, "", [], complete=False)
        for path in other:
            path.unlink()
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    kept = {shard.name for shard in finished}
    return [plan for plan in plans if plan.shard.name not in kept]


def _shards_in(target: Path) -> set[Path]:
    """Return the shards in a folder of this command.

    Raises:
        OutputError: it holds something else.
    """
    there = {path for path in target.iterdir() if not path.name.startswith(".")}
    found = {path for path in there if _SHARD.fullmatch(path.name)}
    # The index is there before the first shard is.
    other = there if there and target / INDEX not in there else there - found - {target / INDEX}
    if other:
        raise OutputError(
            f"{target}: holds other files, such as {min(other).name}; expected a new or empty "
            "folder, or one that this command made"
        )
    return found


def _is_written(target: Path, shard: Shard) -> bool:
    try:
        return scan_shard(shard.name, str(target / shard.name)).holds(shard)
    except TrainingError:
        return False


def _is_indexed(target: Path, shards: Sequence[Shard]) -> bool:
    """Return whether the index of a folder lists these very shards."""
    try:
        base, found = read_index(target / INDEX)
    except TrainingError:
        return False
    return (
        base == ""
        and [shard.name for shard in found] == [shard.name for shard in shards]
        and all(a.holds(b) for a, b in zip(found, shards, strict=True))
    )


def index_shards(
    places: Sequence[str],
    target: Path,
    *,
    base: str = "",
    force: bool = False,
    progress: Progress | None = None,
) -> Sharded:
    """Write an index of shards that are there, each read once from beginning to end.

    Args:
        places: of the shards, all of them paths or all URLs; their order is that of the photos.
        target: the index.
        base: where the shards will be read from, a URL or a folder; else where they are now.
        force: replace an index that is there.
        progress: is told how many shards were read, and of how many.

    Raises:
        ConfigError: places that no index can have together.
        TrainingError: a shard that cannot be read in parts; the message says why.
        ImageError: no pictures in any.
        OutputError: `target` is there, or cannot be written.
    """
    if target.exists() and not force:
        raise OutputError(
            f"{target}: exists already; name another file, or replace it with --force"
        )
    root, names = _names(places)
    shards = []
    for number, (name, place) in enumerate(zip(names, places, strict=True), 1):
        shards.append(scan_shard(name, place))
        if progress:
            progress(number, len(places))
    photos = sum(map(len, shards))
    if not photos:
        raise ImageError(f"{places[0]}: no pictures in {len(places)} shards; expected photos")
    write_index(target, base or _base(root, target.absolute().parent), shards)
    size = sum(shard.length for shard in shards)
    return Sharded(photos=photos, shards=len(shards), made=len(shards), bytes=size)


def _base(root: str, folder: Path) -> str:
    """Return how an index in a folder calls where its shards lie."""
    if ranges.is_url(root) or not Path(root).is_relative_to(folder):
        return root
    return "" if Path(root) == folder else Path(root).relative_to(folder).as_posix()


def _names(places: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder or URL that all places lie below, and their names there.

    Raises:
        ConfigError: there is none, or a name that cannot stand in an index.
    """
    remote = [place for place in places if ranges.is_url(place)]
    if remote and len(remote) < len(places):
        raise ConfigError(f"found both paths and URLs, such as {remote[0]}; expected one kind")
    if remote:
        levels = zip(*(place.split("/")[:-1] for place in places), strict=False)
        root = "/".join(level[0] for level in takewhile(lambda parts: len(set(parts)) == 1, levels))
        names = [place[len(root) + 1 :] for place in places]
        if ranges.is_http(root):
            names = [unquote(name) for name in names]
    else:
        paths = [Path(place).absolute() for place in places]
        root = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(root).as_posix() for path in paths]
    for place, name in zip(places, names, strict=True):
        # What follows a ?, such as a signature, belongs to one address alone.
        if bool(remote) != ranges.is_url(root) or not is_below(name) or set("?#") & set(name):
            raise ConfigError(
                f"{place}: cannot stand in an index with the others; expected shards below one "
                r"folder or URL, without any of : ? # \ in their names"
            )
    if len(set(names)) < len(names):
        raise ConfigError("a shard is named twice; expected each once")
    return root, names
