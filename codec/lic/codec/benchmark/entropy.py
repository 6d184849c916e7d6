"""Speed and overhead of the entropy coder, next to others: `python -m lic.codec.benchmark.entropy`.

Shapes: T tables, n symbols.

Two workloads with a fixed seed: `factorized`, 192 channels with a table each, coded in runs; and
`gaussian`, 64 scales selected symbol by symbol. With --picture a third, `contexts`: what the larger
embedded model makes of it, coded with that model's contexts. Throughput is CPU time, the best of
the repeats, over `code` and `finish` together; the wall clock's median stands beside it. The
overhead is the size of all streams over the ideal code length of the distributions that the symbols
were drawn from, so that it also counts what integer tables lose; of a picture, which was drawn from
none, over that of the tables.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import (
    ContextMeter,
    ContextReader,
    Contexts,
    ContextWriter,
    Reader,
    Tables,
    Writer,
    build_tables,
    kernel_name,
)
from lic.codec.entropy.rans import KernelName
from lic.codec.errors import ConfigError

CHANNELS, SCALES = 192, 64
PHOTO_MODEL, PHOTO_POINT = "bmshj2018-factorized-relu-128-192", 4
_SUPPORT = np.arange(-255, 256)
_TAIL = 1e-5
_CALLS, _CALL_SYMBOLS = 200, 16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Symbols with their tables, and the bits that an ideal coder would take.

    Attributes:
        pmfs: T masses, each with the escape's last; the tables drop those beyond 255 symbols.
        offsets: The first symbol of each pmf.
        symbols: int16, any shape.
        indexes: The table of each symbol, in the same shape.
        ideal_bits: Minus the log2 of all symbols' probabilities.
        contexts: What chooses the tables in place of the indexes, where anything does.
    """

    name: str
    pmfs: list[NDArray[np.float64]]
    offsets: list[int]
    tables: Tables
    symbols: NDArray[np.int16]
    indexes: NDArray[np.uint16]
    ideal_bits: float
    contexts: Contexts | None = None

    def writer(self, kernel: KernelName) -> Writer:
        """Return what codes the symbols."""
        if self.contexts:
            return ContextWriter(self.contexts, kernel=kernel)
        return Writer(self.tables, kernel=kernel)

    def reader(self, streams: tuple[bytes, ...], kernel: KernelName) -> Reader:
        """Return what gives them back."""
        if self.contexts:
            return ContextReader(self.contexts, streams, kernel=kernel)
        return Reader(self.tables, streams, kernel=kernel)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One coder on one workload; None where it was not measured, with the reason in `note`."""

    coder: str
    workload: str
    encode_msymbols: float | None = None
    decode_msymbols: float | None = None
    encode_wall_msymbols: float | None = None
    decode_wall_msymbols: float | None = None
    overhead_percent: float | None = None
    encode_call_us: float | None = None
    decode_call_us: float | None = None
    note: str = ""


def factorized(symbols: int, seed: int = 1) -> Workload:
    """Return `symbols` of 192 channels, each a mixture of a Laplacian and a Gaussian."""
    rng = np.random.default_rng(seed)
    widths, shares = np.exp(rng.normal(0, 1, CHANNELS)), rng.random(CHANNELS)
    masses = [
        share * _laplace(width) + (1 - share) * _gaussian(width)
        for width, share in zip(widths, shares, strict=True)
    ]
    channels = np.arange(CHANNELS, dtype=np.uint16)[:, None]
    indexes = np.broadcast_to(channels, (CHANNELS, max(1, symbols // CHANNELS)))
    return _workload("factorized", masses, indexes, rng)


def gaussian(symbols: int, seed: int = 2) -> Workload:
    """Return `symbols` of 64 Gaussian scales, 0.11 to 32, selected evenly at random."""
    rng = np.random.default_rng(seed)
    masses = [_gaussian(scale) for scale in np.geomspace(0.11, 32, SCALES)]
    return _workload("gaussian", masses, rng.integers(0, SCALES, symbols).astype(np.uint16), rng)


def photo(picture: Path) -> Workload:
    """Return the symbols of a picture by the last rate point of the larger embedded model.

    Raises:
        ImageError: it cannot be read.
        ModelMismatchError: the embedded model is gone or changed.
    """
    from lic.codec.image_io import read_picture, upright
    from lic.codec.pipeline import open_codec

    codec = open_codec(PHOTO_MODEL, PHOTO_POINT)
    symbols = codec.symbols(upright(read_picture(picture)).pixels)
    contexts = codec.bundle.contexts
    assert contexts is not None, "embedded models have contexts"
    indexes = np.zeros(symbols.shape, np.uint16)
    meter = ContextMeter(ContextWriter(contexts), contexts)
    meter.code(symbols, indexes)
    return Workload(
        name="contexts",
        pmfs=[],
        offsets=[],
        tables=contexts.tables,
        symbols=symbols,
        indexes=indexes,
        ideal_bits=meter.bits[0],
        contexts=contexts,
    )


def _gaussian(scale: float) -> NDArray[np.float64]:
    edges = np.append(_SUPPORT, _SUPPORT[-1] + 1) - 0.5
    upper = np.array([0.5 * math.erfc(abs(edge) / scale / math.sqrt(2)) for edge in edges])
    return _normalised(_between(edges, upper))


def _laplace(scale: float) -> NDArray[np.float64]:
    edges = np.append(_SUPPORT, _SUPPORT[-1] + 1) - 0.5
    return _normalised(_between(edges, 0.5 * np.exp(-np.abs(edges) / scale)))


def _between(edges: NDArray[np.float64], tail: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the masses between edges; tails on either side keep their small numbers exact."""
    below = np.where(edges < 0, tail, 1 - tail)
    mass = np.where(edges[:-1] > 0, tail[:-1] - tail[1:], below[1:] - below[:-1])
    return np.maximum(mass, 0)


