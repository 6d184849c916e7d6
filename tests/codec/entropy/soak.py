"""A million corruptions: `python tests/codec/entropy/soak.py [rounds] [seed]`. No test by default.

Every round draws tables and symbols, damages the streams 20 times, and decodes, also with wrong
indexes. A stream that passes must decode to symbols with another checksum, and must be exactly what
a writer writes for them.
"""

import sys
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import Reader, Tables, Writer, build_tables, kernel_name
from lic.codec.errors import BitstreamError

DAMAGES = 20


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Return `data` with one to four bytes changed, removed to the end, or inserted."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(result) + 1))
        match int(rng.integers(3)):
            case 0:
                result[at : at + 1] = rng.bytes(1)
            case 1:
                del result[at:]
            case _:
                result[at:at] = rng.bytes(int(rng.integers(5)))
    return bytes(result)


def write(tables: Tables, symbols: NDArray[Any], indexes: NDArray[Any]) -> tuple[bytes, ...]:
    """Return the streams of one group."""
    writer = Writer(tables)
    writer.code(symbols, indexes)
    return writer.finish()


def one_round(rng: np.random.Generator) -> int:
    """Return how many damaged streams the coder alone let pass."""
    tables = build_tables(
        [rng.random(size) ** 5 + 1e-12 for size in rng.integers(1, 300, 4)],
        rng.integers(-32768, 32000, 4).tolist(),
    )
    indexes = rng.integers(0, 4, int(rng.integers(1, 400))).astype(np.uint16)
    symbols = tables.offset[indexes] + rng.integers(-3, 40, indexes.size)
    symbols = symbols.clip(-32768, 32767).astype(np.int16)
    streams = write(tables, symbols, indexes)
    passed = 0
    for turn in range(DAMAGES):
        broken = list(streams)
        which = int(rng.integers(len(broken)))
        broken[which] = damaged(rng, broken[which])
        wanted = indexes if turn % 5 else rng.permutation(indexes)
        try:
            reader = Reader(tables, tuple(broken))
            found = reader.code(None, wanted)
            reader.finish()
        except BitstreamError:
            continue
        if broken[which] == streams[which] and wanted is indexes:
            continue
        passed += 1
        if write(tables, found, wanted) != tuple(broken):
            raise SystemExit("a stream passed that no writer writes")
        if wanted is indexes and zlib.crc32(found.tobytes()) == zlib.crc32(symbols.tobytes()):
            raise SystemExit("damage passed the checksum of the symbols")
    return passed


def main(rounds: int = 50_000, seed: int = 0) -> None:
    """Run, and report what the coder alone let pass."""
    rng = np.random.default_rng(seed)
    passed = sum(one_round(rng) for _ in range(rounds))
    sys.stdout.write(
        f"{rounds * DAMAGES} corruptions with the {kernel_name()} kernel: {passed} passed the "
        "coder, none the checksum\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
