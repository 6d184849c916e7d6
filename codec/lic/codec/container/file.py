"""Chunks and tiles of a .lic file.

A number from the file is held against the limits and against the bytes at hand before anything is
allocated from it.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lic.codec.container.header import Coder, Header, Limits, check_header, pack_head, unpack_head
from lic.codec.container.leb128 import pack_leb128, read_leb128
from lic.codec.container.text import Model, pack_strings, unpack_meta, unpack_model
from lic.codec.errors import BitstreamError, LimitError

SIGNATURE: Final = b"\x89LIC\r\n\x1a\n"
HEADER_BYTES: Final = 52
"""Signature and HEAD chunk: what `parse_header` needs."""

MAX_ANCILLARY_CHUNKS: Final = 1000
MAX_STREAMS: Final = 255
MAX_TABLE_SET: Final = 255

MAX_PAYLOAD: Final[Mapping[bytes, int]] = {
    b"modl": 2**12,
    b"iccp": 2**22,
    b"exif": 2**23,
    b"xmp_": 2**23,
    b"alph": 2**31 - 1,
    b"meta": 2**16,
    b"tidx": 2**24,
}
"""Known ancillary chunks, each at most once, and the largest payload of each in bytes."""

CHUNK_HEAD_BYTES: Final = 8
CHUNK_OVERHEAD: Final = 12
"""Bytes of a chunk beside its payload."""
_TILE: Final = struct.Struct("<IIB")
TILE_HEAD_BYTES: Final = _TILE.size
# The upper byte of the first field is the set of tables: there are never 2^24 tiles.
_INDEX_BITS: Final = 24


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One TILE chunk.

    Attributes:
        index: Row-major position in the tile grid.
        symbols_crc: CRC-32 of the decoded symbols (int16, little-endian, coding order); 0 for
            `Coder.LOSSLESS`, which has no symbols.
        streams: 1..255 byte strings; their meaning belongs to the coder.
        tables: which set of the model's tables they were coded with, 0..255; 0 for
            `Coder.LOSSLESS`.
    """

    index: int
    symbols_crc: int
    streams: tuple[bytes, ...]
    tables: int = 0


@dataclass(frozen=True, kw_only=True)
class LicFile:
    """A whole file.

    Attributes:
        header: The HEAD chunk.
        tiles: All tiles in order of their index.
        model: Readable name of the model and where to get it.
        icc: ICC profile, opaque.
        exif: EXIF (a TIFF structure without the "Exif" prefix), opaque.
        xmp: XMP packet, opaque.
        alpha: Lossless alpha plane, an embedded gray PNG, opaque here.
        meta: Short remarks of the encoder by keyword.
        warnings: What a reader found that is odd but harmless; never written.
    """

    header: Header
    tiles: tuple[Tile, ...]
    model: Model | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    alpha: bytes | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """Where a chunk lies: `offset` is that of its length field, `length` that of its payload."""

    type: bytes
    offset: int
    length: int

    @property
    def name(self) -> str:
        """The type as text fit for a terminal."""
        return self.type.decode("ascii", "backslashreplace")

    @property
    def ancillary(self) -> bool:
        """Whether a reader that does not know the type may skip the chunk: lower case."""
        return self.type[:1].islower()

    @property
    def payload(self) -> slice:
        """The payload's place in the file."""
        return slice(self.offset + 8, self.offset + 8 + self.length)

    @property
    def end(self) -> int:
        """First byte after the chunk."""
        return self.offset + CHUNK_OVERHEAD + self.length


def serialize(file: LicFile) -> bytes:
    """Return the bytes of a .lic file.

    Raises:
        BitstreamError: A field has a value that no reader would accept.
        LimitError: A side or a metadata block is larger than the format allows.
    """
    check_header(file.header, Limits(max_pixels=0))
    _check_tiles(file.header, file.tiles)
    parts = [SIGNATURE, _chunk(b"HEAD", pack_head(file.header))]
    for kind, payload in _ancillary(file):
        _check_payload_size(kind, len(payload))
        parts.append(_chunk(kind, payload))
    parts.extend(_chunk(b"TILE", _pack_tile(tile)) for tile in file.tiles)
    return b"".join(parts)


