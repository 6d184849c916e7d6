"""Photos in tar archives, here or on a server: each is read by itself, at its place in its shard.

`lic-shards.json` says where. In columns, as a million objects would take minutes and gigabytes:

    {"format": "lic shards", "version": 1, "complete": true, "base": "https://host/photos",
     "shards": [{"name": "photos-00000.tar", "bytes": 10752,
                 "names": ["a.jpg", "trip/b.jpg"], "offsets": [512, 5632], "sizes": [4100, 3000]}]}

`base` is a URL, or a folder seen from that of the file; offsets and sizes are bytes.
"""

import bisect
import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ImageError, TrainingError
from lic.codec.image_io import READABLE_SUFFIXES
from lic.trainers import ranges
from lic.trainers.files import write_whole, writing
from lic.trainers.tar_headers import BLOCK, scan

INDEX = "lic-shards.json"
_FORMAT = "lic shards"
_VERSION = 1
# A picture beyond this is none; a shard beyond this is on no disk.
_LARGEST_PICTURE = 2**31
_LARGEST_SHARD = 2**50
_ARCHIVE = re.compile(r"[^.].*\.(tar(\.(gz|bz2|xz|zst|lz4|lzma|Z))?|tgz|tbz2?|txz|tzst)", re.I)
_COLUMNS = ("offsets", "sizes")

_Column = NDArray[np.int64]
Say = Callable[[str], object]


class Member(NamedTuple):
    """A picture in a shard.

    Attributes:
        place: path or URL of the shard.
        path: the picture's own in it.
        offset: of its bytes in the shard.
        size: in bytes.
    """

    place: str
    path: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Its name without folders, as a file's."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.place}!{self.path}"

    def read(self) -> bytes:
        """Return its bytes, and of the shard nothing else.

        Raises:
            LicError: as `ranges.read`.
        """
        return ranges.read(self.place, self.offset, self.size)


Photo = Path | Member


@dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
        name: below the index's base, with forward slashes.
        length: its size in bytes.
        names: of its pictures, UTF-8, a zero byte behind each.
        offsets: of their bytes in it.
        sizes: in bytes.
    """

    name: str
    length: int
    names: bytes
    offsets: _Column
    sizes: _Column

    def __len__(self) -> int:
        return len(self.sizes)

    def holds(self, other: "Shard") -> bool:
        """Return whether both hold the same pictures at the same places."""
        return (self.length, self.names) == (other.length, other.names) and all(
            np.array_equal(*pair)
            for pair in ((self.offsets, other.offsets), (self.sizes, other.sizes))
        )


def make_shard(name: str, size: int, found: dict[str, tuple[int, int]]) -> Shard:
    """Return a shard of `size` bytes; `found` has offset and size of each picture by its name."""
    places = np.array(list(found.values()), np.int64).reshape(-1, 2)
    names = "".join(f"{member}\0" for member in found).encode("utf-8", "surrogateescape")
    return Shard(name, size, names, places[:, 0].copy(), places[:, 1].copy())


def scan_shard(name: str, place: str) -> Shard:
    """Return what an archive holds: its pictures, not what lies beside them.

    Raises:
        TrainingError: as `scan`.
    """
    size, found = scan(place)
    return make_shard(name, size, {n: where for n, where in found.items() if _is_picture(n)})


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith(".")


class Members(Sequence[Member]):
    """The pictures of all shards in order; each is made when it is asked for."""

    def __init__(self, places: Sequence[str], shards: Sequence[Shard]) -> None:
        """Take the shards' places, and what they hold."""
        self._places = list(places)
        counts = [len(shard) for shard in shards]
        self._stops = np.cumsum(counts, dtype=np.int64).tolist()
        self._names = b"".join(shard.names for shard in shards)
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        self._chosen: _Column | None = None

    def starting_with(self, prefixes: Sequence[str]) -> "Members":
        """Return those whose name starts so; all if there are no prefixes."""
        other = copy.copy(self)
        if prefixes:
            starts = tuple(prefixes)
            chosen = [i for i, member in enumerate(self) if member.name.startswith(starts)]
            other._chosen = np.array(chosen, np.int64)
        return other

    def __len__(self) -> int:
        return len(self._sizes if self._chosen is None else self._chosen)

    @overload
    def __getitem__(self, place: int) -> Member: ...
    @overload
    def __getitem__(self, place: slice) -> list[Member]: ...
    def __getitem__(self, place: int | slice) -> Member | list[Member]:
        row = range(len(self))[place]
        return self._member(row) if isinstance(row, int) else [self._member(i) for i in row]

    def __iter__(self) -> Iterator[Member]:
        return map(self._member, range(len(self)))

    def _member(self, place: int) -> Member:
        row = place if self._chosen is None else int(self._chosen[place])
        start = int(self._ends[row - 1]) + 1 if row else 0
        name = self._names[start : int(self._ends[row])].decode("utf-8", "surrogateescape")
        shard = self._places[bisect.bisect_right(self._stops, row)]
        return Member(shard, name, int(self._offsets[row]), int(self._sizes[row]))


