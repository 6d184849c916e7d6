"""The .lic container: bytes to dataclasses and back; no files, no tensors.

`codec/FORMAT.md` describes every byte. Numbers are little-endian. A number from the file is held
against the limits and against the bytes at hand before anything is allocated from it.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from lic.codec.errors import BitstreamError, LimitError

SIGNATURE: Final = b"\x89LIC\r\n\x1a\n"
MAJOR: Final = 1
KNOWN_FLAGS: Final = 0
HEADER_BYTES: Final = 52
"""Signature and HEAD chunk: what `parse_header` needs."""

MAX_SIDE: Final = 2**18
MIN_TILE_SIDE: Final = 256
MAX_TILE_SIDE: Final = 4096
TILE_UNIT: Final = 16
OVERLAP_UNIT: Final = 8
MAX_ANCILLARY_CHUNKS: Final = 1000
MAX_STREAMS: Final = 255

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

_CHUNK_OVERHEAD: Final = 12
_HEAD: Final = struct.Struct("<BBHIIBBBBHHBBH8s")
_TILE: Final = struct.Struct("<IIB")
_NO_FINGERPRINT: Final = bytes(8)


class Coder(IntEnum):
    """How the streams of a tile are coded. Numbers on the wire: append only."""

    LOSSLESS = 0
    RANS = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reader accepts beyond the fixed limits of the format.

    Attributes:
        max_pixels: Largest width x height; 0 lifts the limit (sides stay below `MAX_SIDE`).
    """

    max_pixels: int = 2**28


