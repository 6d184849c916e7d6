"""What stands between HEAD and the tiles, read from a stream without anything else of the file."""

import io
from dataclasses import dataclass
from typing import IO

from lic.codec.container.file import (
    CHUNK_HEAD_BYTES,
    HEADER_BYTES,
    MAX_PAYLOAD,
    check_crc,
    check_known,
    check_place,
    chunk_head,
)
from lic.codec.container.text import Model, unpack_model

_READ = (b"modl", b"iccp", b"exif", b"xmp_")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """As in `LicFile`; of an alpha plane only whether there is one."""

    model: Model | None
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    has_alpha: bool


def read_metadata(stream: IO[bytes], start: int = 0) -> Metadata:
    """Return the metadata of a file whose first `HEADER_BYTES` were read and found good.

    Seeks from chunk to chunk up to the first tile. What is not read is not checked: tiles, alpha,
    chunks of unknown types.

    Args:
        stream: It can seek; it is left anywhere.
        start: Where in it the file begins.

    Raises:
        BitstreamError: Damaged or truncated before the first tile, or of an unknown version.
        LimitError: More metadata than the format allows.
    """
    size = stream.seek(0, io.SEEK_END) - start
    found: dict[bytes, bytes] = {}
    offset, ancillary = HEADER_BYTES, 0
    while True:
        stream.seek(start + offset)
        head = stream.read(CHUNK_HEAD_BYTES)
        if head[4:] == b"TILE":
            break
        chunk = chunk_head(head, offset, size - offset)
        ancillary += 1
        check_place(chunk, 0, ancillary)
        if chunk.type in MAX_PAYLOAD:
            check_known(chunk, found)
            found[chunk.type] = b""
        if chunk.type in _READ:
            # The length is within the format's limits and what is left of the file.
            content = chunk.type + stream.read(chunk.length + 4)
            check_crc(chunk, content)
            found[chunk.type] = content[4:-4]
        offset = chunk.end
    return Metadata(
        model=unpack_model(found.get(b"modl")),
        icc=found.get(b"iccp"),
        exif=found.get(b"exif"),
        xmp=found.get(b"xmp_"),
        has_alpha=b"alph" in found,
    )
