"""Tables that a decoder with other rounding selects as well: what is coded, and how in numpy.

Shapes: n latents of a group, b = ceil(n / BLOCK) blocks of it, T scales in the table.

A latent's table follows from its scale, which a network computes in float32. Two machines, or one
with another number of threads, get scales that differ by up to 5e-6: measured on HPCM between 1 and
2 threads, SSE4.1, AVX2, AVX-512 and float64, with the same symbols known. Where a scale lies that
close to a boundary between two tables, encoder and decoder may take different ones, and all that
follows is lost. Half a million latents make that likely.

So the encoder moves the scales of each block of latents, by a factor, to where none of them is near
a boundary, and tells the decoder which of the factors it took: one symbol for a block. Scales have
to be rounded to those of the table anyhow, and which way hardly matters: within the range of the
factors the rate changes by 0.06 %.
"""

import math

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import BitstreamError

Floats = NDArray[np.float32]

BLOCK = 4096
NUDGES = 64
# Four times what was measured between machines. Relative to scales above 1, whose networks' sums
# are as much larger.
CLEARANCE = 2e-5
# In steps of the scale table, downwards. 0 rounds all scales up, as published codecs do, 1/2 to the
# nearest; the rate is lowest in between.
_MIDDLE, _STEP = 0.4, 0.01


def pmf() -> NDArray[np.float64]:
    """Return the masses of nudges 0 to NUDGES - 1, then the escape's, which is nought."""
    mass = (1.0 + np.arange(NUDGES)) ** -2
    return np.append(mass / mass.sum(), 0.0)


def block_count(latents: int) -> int:
    """Return b for n latents."""
    return -(-latents // BLOCK)


def factors(lowest: float, highest: float, count: int) -> Floats:
    """Return what each nudge multiplies scales by, (NUDGES,), for a table of `count` scales."""
    spacing = math.log(highest / lowest) / max(1, count - 1)
    number = np.arange(NUDGES)
    steps = _MIDDLE + _STEP * np.where(number % 2, -1, 1) * ((number + 1) // 2)
    return np.exp(-spacing * steps).astype(np.float32)


def checked(symbols: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return nudges that were read.

    Raises:
        BitstreamError: one is none that an encoder writes.
    """
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < NUDGES:
        raise BitstreamError(
            f"a nudge is {symbols.min()} or {symbols.max()}, not 0 to {NUDGES - 1}"
        )
    return symbols


class Nudger:
    """Chooses and applies nudges for a scale table (T,), rising float32."""

    def __init__(self, table: Floats) -> None:
        self._factors = factors(float(table[0]), float(table[-1]), len(table))
        self._table = table
        self._below = np.append(np.float32(-np.inf), table[:-1])
        self._above = np.append(table[:-1], np.float32(np.inf))

    def choose(self, scales: Floats) -> NDArray[np.int16]:
        """Return for each block of scales (any shape, n in all) its nudge, (b,).

        The first that keeps all of the block's scales clear of the boundaries between tables, else
        the one that keeps them farthest away.
        """
        blocks = _blocks(scales)
        chosen = np.zeros(len(blocks), np.int16)
        widest = np.full(len(blocks), -1.0, np.float32)
        for nudge, factor in enumerate(self._factors):
            narrow = np.flatnonzero(widest < CLEARANCE)
            if not len(narrow):
                break
            clearance = self._clearance(blocks[narrow] * factor).min(axis=1)
            better = clearance > widest[narrow]
            chosen[narrow[better]] = nudge
            widest[narrow[better]] = clearance[better]
        return chosen

    def levels(self, scales: Floats, nudges: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the numbers in the table that scales (any shape) get with nudges (b,)."""
        moved = _blocks(scales) * self._factors[nudges][:, None]
        return self._numbers(moved).ravel()[: scales.size].reshape(scales.shape)

    def _numbers(self, scales: Floats) -> NDArray[np.int64]:
        """Return the first entry not below each scale; the last for larger ones and NaN."""
        return np.searchsorted(self._table[:-1], scales, side="left")

    def _clearance(self, scales: Floats) -> Floats:
        """Return how far scales are from the next boundary; relative to those above 1."""
        number = self._numbers(scales)
        distance = np.minimum(scales - self._below[number], self._above[number] - scales)
        clearance: Floats = distance / np.maximum(scales, np.float32(1))
        return clearance


def _blocks(scales: Floats) -> Floats:
    """Return scales as (b, BLOCK), filled up with zeros, which are near no boundary."""
    flat = scales.ravel()
    missing = block_count(len(flat)) * BLOCK - len(flat)
    return np.append(flat, np.zeros(missing, np.float32)).reshape(-1, BLOCK)