def parse_header(data: bytes, limits: Limits | None = None) -> Header:
    """Return the header from the first `HEADER_BYTES` bytes of a file; more bytes are ignored.

    Raises:
        BitstreamError: Not a .lic file, damaged, or from an unknown version.
        LimitError: The picture is larger than `limits` allow.
    """
    _check_signature(data)
    chunk = _read_chunk(data, len(SIGNATURE))
    if chunk.type != b"HEAD":
        raise BitstreamError(f"chunk {chunk.name} at byte {chunk.offset}: expected HEAD first")
    return unpack_head(data[chunk.payload], limits or Limits())


def list_chunks(data: bytes) -> tuple[Chunk, ...]:
    """Return all chunks of a file, also unknown ones, after checking their CRCs.

    Raises:
        BitstreamError: Not a .lic file, truncated, or a CRC differs.
        LimitError: The picture is too large, or there are too many chunks.
    """
    return tuple(_walk(data, parse_header(data, Limits(max_pixels=0)), []))


def parse(data: bytes, limits: Limits | None = None) -> LicFile:
    """Return the content of a .lic file.

    Args:
        data: The whole file.
        limits: What to accept; the default suits files from strangers.

    Raises:
        BitstreamError: Not a .lic file, damaged, incomplete, or from an unknown version.
        LimitError: The file asks for more than `limits` or the format allow.
    """
    header = parse_header(data, limits)
    warnings: list[str] = []
    found: dict[bytes, bytes] = {}
    tiles: dict[int, Tile] = {}
    for chunk in _walk(data, header, warnings):
        if chunk.type == b"TILE":
            tile = unpack_tile(data[chunk.payload], chunk, header)
            if tile.index in tiles:
                raise fault(chunk, f"tile {tile.index} occurs twice")
            tiles[tile.index] = tile
        elif chunk.type in MAX_PAYLOAD:
            check_known(chunk, found)
            found[chunk.type] = data[chunk.payload]
        elif chunk.type != b"HEAD":
            warnings.append(f"skipped unknown chunk {chunk.name} at byte {chunk.offset}")
    return LicFile(
        header=header,
        tiles=tuple(tiles[index] for index in sorted(tiles)),
        model=unpack_model(found.get(b"modl")),
        icc=found.get(b"iccp"),
        exif=found.get(b"exif"),
        xmp=found.get(b"xmp_"),
        alpha=found.get(b"alph"),
        meta=unpack_meta(found.get(b"meta", b"")),
        warnings=tuple(warnings),
    )


def fault(chunk: Chunk, text: str) -> BitstreamError:
    """Return the error that says what is wrong with a chunk."""
    return BitstreamError(f"chunk {chunk.name} at byte {chunk.offset}: {text}")


def _check_signature(data: bytes) -> None:
    start = data[: len(SIGNATURE)]
    if start == SIGNATURE:
        return
    if start and SIGNATURE.startswith(start):
        raise BitstreamError(f"file truncated: {len(start)} bytes, not even a whole signature")
    if start.startswith(SIGNATURE[:4]):
        raise BitstreamError(
            f"signature damaged: found {start.hex(' ')}, expected {SIGNATURE.hex(' ')}; "
            "a transfer in text mode does this"
        )
    raise BitstreamError(f"not a .lic file: it starts with {start.hex(' ') or 'nothing'}")


def _read_chunk(data: bytes, offset: int) -> Chunk:
    chunk = chunk_head(data[offset : offset + CHUNK_HEAD_BYTES], offset, len(data) - offset)
    # A view: a slice of bytes would copy every chunk only to sum it up.
    check_crc(chunk, memoryview(data)[offset + 4 : chunk.end])
    return chunk


