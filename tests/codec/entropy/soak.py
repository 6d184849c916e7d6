"""Two million corruptions: `make soak`, or this with [rounds] [seed]. No test by default.

Every round draws tables and symbols, damages the streams 20 times, and decodes, also with wrong
indexes; then the same with contexts, also with wrong ones. A stream that passes must decode to
symbols with another checksum, and must be exactly what a writer writes for them.
"""

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import Contexts, Reader, Tables, Writer, build_tables, kernel_name
from lic.codec.errors import BitstreamError
from tests.codec.entropy.context_cases import Case, drawn_case, read, written

DAMAGES = 20
Streams = tuple[bytes, ...]


class Sample(ABC):
    """Symbols, what chooses their tables, and streams.

    Attributes:
        chooser: what `read` and `write` take besides.
        symbols: as `read` returns them.
    """

    chooser: Any
    symbols: list[NDArray[np.int16]]

    @abstractmethod
    def another(self, rng: np.random.Generator) -> Any:
        """Return a wrong chooser."""

    @abstractmethod
    def write(self, symbols: list[NDArray[np.int16]], chooser: Any) -> Streams:
        """Return streams."""

    @abstractmethod
    def read(self, streams: Streams, chooser: Any) -> list[NDArray[np.int16]]:
        """Return the symbols of streams.

        Raises:
            BitstreamError: They are damaged.
        """


class Group(Sample):
    """A group of symbols with drawn tables; indexes choose among them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._tables: Tables = build_tables(
            [rng.random(size) ** 5 + 1e-12 for size in rng.integers(1, 300, 4)],
            rng.integers(-32768, 32000, 4).tolist(),
        )
        self.chooser = rng.integers(0, 4, int(rng.integers(1, 400))).astype(np.uint16)
        symbols = self._tables.offset[self.chooser] + rng.integers(-3, 40, self.chooser.size)
        self.symbols = [symbols.clip(-32768, 32767).astype(np.int16)]

    def another(self, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Return the indexes in another order."""
        found: NDArray[np.uint16] = rng.permutation(self.chooser)
        return found

    def write(self, symbols: list[NDArray[np.int16]], chooser: NDArray[np.uint16]) -> Streams:
        """Return streams."""
        writer = Writer(self._tables)
        writer.code(symbols[0], chooser)
        return writer.finish()

    def read(self, streams: Streams, chooser: NDArray[np.uint16]) -> list[NDArray[np.int16]]:
        """Return the symbols of streams."""
        reader = Reader(self._tables, streams)
        found = reader.code(None, chooser)
        reader.finish()
        return [found]


class Tiles(Sample):
    """Tiles with drawn contexts."""

    def __init__(self, rng: np.random.Generator) -> None:
        case = drawn_case(int(rng.integers(2**40)))
        self.chooser, self.symbols = case.contexts, list(case.tiles)

    def another(self, rng: np.random.Generator) -> Contexts:
        """Return contexts with other biases."""
        contexts: Contexts = self.chooser
        bias = contexts.bias // 2 + rng.integers(-(2**18), 2**18, len(contexts))
        return replace(contexts, bias=bias.astype(np.int32))

    def write(self, symbols: list[NDArray[np.int16]], chooser: Contexts) -> Streams:
        """Return streams."""
        return written(Case(chooser, tuple(symbols)), kernel_name())

    def read(self, streams: Streams, chooser: Contexts) -> list[NDArray[np.int16]]:
        """Return the symbols of streams."""
        return read(Case(chooser, tuple(self.symbols)), streams, kernel_name())


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


def checksum(symbols: list[NDArray[np.int16]]) -> int:
    """Return the CRC-32 of all groups."""
    return zlib.crc32(b"".join(group.tobytes() for group in symbols))


def one_round(rng: np.random.Generator, draw: Callable[[np.random.Generator], Sample]) -> int:
    """Return how many damaged streams the coder alone let pass."""
    sample = draw(rng)
    streams = sample.write(sample.symbols, sample.chooser)
    passed = 0
    for turn in range(DAMAGES):
        broken = list(streams)
        which = int(rng.integers(len(broken)))
        broken[which] = damaged(rng, broken[which])
        wanted = sample.chooser if turn % 5 else sample.another(rng)
        try:
            found = sample.read(tuple(broken), wanted)
        except BitstreamError:
            continue
        if broken[which] == streams[which] and wanted is sample.chooser:
            continue
        passed += 1
        if sample.write(found, wanted) != tuple(broken):
            raise SystemExit("a stream passed that no writer writes")
        if wanted is sample.chooser and checksum(found) == checksum(sample.symbols):
            raise SystemExit("damage passed the checksum of the symbols")
    return passed


def main(rounds: int = 50_000, seed: int = 0) -> None:
    """Run, and report what the coder alone let pass."""
    draws: dict[str, Callable[[np.random.Generator], Sample]] = {
        "tables": Group,
        "contexts": Tiles,
    }
    for name, draw in draws.items():
        rng = np.random.default_rng(seed)
        passed = sum(one_round(rng, draw) for _ in range(rounds))
        sys.stdout.write(
            f"{rounds * DAMAGES} corruptions of streams with {name}, {kernel_name()} kernel: "
            f"{passed} passed the coder, none the checksum\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
