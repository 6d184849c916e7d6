"""Parts of a file, read from a stream that can seek without anything else of it."""

import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import IO

from lic.codec.container.file import (
    CHUNK_HEAD_BYTES,
    HEADER_BYTES,
    MAX_PAYLOAD,
    TILE_HEAD_BYTES,
    Chunk,
    LicFile,
    check_crc,
    check_known,
    check_place,
    chunk_head,
    fault,
    parse_header,
    tile_index,
    unpack_tile,
)
from lic.codec.container.header import Header, Limits
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
    metadata, _, _ = _before_tiles(_Chunks(stream, start))
    return metadata


class _Chunks:
    """The chunks of a file in a stream, of which only the heads are read."""

    def __init__(self, stream: IO[bytes], start: int) -> None:
        self._stream, self._start = stream, start
        self._size = stream.seek(0, io.SEEK_END) - start

    def at(self, offset: int) -> Chunk:
        """Return the chunk that begins there.

        Raises:
            BitstreamError: There is none.
        """
        return chunk_head(self._read(offset, CHUNK_HEAD_BYTES), offset, self._size - offset)

    def type_at(self, offset: int) -> bytes:
        """Return the type of what begins there, whatever it is."""
        return self._read(offset, CHUNK_HEAD_BYTES)[4:]

    def beginning(self, chunk: Chunk, count: int) -> bytes:
        """Return the first bytes of a chunk's payload, which nothing vouches for."""
        return self._read(chunk.payload.start, min(count, chunk.length))

    def payload(self, chunk: Chunk) -> bytes:
        """Return a chunk's payload, of which `at` has seen that the file has as much.

        Raises:
            BitstreamError: Its CRC differs.
        """
        content = self._read(chunk.offset + 4, chunk.length + 8)
        check_crc(chunk, content)
        return content[4:-4]

    def _read(self, offset: int, count: int) -> bytes:
        self._stream.seek(self._start + offset)
        return self._stream.read(count)


def _before_tiles(chunks: _Chunks) -> tuple[Metadata, Chunk | None, int]:
    """Return the metadata, where the alpha plane is, and where the first tile begins."""
    found: dict[bytes, bytes] = {}
    alpha = None
    offset, ancillary = HEADER_BYTES, 0
    while chunks.type_at(offset) != b"TILE":
        chunk = chunks.at(offset)
        ancillary += 1
        check_place(chunk, 0, ancillary)
        if chunk.type in MAX_PAYLOAD:
            check_known(chunk, found)
            # The length is within the format's limits and what is left of the file.
            found[chunk.type] = chunks.payload(chunk) if chunk.type in _READ else b""
        if chunk.type == b"alph":
            alpha = chunk
        offset = chunk.end
    metadata = Metadata(
        model=unpack_model(found.get(b"modl")),
        icc=found.get(b"iccp"),
        exif=found.get(b"exif"),
        xmp=found.get(b"xmp_"),
        has_alpha=alpha is not None,
    )
    return metadata, alpha, offset


def read_part(
    stream: IO[bytes],
    wanted: Callable[[Header, Model | None], Collection[int]],
    limits: Limits | None = None,
) -> LicFile:
    """Return a file with some of its tiles; of the others only their heads are read.

    What is not read is not checked.

    Args:
        stream: It can seek, and begins with the file; it is left anywhere.
        wanted: Returns the indexes of the tiles.
        limits: What to accept; the default suits files from strangers.

    Raises:
        BitstreamError: Not a .lic file, incomplete, damaged where it is read, or from an unknown
            version.
        LimitError: The file asks for more than `limits` or the format allow.
    """
    stream.seek(0)
    header = parse_header(stream.read(HEADER_BYTES), limits)
    chunks = _Chunks(stream, 0)
    metadata, alpha, offset = _before_tiles(chunks)
    places: dict[int, Chunk] = {}
    for chunk in _tiles(chunks, offset, header):
        index = tile_index(chunks.beginning(chunk, TILE_HEAD_BYTES), chunk, header)
        if index in places:
            raise fault(chunk, f"tile {index} occurs twice")
        places[index] = chunk
    return LicFile(
        header=header,
        tiles=tuple(
            unpack_tile(chunks.payload(places[index]), places[index], header)
            for index in sorted(wanted(header, metadata.model))
        ),
        model=metadata.model,
        icc=metadata.icc,
        exif=metadata.exif,
        xmp=metadata.xmp,
        alpha=chunks.payload(alpha) if alpha else None,
    )


def _tiles(chunks: _Chunks, offset: int, header: Header) -> Iterator[Chunk]:
    """Yield all tiles of a file; what follows does not matter here."""
    for _ in range(header.tile_count):
        chunk = chunks.at(offset)
        if chunk.type != b"TILE":
            raise fault(chunk, "expected TILE")
        yield chunk
        offset = chunk.end
