"""Latents with contexts to code them by, drawn by number, and the kernel's source on any machine.

`judged` holds the C kernel against the oracle. A `Replay` is the same source compiled without
Python, for this machine with and without SSE2, or for arm64 under emulation: its digests must be
those that `judged` returned.

Shapes: C channels, h w rows and columns of a tile, T tables.
"""

import functools
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import ContextReader, Contexts, ContextWriter, Tables, _contexts_py
from lic.codec.entropy.contexts import BESIDE_LIMIT, BIAS_LIMIT, CLASSES, LEVELS, NEIGHBOURS, RANK
from lic.codec.entropy.rans import KernelName, c_kernel
from lic.codec.entropy.tables import build_tables

HERE = Path(__file__).parent
SOURCE = HERE / "replay_contexts.c"
HEADERS = HERE.parents[1] / "hostile" / "kernel"
# As hatch_build.py compiles it.
FLAGS = ("-O3", "-std=c11")
ARM64 = "aarch64-linux-gnu-gcc"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")

Random = np.random.Generator
Symbols = NDArray[np.int16]
LARGEST = 320
_CHANNELS = (1, 1, 2, 3, 4, 4, 5, 7, 8, 12, 16, 31, 32, 96, 192, LARGEST)


@dataclass(frozen=True)
class Case:
    """Tiles that share a stream, each (C, h, w), and what chooses their tables."""

    contexts: Contexts
    tiles: tuple[Symbols, ...]


@functools.cache
def pool() -> tuple[Tables, ...]:
    """Return sets of tables: few and many, narrow and wide, at both ends of the symbols."""
    rng = np.random.default_rng(0)

    def drawn(sizes: Iterable[int], low: int, high: int) -> Tables:
        pmfs = [rng.random(size) ** 4 + 1e-9 for size in sizes]
        return build_tables(pmfs, rng.integers(low, high, len(pmfs)).tolist())

    return (
        drawn((2, 3, 9, 60, 256, 400, 1), -20, 5),
        drawn(rng.integers(1, 24, 256), -12, 1),
        drawn((1,), 0, 1),
        drawn((256,), -128, -127),
        drawn(rng.integers(2, 300, 64), -150, 1),
        drawn((5, 256, 30), -32768, -32767),
        drawn((5, 256, 30), 32500, 32501),
    )


