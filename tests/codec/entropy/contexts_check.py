"""The proof of contexts: `make contexts-check KODAK=DIR`. No test by default.

Codes ten thousand drawn cases, and pictures with bundles that have contexts. The C kernel and the
oracle must write the same bytes and read them back, and so must the kernel's source compiled
without SSE2, and for arm64 under emulation. Streams may be 0.15 % longer than what their symbols
cost by the tables, and 16 bytes: those of the states, which small pictures cannot share.

Shapes: M latent channels, h w rows and columns of latents.
"""

import argparse
import atexit
import functools
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import Coder, parse
from lic.codec.entropy import ContextMeter, SymbolCoder
from lic.codec.image_io import read_picture
from lic.codec.library import all_bundles
from lic.codec.pipeline import Codec
from lic.codec.tiling import places
from tests.codec.entropy.context_cases import (
    ARM64,
    Case,
    Replay,
    arm64_replay,
    drawn_case,
    host_replays,
    is_empty,
    judged,
    written,
)

BLOCK = 100
MOST = 0.0015
STATES = 16


@dataclass(frozen=True)
class Drawn:
    """How many cases, of how many symbols, and how many of them each program coded."""

    cases: int
    symbols: int
    replayed: Counter[str]


@dataclass(frozen=True)
class Coded:
    """A picture: its symbols, the bits of its streams, and what the symbols cost by the tables."""

    symbols: int
    bits: int
    ideal: float
    replayed: Counter[str]


class _Kept:
    """A coder that passes everything through to another and keeps the symbols."""

    def __init__(self, coder: SymbolCoder) -> None:
        self.groups: list[NDArray[np.int16]] = []
        self._coder = coder

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Return the next group."""
        self.groups.append(self._coder.code(symbols, indexes))
        return self.groups[-1]


@functools.cache
def programs() -> dict[str, Replay]:
    """Return the kernel without Python, compiled once for a process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    arm64 = arm64_replay(folder)
    return {**host_replays(folder), **({"arm64": arm64} if arm64 else {})}


def replayed(cases: list[Case], digests: list[str]) -> Counter[str]:
    """Return how many cases each program coded to the same bytes: all that are not empty.

    Raises:
        AssertionError: it coded one otherwise.
    """
    wanted = [digest for case, digest in zip(cases, digests, strict=True) if not is_empty(case)]
    counts = Counter[str]()
    for name, program in programs().items():
        path, found = program.digests(cases)
        assert found == wanted, f"{name} ({path}) codes otherwise"
        counts[f"{name}, {path} path"] = len(found)
    return counts


def check_block(numbers: range) -> Drawn:
    """Code drawn cases.

    Raises:
        AssertionError: one is not coded alike everywhere.
    """
    cases = list(map(drawn_case, numbers))
    digests = []
    for number, case in zip(numbers, cases, strict=True):
        try:
            digests.append(judged(case))
        except Exception as error:
            raise AssertionError(f"case {number}: {error}") from error
    symbols = sum(tile.size for case in cases for tile in case.tiles)
    return Drawn(len(cases), symbols, replayed(cases, digests))


def check_picture(work: tuple[Path, Path]) -> Coded:
    """Code a picture, the second path, with the bundle that is the first.

    Raises:
        AssertionError: it is not coded alike everywhere.
    """
    bundle = Bundle.open(work[0])
    codec = Codec(bundle, backend="onnx", threads=1)
    file = parse(codec.compress(read_picture(work[1])).data)
    contexts = bundle.contexts
    assert contexts is not None
    assert file.header.coder is Coder.CONTEXTS
    ((place, tile),) = zip(places(file.header), file.tiles, strict=True)
    watched: list[tuple[_Kept, ContextMeter]] = []

    def watch(reader: SymbolCoder) -> SymbolCoder:
        meter = ContextMeter(reader, contexts)
        watched.append((_Kept(meter), meter))
        return watched[-1][0]

    codec.read_symbols(file.header, place, tile, watch)
    kept, meter = watched[0]
    case = Case(contexts, tuple(kept.groups))
    assert written(case, "c") == tile.streams, f"{work[1]}: other bytes in the file"
    bits = 8 * sum(map(len, tile.streams))
    counts = replayed([case], [judged(case)])
    return Coded(sum(group.size for group in kept.groups), bits, sum(meter.bits), counts)


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell_replays(counts: Iterable[Counter[str]]) -> None:
    """Write how much each program coded to the same bytes."""
    for name, count in sum(counts, Counter[str]()).items():
        tell(f"  {name}: {count:,} to the same bytes and back")


def check_pictures(pool: Pool, bundle: Bundle, pictures: list[Path]) -> bool:
    """Write what became of pictures with a bundle; return whether they are short enough."""
    work = [(bundle.path, picture) for picture in pictures]
    coded = list(pool.imap(check_picture, work))
    symbols = sum(each.symbols for each in coded)
    bits, ideal = sum(each.bits for each in coded), sum(each.ideal for each in coded)
    worst = max(coded, key=lambda each: each.bits / each.ideal)
    tell(
        f"{bundle.label}: {len(coded)} pictures of {symbols:,} symbols, C kernel and oracle alike; "
        f"{bits // 8:,} bytes, {bits / ideal - 1:.3%} and {(bits - ideal) / 8 / len(coded):.1f} "
        f"bytes a picture over the symbols' cost; of a single one at most "
        f"{worst.bits / worst.ideal - 1:.3%}, {(worst.bits - worst.ideal) / 8:.1f} bytes"
    )
    tell_replays(each.replayed for each in coded)
    return all(each.bits <= (1 + MOST) * each.ideal + 8 * STATES for each in coded)


def main() -> int:
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder of PNG files")
    parser.add_argument("--count", type=int, default=10_000, help="of drawn cases")
    parser.add_argument("--bundle", type=Path, action="append", help="default: all that are found")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if missing := {"own", "plain", "arm64"} - programs().keys():
        tell(f"not compiled for: {', '.join(sorted(missing))} (needs a C compiler; {ARM64}, qemu)")
    bundles = list(map(Bundle.open, options.bundle)) if options.bundle else all_bundles()
    fitted = [bundle for bundle in bundles if bundle.contexts]
    good = not missing
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        numbers = range(options.count)
        blocks = [numbers[start : start + BLOCK] for start in numbers[::BLOCK]]
        drawn = list(pool.imap(check_block, blocks))
        cases, symbols = sum(each.cases for each in drawn), sum(each.symbols for each in drawn)
        tell(f"{cases:,} drawn cases of {symbols:,} symbols: C kernel and oracle alike")
        tell_replays(each.replayed for each in drawn)
        for bundle in fitted if options.pictures else []:
            good &= check_pictures(pool, bundle, sorted(options.pictures.glob("*.png")))
    if not fitted:
        tell(f"none of {len(bundles)} bundles has contexts: no picture was tried")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
