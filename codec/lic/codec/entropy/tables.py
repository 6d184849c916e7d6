"""Probability mass functions -> integer CDF tables, the only thing that the coder knows of a model.

Shapes: T tables, L cdf entries of the longest table.

The tables are made once, when a model is exported, and travel in the bundle: a decoder never
derives them from floating point. The arithmetic here still uses nothing but correctly rounded
operations, so that the same float64 input gives the same tables on every machine.
"""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import BitstreamError, ConfigError, ModelMismatchError

PRECISION = 14
TOTAL = 1 << PRECISION
MAX_SYMBOLS = 255
# A slot takes at least 2^-14 of the mass, which costs every other symbol 9e-5 bits; an escape costs
# about 12 bits more than such a slot. Below this probability a symbol is cheaper without a slot.
RARE = 2.0**-17
"""Symbols with a slot of their own; with the escape 256, so that the kernel's slots are bytes."""
MAX_TABLES = 65535
"""Table indexes are uint16: bmshj2018 has 320 channels, more than a byte can number."""
MAX_SETS = 256

_INT16 = np.iinfo(np.int16)
_DTYPES: dict[str, type[np.integer[Any]]] = {
    "quantized_cdf": np.uint16,
    "cdf_length": np.uint16,
    "offset": np.int32,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """T frozen frequency tables. Two are the same when their digests are.

    The last slot of every table is the escape: it stands for all symbols outside the table's range
    `offset .. offset + cdf_length - 3`.

    Where latents can be quantised in several steps, the tables are S sets of equally many, one
    behind the other: made for ever wider steps, but any codes symbols of any.

    Attributes:
        quantized_cdf: (T, L) uint16. Row t rises strictly from 0 to 2**14 in its first
            `cdf_length[t]` entries; the unused rest is 0.
        cdf_length: (T,) uint16, the entries in use: symbols + escape + 1, so 2..257.
        offset: (T,) int32, the symbol of slot 0.
        sets: S, 1 to 256.

    Raises:
        ConfigError: An array has the wrong shape or kind.
        ModelMismatchError: A table cannot be coded with; the message says which and why.
    """

    quantized_cdf: NDArray[np.uint16]
    cdf_length: NDArray[np.uint16]
    offset: NDArray[np.int32]
    sets: int = 1

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, frozen_integers(name, getattr(self, name), dtype))
        if self.quantized_cdf.ndim != 2 or self.cdf_length.ndim != 1 or self.offset.ndim != 1:
            raise ConfigError("quantized_cdf must be (T, L), cdf_length and offset (T,)")
        count = len(self.quantized_cdf)
        if not len(self.cdf_length) == len(self.offset) == count:
            raise ConfigError(
                f"quantized_cdf has {count} tables, cdf_length {len(self.cdf_length)} and offset "
                f"{len(self.offset)}; all three must agree"
            )
        if not 1 <= count <= MAX_TABLES:
            raise ConfigError(f"{count} tables: there must be 1 to {MAX_TABLES}")
        self._check_sets()
        self._check_rows()

    def _check_sets(self) -> None:
        if not 1 <= self.sets <= MAX_SETS or len(self) % self.sets:
            raise ModelMismatchError(
                f"{len(self)} entropy tables are not {self.sets} sets of equally many; there may "
                f"be 1 to {MAX_SETS}"
            )

    def _check_rows(self) -> None:
        cdf, used = self.quantized_cdf.astype(np.int32), self.cdf_length.astype(np.int32)
        _refuse((used < 2) | (used > MAX_SYMBOLS + 2), "needs 2 to 257 cdf entries")
        _refuse(used > cdf.shape[1], "is longer than its row")
        position = np.arange(cdf.shape[1])
        inside = position[None, :] < used[:, None]
        _refuse((cdf * ~inside).any(axis=1), "has numbers after its end")
        _refuse(cdf[:, 0] != 0, "does not begin with 0")
        _refuse(cdf[np.arange(len(cdf)), used - 1] != TOTAL, f"does not end with {TOTAL}")
        _refuse((inside[:, 1:] & (np.diff(cdf) <= 0)).any(axis=1), "does not rise strictly")
        low, high = self.offset.astype(np.int64), self.offset.astype(np.int64) + used - 3
        outside = (low < _INT16.min) | (low > _INT16.max) | (high > _INT16.max)
        _refuse(outside, "has symbols outside int16")

    def __len__(self) -> int:
        return len(self.cdf_length)

    def of_set(self, number: int) -> "Tables":
        """Return the tables of one set, always the same object.

        Raises:
            BitstreamError: there are not so many.
        """
        if not 0 <= number < self.sets:
            raise BitstreamError(
                f"coded with set {number} of the model's tables, which has {self.sets}"
            )
        return self._sets[number]

    @cached_property
    def _sets(self) -> tuple["Tables", ...]:
        if self.sets == 1:
            return (self,)
        size = len(self) // self.sets
        every = (slice(start, start + size) for start in range(0, len(self), size))
        return tuple(
            Tables(
                quantized_cdf=self.quantized_cdf[rows],
                cdf_length=self.cdf_length[rows],
                offset=self.offset[rows],
            )
            for rows in every
        )

    @cached_property
    def least_bits(self) -> NDArray[np.float64]:
        """The ideal length in bits of each table's cheapest symbol, (T,).

        An escape costs at least eight bits beside its slot. For estimates of size only: these are
        floats, which no coding may depend on.
        """
        freq = np.diff(self.quantized_cdf.astype(np.int32), axis=1)
        slot, escape = np.arange(freq.shape[1]), self.cdf_length[:, None].astype(np.int32) - 2
        bits = PRECISION - np.log2(np.where(slot <= escape, freq, 1))
        bits += np.where(slot == escape, 8, 0)
        least: NDArray[np.float64] = np.where(slot <= escape, bits, np.inf).min(axis=1)
        return least

    def digest(self) -> bytes:
        """Return the SHA-256 (32 bytes) of the tables' content; padding does not count."""
        used = np.arange(self.quantized_cdf.shape[1])[None, :] < self.cdf_length[:, None]
        parts = (
            struct.pack("<4sII", b"rans", PRECISION, len(self)),
            self.cdf_length.astype("<u2").tobytes(),
            self.offset.astype("<i4").tobytes(),
            self.quantized_cdf[used].astype("<u2").tobytes(),
            struct.pack("<H", self.sets) if self.sets > 1 else b"",
        )
        return hashlib.sha256(b"".join(parts)).digest()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, ready for `np.savez` without pickle."""
        arrays = {name: getattr(self, name) for name in _DTYPES}
        return arrays | ({"sets": np.array([self.sets])} if self.sets > 1 else {})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Tables":
        """Build the tables from what `to_arrays` gave; other names in the mapping are ignored.

        Raises:
            ModelMismatchError: An array is missing or its content cannot be a table.
            ConfigError: An array has the wrong shape or kind.
        """
        missing = [name for name in _DTYPES if name not in arrays]
        if missing:
            raise ModelMismatchError(f"the entropy tables lack {', '.join(missing)}")
        sets = arrays.get("sets", np.ones(1, np.int64))
        if sets.shape != (1,) or sets.dtype.kind not in "iu":
            raise ConfigError(f"sets must be one integer, not {sets.dtype} {sets.shape}")
        return cls(**{name: arrays[name] for name in _DTYPES}, sets=int(sets[0]))


def frozen_integers(name: str, values: object, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Return a contiguous read-only copy in `dtype`, refusing what would not survive the cast."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ConfigError(f"{name} must hold integers, not {array.dtype}")
    info = np.iinfo(dtype)
    if array.size and not info.min <= int(array.min()) <= int(array.max()) <= info.max:
        raise ModelMismatchError(f"{name} has values outside {np.dtype(dtype)}")
    array = np.array(array, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def _refuse(bad: NDArray[np.bool_] | np.bool_, reason: str) -> None:
    if bad.any():
        raise ModelMismatchError(f"entropy table {int(bad.argmax())} {reason}")


def pmf_to_quantized_cdf(pmf: NDArray[np.float64], precision: int = PRECISION) -> NDArray[np.int64]:
    """Return the cdf (L + 1,) with integer slots >= 1 that sums to 2**precision.

    The slots minimise the expected code length under `pmf` (which need not be normalised): a unit
    moves from slot to slot as long as that shortens the code. The gain of a unit, p log(1 + 1/f),
    is taken from a rational approximation good to 0.3 %, because a library's `log` may differ in
    its last bit between machines.

    Args:
        pmf: (L,) finite, not negative, not all zero.
        precision: The exponent of the total.

    Raises:
        ConfigError: `pmf` is no distribution, or has more slots than the total can hold.
    """
    pmf = np.asarray(pmf, dtype=np.float64)
    total = 1 << precision
    if pmf.ndim != 1 or not 1 <= len(pmf) <= total:
        raise ConfigError(f"a pmf must be (L,) with 1 to {total} entries, not {pmf.shape}")
    if not np.isfinite(pmf).all() or (pmf < 0).any() or not pmf.any():
        raise ConfigError("a pmf must be finite, not negative and not all zero")
    mass = pmf / math.fsum(pmf)
    slots = np.maximum(1, np.floor(mass * total)).astype(np.int64)
    _balance(mass, slots, total)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(slots)])


def _balance(mass: NDArray[np.float64], slots: NDArray[np.int64], total: int) -> None:
    """Bring `slots` to `total` in place, then move units until no move shortens the code.

    The code length is a sum of convex functions of one slot each, so this greedy walk ends at its
    minimum. Ties go to the lowest slot.
    """
    gain = mass * _log_step(slots)
    loss = np.where(slots > 1, mass * _log_step(slots - 1), np.inf)
    spare = total - int(slots.sum())
    while True:
        up, down = int(gain.argmax()), int(loss.argmin())
        if spare == 0 and gain[up] <= loss[down]:
            return
        moves = [(up, 1)] if spare > 0 else [(down, -1)] if spare < 0 else [(up, 1), (down, -1)]
        for slot, unit in moves:
            slots[slot] += unit
            spare -= unit
            gain[slot] = mass[slot] * _log_step(slots[slot])
            loss[slot] = mass[slot] * _log_step(slots[slot] - 1) if slots[slot] > 1 else np.inf


def _log_step(slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log(1 + 1/f), approximately, from exact operations only."""
    middle = slots + 0.5
    series: NDArray[np.float64] = 1 / middle + 1 / (12 * middle * middle * middle)
    return series


