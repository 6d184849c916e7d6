"""Tables that a decoder with other rounding selects as well.

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.models.conditional import scale_indexes

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


class Nudger:
    """Chooses and applies nudges for a scale table (T,); on the table's device."""

    def __init__(self, table: Tensor) -> None:
        spacing = float(torch.log(table[-1].double() / table[0].double())) / max(1, len(table) - 1)
        number = np.arange(NUDGES)
        steps = _MIDDLE + _STEP * np.where(number % 2, -1, 1) * ((number + 1) // 2)
        self._factors = torch.from_numpy(np.exp(-spacing * steps)).to(table)
        self._table = table
        endless = table.new_full((1,), torch.inf)
        self._below = torch.cat((-endless, table[:-1]))
        self._above = torch.cat((table[:-1], endless))

    def choose(self, scales: Tensor) -> Tensor:
        """Return for each block of scales (any shape, n in all) its nudge, (b,) int64.

        The first that keeps all of the block's scales clear of the boundaries between tables, else
        the one that keeps them farthest away.
        """
        blocks = _blocks(scales)
        chosen = torch.zeros(len(blocks), dtype=torch.int64, device=scales.device)
        widest = torch.full((len(blocks),), -1.0, device=scales.device)
        for nudge, factor in enumerate(self._factors):
            narrow = torch.nonzero(widest < CLEARANCE)[:, 0]
            if not len(narrow):
                break
            clearance = self._clearance(blocks[narrow] * factor).amin(dim=1)
            better = clearance > widest[narrow]
            chosen[narrow[better]] = nudge
            widest[narrow[better]] = clearance[better]
        return chosen

    def levels(self, scales: Tensor, nudges: Tensor) -> Tensor:
        """Return the numbers in the table, int64, that scales (any shape) get with nudges (b,)."""
        moved = _blocks(scales) * self._factors[nudges][:, None]
        numbers = scale_indexes(moved, self._table).flatten()
        return numbers[: scales.numel()].reshape(scales.shape)

    def _clearance(self, scales: Tensor) -> Tensor:
        """Return how far scales are from the next boundary; relative to those above 1."""
        number = scale_indexes(scales, self._table)
        distance = torch.minimum(scales - self._below[number], self._above[number] - scales)
        return distance / scales.clamp(min=1)


def _blocks(scales: Tensor) -> Tensor:
    """Return scales as (b, BLOCK), filled up with zeros, which are near no boundary."""
    flat = scales.flatten()
    missing = block_count(len(flat)) * BLOCK - len(flat)
    return torch.nn.functional.pad(flat, (0, missing)).reshape(-1, BLOCK)
