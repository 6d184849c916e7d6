"""What groups of symbols cost, in bits, by the integer tables that code them.

Shapes: T tables, L cdf entries of the longest table, which has L - 1 slots.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy.rans import SymbolCoder
from lic.codec.entropy.tables import PRECISION, Tables

# Bits of an escape's number that one byte of its varint holds.
_VARINT_BITS = 7
# Symbols at a time: wide enough for numpy, small beside the symbols themselves.
_CHUNK = 2**16


class Meter:
    """A coder that passes everything through to another and keeps what each group costs.

    Attributes:
        bits: of each group so far, the ideal code length: -log2 of the share that its slot has of
            the table, summed over symbols, and for an escape 8 bits per byte of its number too.
            A stream takes little more than their sum: see codec/FORMAT.md.
    """

    def __init__(self, coder: SymbolCoder, tables: Tables) -> None:
        self.bits: list[float] = []
        self._coder = coder
        self._first = tables.offset
        self._symbols = tables.cdf_length.astype(np.int32) - 2
        self._cost = _slot_bits(tables)

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Code one group with the other coder; same arguments, result and errors."""
        known = self._coder.code(symbols, indexes)
        self.bits.append(self._measure(known, indexes))
        return known

    def _measure(self, symbols: NDArray[np.int16], indexes: NDArray[np.integer[Any]]) -> float:
        # In chunks: indexes may be a view that repeats a few numbers millions of times.
        chunks = np.nditer(
            (symbols, indexes),
            flags=("external_loop", "buffered", "zerosize_ok"),
            order="C",
            buffersize=_CHUNK,
        )
        return sum((self._measure_chunk(*chunk) for chunk in chunks), 0.0)

    def _measure_chunk(self, symbols: NDArray[np.int16], indexes: NDArray[Any]) -> float:
        k = symbols - self._first[indexes]
        slots = self._symbols[indexes]
        escaped = (k < 0) | (k >= slots)
        bits = float(self._cost[indexes, np.where(escaped, slots, k)].sum())
        k, slots = k[escaped], slots[escaped]
        numbers = np.where(k < 0, (-1 - k) << 1 | 1, (k - slots) << 1)
        more = (numbers >> _VARINT_BITS > 0).sum() + (numbers >> 2 * _VARINT_BITS > 0).sum()
        return bits + 8.0 * float(numbers.size + more)


def _slot_bits(tables: Tables) -> NDArray[np.float64]:
    """Return the bits of every slot (T, L - 1), nought behind a table's end."""
    widths = np.diff(tables.quantized_cdf.astype(np.int32), axis=1)
    # Behind the end there is a fall back to nought, and then nothing.
    return np.where(widths > 0, PRECISION - np.log2(np.maximum(widths, 1)), 0.0)