def _normalised(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(mass / mass.sum(), np.float64)


def _workload(
    name: str,
    masses: Sequence[NDArray[np.float64]],
    indexes: NDArray[np.uint16],
    rng: np.random.Generator,
) -> Workload:
    drawn = np.empty(indexes.shape, np.int64)
    ideal = 0.0
    for index, mass in enumerate(masses):
        here = indexes == index
        places = np.searchsorted(np.cumsum(mass), rng.random(int(here.sum())), side="right")
        places = np.minimum(places, np.flatnonzero(mass)[-1])
        drawn[here] = _SUPPORT[places]
        ideal -= float(np.log2(mass[places]).sum())
    kept = [
        np.flatnonzero((np.cumsum(m) > _TAIL) & (np.cumsum(m[::-1])[::-1] > _TAIL)) for m in masses
    ]
    pmfs = [
        np.append(mass[at], max(0.0, 1 - mass[at].sum()))
        for mass, at in zip(masses, kept, strict=True)
    ]
    offsets = [int(_SUPPORT[at[0]]) for at in kept]
    return Workload(
        name=name,
        pmfs=pmfs,
        offsets=offsets,
        tables=build_tables(pmfs, offsets),
        symbols=drawn.astype(np.int16),
        indexes=indexes,
        ideal_bits=ideal,
    )


@dataclass(frozen=True)
class _Coder:
    """encode() -> (whatever decode takes, size in bytes); decode(that) -> symbols."""

    encode: Callable[[], tuple[Any, int]]
    decode: Callable[[Any], Any]


def _ours(work: Workload, kernel: KernelName) -> _Coder:
    def encode() -> tuple[tuple[bytes, ...], int]:
        writer = work.writer(kernel)
        writer.code(work.symbols, work.indexes)
        streams = writer.finish()
        return streams, sum(map(len, streams))

    def decode(streams: tuple[bytes, ...]) -> NDArray[np.int16]:
        reader = work.reader(streams, kernel)
        symbols = reader.code(None, work.indexes)
        reader.finish()
        return symbols

    return _Coder(encode, decode)


def _constriction(work: Workload) -> _Coder:
    """The ANS coder of constriction, symbols grouped by table, an escape's value left out."""
    stream = importlib.import_module("constriction").stream
    groups = []
    for index, pmf in enumerate(work.pmfs):
        symbols = work.symbols[work.indexes == index].astype(np.int32) - work.offsets[index]
        outside = (symbols < 0) | (symbols >= len(pmf) - 1)
        symbols = np.where(outside, len(pmf) - 1, symbols).astype(np.int32)
        model = stream.model.Categorical(np.maximum(pmf, 1e-9), perfect=False)
        groups.append((symbols, model))

    def encode() -> tuple[Any, int]:
        coder = stream.stack.AnsCoder()
        for symbols, model in reversed(groups):
            coder.encode_reverse(symbols, model)
        data = coder.get_compressed()
        return data, data.nbytes

    def decode(data: Any) -> None:
        coder = stream.stack.AnsCoder(data)
        for symbols, model in groups:
            if not np.array_equal(coder.decode(model, len(symbols)), symbols):
                raise AssertionError("constriction did not return the symbols")

    return _Coder(encode, decode)


def _compressai(work: Workload) -> _Coder:
    """CompressAI's coder as its models call it: through Python lists, 16-bit tables."""
    ans = importlib.import_module("compressai.ans")
    quantise = importlib.import_module("compressai._CXX").pmf_to_quantized_cdf
    cdfs = [list(quantise(np.maximum(pmf, 1e-9).tolist(), 16)) for pmf in work.pmfs]
    sizes, offsets = [len(cdf) for cdf in cdfs], work.offsets
    encoder, decoder = ans.RansEncoder(), ans.RansDecoder()

    def encode() -> tuple[bytes, int]:
        symbols, indexes = work.symbols.ravel().tolist(), work.indexes.ravel().tolist()
        data: bytes = encoder.encode_with_indexes(symbols, indexes, cdfs, sizes, offsets)
        return data, len(data)

    def decode(data: bytes) -> NDArray[np.int16]:
        indexes = work.indexes.ravel().tolist()
        symbols = decoder.decode_with_indexes(data, indexes, cdfs, sizes, offsets)
        return np.array(symbols, np.int16).reshape(work.symbols.shape)

    return _Coder(encode, decode)


CODERS: dict[str, Callable[[Workload], _Coder]] = {
    "lic c": lambda work: _ours(work, "c"),
    "lic python": lambda work: _ours(work, "python"),
    "constriction": _constriction,
    "compressai": _compressai,
}


def measure(work: Workload, coder: str, repeat: int) -> Row:
    """Return one coder's row; a coder that is not installed gives a row that says so."""
    ours = coder.startswith("lic")
    if work.contexts and not ours:
        return Row(coder=coder, workload=work.name, note="has no contexts")
    try:
        if coder == "lic c":
            kernel_name("c")
        made = CODERS[coder](work)
    except (ImportError, ConfigError) as error:
        return Row(coder=coder, workload=work.name, note=f"not here: {error}")
    (data, size), encode_cpu, encode_wall = _timed(made.encode, repeat)
    decoded, decode_cpu, decode_wall = _timed(lambda: made.decode(data), repeat)
    if decoded is not None and not np.array_equal(decoded, work.symbols):
        raise AssertionError(f"{coder} did not return the symbols")
    millions = work.symbols.size / 1e6
    # A tile is one call with contexts, and whole.
    calls = _call_times(work, coder) if ours and not work.contexts else (None, None)
    return Row(
        coder=coder,
        workload=work.name,
        encode_msymbols=millions / encode_cpu,
        decode_msymbols=millions / decode_cpu,
        encode_wall_msymbols=millions / encode_wall,
        decode_wall_msymbols=millions / decode_wall,
        overhead_percent=100 * (8 * size / work.ideal_bits - 1),
        encode_call_us=calls[0],
        decode_call_us=calls[1],
    )


def _timed(action: Callable[[], Any], repeat: int) -> tuple[Any, float, float]:
    """Return the result, the least CPU time and the median wall time, in seconds."""
    cpu, wall, result = [], [], None
    for _ in range(repeat):
        start_cpu, start_wall = time.process_time(), time.perf_counter()
        result = action()
        cpu.append(time.process_time() - start_cpu)
        wall.append(time.perf_counter() - start_wall)
    return result, min(cpu), statistics.median(wall)


def _call_times(work: Workload, coder: str) -> tuple[float, float]:
    """Return microseconds for each of many small groups, the finish included: write, read."""
    kernel: KernelName = "c" if coder == "lic c" else "python"
    symbols = work.symbols.ravel()[:_CALL_SYMBOLS].copy()
    indexes = work.indexes.ravel()[:_CALL_SYMBOLS].copy()

    def encode() -> tuple[bytes, ...]:
        writer = Writer(work.tables, kernel=kernel)
        for _ in range(_CALLS):
            writer.code(symbols, indexes)
        return writer.finish()

    def decode() -> None:
        reader = Reader(work.tables, streams, kernel=kernel)
        for _ in range(_CALLS):
            reader.code(None, indexes)
        reader.finish()

    streams, encode_cpu, _ = _timed(encode, 5)
    _, decode_cpu, _ = _timed(decode, 5)
    return 1e6 * encode_cpu / _CALLS, 1e6 * decode_cpu / _CALLS


def run(symbols: int, repeat: int, picture: Path | None = None) -> list[Row]:
    """Return the rows of all coders on all workloads."""
    works = [factorized(symbols), gaussian(symbols), *([photo(picture)] if picture else [])]
    slow = max(1, repeat // 10)
    return [
        measure(work, coder, repeat if coder == "lic c" else slow)
        for coder in CODERS
        for work in works
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json one object for each row."""
    parser = argparse.ArgumentParser(prog="python -m lic.codec.benchmark.entropy")
    parser.add_argument("--symbols", type=int, default=CHANNELS * 1536)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.symbols < 1 or options.repeat < 1:
        parser.error("--symbols and --repeat must be at least 1")
    rows = run(options.symbols, options.repeat, options.picture)
    if options.json:
        sys.stdout.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    else:
        _print_table(rows, options.symbols)


def _print_table(rows: Sequence[Row], symbols: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{symbols} symbols; Msymbols/s of CPU time (of wall time)")
    for heading in ("coder", "workload", "encode", "decode", "overhead", "us/call enc dec", "note"):
        table.add_column(heading)
    for row in rows:
        if row.note:
            table.add_row(row.coder, row.workload, "", "", "", "", row.note)
            continue
        table.add_row(
            row.coder,
            row.workload,
            f"{row.encode_msymbols:.4g} ({row.encode_wall_msymbols:.4g})",
            f"{row.decode_msymbols:.4g} ({row.decode_wall_msymbols:.4g})",
            f"{row.overhead_percent:.3f} %",
            f"{row.encode_call_us:.1f} {row.decode_call_us:.1f}" if row.encode_call_us else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
