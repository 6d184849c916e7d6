"""Ways to forge .lic files: every CRC that they break they mend, so that what lies behind is met.

Each is a function of a random generator, a seed file, and all seeds. Of bytes that are no .lic file
any more, as after another mutation, they make what they can.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lic.codec.container import SIGNATURE
from tests.hostile.damage import (
    INTERESTING,
    Mutation,
    Random,
    Seed,
    append,
    cut,
    flip_bits,
    insert,
    move,
    remove,
    set_bytes,
)

HEAD = struct.Struct("<BBHIIBBBBHHBBHQ")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Chunk:
    """A chunk's type and payload; its length and CRC follow."""

    kind: bytes
    payload: bytes


def split(data: bytes) -> list[Chunk]:
    """Return the chunks of a file, as far as there are whole ones."""
    chunks, offset = [], len(SIGNATURE)
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 12 + length > len(data):
            break
        chunks.append(Chunk(kind, data[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    return chunks


def join(chunks: Sequence[Chunk]) -> bytes:
    """Return a file of chunks with right CRCs."""
    parts = [SIGNATURE]
    for chunk in chunks:
        crc = zlib.crc32(chunk.kind + chunk.payload)
        parts += [struct.pack("<I4s", len(chunk.payload), chunk.kind), chunk.payload]
        parts.append(struct.pack("<I", crc))
    return b"".join(parts)


def pick(rng: Random, chunks: Sequence[Chunk], kind: bytes | None = None) -> int:
    """Return the place of a chunk, of a kind if there is one; -1 if there is none."""
    places = [i for i, chunk in enumerate(chunks) if kind is None or chunk.kind == kind]
    return rng.choice(places) if places else -1


def edit(rng: Random, data: bytes, kind: bytes | None, change: Callable[[bytes], bytes]) -> bytes:
    """Return a file with the payload of one of its chunks changed, and its CRC mended."""
    chunks = split(data)
    at = pick(rng, chunks, kind)
    if at < 0:
        return flip_bits(rng, data)
    chunks[at] = replace(chunks[at], payload=change(chunks[at].payload))
    return join(chunks)


def payload(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change bytes of any chunk, its length or its type."""
    function = rng.choice((flip_bits, set_bytes, cut, insert, remove, move, append))
    if rng.random() < 0.1:
        chunks = split(seed.data)
        at = pick(rng, chunks)
        if at >= 0:
            known = (b"HEAD", b"TILE", b"iccp", b"alph", b"meta", b"modl", b"priv", b"PRIV")
            chunks[at] = replace(chunks[at], kind=rng.choice(known))
        return join(chunks)
    kind = rng.choice((None, None, b"TILE", b"HEAD", b"alph"))
    return edit(rng, seed.data, kind, lambda old: function(rng, old))


def head_field(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Change one or two fields of HEAD."""

    def change(old: bytes) -> bytes:
        if len(old) != HEAD.size:
            return old
        fields = list(HEAD.unpack(old))
        sizes = (1, 1, 2, 4, 4, 1, 1, 1, 1, 2, 2, 1, 1, 2, 8)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(fields))
            near = fields[at] + rng.choice((-16, -2, -1, 1, 2, 16))
            fields[at] = rng.choice((near, rng.choice(INTERESTING), rng.randrange(20)))
            fields[at] %= 256 ** sizes[at]
        return HEAD.pack(*fields)

    return edit(rng, seed.data, b"HEAD", change)


def head_claim(rng: Random, seed: Seed, _: Sequence[Seed]) -> bytes:
    """Claim another size, also in an embedded picture, with or without tiles."""
    width, height = (2 ** rng.randint(0, 18) - rng.choice((0, 0, 1)) or 1 for _ in range(2))
    grid = rng.choice(((0, 0, 0), (16, 16, 0), (256, 256, 2), (20, 18, 2)))

    def change(old: bytes) -> bytes:
        fields = list(HEAD.unpack(old)) if len(old) == HEAD.size else []
        if not fields:
            return old
        fields[3:5], fields[9:12] = (width, height), grid if fields[12] else (0, 0, 0)
        return HEAD.pack(*fields)

    def change_png(old: bytes) -> bytes:
        return with_png_size(old, width, height)

    data = edit(rng, seed.data, b"HEAD", change)
    if rng.random() < 0.7:
        data = edit(rng, data, b"TILE", change_png)
    return edit(rng, data, b"alph", change_png) if rng.random() < 0.5 else data


def with_png_size(data: bytes, width: int, height: int) -> bytes:
    """Return bytes whose embedded PNG or WebP, if there is one, claims another size."""
    at = data.find(PNG_SIGNATURE)
    if at >= 0 and len(data) >= at + 33:
        header = b"IHDR" + struct.pack(">II", width, height) + data[at + 24 : at + 29]
        crc = struct.pack(">I", zlib.crc32(header))
        return data[: at + 12] + header + crc + data[at + 33 :]
    at = data.find(b"VP8L")
    if at >= 0 and len(data) >= at + 13:
        bits = (width - 1) % 2**14 | (height - 1) % 2**14 << 14
        bits |= struct.unpack_from("<I", data, at + 9)[0] & 15 << 28
        return data[: at + 9] + struct.pack("<I", bits) + data[at + 13 :]
    return data


def chunks_moved(rng: Random, seed: Seed, seeds: Sequence[Seed]) -> bytes:
    """Exchange, repeat, drop or add chunks, of this file or of another."""
    chunks = split(seed.data) or [Chunk(b"HEAD", b"")]
    a, b = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    match rng.randrange(6):
        case 0:
            chunks[a], chunks[b] = chunks[b], chunks[a]
        case 1:
            chunks.insert(b, chunks[a])
        case 2:
            del chunks[a]
        case 3:
            chunks.insert(a, rng.choice(split(rng.choice(seeds).data)))
        case 4:
            kind = rng.choice((b"priv", b"PRIV", b"meta", b"tidx", b"iccp", b"modl", b"\x1b[2J"))
            chunks.insert(a, Chunk(kind, rng.randbytes(rng.randrange(40))))
        case _:
            chunks[1:1] = [Chunk(b"priv", b"")] * rng.choice((5, 999, 1000, 1001, 3000))
    return join(chunks)


def another_model(rng: Random, seed: Seed, seeds: Sequence[Seed]) -> bytes:
    """Give the streams to another file's model."""
    chunks, others = split(seed.data), split(rng.choice(seeds).data)
    if not chunks or len(chunks[0].payload) != HEAD.size:
        return seed.data
    old, other = chunks[0].payload, others[0].payload
    keep = rng.choice((21, 24))
    chunks[0] = Chunk(b"HEAD", old[:keep] + other[keep:])
    return join(chunks)


FORGERY: dict[str, Mutation] = {
    "payload": payload,
    "field of HEAD": head_field,
    "size claimed": head_claim,
    "chunks moved": chunks_moved,
    "another model": another_model,
}
