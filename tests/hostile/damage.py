"""Ways to damage files, each a function of a random generator and a seed file.

They know nothing of the format, as wires and disks do; `forgery` mends what it breaks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

INTERESTING: tuple[int, ...] = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 127, 128, 255, 256, 257)
INTERESTING += (
    2**12,
    2**14,
    2**16 - 1,
    2**16,
    2**18,
    2**18 + 1,
    2**24,
    2**28,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@dataclass(frozen=True)
class Seed:
    """A good file and what it is called."""

    name: str
    data: bytes


Random = random.Random
Mutation = Callable[[Random, Seed, Sequence[Seed]], bytes]


def flip_bits(rng: Random, data: bytes, most: int = 8) -> bytes:
    """Return data with one to `most` bits flipped."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: Random, data: bytes) -> bytes:
    """Return data with one to eight bytes in a row set to others."""
    at = rng.randrange(len(data) + 1)
    new = rng.randbytes(rng.randint(1, 8))
    if rng.random() < 0.3:
        new = rng.choice(INTERESTING).to_bytes(4, "little")
    return (data[:at] + new[: len(data) - at] + data[at + len(new) :])[: len(data)]


def cut(rng: Random, data: bytes) -> bytes:
    """Return the beginning of data, often nearly all of it."""
    return data[: rng.choice((len(data) - rng.randint(1, 20), rng.randrange(len(data) + 1)))]


def insert(rng: Random, data: bytes) -> bytes:
    """Return data with up to sixteen bytes more."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]


def remove(rng: Random, data: bytes) -> bytes:
    """Return data without up to sixteen bytes."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 16) :]


def move(rng: Random, data: bytes) -> bytes:
    """Return data with a block copied over another place."""
    a, b = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    block = data[a : a + rng.randint(1, 64)]
    return (data[:b] + block + data[b + len(block) :])[: len(data)]


def append(rng: Random, data: bytes) -> bytes:
    """Return data with something behind it, zeros, noise, or itself."""
    return data + rng.choice((bytes(rng.randint(1, 600)), rng.randbytes(rng.randint(1, 40)), data))


def to_text(rng: Random, data: bytes) -> bytes:
    """Return data as a transfer in text mode leaves it."""
    old, new = rng.choice(((b"\r\n", b"\n"), (b"\n", b"\r\n"), (b"\0", b""), (b"\x80", b"\0")))
    return data.replace(old, new)


def splice(rng: Random, seed: Seed, seeds: Sequence[Seed]) -> bytes:
    """Return the beginning of one file and the end of another."""
    other = rng.choice(seeds).data
    return seed.data[: rng.randrange(len(seed.data) + 1)] + other[rng.randrange(len(other)) :]


def _plain(function: Callable[[Random, bytes], bytes]) -> Mutation:
    return lambda rng, seed, _: function(rng, seed.data)


DAMAGE: dict[str, Mutation] = {
    "bits flipped": _plain(flip_bits),
    "bytes set": _plain(set_bytes),
    "truncated": _plain(cut),
    "bytes inserted": _plain(insert),
    "bytes removed": _plain(remove),
    "block copied": _plain(move),
    "bytes appended": _plain(append),
    "text mode": _plain(to_text),
    "two files spliced": splice,
}