def drawn_case(number: int) -> Case:
    """Return case `number`, always the same one."""
    rng = np.random.default_rng((7, number))
    tables = pool()[number // len(pool()) % len(pool())]
    channels = int(rng.choice(_CHANNELS))
    contexts = _drawn_contexts(rng, channels, tables)
    shapes = [_shape(rng, channels) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    return Case(contexts, tuple(_drawn_symbols(rng, shape) for shape in shapes))


def _shape(rng: Random, channels: int) -> tuple[int, int, int]:
    most = 3 if channels > 64 else 6
    height, width = rng.integers(1, most + 1, 2).tolist()
    match int(rng.integers(12)):
        case 0:
            return channels, 1, 1
        case 1:
            return channels, 0, width
        case 2:
            return channels, 1, 4 * width
        case 3:
            return channels, 4 * height, 1
    return channels, height, width


def _drawn_symbols(rng: Random, shape: tuple[int, int, int]) -> Symbols:
    match int(rng.integers(8)):
        case 0:
            return np.zeros(shape, np.int16)
        case 1:
            return rng.choice(np.array([-32768, 32767], np.int16), shape)
        case 2:
            return rng.integers(-32768, 32768, shape).astype(np.int16)
        case 3:
            return np.full(shape, rng.choice((-32768, -256, -1, 1, 255, 32767)), np.int16)
    size = float(rng.choice((0.2, 1, 5, 60, 3000)))
    symbols = np.round(rng.laplace(size=shape) * size)
    symbols *= np.where(rng.random(shape) < 0.02, 1000, 1)
    return np.clip(symbols, -32768, 32767).astype(np.int16)


def _drawn_contexts(rng: Random, channels: int, tables: Tables) -> Contexts:
    """Return contexts whose arrays are each all alike, at a limit, or anything."""

    def integers(low: int, high: int, shape: Any) -> NDArray[np.int64]:
        found: NDArray[np.int64] = rng.integers(low, high + 1, shape)
        match int(rng.integers(6)):
            case 0:
                found[:] = rng.choice((low, high))
            case 1:
                found = np.where(found > (low + high) // 2, high, low)
            case 2:
                found[:] = max(low, 0)
        return found

    predicted = int(rng.integers(min(channels, 64) + 1)) if rng.random() < 0.3 else 0
    predicted = predicted if rng.random() < 0.2 else min(predicted, 3)
    bias = int(rng.choice((BIAS_LIMIT, 2**17, 2**12)))
    arrays: dict[str, NDArray[Any]] = {
        "levels": integers(0, 255, LEVELS),
        "order": rng.permutation(channels),
        "mean": integers(0, 255, channels),
        "beside": _within_limit(integers(-128, 127, (channels, NEIGHBOURS))),
        "into": integers(-128, 127, (channels, RANK)),
        "from_sums": integers(-128, 127, (channels, RANK)),
        "bias": integers(-bias, bias, channels),
        "table_map": integers(0, len(tables) - 1, (channels, CLASSES)),
        "predicted": rng.permutation(channels)[:predicted],
        "weights": integers(-128, 127, (predicted, NEIGHBOURS)),
    }
    if rng.random() < 0.7:
        arrays["levels"].sort()
    return Contexts.from_arrays({**arrays, **tables.to_arrays()})


def _within_limit(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return weights (C, 6) of which the later give way where a channel's would be too large."""
    left = np.full(len(weights), BESIDE_LIMIT)
    found = weights.copy()
    for k in range(weights.shape[1]):
        found[:, k] = np.clip(weights[:, k], -left, left)
        left -= np.abs(found[:, k])
    return found


# ---- in Python ----


def written(case: Case, kernel: KernelName) -> tuple[bytes, ...]:
    """Return the streams of a case."""
    writer = ContextWriter(case.contexts, kernel=kernel)
    for tile in case.tiles:
        writer.code(tile, _grid(tile))
    return writer.finish()


def read(case: Case, streams: tuple[bytes, ...], kernel: KernelName) -> list[Symbols]:
    """Return the tiles that the streams of a case decode to."""
    reader = ContextReader(case.contexts, streams, kernel=kernel)
    found = [reader.code(None, _grid(tile)) for tile in case.tiles]
    reader.finish()
    return found


def _grid(tile: Symbols) -> NDArray[np.uint16]:
    return np.broadcast_to(np.zeros((len(tile), 1, 1), np.uint16), tile.shape)


def _chosen(case: Case, module: Any) -> bytes:
    """Return residuals, then tables, of all tiles as a kernel's module finds them."""
    prepared = module.prepare_contexts(*case.contexts.choice().values())
    coded, indexes = b"", b""
    for tile in case.tiles:
        if tile.size:
            residuals, tables = np.empty(tile.size, np.int16), np.empty(tile.size, np.uint16)
            module.find_contexts(prepared, tile.reshape(-1), residuals, tables, *tile.shape[1:])
            coded += residuals.astype("<i2").tobytes()
            indexes += tables.astype("<u2").tobytes()
    return coded + indexes


def judged(case: Case) -> str:
    """Return the digest of a case on which both kernels agree.

    Raises:
        AssertionError: they do not, or what was coded does not come back.
    """
    chosen, streams = _chosen(case, c_kernel()), written(case, "c")
    assert _chosen(case, _contexts_py) == chosen, "other residuals or tables"
    assert written(case, "python") == streams, "other bytes"
    kernels: tuple[KernelName, ...] = ("c", "python")
    for kernel in kernels:
        for tile, found in zip(case.tiles, read(case, streams, kernel), strict=True):
            assert np.array_equal(tile, found), f"other symbols from {kernel}"
    return f"{zlib.crc32(chosen + b''.join(streams)):08x}"


# ---- without Python ----


class Replay:
    """A program that codes cases by the kernel's source.

    Args:
        program: where to put it.
        compiler: and its flags.
        emulator: what runs it, where this machine does not.

    Raises:
        RuntimeError: It cannot be compiled.
    """

    def __init__(self, program: Path, compiler: Sequence[str], emulator: str = "") -> None:
        self._command = [*filter(None, [emulator]), str(program)]
        command = [*compiler, *FLAGS, f"-I{HEADERS}", str(SOURCE), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler[0]} failed: {done.stderr[-2000:]}")

    def digests(self, cases: Iterable[Case]) -> tuple[str, list[str]]:
        """Return the path that the kernel took, and the digests of all cases but empty ones.

        Raises:
            RuntimeError: It failed, or found that what was coded does not come back.
        """
        done = subprocess.run(self._command, input=b"".join(_records(cases)), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{self._command}: {done.stderr.decode()[-2000:]}")
        path, *found = done.stdout.decode().split()
        return path, found


def is_empty(case: Case) -> bool:
    """Return whether there is nothing to code, of which there is nothing to replay."""
    return not any(tile.size for tile in case.tiles)


def _records(cases: Iterable[Case]) -> Iterator[bytes]:
    """Yield what `replay_contexts.c` reads."""
    known: Tables | None = None
    for case in cases:
        if is_empty(case):
            continue
        contexts, tables = case.contexts, case.contexts.tables
        if tables is not known:
            known = tables
            yield struct.pack("<3I", 0, *tables.quantized_cdf.shape)
            for array, kind in (
                (tables.quantized_cdf, "<u2"),
                (tables.cdf_length, "<u2"),
                (tables.offset, "<i4"),
            ):
                yield array.astype(kind).tobytes()
        tiles = [tile for tile in case.tiles if tile.size]
        yield struct.pack("<4I", 1, len(contexts), len(contexts.predicted), len(tiles))
        for name in contexts.choice():
            array = getattr(contexts, name)
            yield array.astype(array.dtype.newbyteorder("<")).tobytes()
        for tile in tiles:
            yield struct.pack("<2I", *tile.shape[1:]) + tile.astype("<i2").tobytes()


def host_replays(folder: Path) -> dict[str, Replay]:
    """Return the programs of this machine, with SSE2 where it has that and without; none if no gcc.

    Names are the paths that the kernel must take.
    """
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return {}
    return {
        "own": Replay(folder / "own", [compiler]),
        "plain": Replay(folder / "plain", [compiler, "-U__SSE2__"]),
    }


def arm64_replay(folder: Path) -> Replay | None:
    """Return the program for arm64 under emulation; None without compiler or emulator."""
    emulator = next(filter(shutil.which, EMULATORS), None)
    if emulator is None or not shutil.which(ARM64):
        return None
    return Replay(folder / "arm64", [ARM64, "-static"], emulator)
