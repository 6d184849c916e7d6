"""`lic.codec.nudges` on a torch device, whose scales need not leave it."""

import torch
from torch import Tensor

from lic.codec.models.conditional import scale_indexes
from lic.codec.nudges import BLOCK, CLEARANCE, block_count, factors


class Nudger:
    """Chooses and applies nudges for a scale table (T,); on the table's device."""

    def __init__(self, table: Tensor) -> None:
        self._factors = torch.from_numpy(factors(float(table[0]), float(table[-1]), len(table))).to(
            table
        )
        self._table = table
        endless = table.new_full((1,), torch.inf)
        self._below = torch.cat((-endless, table[:-1]))
        self._above = torch.cat((table[:-1], endless))

    def choose(self, scales: Tensor) -> Tensor:
        """Return for each block of scales (any shape, n in all) its nudge, (b,) int64."""
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