@dataclass(frozen=True, kw_only=True)
class Header:
    """The HEAD chunk.

    Attributes:
        width: Pixels as stored, before `orientation` is applied.
        height: Pixels as stored.
        colour: 1 gray, 3 RGB: also the number of channels.
        bit_depth: Bits per sample of the source picture, 1..16 (pixels decode to 8 bits).
        orientation: 1..8, numbered as in EXIF.
        rate_point: Which rate point of the model the file was made with.
        tile_width: Pixels between the left edges of two tiles, a multiple of 16; 0 is one tile.
        tile_height: Pixels between the top edges of two tiles; 0 exactly if `tile_width` is 0.
        overlap: Pixels by which tiles reach into their neighbours, a multiple of 8.
        coder: How streams are coded.
        fingerprint: 8 bytes that select the model; zeros for `Coder.LOSSLESS`.
        major: Format version; a reader refuses any but its own.
        minor: Grows with additions that older readers may ignore.
        flags: No flag is defined yet.
    """

    width: int
    height: int
    colour: int
    bit_depth: int = 8
    orientation: int = 1
    rate_point: int = 0
    tile_width: int = 0
    tile_height: int = 0
    overlap: int = 0
    coder: Coder = Coder.RANS
    fingerprint: bytes = _NO_FINGERPRINT
    major: int = MAJOR
    minor: int = 0
    flags: int = 0

    @property
    def tiles_across(self) -> int:
        """Columns of the tile grid."""
        return -(-self.width // self.tile_width) if self.tile_width else 1

    @property
    def tiles_down(self) -> int:
        """Rows of the tile grid."""
        return -(-self.height // self.tile_height) if self.tile_height else 1

    @property
    def tile_count(self) -> int:
        """How many TILE chunks the file must have."""
        return self.tiles_across * self.tiles_down


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One TILE chunk.

    Attributes:
        index: Row-major position in the tile grid.
        symbols_crc: CRC-32 of the decoded symbols (int16, little-endian, coding order).
        streams: 1..255 byte strings; their meaning belongs to the coder.
    """

    index: int
    symbols_crc: int
    streams: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """For people: what to install when the fingerprint is unknown. It never selects a model."""

    name: str
    source: str = ""


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
        return self.offset + _CHUNK_OVERHEAD + self.length


def serialize(file: LicFile) -> bytes:
    """Return the bytes of a .lic file.

    Raises:
        BitstreamError: A field has a value that no reader would accept.
        LimitError: A side or a metadata block is larger than the format allows.
    """
    _check_header(file.header, Limits(max_pixels=0))
    _check_tiles(file.header, file.tiles)
    parts = [SIGNATURE, _chunk(b"HEAD", _pack_head(file.header))]
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
    return _unpack_head(data, chunk, limits or Limits())


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
            tile = _unpack_tile(data, chunk, header)
            if tile.index in tiles:
                raise _fault(chunk, f"tile {tile.index} occurs twice")
            tiles[tile.index] = tile
        elif chunk.type in MAX_PAYLOAD:
            if chunk.type in found:
                raise _fault(chunk, "this chunk may occur only once")
            _check_payload_size(chunk.type, chunk.length)
            found[chunk.type] = data[chunk.payload]
        elif chunk.type != b"HEAD":
            warnings.append(f"skipped unknown chunk {chunk.name} at byte {chunk.offset}")
    return LicFile(
        header=header,
        tiles=tuple(tiles[index] for index in sorted(tiles)),
        model=_unpack_model(found.get(b"modl")),
        icc=found.get(b"iccp"),
        exif=found.get(b"exif"),
        xmp=found.get(b"xmp_"),
        alpha=found.get(b"alph"),
        meta=_unpack_meta(found.get(b"meta", b"")),
        warnings=tuple(warnings),
    )


def _fault(chunk: Chunk, text: str) -> BitstreamError:
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
    left = len(data) - offset
    if left < _CHUNK_OVERHEAD:
        raise BitstreamError(
            f"file truncated at byte {len(data)}: found {left} bytes of a chunk at byte {offset}, "
            f"expected at least {_CHUNK_OVERHEAD}"
        )
    length, kind = struct.unpack_from("<I4s", data, offset)
    chunk = Chunk(kind, offset, length)
    if not kind[:1].isalpha() or not kind.replace(b"_", b"a").isalnum():
        raise BitstreamError(f"byte {offset + 4}: {kind.hex(' ')} is no chunk type")
    if length > left - _CHUNK_OVERHEAD:
        raise _fault(chunk, f"{length} bytes long, but {left - _CHUNK_OVERHEAD} are left")
    # A view: a slice of bytes would copy every chunk only to sum it up.
    crc = zlib.crc32(memoryview(data)[offset + 4 : offset + 8 + length])
    (stored,) = struct.unpack_from("<I", data, chunk.end - 4)
    if crc != stored:
        raise _fault(chunk, f"CRC is {crc:08x}, expected {stored:08x}: the file is damaged")
    return chunk


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
        _check_place(chunk, tiles, ancillary)
        yield chunk
        offset = chunk.end
    if tiles < header.tile_count:
        raise BitstreamError(
            f"file truncated at byte {len(data)}: found {tiles} tiles, expected {header.tile_count}"
        )


def _check_place(chunk: Chunk, tiles: int, ancillary: int) -> None:
    """Refuse a chunk that is unknown or out of order; the counts include it."""
    if (chunk.type == b"HEAD") != (chunk.offset == len(SIGNATURE)):
        raise _fault(chunk, "HEAD must be the first chunk and the only one of its type")
    if chunk.ancillary and tiles:
        raise _fault(chunk, "must stand before the first TILE")
    if ancillary > MAX_ANCILLARY_CHUNKS:
        raise LimitError(f"more than {MAX_ANCILLARY_CHUNKS} chunks beside the tiles")
    if not chunk.ancillary and chunk.type not in (b"HEAD", b"TILE"):
        raise _fault(chunk, "unknown chunk that cannot be skipped; a newer lic may read it")


def _pack_head(header: Header) -> bytes:
    return _HEAD.pack(
        header.major,
        header.minor,
        header.flags,
        header.width,
        header.height,
        header.colour,
        header.bit_depth,
        header.orientation,
        header.rate_point,
        header.tile_width // TILE_UNIT,
        header.tile_height // TILE_UNIT,
        header.overlap // OVERLAP_UNIT,
        header.coder,
        0,
        header.fingerprint,
    )


def _unpack_head(data: bytes, chunk: Chunk, limits: Limits) -> Header:
    major = data[chunk.payload.start] if chunk.length else 0
    if major != MAJOR:
        raise _fault(chunk, f"format version {major}, expected {MAJOR}; a newer lic may read it")
    if chunk.length != _HEAD.size:
        raise _fault(chunk, f"{chunk.length} bytes long, expected {_HEAD.size}")
    fields = _HEAD.unpack_from(data, chunk.payload.start)
    (_, minor, flags, width, height, colour, depth, orientation, rate_point) = fields[:9]
    tile_width, tile_height, overlap, coder, reserved, fingerprint = fields[9:]
    if reserved:
        raise _fault(chunk, f"reserved field is {reserved}, expected 0")
    if coder not in tuple(Coder):
        raise _fault(chunk, f"unknown coder {coder}; a newer lic may read it")
    header = Header(
        width=width,
        height=height,
        colour=colour,
        bit_depth=depth,
        orientation=orientation,
        rate_point=rate_point,
        tile_width=tile_width * TILE_UNIT,
        tile_height=tile_height * TILE_UNIT,
        overlap=overlap * OVERLAP_UNIT,
        coder=Coder(coder),
        fingerprint=fingerprint,
        minor=minor,
        flags=flags,
    )
    _check_header(header, limits)
    return header


def _check_header(header: Header, limits: Limits) -> None:
    """Hold a header, read or to be written, against the rules of the format."""
    _check_range("format version", header.major, MAJOR, MAJOR)
    _check_range("minor version", header.minor, 0, 255)
    if header.flags & ~KNOWN_FLAGS:
        raise BitstreamError(
            f"chunk HEAD: unknown flags {header.flags & ~KNOWN_FLAGS:#06x}; a newer lic may read it"
        )
    for name, side in (("width", header.width), ("height", header.height)):
        if side > MAX_SIDE:
            raise LimitError(f"{name} {side} is more than the {MAX_SIDE} pixels of the format")
        _check_range(name, side, 1, MAX_SIDE)
    pixels = header.width * header.height
    if limits.max_pixels and pixels > limits.max_pixels:
        raise LimitError(
            f"{header.width} x {header.height} is {pixels} pixels, the limit is {limits.max_pixels}"
        )
    if header.colour not in (1, 3):
        raise BitstreamError(f"chunk HEAD: colour is {header.colour}, expected 1 (gray) or 3 (RGB)")
    _check_range("bit depth", header.bit_depth, 1, 16)
    _check_range("orientation", header.orientation, 1, 8)
    _check_range("rate point", header.rate_point, 0, 255)
    if len(header.fingerprint) != 8:
        raise BitstreamError(f"chunk HEAD: fingerprint {header.fingerprint!r} is not 8 bytes")
    _check_grid(header)
    if header.coder is Coder.LOSSLESS:
        _check_lossless(header)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        expected = f"{low}..{high}" if low < high else f"{low}"
        raise BitstreamError(f"chunk HEAD: {name} is {value}, expected {expected}")


def _check_grid(header: Header) -> None:
    width, height = header.tile_width, header.tile_height
    if width == height == 0:
        _check_range("overlap of a single tile", header.overlap, 0, 0)
        return
    _check_range("tile width", width, MIN_TILE_SIDE, MAX_TILE_SIDE)
    _check_range("tile height", height, MIN_TILE_SIDE, MAX_TILE_SIDE)
    _check_range("overlap", header.overlap, 0, min(width, height) // 2)
    if width % TILE_UNIT or height % TILE_UNIT or header.overlap % OVERLAP_UNIT:
        raise BitstreamError(
            f"chunk HEAD: tiles of {width} x {height} overlapping by {header.overlap} are not "
            f"whole units of {TILE_UNIT} and {OVERLAP_UNIT} pixels"
        )


def _check_lossless(header: Header) -> None:
    if header.tile_width or header.rate_point or header.fingerprint != _NO_FINGERPRINT:
        raise BitstreamError(
            "chunk HEAD: an embedded lossless picture has one tile, rate point 0, and no model"
        )


def _check_tiles(header: Header, tiles: tuple[Tile, ...]) -> None:
    found = [tile.index for tile in tiles]
    if found != list(range(header.tile_count)):
        raise BitstreamError(
            f"found tiles {found[:8]} ({len(found)}), expected 0..{header.tile_count - 1} in order"
        )
    for tile in tiles:
        _check_stream_count(header, len(tile.streams), f"tile {tile.index}")


def _check_stream_count(header: Header, count: int, where: str) -> None:
    allowed = 1 if header.coder is Coder.LOSSLESS else MAX_STREAMS
    if not 1 <= count <= allowed:
        raise BitstreamError(f"{where}: {count} streams, expected 1..{allowed}")


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
        yield b"modl", _pack_strings(file.model.name, file.model.source)
    blobs = ((b"iccp", file.icc), (b"exif", file.exif), (b"xmp_", file.xmp), (b"alph", file.alpha))
    yield from ((kind, payload) for kind, payload in blobs if payload is not None)
    if file.meta:
        yield b"meta", _pack_strings(*(text for pair in file.meta.items() for text in pair))


def _pack_strings(*texts: str) -> bytes:
    for text in texts:
        _check_printable(text)
    return b"".join(text.encode() + b"\0" for text in texts)


def _unpack_strings(kind: str, payload: bytes) -> list[str]:
    if not payload.endswith(b"\0"):
        raise BitstreamError(f"chunk {kind}: the last string does not end in a zero byte")
    try:
        texts = payload[:-1].decode().split("\0")
    except UnicodeDecodeError as error:
        raise BitstreamError(f"chunk {kind}: not UTF-8 at byte {error.start}") from error
    for text in texts:
        _check_printable(text)
    return texts


def _check_printable(text: str) -> None:
    # These strings reach a terminal; control characters could drive it.
    if not text.isprintable():
        raise BitstreamError(f"text with control characters: {text[:40]!r}")


def _unpack_model(payload: bytes | None) -> Model | None:
    if payload is None:
        return None
    texts = _unpack_strings("modl", payload)
    if len(texts) != 2:
        raise BitstreamError(f"chunk modl: {len(texts)} strings, expected name and source")
    return Model(name=texts[0], source=texts[1])


def _unpack_meta(payload: bytes) -> dict[str, str]:
    if not payload:
        return {}
    texts = _unpack_strings("meta", payload)
    keys = texts[::2]
    if len(texts) % 2 or len(set(keys)) != len(keys):
        raise BitstreamError("chunk meta: expected pairs of a keyword, used once, and its text")
    return dict(zip(keys, texts[1::2], strict=True))


def _pack_tile(tile: Tile) -> bytes:
    lengths = b"".join(_leb128(len(stream)) for stream in tile.streams)
    head = _TILE.pack(tile.index, tile.symbols_crc, len(tile.streams))
    return b"".join((head, lengths, *tile.streams))


def _unpack_tile(data: bytes, chunk: Chunk, header: Header) -> Tile:
    if chunk.length < _TILE.size:
        raise _fault(chunk, f"{chunk.length} bytes long, expected at least {_TILE.size}")
    index, crc, count = _TILE.unpack_from(data, chunk.payload.start)
    if index >= header.tile_count:
        raise _fault(chunk, f"tile {index}, expected 0..{header.tile_count - 1}")
    _check_stream_count(header, count, f"chunk TILE at byte {chunk.offset}")
    position, end = chunk.payload.start + _TILE.size, chunk.payload.stop
    lengths = []
    for _ in range(count):
        length, position = _read_leb128(data, position, end, chunk)
        lengths.append(length)
    if position + sum(lengths) != end:
        raise _fault(chunk, f"streams of {sum(lengths)} bytes, but {end - position} are there")
    streams = []
    for length in lengths:
        streams.append(data[position : position + length])
        position += length
    return Tile(index=index, symbols_crc=crc, streams=tuple(streams))


def _leb128(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_leb128(data: bytes, position: int, end: int, chunk: Chunk) -> tuple[int, int]:
    """Return a number below 2**35 and the position after it; only the shortest form is valid."""
    value = 0
    for shift in range(0, 35, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return value, position
    raise _fault(chunk, f"no valid stream length before byte {position}")