def chunk_head(head: bytes, offset: int, left: int) -> Chunk:
    """Return the chunk that begins with `head`, of which `left` bytes of the file are left.

    Raises:
        BitstreamError: No chunk type, or longer than the file.
    """
    if left < CHUNK_OVERHEAD:
        raise BitstreamError(
            f"file truncated at byte {offset + left}: found {left} bytes of a chunk at byte "
            f"{offset}, expected at least {CHUNK_OVERHEAD}"
        )
    length, kind = struct.unpack("<I4s", head)
    chunk = Chunk(kind, offset, length)
    if not kind[:1].isalpha() or not kind.replace(b"_", b"a").isalnum():
        raise BitstreamError(f"byte {offset + 4}: {kind.hex(' ')} is no chunk type")
    if length > left - CHUNK_OVERHEAD:
        raise fault(chunk, f"{length} bytes long, but {left - CHUNK_OVERHEAD} are left")
    return chunk


def check_crc(chunk: Chunk, content: bytes | memoryview) -> None:
    """Hold the CRC at the end of `content`, which begins with the type, against the rest.

    Raises:
        BitstreamError: It differs.
    """
    crc = zlib.crc32(content[:-4])
    stored = int.from_bytes(content[-4:], "little")
    if crc != stored:
        raise fault(chunk, f"CRC is {crc:08x}, expected {stored:08x}: the file is damaged")


def _walk(data: bytes, header: Header, warnings: list[str]) -> Iterator[Chunk]:
    """Yield the chunks in order; enforce their order, completeness, and that all are known."""
    offset, tiles, ancillary = len(SIGNATURE), 0, 0
    while offset < len(data):
        try:
            chunk = _read_chunk(data, offset)
        except BitstreamError:
            if tiles < header.tile_count:
                raise
            warnings.append(f"{len(data) - offset} bytes after the last tile, at byte {offset}")
            return
        tiles += chunk.type == b"TILE"
        ancillary += chunk.ancillary
        if tiles > header.tile_count:
            raise fault(chunk, f"more tiles than the {header.tile_count} of the picture")
        check_place(chunk, tiles, ancillary)
        yield chunk
        offset = chunk.end
    if tiles < header.tile_count:
        raise BitstreamError(
            f"file truncated at byte {len(data)}: found {tiles} tiles, expected {header.tile_count}"
        )


def check_known(chunk: Chunk, found: Mapping[bytes, bytes]) -> None:
    """Refuse a known ancillary chunk that is too large or among those found before."""
    if chunk.type in found:
        raise fault(chunk, "this chunk may occur only once")
    _check_payload_size(chunk.type, chunk.length)


def check_place(chunk: Chunk, tiles: int, ancillary: int) -> None:
    """Refuse a chunk that is unknown or out of order; the counts include it."""
    if (chunk.type == b"HEAD") != (chunk.offset == len(SIGNATURE)):
        raise fault(chunk, "HEAD must be the first chunk and the only one of its type")
    if chunk.ancillary and tiles:
        raise fault(chunk, "must stand before the first TILE")
    if ancillary > MAX_ANCILLARY_CHUNKS:
        raise LimitError(f"more than {MAX_ANCILLARY_CHUNKS} chunks beside the tiles")
    if not chunk.ancillary and chunk.type not in (b"HEAD", b"TILE"):
        raise fault(chunk, "unknown chunk that cannot be skipped; a newer lic may read it")


def _check_tiles(header: Header, tiles: tuple[Tile, ...]) -> None:
    found = [tile.index for tile in tiles]
    if found != list(range(header.tile_count)):
        raise BitstreamError(
            f"found tiles {found[:8]} ({len(found)}), expected 0..{header.tile_count - 1} in order"
        )
    for tile in tiles:
        _check_tile(header, tile, f"tile {tile.index}")


