import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.entropy import Reader, Tables, Writer, build_tables
from lic.codec.errors import NumericsError
from lic.codec.latents import SYMBOL_LIMIT, FactorizedSteps, State, checked_symbols, walk

M, H, W = 5, 7, 3


def tables(count: int = M) -> Tables:
    """Return tables of symbols -4 to 4, each channel with another spread."""
    offsets = np.arange(-4, 5)
    spreads = 0.5 + np.arange(count)[:, None]
    rows = np.exp(-np.abs(offsets) / spreads)
    return build_tables([np.append(row, 1e-6) for row in rows], [-4] * count)


def symbols(seed: int = 0) -> NDArray[np.int16]:
    values = np.random.default_rng(seed).integers(-6, 7, (M, H, W)).astype(np.int16)
    values[2, 3, 1] = -SYMBOL_LIMIT
    return values


def test_what_the_walk_writes_it_reads() -> None:
    y = symbols()
    writer = Writer(tables())
    state, crc = walk(FactorizedSteps(M), y, writer)
    assert np.array_equal(state, y)
    assert crc == zlib.crc32(y.astype("<i2").tobytes())

    reader = Reader(tables(), writer.finish())
    read, read_crc = walk(FactorizedSteps(M), (M, H, W), reader)
    reader.finish()
    assert read.dtype == np.int16
    assert np.array_equal(read, y)
    assert read_crc == crc


def test_the_crc_tells_one_symbol_from_another() -> None:
    y = symbols()
    other = y.copy()
    other[-1, -1, -1] += 1
    crcs = {walk(FactorizedSteps(M), v, Writer(tables()))[1] for v in (y, other)}
    assert len(crcs) == 2


class TwoGroups:
    """Codes the second half with tables that the first half chose, as a context model does."""

    groups: tuple[str, ...] = ("first", "second")

    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        known, truth = state
        indexes = np.zeros(4, np.uint16) if group == 0 else np.abs(known[0]).astype(np.uint16) % M
        return (None if truth is None else truth[group]), indexes

    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        known, truth = state
        assert len(known) == group
        return [*known, symbols], truth


def test_a_later_group_sees_the_earlier_ones_in_both_directions() -> None:
    truth = symbols()[0, :2, :2].ravel(), symbols()[1, :2, :2].ravel()
    writer = Writer(tables())
    _, crc = walk(TwoGroups(), ([], truth), writer)
    assert crc == zlib.crc32(np.concatenate(truth).astype("<i2").tobytes())

    (known, _), read_crc = walk(TwoGroups(), ([], None), Reader(tables(), writer.finish()))
    assert np.array_equal(known, truth)
    assert read_crc == crc


def test_symbols_within_the_limit_become_16_bit() -> None:
    values = np.array([[-SYMBOL_LIMIT, 0, SYMBOL_LIMIT]], np.int32)
    found = checked_symbols(values, "y")
    assert found.dtype == np.int16
    assert np.array_equal(found, values)
    assert checked_symbols(np.empty((0, 3), np.int32), "y").shape == (0, 3)


@pytest.mark.parametrize("value", [SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, 2**16, -(2**31), 2**31 - 1])
def test_a_value_that_cannot_be_coded_is_named_with_its_place(value: int) -> None:
    values = np.zeros((2, 3, 4), np.int32)
    values[1, 2, 3] = value
    with pytest.raises(NumericsError, match=r"latent tensor y: the value at \[1, 2, 3\]"):
        checked_symbols(values, "y")
