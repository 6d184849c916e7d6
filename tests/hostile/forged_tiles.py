"""Ways to forge tiles: streams that are another's, cut, spliced or swapped, in frames that fit.

As in `forgery`, every CRC is right; the one of the symbols only where it came with its streams.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.hostile.damage import (
    INTERESTING,
    Mutation,
    Random,
    Seed,
    cut,
    flip_bits,
    insert,
    move,
    remove,
    set_bytes,
)
from tests.hostile.forgery import PNG_SIGNATURE, Chunk, edit, join, pick, split

_FRAME = struct.Struct("<IIB")


@dataclass(frozen=True)
class FramedTile:
    """A TILE chunk's payload."""

    index: int
    crc: int
    streams: tuple[bytes, ...]


def read_tile(payload: bytes) -> FramedTile | None:
    """Return what a payload holds; None if it is none of a tile."""
    if len(payload) < _FRAME.size:
        return None
    index, crc, count = _FRAME.unpack_from(payload)
    at, lengths = _FRAME.size, []
    for _ in range(count):
        value = shift = 0
        while at < len(payload):
            byte = payload[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        lengths.append(value)
    streams = []
    for length in lengths:
        streams.append(payload[at : at + length])
        at += length
    return FramedTile(index, crc, tuple(streams))


def write_tile(tile: FramedTile) -> bytes:
    """Return the payload of a tile whose frame fits its streams."""
    lengths = bytearray()
    for stream in tile.streams:
        left = len(stream)
        while left > 127:
            lengths.append(left & 127 | 128)
            left >>= 7
        lengths.append(left)
    count = min(len(tile.streams), 255)
    frame = _FRAME.pack(tile.index % 2**32, tile.crc % 2**32, count)
    return frame + bytes(lengths) + b"".join(tile.streams)


def _edit_tile(rng: Random, seed: Seed, change: Callable[[FramedTile], FramedTile]) -> bytes:
    def changed(payload: bytes) -> bytes:
        tile = read_tile(payload)
        return payload if tile is None else write_tile(change(tile))

    return edit(rng, seed.data, b"TILE", changed)


def frame(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change a tile's index, CRC of symbols, or number of streams."""

    def change(payload: bytes) -> bytes:
        if len(payload) < _FRAME.size:
            return payload
        fields = list(_FRAME.unpack_from(payload))
        at = rng.randrange(3)
        new = rng.choice((fields[at] + 1, fields[at] - 1, rng.choice(INTERESTING)))
        fields[at] = new % (2**32 if at < 2 else 2**8)
        return _FRAME.pack(*fields) + payload[_FRAME.size :]

    return edit(rng, seed.data, b"TILE", change)


def stream(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change bytes of a stream, or their number; the lengths in front of it fit."""
    functions = (flip_bits, flip_bits, set_bytes, cut, insert, remove, move)
    function = rng.choice(functions)

    def change(tile: FramedTile) -> FramedTile:
        if not tile.streams:
            return tile
        streams = list(tile.streams)
        at = rng.randrange(len(streams))
        streams[at] = function(rng, streams[at])
        return replace(tile, streams=tuple(streams))

    return _edit_tile(rng, seed, change)


def stream_end(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change the last bytes of a stream, where the coder itself notices least."""

    def change(tile: FramedTile) -> FramedTile:
        streams = list(tile.streams)
        if not streams:
            return tile
        at = rng.randrange(len(streams))
        tail = rng.randint(1, 8)
        streams[at] = streams[at][:-tail] + flip_bits(rng, streams[at][-tail:], 3)
        return replace(tile, streams=tuple(streams))

    return _edit_tile(rng, seed, change)


def streams(rng: Random, seed: Seed, seeds: Sequence[Seed]) -> bytes:
    """Exchange, drop or add whole streams, or splice two files' streams."""
    others = [tile for tile in _tiles(rng.choice(seeds).data) if tile.streams]

    def change(tile: FramedTile) -> FramedTile:
        found = list(tile.streams)
        match rng.randrange(5):
            case 0:
                found.reverse()
            case 1:
                found = found[:-1]
            case 2:
                found.append(rng.randbytes(rng.choice((0, 0, 1, 5, 300))))
            case 3:
                found *= rng.choice((2, 100, 255))
            case _ if found and others:
                other = rng.choice(others).streams[0]
                at = 2 * rng.randrange(len(found[0]) // 2 + 1)
                # At a word: a splice at an odd byte is another kind of damage.
                found[0] = found[0][:at] + other[min(at, len(other) // 2 * 2) :]
        return replace(tile, streams=tuple(found[:255]))

    return _edit_tile(rng, seed, change)


def states(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Let decoding begin with other states: the bounds of their range, or each other's."""

    def change(tile: FramedTile) -> FramedTile:
        if not tile.streams or len(tile.streams[0]) < 16:
            return tile
        lanes = list(struct.unpack_from("<4I", tile.streams[0]))
        at = rng.randrange(4)
        bounds = (0, 2**16 - 1, 2**16, 2**16 + 1, 2**31, 2**32 - 1, lanes[at] ^ 1, lanes[at - 1])
        lanes[at] = rng.choice(bounds)
        first = struct.pack("<4I", *lanes) + tile.streams[0][16:]
        return replace(tile, streams=(first, *tile.streams[1:]))

    return _edit_tile(rng, seed, change)


def escapes(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Write other escapes: valid, too long, too large, or too many."""

    def change(tile: FramedTile) -> FramedTile:
        old = tile.streams[1] if len(tile.streams) > 1 else b""
        values: tuple[bytes, ...] = (
            b"\x00",
            b"\x01",
            b"\x7f",
            b"\x80\x01",
            b"\xff\xff\x03",
            b"\xff\xff\x07",
        )
        values += (b"\x80\x00", b"\x80\x80\x00", b"\xff\xff\xff\xff", b"\x80")
        new = b"".join(rng.choices(values, k=rng.randint(1, 6)))
        at = rng.randrange(len(old) + 1)
        kept = rng.choice((old[at:], old[at + len(new) :], b""))
        return replace(tile, streams=(*tile.streams[:1], old[:at] + new + kept))

    return _edit_tile(rng, seed, change)


def _tiles(data: bytes) -> list[FramedTile]:
    found = [read_tile(chunk.payload) for chunk in split(data) if chunk.kind == b"TILE"]
    return [tile for tile in found if tile is not None]


def tiles(rng: Random, seed: Seed, seeds: Sequence[Seed]) -> bytes:
    """Exchange two tiles, with or without what belongs to their place, or take another file's."""
    chunks = split(seed.data)
    a, b = pick(rng, chunks, b"TILE"), pick(rng, chunks, b"TILE")
    if a < 0:
        return flip_bits(rng, seed.data)
    first, second = read_tile(chunks[a].payload), read_tile(chunks[b].payload)
    if rng.random() < 0.3:
        second = rng.choice(_tiles(rng.choice(seeds).data) or [second])
    if first is None or second is None:
        return seed.data
    match rng.randrange(3):
        case 0:
            new, old = replace(second, index=first.index), replace(first, index=second.index)
        case 1:
            new, old = replace(first, crc=second.crc), replace(second, crc=first.crc)
        case _:
            new, old = replace(first, index=second.index), replace(second, index=first.index)
    chunks[a] = Chunk(b"TILE", write_tile(new))
    if b != a:
        chunks[b] = Chunk(b"TILE", write_tile(old))
    return join(chunks)


def embedded_png(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change the PNG of a lossless picture or an alpha plane, mending its own CRCs, too."""

    def change(old: bytes) -> bytes:
        at = old.find(PNG_SIGNATURE)
        if at < 0:
            return flip_bits(rng, old)
        return old[:at] + _forged_png(rng, old[at:])

    kind = rng.choice((b"TILE", b"alph"))
    data = edit(rng, seed.data, kind, change)
    # The stream's length in front of it, where it changed.
    return edit(rng, data, b"TILE", _reframed) if kind == b"TILE" else data


def _reframed(payload: bytes) -> bytes:
    at = payload.find(PNG_SIGNATURE)
    tile = read_tile(payload)
    if at < 0 or tile is None:
        return payload
    return write_tile(replace(tile, streams=(payload[at:],)))


def _forged_png(rng: Random, png: bytes) -> bytes:
    parts, at = [], len(PNG_SIGNATURE)
    while at + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        parts.append(Chunk(kind, png[at + 8 : at + 8 + length]))
        at += 12 + length
    which = rng.randrange(len(parts)) if parts else 0
    match rng.randrange(4):
        case 0 if parts:
            parts[which] = replace(parts[which], payload=flip_bits(rng, parts[which].payload, 3))
        case 1 if parts:
            rows = zlib.compress(rng.randbytes(rng.randrange(9)) * rng.choice((1, 400, 40_000)))
            parts[which] = Chunk(b"IDAT", rows)
        case 2 if parts:
            parts.insert(which, rng.choice((parts[which], Chunk(b"tEXt", b"a\0b"))))
        case _ if parts:
            del parts[which]
    framed = [PNG_SIGNATURE]
    for part in parts:
        crc = zlib.crc32(part.kind + part.payload)
        framed += [struct.pack(">I4s", len(part.payload), part.kind), part.payload]
        framed.append(struct.pack(">I", crc))
    return b"".join(framed)


TILE_FORGERY: dict[str, Mutation] = {
    "frame of a tile": frame,
    "stream": stream,
    "end of a stream": stream_end,
    "streams": streams,
    "states": states,
    "escapes": escapes,
    "tiles": tiles,
    "embedded PNG": embedded_png,
}