def _check_tile(header: Header, tile: Tile, where: str) -> None:
    allowed = 1 if header.coder is Coder.LOSSLESS else MAX_STREAMS
    if not 1 <= len(tile.streams) <= allowed:
        raise BitstreamError(f"{where}: {len(tile.streams)} streams, expected 1..{allowed}")
    if not 0 <= tile.tables <= MAX_TABLE_SET:
        raise BitstreamError(f"{where}: set {tile.tables} of tables, expected 0..{MAX_TABLE_SET}")
    if tile.tables and header.coder is Coder.LOSSLESS:
        raise BitstreamError(f"{where}: a set of tables, but an embedded picture has none")
    if tile.symbols_crc and header.coder is Coder.LOSSLESS:
        raise BitstreamError(f"{where}: a CRC of symbols, but an embedded picture has none")


def _check_payload_size(kind: bytes, length: int) -> None:
    if length > MAX_PAYLOAD[kind]:
        raise LimitError(
            f"chunk {kind.decode()}: {length} bytes, at most {MAX_PAYLOAD[kind]} are allowed"
        )


def _chunk(kind: bytes, payload: bytes) -> bytes:
    crc = zlib.crc32(payload, zlib.crc32(kind))
    return b"".join((struct.pack("<I", len(payload)), kind, payload, struct.pack("<I", crc)))


def _ancillary(file: LicFile) -> Iterator[tuple[bytes, bytes]]:
    if file.model:
        yield b"modl", pack_strings(file.model.name, file.model.source)
    blobs = ((b"iccp", file.icc), (b"exif", file.exif), (b"xmp_", file.xmp), (b"alph", file.alpha))
    yield from ((kind, payload) for kind, payload in blobs if payload is not None)
    if file.meta:
        yield b"meta", pack_strings(*(text for pair in file.meta.items() for text in pair))


def _pack_tile(tile: Tile) -> bytes:
    lengths = b"".join(pack_leb128(len(stream)) for stream in tile.streams)
    first = tile.index | tile.tables << _INDEX_BITS
    head = _TILE.pack(first, tile.symbols_crc, len(tile.streams))
    return b"".join((head, lengths, *tile.streams))


def unpack_tile(payload: bytes, chunk: Chunk, header: Header) -> Tile:
    """Return the tile of a TILE chunk's payload.

    Raises:
        BitstreamError: Its index, streams or numbers are none that a file can have.
    """
    index, crc, count, tables = _tile_head(payload, chunk, header)
    position, end = _TILE.size, chunk.length
    lengths = []
    for _ in range(count):
        length, position = read_leb128(payload, position)
        if length is None:
            start = chunk.payload.start
            raise fault(chunk, f"no valid stream length before byte {start + position}")
        lengths.append(length)
    if position + sum(lengths) != end:
        raise fault(chunk, f"streams of {sum(lengths)} bytes, but {end - position} are there")
    streams = []
    for length in lengths:
        streams.append(payload[position : position + length])
        position += length
    tile = Tile(index=index, symbols_crc=crc, streams=tuple(streams), tables=tables)
    _check_tile(header, tile, f"chunk TILE at byte {chunk.offset}")
    return tile


def tile_index(payload: bytes, chunk: Chunk, header: Header) -> int:
    """Return which tile a chunk holds, of whose payload the first `TILE_HEAD_BYTES` suffice.

    Raises:
        BitstreamError: None that the picture has.
    """
    return _tile_head(payload, chunk, header)[0]


def _tile_head(payload: bytes, chunk: Chunk, header: Header) -> tuple[int, int, int, int]:
    """Return index, CRC of the symbols, number of streams, and set of tables."""
    if chunk.length < _TILE.size:
        raise fault(chunk, f"{chunk.length} bytes long, expected at least {_TILE.size}")
    first, crc, count = _TILE.unpack_from(payload)
    tables, index = divmod(first, 1 << _INDEX_BITS)
    if index >= header.tile_count:
        raise fault(chunk, f"tile {index}, expected 0..{header.tile_count - 1}")
    return index, crc, count, tables
