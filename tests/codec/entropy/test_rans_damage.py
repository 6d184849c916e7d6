"""What the coder itself notices. A flipped escape, or a flip that gives another sequence's stream,
is left to the container's checksums; nothing may crash, hang or read beyond its data."""

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.benchmark.entropy import Workload, gaussian
from lic.codec.entropy import KernelName, Reader, Tables, Writer
from lic.codec.errors import BitstreamError


def stream_of(
    symbols: int, with_escapes: bool
) -> tuple[Workload, NDArray[np.int16], tuple[bytes, ...]]:
    work = gaussian(symbols)
    values = work.symbols.copy()
    if with_escapes:
        values[::50] = 1000
    writer = Writer(work.tables)
    writer.code(values, work.indexes)
    return work, values, writer.finish()


def survives(
    work: Workload, streams: tuple[bytes, ...], kernel: KernelName | None = None
) -> NDArray[np.int16] | None:
    """Return the symbols if the coder finds nothing wrong, else None."""
    try:
        reader = Reader(work.tables, streams, kernel=kernel)
        symbols = reader.code(None, work.indexes)
        reader.finish()
    except BitstreamError:
        return None
    return symbols


def corrupted(rng: np.random.Generator, data: bytes) -> bytes:
    damaged = bytearray(data)
    at, other = (int(n) for n in rng.integers(len(data), size=2))
    match int(rng.integers(6)):
        case 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        case 1:
            damaged[at] = int(rng.integers(256))
        case 2:
            damaged[at], damaged[other] = damaged[other], damaged[at]
        case 3:
            del damaged[at]
        case 4:
            damaged.insert(at, int(rng.integers(256)))
        case _:
            del damaged[at:]
    return bytes(damaged)


@pytest.mark.parametrize("which", [0, 1])
def test_truncation_at_every_byte_is_found(kernel: KernelName, which: int) -> None:
    work, _, streams = stream_of(400, with_escapes=True)
    for size in range(len(streams[which])):
        damaged = list(streams)
        damaged[which] = damaged[which][:size]
        assert survives(work, tuple(damaged), kernel) is None, size


def test_appended_bytes_are_found(kernel: KernelName) -> None:
    work, _, streams = stream_of(400, with_escapes=True)
    for tail in (b"\0", b"\0\0", bytes(64)):
        assert survives(work, (streams[0] + tail, streams[1]), kernel) is None
        assert survives(work, (streams[0], streams[1] + tail), kernel) is None


def test_missing_and_surplus_streams_are_found(kernel: KernelName) -> None:
    work, _, streams = stream_of(400, with_escapes=True)
    for damaged in ((), streams[:1], (streams[0], b""), (*streams, b"x"), (b"", streams[1])):
        assert survives(work, damaged, kernel) is None
    work, _, streams = stream_of(400, with_escapes=False)
    assert survives(work, (*streams, b"\0"), kernel) is None


@pytest.mark.usefixtures("c_kernel")
def test_of_all_single_bit_flips_at_most_one_in_a_thousand_passes() -> None:
    work, values, (stream,) = stream_of(2000, with_escapes=False)
    passed = 0
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        found = survives(work, (bytes(damaged),))
        if found is not None:
            passed += 1
            assert zlib.crc32(found.tobytes()) != zlib.crc32(values.tobytes())
    assert passed <= 8 * len(stream) / 1000


@pytest.mark.usefixtures("c_kernel")
def test_of_20000_corruptions_the_checksum_of_the_symbols_lets_none_pass() -> None:
    work, values, streams = stream_of(300, with_escapes=True)
    rng = np.random.default_rng(0)
    tried = passed = 0
    for turn in range(20_000):
        which = int(turn % 10 == 0)
        damaged = list(streams)
        damaged[which] = corrupted(rng, damaged[which])
        if damaged[which] == streams[which]:
            continue
        found = survives(work, tuple(damaged))
        tried += which == 0
        if found is not None:
            passed += which == 0
            assert zlib.crc32(found.tobytes()) != zlib.crc32(values.tobytes())
    assert tried > 17_000
    assert passed <= tried / 1000


@pytest.mark.usefixtures("c_kernel")
def test_kernel_and_oracle_judge_the_same() -> None:
    work, _, streams = stream_of(150, with_escapes=True)
    rng = np.random.default_rng(1)
    for turn in range(600):
        damaged = list(streams)
        damaged[turn % 2] = corrupted(rng, damaged[turn % 2])
        outcomes: dict[KernelName, list[Any]] = {"c": [], "python": []}
        for kernel, outcome in outcomes.items():
            try:
                reader = Reader(work.tables, tuple(damaged), kernel=kernel)
                outcome.append(reader.code(None, work.indexes).tolist())
                reader.finish()
            except BitstreamError as error:
                outcome.append(str(error))
        assert outcomes["c"] == outcomes["python"]


ESCAPES_ONLY = Tables(
    quantized_cdf=np.array([[0, 16384]]), cdf_length=np.array([2]), offset=np.array([0])
)


@pytest.mark.parametrize(
    ("escape", "symbol"),
    [("00", 0), ("01", -1), ("7f", -64), ("8001", 64), ("feff03", 32767), ("ffff03", -32768)],
)
def test_an_escape_has_one_spelling(kernel: KernelName, escape: str, symbol: int) -> None:
    lanes = b"\0\0\1\0" * 4
    reader = Reader(ESCAPES_ONLY, (lanes, bytes.fromhex(escape)), kernel=kernel)
    assert reader.code(None, np.zeros(1, np.uint16)).tolist() == [symbol]
    reader.finish()


@pytest.mark.parametrize("escape", ["8000", "808000", "808004", "818004", "ffff7f", "ffffff"])
def test_other_spellings_and_values_beyond_int16_are_refused(
    kernel: KernelName, escape: str
) -> None:
    lanes = b"\0\0\1\0" * 4
    reader = Reader(ESCAPES_ONLY, (lanes, bytes.fromhex(escape)), kernel=kernel)
    with pytest.raises(BitstreamError, match="no encoder writes"):
        reader.code(None, np.zeros(1, np.uint16))


def test_a_state_below_the_lower_bound_is_refused(kernel: KernelName) -> None:
    lanes = b"\xff\xff\0\0" + b"\0\0\1\0" * 3
    with pytest.raises(BitstreamError, match="below"):
        Reader(ESCAPES_ONLY, (lanes, b"\0"), kernel=kernel)


def test_a_failed_reader_stays_failed(kernel: KernelName) -> None:
    work, _, (stream,) = stream_of(400, with_escapes=False)
    reader = Reader(work.tables, (stream[:20],), kernel=kernel)
    for _ in range(2):
        with pytest.raises(BitstreamError, match="ends too early"):
            reader.code(None, work.indexes)
    with pytest.raises(BitstreamError, match="ends too early"):
        reader.finish()


def test_symbols_left_unread_are_found(kernel: KernelName) -> None:
    work, _, (stream,) = stream_of(400, with_escapes=False)
    reader = Reader(work.tables, (stream,), kernel=kernel)
    reader.code(None, work.indexes[:200])
    with pytest.raises(BitstreamError, match="left over"):
        reader.finish()
    reader = Reader(work.tables, (stream,), kernel=kernel)
    with pytest.raises(BitstreamError, match="no symbols were wanted"):
        reader.finish()