def locate(place: Path) -> list[Path]:
    """Return the index at a place, or its archives in name order; nothing if there is neither.

    Args:
        place: an index, an archive, or a folder of either.

    Raises:
        ImageError: this user may not look there.
    """
    with entering(place):
        if place.is_file():
            return [place] if place.suffix == ".json" or _is_archive(place) else []
        if (place / INDEX).is_file():
            return [place / INDEX]
        return sorted(path for path in place.glob("*") if _is_archive(path))


@contextmanager
def entering(place: Path) -> Iterator[None]:
    """Say of a place that this user may not look into which it is."""
    try:
        yield
    except PermissionError:
        raise ImageError(
            f"{place}: cannot be read (permission denied); expected a folder that this user may "
            "enter"
        ) from None


def _is_archive(path: Path) -> bool:
    """Return whether a file is called as archives are; the compressed ones are refused later."""
    return _ARCHIVE.fullmatch(path.name) is not None and path.is_file()


def open_members(found: Sequence[Path], prefixes: Sequence[str], say: Say) -> Members:
    """Return the pictures of what `locate` found.

    Args:
        found: an index or archives.
        prefixes: keeps names that start so.
        say: takes a note for the user.

    Raises:
        ImageError: there are none.
        TrainingError: an index that cannot be used; shards that are missing, cut off, compressed,
            not those of the index, or on a server that cannot be reached or sends no parts.
        ConfigError: a base that no installed package reads.
    """
    ranges.forget()
    if found[0].suffix == ".json":
        base, shards = read_index(found[0])
        root = base if ranges.is_url(base) else str(found[0].parent / base)
        places = [ranges.join(root, shard.name) for shard in shards]
        _check(found[0], places, shards)
    else:
        shards = [scan_shard(path.name, str(path)) for path in found]
        places = [str(path) for path in found]
        say(
            f"{found[0].parent}: {len(found)} shards without an index, which were read through; "
            "'lic data index' writes one, for a quicker start"
        )
    members = Members(places, shards).starting_with(prefixes)
    if not len(members):
        named = f" whose name starts with {', '.join(prefixes)}" if prefixes else ""
        raise ImageError(f"{found[0]}: its shards hold no pictures{named}; expected photos")
    return members


def _check(index: Path, places: Sequence[str], shards: Sequence[Shard]) -> None:
    """Look at all shards that are here, and at one of those that are not.

    Raises:
        TrainingError: one is not what the index says.
    """
    remedy = f"copy it again, or write {index.name} anew with 'lic data index' or 'lic data shards'"
    asked = False
    for place, shard in zip(places, shards, strict=True):
        if ranges.is_url(place) and asked:
            continue
        try:
            if ranges.is_url(place):
                asked = True
                # Its end, as even servers that send no parts can send a beginning.
                ranges.read(place, shard.length - BLOCK, BLOCK)
                continue
            size = ranges.size_of(place)
        except ImageError as error:
            raise TrainingError(f"{error}; {index} wants it there: {remedy}") from None
        if size != shard.length:
            raise TrainingError(
                f"{place}: found {size} bytes; expected {shard.length}, by {index}: {remedy}"
            )