def build_tables(
    pmfs: Sequence[NDArray[np.float64]], offsets: Sequence[int], sets: int = 1
) -> Tables:
    """Quantise one table for each pmf.

    Symbols at a pmf's ends that are rarer than RARE go to the escape, and so does the rarer end of
    more than 255, symbol by symbol.

    Args:
        pmfs: T arrays, each the masses of the symbols offset, offset + 1, ... and, as the last
            entry, of the escape (all other symbols).
        offsets: T symbols, the first of each pmf.
        sets: see `Tables`.

    Raises:
        ConfigError: A pmf is no distribution, or the numbers of pmfs and offsets differ.
    """
    if len(pmfs) != len(offsets):
        raise ConfigError(f"{len(pmfs)} pmfs but {len(offsets)} offsets")
    pruned = [_prune(np.asarray(p, np.float64), int(o)) for p, o in zip(pmfs, offsets, strict=True)]
    rows = [pmf_to_quantized_cdf(pmf) for pmf, _ in pruned]
    cdf = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for row, entries in zip(cdf, rows, strict=True):
        row[: len(entries)] = entries
    return Tables(
        quantized_cdf=cdf.astype(np.uint16),
        cdf_length=np.array([len(row) for row in rows], np.uint16),
        offset=np.array([offset for _, offset in pruned], np.int32),
        sets=sets,
    )


def _prune(pmf: NDArray[np.float64], offset: int) -> tuple[NDArray[np.float64], int]:
    """Return the pmf without its rarest ends, of at most 255 symbols, and its first symbol."""
    first, last = 0, len(pmf) - 1
    rare = RARE * math.fsum(pmf)
    while last - first > MAX_SYMBOLS or (
        last - first > 1 and min(pmf[first], pmf[last - 1]) < rare
    ):
        if pmf[first] < pmf[last - 1]:
            first += 1
        else:
            last -= 1
    lost = math.fsum([*pmf[:first], *pmf[last:]])
    return np.append(pmf[first:last], lost), offset + first
