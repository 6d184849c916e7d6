"""Folders of pictures, and which well-known set they are: by checksums, never by their names.

A set's name promises numbers that compare with published ones. So a folder has it only where every
picture of the set is there, byte for byte, and nothing else; whatever comes near is told apart in
the remark.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

from lic.codec.benchmark.schema import Dataset, DatasetPicture
from lic.codec.errors import ImageError, LicError
from lic.codec.image_io import (
    READABLE_SUFFIXES,
    Picture,
    apply_metadata_policy,
    read_picture,
    upright,
)

_FILE = Path(__file__).parent / "known_pictures.json"
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A well-known set, and those of its pictures whose checksums are known here.

    Attributes:
        name: what publications call it.
        count: pictures of the whole set.
        pictures: known ones.
    """

    name: str
    count: int
    pictures: tuple[DatasetPicture, ...]


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """A data set, and where its pictures lie, in the same order."""

    dataset: Dataset
    paths: tuple[Path, ...]


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder, or the one file; hidden files do not count.

    Raises:
        ImageError: there is none, no such folder, or it cannot be read.
    """
    try:
        if folder.is_file():
            return [folder]
        found = sorted(
            path
            # Not glob: to it, what cannot be read is empty.
            for path in folder.iterdir()
            if path.suffix.lower() in READABLE_SUFFIXES
            and not path.name.startswith(".")
            and path.is_file()
        )
    except OSError as error:
        raise ImageError(f"{folder}: cannot be read ({error.strerror})") from None
    if not found:
        raise ImageError(f"{folder}: holds no pictures")
    return found


def read_plain(source: Path | BinaryIO, name: str | None = None) -> Picture:
    """Read a picture as every codec here can hold it: upright, without alpha and metadata."""
    bare = apply_metadata_policy(read_picture(source, name=name), "none")
    return replace(upright(bare), alpha=None)


@cache
def known_sets() -> tuple[KnownSet, ...]:
    """Return the sets that are recognised."""
    return tuple(
        KnownSet(
            name=name,
            count=values["pictures"],
            pictures=tuple(
                DatasetPicture(name=file, sha256=digest, width=width, height=height)
                for file, digest, width, height in values["known"]
            ),
        )
        for name, values in json.loads(_FILE.read_text()).items()
    )


def open_dataset(folder: Path) -> OpenDataset:
    """Return the data set of a folder, or of one picture.

    A picture that cannot be read is one without size, so that what is measured says so.

    Raises:
        ImageError: no picture, or none that can be read.
    """
    paths = find_pictures(folder)
    found = [look_at(path) for path in paths]
    pictures = [picture for picture, _ in found]
    problems = [problem for _, problem in found if problem]
    if len(problems) == len(pictures):
        raise ImageError(f"{folder}: none of its pictures can be read ({problems[0]})")
    name, known = _name(folder, pictures)
    remarks = [*_unreadable(pictures), *([] if known else _resemblances(pictures))]
    dataset = Dataset(name=name, known=known, pictures=tuple(pictures), remark="; ".join(remarks))
    return OpenDataset(dataset=dataset, paths=tuple(paths))


def look_at(path: Path) -> tuple[DatasetPicture, str]:
    """Return a picture, without size if it cannot be read, and what is wrong with it."""
    digest = ""
    try:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        pixels = read_plain(io.BytesIO(data), path.name).pixels
    except (LicError, OSError, MemoryError) as error:
        return DatasetPicture(name=path.name, sha256=digest, width=0, height=0), str(error)
    height, width = pixels.shape[:2]
    return DatasetPicture(name=path.name, sha256=digest, width=width, height=height), ""


def _name(folder: Path, pictures: Sequence[DatasetPicture]) -> tuple[str, bool]:
    """Return what to call pictures, and whether it is a well-known set's name."""
    digests = Counter(picture.sha256 for picture in pictures)
    for each in known_sets():
        whole = Counter(picture.sha256 for picture in each.pictures)
        if len(each.pictures) == each.count and digests == whole:
            return each.name, True
    name = folder.resolve().name or "pictures"
    if any(name.casefold() == each.name.casefold() for each in known_sets()):
        # The remark says why; a plot that only shows the name must not mislead either.
        name = f"{name} (not the published set)"
    return name, False


def _unreadable(pictures: Sequence[DatasetPicture]) -> list[str]:
    names = [picture.name for picture in pictures if not picture.width]
    return [f"cannot be read, and counts in no mean: {_listed(names)}"] if names else []


def _resemblances(pictures: Sequence[DatasetPicture]) -> list[str]:
    """Return what pictures have to do with well-known sets without being one."""
    remarks, digests = [], {picture.sha256 for picture in pictures}
    for known in known_sets():
        held = sum(picture.sha256 in digests for picture in known.pictures)
        if held:
            remarks.append(f"holds {held} of the {known.count} pictures of {known.name}")
        remarks += _imitations(known, pictures)
    return remarks


def _imitations(known: KnownSet, pictures: Sequence[DatasetPicture]) -> list[str]:
    """Return what looks like a set's picture by name, or like the whole set by size, but is not."""
    originals = {Path(p.name).stem.casefold(): p for p in known.pictures}
    own = {p.sha256 for p in known.pictures}
    scaled: list[DatasetPicture] = []
    changed: list[DatasetPicture] = []
    for picture in pictures:
        original = originals.get(Path(picture.name).stem.casefold())
        if original is None or picture.sha256 in own or not picture.width:
            continue
        same = (picture.width, picture.height) == (original.width, original.height)
        (changed if same else scaled).append(picture)
    remarks = []
    if scaled:
        sizes = [f"{p.name} with {p.width} x {p.height}" for p in scaled]
        remarks.append(
            f"named like pictures of {known.name}, but of another size: {_listed(sizes)}"
        )
    if changed:
        names = _listed([p.name for p in changed])
        remarks.append(
            f"named and sized like pictures of {known.name}, but other files (changed, or encoded "
            f"again): {names}"
        )
    sizes_of_set = Counter((p.width, p.height) for p in known.pictures)
    complete = len(known.pictures) == known.count
    alike = complete and Counter((p.width, p.height) for p in pictures) == sizes_of_set
    if alike and not remarks and not own & {p.sha256 for p in pictures}:
        remarks.append(f"as many pictures as {known.name}, of the same sizes, but other files")
    return remarks


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