def write_index(path: Path, base: str, shards: Sequence[Shard], *, complete: bool = True) -> None:
    """Write an index, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    head = {"format": _FORMAT, "version": _VERSION, "complete": complete, "base": base}

    def fill(file: BinaryIO) -> None:
        file.write(json.dumps(head)[:-1].encode() + b', "shards": [')
        for number, shard in enumerate(shards):
            names = shard.names.decode("utf-8", "surrogateescape").split("\0")[:-1]
            values = {
                "name": shard.name, "bytes": shard.length, "names": names,
                "offsets": shard.offsets.tolist(), "sizes": shard.sizes.tolist(),
            }  # fmt: skip
            file.write(b",\n" * bool(number) + json.dumps(values).encode())
        file.write(b"]}\n")

    with writing(path, stays="; what was finished stays"):
        write_whole(path, fill)


def read_index(path: Path) -> tuple[str, list[Shard]]:
    """Return base and shards of an index.

    Raises:
        TrainingError: cannot be read, is none, of another version, not complete, or says what
            cannot be; the message names it.
    """
    try:
        # Shards become columns as they are met: the numbers of all as objects take gigabytes.
        values = json.loads(path.read_bytes(), object_hook=_shard_or_rest)
        base, shards, complete = _index(values)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from None
    # UnicodeError and JSONDecodeError are of this kind.
    except (ValueError, OverflowError, RecursionError) as error:
        raise TrainingError(
            f"{path}: {error}; expected an index of shards: write it anew with 'lic data index' or "
            "'lic data shards'"
        ) from None
    if not complete:
        raise TrainingError(
            f"{path}: its shards are not complete; run the same 'lic data shards' again, which "
            "goes on where it stopped"
        )
    return base, shards


def _index(values: Any) -> tuple[str, list[Shard], bool]:
    """Return base, shards, and whether these are all.

    Raises:
        ValueError: values of something else.
    """
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"holds no format {_FORMAT!r}")
    if values.get("version") != _VERSION:
        raise ValueError(f"is of version {values.get('version')!r}, and this lic reads {_VERSION}")
    base, shards, complete = (values.get(key) for key in ("base", "shards", "complete"))
    if not isinstance(base, str) or not isinstance(complete, bool) or not isinstance(shards, list):
        raise ValueError("holds no base, shards and complete, which are text, a list and a truth")
    if not all(isinstance(shard, Shard) for shard in shards):
        raise ValueError("holds a shard without name, bytes, names, offsets and sizes")
    names = {shard.name for shard in shards}
    if len(names) < len(shards):
        raise ValueError("names a shard twice")
    if complete and not shards:
        raise ValueError("holds no shards")
    return base, shards, complete


def _shard_or_rest(values: dict[str, Any]) -> Any:
    """Return a shard in place of its JSON, and all else as it is.

    Raises:
        ValueError: it cannot be so.
    """
    if "offsets" not in values:
        return values
    name, size = values.get("name"), values.get("bytes")
    names = values.get("names")
    if not isinstance(name, str) or not is_below(name):
        raise ValueError(f"holds a shard called {name!r}, which is no path below the base")
    if type(size) is not int or not BLOCK <= size <= _LARGEST_SHARD:
        raise ValueError(f"{name} is of {size!r} bytes")
    if not isinstance(names, list) or not set(map(type, names)) <= {str}:
        raise ValueError(f"{name} has names that are no list of texts")
    joined = "".join(f"{member}\0" for member in names).encode("utf-8", "surrogateescape")
    if joined.count(0) != len(names) or "" in names:
        raise ValueError(f"{name} holds pictures without a proper name")
    if len(set(names)) < len(names):
        raise ValueError(f"{name} names a picture twice")
    offsets, sizes = (_column(name, key, values.get(key), len(names)) for key in _COLUMNS)
    if len(names) and (sizes.min() < 0 or sizes.max() > _LARGEST_PICTURE or offsets.min() < BLOCK):
        raise ValueError(f"{name} holds pictures of sizes or at offsets that cannot be")
    # In this order nothing gets too large for its type.
    outside = np.flatnonzero(offsets > size - sizes)
    if len(outside):
        raise ValueError(
            f"{name} is of {size} bytes, and {names[outside[0]]} ends at "
            f"{int(offsets[outside[0]]) + int(sizes[outside[0]])}"
        )
    return Shard(name, size, joined, offsets, sizes)


def _column(name: str, key: str, values: Any, count: int) -> _Column:
    column = np.array(values if isinstance(values, list) else None)
    if column.shape != (count,) or (count and column.dtype.kind != "i"):
        raise ValueError(f"{name} has {key} that are no list of {count} whole numbers")
    return column.astype(np.int64)


def is_below(name: str) -> bool:
    """Return whether a name leads to a place below any folder, on every system."""
    path = PurePosixPath(name)
    parts = name.split("/")
    return (
        not path.is_absolute() and not {"", ".", ".."} & set(parts) and not set("\\:\0") & set(name)
    )
