"""Which files a tar archive holds, and where in it their bytes lie; and how one is written.

An archive is a row of members: a block of 512 bytes that names it, then its bytes, filled up to
whole blocks. Two empty blocks end it. Longer names stand in a member of their own, in front.
"""

import tarfile
from dataclasses import dataclass, field

from lic.codec.errors import ImageError, TrainingError
from lic.trainers.ranges import Window

BLOCK = 512
END = bytes(2 * BLOCK)

_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip",
}  # fmt: skip
_DESCRIBES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
# What describes the next member is short; anything else is damage.
_LONGEST = 2**20

Found = dict[str, tuple[int, int]]


def header(name: str, size: int) -> bytes:
    """Return what stands in front of a member's bytes: the same for the same name and size."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(size: int) -> int:
    """Return how many bytes whole blocks take."""
    return -(-size // BLOCK) * BLOCK


def scan(place: str) -> tuple[int, Found]:
    """Return the size of an archive and its files: name to (offset, size), in order.

    Of files of one name, the last counts, as for all that unpack archives.

    Args:
        place: path or URL. Read once from beginning to end, what lies between headers only if
            that is quicker.

    Raises:
        TrainingError: cannot be read, compressed, no archive, cut off or damaged.
    """
    try:
        window = Window(place)
        _refuse_compressed(place, window.read(0, 8))
        return window.size, _files(place, window)
    except ImageError as error:
        raise TrainingError(f"{error}; expected a tar archive") from None


def _refuse_compressed(place: str, start: bytes) -> None:
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    if kind:
        raise TrainingError(
            f"{place}: is compressed ({kind}), and what is compressed cannot be read at any place; "
            "expected a plain .tar: unpack it first"
        )


@dataclass
class _Next:
    """What is known of a member before its own header: nothing, as a rule."""

    name: str = ""
    pax: dict[str, str] = field(default_factory=dict)


def _files(place: str, window: Window) -> Found:
    found: Found = {}
    offset, empty, coming = 0, 0, _Next()
    while offset < window.size:
        block = window.read(offset, BLOCK)
        if not block.strip(b"\0"):
            empty += 1
            offset += BLOCK
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            # Behind its end an archive may hold anything, such as another one.
            if empty >= 2:
                break
            raise _damaged(place, offset, str(error)) from None
        empty = 0
        start = offset + BLOCK
        kind = info.type
        size = int(coming.pax.get("size", info.size)) if info.isreg() else info.size
        has_bytes = info.isreg() or kind not in tarfile.SUPPORTED_TYPES or kind in _DESCRIBES
        end = start + (size if has_bytes else 0)
        if size < 0 or end > window.size:
            raise TrainingError(
                f"{place}: is cut off: found {window.size} bytes, and {info.name} alone needs "
                f"{end}; copy the archive again"
            )
        offset = start + padded(end - start)
        if kind in _DESCRIBES:
            _describe(place, window, info, start, coming)
            continue
        if kind == tarfile.GNUTYPE_SPARSE or "GNU.sparse.major" in coming.pax:
            raise TrainingError(
                f"{place}: {info.name} is stored with holes; expected whole files: write the "
                "archive without --sparse"
            )
        if info.isreg():
            name = coming.pax.get("path") or coming.name or info.name
            found.pop(name, None)
            found[name] = start, size
        coming = _Next()
    return found


def _describe(place: str, window: Window, info: tarfile.TarInfo, start: int, coming: _Next) -> None:
    """Learn of the next member from what stands in front of it."""
    if info.size > _LONGEST:
        raise _damaged(place, start - BLOCK, f"a description of {info.size} bytes")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        name = window.read(start, info.size).partition(b"\0")[0]
        coming.name = name.decode("utf-8", "surrogateescape")
    elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        try:
            coming.pax = _pax(window.read(start, info.size))
        except ValueError as error:
            raise _damaged(place, start, f"a description that cannot be read: {error}") from None


def _pax(data: bytes) -> dict[str, str]:
    """Return the values of a description: lines of 'length key=value', the length being all's.

    Raises:
        ValueError: is none.
    """
    values = {}
    while data.strip(b"\0"):
        length = int(data.partition(b" ")[0])
        key, equals, value = data[:length].partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n") or b"\0" in value:
            raise ValueError(f"found {data[:40]!r}; expected 'length key=value'")
        values[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    int(values.get("size", 0))
    return values


def _damaged(place: str, offset: int, why: str) -> TrainingError:
    return TrainingError(
        f"{place}: is damaged, or no tar archive: at byte {offset} {why}; expected the header of a "
        "file. Copy or write the archive again"
    )
