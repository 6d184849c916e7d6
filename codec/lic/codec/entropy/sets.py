"""Which of a model's sets of tables codes symbols in the fewest bits.

Shapes: S sets, M channels and tables of a set, n symbols of a channel, R values that any table
has a slot for and one on either side that stand for all others.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy.tables import PRECISION, Tables

# Costs are whole numbers of this part of a bit: sums of them are exact, and the choice is the same
# on every machine.
_UNITS = 1024
_ESCAPE_BITS = 8
# Symbols at a time: their indexes take eight bytes each.
_CHUNK = 2**18


@dataclass(frozen=True, kw_only=True, eq=False)
class _Costs:
    """What each value costs.

    Attributes:
        low: the value of the first column.
        values: R.
        matrix: (S, M * R) whole numbers, float64 for the sake of its products.
    """

    low: int
    values: int
    matrix: NDArray[np.float64]


_known: WeakKeyDictionary[Tables, _Costs] = WeakKeyDictionary()


def cheapest_set(tables: Tables, symbols: NDArray[np.integer[Any]]) -> int:
    """Return the number of the set that codes symbols (M, ...) in the fewest bits.

    A channel's table is the one of its number, in whichever set.
    """
    if tables.sets == 1:
        return 0
    costs = _known.get(tables)
    if costs is None:
        costs = _known[tables] = _costs(tables)
    return int((costs.matrix @ _counts(symbols.reshape(len(symbols), -1), costs)).argmin())


def _counts(symbols: NDArray[np.integer[Any]], costs: _Costs) -> NDArray[np.int64]:
    """Return how often each channel has each value, (M * R,)."""
    found = []
    rows = max(1, _CHUNK // max(1, symbols.shape[1]))
    for start in range(0, len(symbols), rows):
        part = symbols[start : start + rows].astype(np.int64)
        part = (part - costs.low).clip(0, costs.values - 1)
        part += costs.values * np.arange(len(part))[:, None]
        found.append(np.bincount(part.ravel(), minlength=len(part) * costs.values))
    return np.concatenate(found)


def _costs(tables: Tables) -> _Costs:
    widths = np.diff(tables.quantized_cdf.astype(np.int32), axis=1)
    by_width = np.rint(_UNITS * (PRECISION - np.log2(np.arange(2**PRECISION + 1).clip(1))))
    bits = by_width[widths.clip(0)]
    # Of each table, the slots that are symbols; the next one is the escape.
    slots = tables.cdf_length.astype(np.int32) - 2
    low = int(tables.offset.min()) - 1
    values = int((tables.offset + slots).max()) - low + 1
    numbers = np.arange(len(tables))
    escapes = bits[numbers, slots] + _UNITS * _ESCAPE_BITS
    matrix = np.repeat(escapes[:, None], values, axis=1)
    table, slot = np.nonzero(np.arange(bits.shape[1]) < slots[:, None])
    matrix[table, tables.offset[table] - low + slot] = bits[table, slot]
    return _Costs(low=low, values=values, matrix=matrix.reshape(tables.sets, -1))
