from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.entropy import Meter, Reader, Tables, Writer, build_tables
from lic.codec.entropy.meter import _slot_bits
from lic.codec.errors import ConfigError

# What a stream has beside the symbols' own bits: the coder's four lanes.
LANES = 8 * 16


def drawn(
    tables: Tables, shape: tuple[int, ...], *, seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Return symbols as their tables expect them, escapes of every length among them."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(len(tables), size=shape).astype(np.uint16)
    position = rng.integers(1 << 14, size=shape)
    slot = (tables.quantized_cdf[indexes] <= position[..., None]).sum(axis=-1)
    # Zeros behind a table's end count as below any position.
    used = tables.cdf_length[indexes].astype(int)
    slot -= 1 + tables.quantized_cdf.shape[1] - used
    symbols = tables.offset[indexes] + slot
    far = rng.choice([-20000, -300, -40, 40, 300, 20000], size=shape)
    return np.where(slot == used - 2, far, symbols).astype(np.int16), indexes


def stream_bits(streams: tuple[bytes, ...]) -> int:
    return 8 * sum(map(len, streams)) - LANES


def test_bits_are_those_of_the_stream(mixed_tables: Tables) -> None:
    writer = Writer(mixed_tables)
    meter = Meter(writer, mixed_tables)
    groups = [drawn(mixed_tables, (3, 50, 400), seed=seed) for seed in range(3)]
    for symbols, indexes in groups:
        assert np.array_equal(meter.code(symbols, indexes), symbols)
    streams = writer.finish()
    assert len(streams) == 2 and len(streams[1]) > 10_000
    assert len(meter.bits) == 3 and min(meter.bits) > 100_000
    assert abs(stream_bits(streams) - sum(meter.bits)) < 0.002 * sum(meter.bits) + 64


def test_a_reader_is_told_the_writers_bits(mixed_tables: Tables) -> None:
    groups = [drawn(mixed_tables, shape) for shape in ((4, 30, 30), (7,), (1, 1, 1, 9))]
    writer = Writer(mixed_tables)
    written = Meter(writer, mixed_tables)
    for symbols, indexes in groups:
        written.code(symbols, indexes)
    read = Meter(Reader(mixed_tables, writer.finish()), mixed_tables)
    for symbols, indexes in groups:
        assert np.array_equal(read.code(None, indexes), symbols)
    assert read.bits == written.bits


def test_a_symbol_costs_the_logarithm_of_its_share() -> None:
    tables = build_tables([np.array([0.5, 0.25, 0.25])], [-1])
    meter = Meter(Writer(tables), tables)
    for symbols, bits in (([-1], 1), ([0], 2), ([-1, 0, 0], 5), ([], 0)):
        values = np.array(symbols, np.int16)
        meter.code(values, np.zeros(values.shape, np.uint16))
        assert meter.bits[-1] == bits


@pytest.mark.parametrize(
    ("symbol", "number_bytes"),
    [(1, 1), (64, 1), (65, 2), (8192, 2), (8193, 3), (-2, 1), (-65, 1), (-66, 2), (-8193, 2),
     (-8194, 3), (32767, 3), (-32768, 3)],
)  # fmt: skip
def test_an_escape_costs_its_slot_and_its_number(symbol: int, number_bytes: int) -> None:
    tables = build_tables([np.array([0.5, 0.25, 0.25])], [-1])
    writer = Writer(tables)
    meter = Meter(writer, tables)
    meter.code(np.array([symbol], np.int16), np.zeros(1, np.uint16))
    assert len(writer.finish()[1]) == number_bytes
    assert meter.bits == [2 + 8 * number_bytes]


def test_indexes_without_memory_of_their_own_are_measured_in_place(mixed_tables: Tables) -> None:
    """A factorized prior's indexes: one number for all symbols of a channel."""
    channels = np.arange(len(mixed_tables), dtype=np.uint16)[:, None]
    indexes = np.broadcast_to(channels, (len(mixed_tables), 300_000))
    symbols = np.zeros(indexes.shape, np.int16)
    full, narrow = (Meter(Writer(mixed_tables), mixed_tables) for _ in range(2))
    full.code(symbols, indexes)
    narrow.code(symbols[:, :3], indexes[:, :3].copy())
    assert full.bits[0] == pytest.approx(100_000 * narrow.bits[0])


def test_behind_a_tables_end_nothing_costs_anything(mixed_tables: Tables) -> None:
    bits = _slot_bits(mixed_tables)
    count, longest = mixed_tables.quantized_cdf.shape
    assert bits.shape == (count, longest - 1)
    behind = np.arange(longest - 1) >= mixed_tables.cdf_length[:, None].astype(int) - 1
    assert behind.any() and not bits[behind].any()
    np.testing.assert_allclose(np.where(behind, 0, 2.0**-bits).sum(axis=1), 1)


def test_the_coders_errors_pass_and_cost_nothing(mixed_tables: Tables) -> None:
    meter: Any = Meter(Writer(mixed_tables), mixed_tables)
    with pytest.raises(ConfigError, match="needs symbols"):
        meter.code(None, np.zeros(3, np.uint16))
    assert meter.bits == []
