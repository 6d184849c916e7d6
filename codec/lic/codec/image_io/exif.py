"""The orientation tag inside EXIF bytes, and EXIF as tags of a TIFF file.

EXIF is a TIFF structure full of absolute offsets, thumbnails, and makers' private notes. To patch
one tag in place leaves all of that alone; parsing and writing anew would not.
"""

import struct
from typing import Final

from PIL import Image

EXIF_PREFIX: Final = b"Exif\0\0"
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3
_ENTRY_BYTES: Final = 12
# Description, make, model, resolution, software, date, artist, copyright.
_DESCRIPTIVE_TAGS: Final = (
    *(0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298),
)
EXIF_SUBDIRECTORIES: Final = (0x8769, 0x8825)


def read_orientation(exif: bytes) -> int | None:
    """Return the orientation, 1..8, from a TIFF structure; None if absent or not readable."""
    place = _first_directory(exif)
    if place is None:
        return None
    order, offset, count = place
    for entry in _entries(offset, count):
        tag, kind, number, value = struct.unpack_from(order + "HHIH", exif, entry)
        if (tag, kind, number) == (_ORIENTATION, _SHORT, 1):
            return value if 1 <= value <= 8 else None
    return None


def with_orientation(exif: bytes, orientation: int) -> bytes | None:
    """Return the structure with its orientation set; None if it cannot be read.

    An absent tag is added by copying the first directory behind the rest, so that every offset in
    the structure stays valid.
    """
    place = _first_directory(exif)
    if place is None:
        return None
    order, offset, count = place
    wanted = struct.pack(order + "HHIHH", _ORIENTATION, _SHORT, 1, orientation, 0)
    patched = bytearray(exif)
    found = [
        entry
        for entry in _entries(offset, count)
        if struct.unpack_from(order + "H", exif, entry) == (_ORIENTATION,)
    ]
    for entry in found:
        patched[entry : entry + _ENTRY_BYTES] = wanted
    if found:
        return bytes(patched)
    entries = [exif[entry : entry + _ENTRY_BYTES] for entry in _entries(offset, count)]
    entries.append(wanted)
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    after = offset + 2 + count * _ENTRY_BYTES
    # The pointer to the next directory may be cut off; zero means that there is none.
    next_directory = exif[after : after + 4].ljust(4, b"\0")
    patched += bytes(len(patched) % 2)
    struct.pack_into(order + "I", patched, 4, len(patched))
    patched += struct.pack(order + "H", len(entries)) + b"".join(entries) + next_directory
    return bytes(patched)


def minimal_exif(orientation: int) -> bytes:
    """Return a TIFF structure that holds an orientation only."""
    entry = struct.pack("<HHIHH", _ORIENTATION, _SHORT, 1, orientation, 0)
    return struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + bytes(4)


def descriptive_tags(source: Image.Exif) -> Image.Exif:
    """Return the tags that describe the picture, without those on how a TIFF file stores it."""
    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    for tag in EXIF_SUBDIRECTORIES:
        if directory := source.get_ifd(tag):
            kept[tag] = dict(directory)
    return kept


def _entries(offset: int, count: int) -> range:
    start = offset + 2
    return range(start, start + count * _ENTRY_BYTES, _ENTRY_BYTES)


def _first_directory(exif: bytes) -> tuple[str, int, int] | None:
    """Return byte order, offset, and number of entries of the first directory."""
    orders = {b"II*\0": "<", b"MM\0*": ">"}
    order = orders.get(exif[:4])
    if order is None or len(exif) < 8:
        return None
    (offset,) = struct.unpack_from(order + "I", exif, 4)
    if offset + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, offset)
    if count == 0xFFFF or offset + 2 + count * _ENTRY_BYTES > len(exif):
        return None
    return order, offset, count
