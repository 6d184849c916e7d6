"""What a training step may leave out, what it must leave as it was, and means over steps."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lic.codec.errors import TrainingError


class Skips:
    """Counts the batches whose loss or gradient was of no use.

    Args:
        most: how many in a row end the run; 0: the first does.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self.total = 0

    @property
    def allowed(self) -> bool:
        """Whether a step may be skipped at all."""
        return self._most > 0

    def add(self, found: str, say: Callable[[str], object]) -> None:
        """Count one.

        Args:
            found: what was met, where.
            say: takes it.

        Raises:
            TrainingError: too many in a row.
        """
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            raise TrainingError(
                f"{found}; that is {self._in_a_row} in a row (--skip-nonfinite). The last "
                "checkpoint is kept. Try a lower --lr, or --overflow-check to find the layer"
            )
        say(f"skipped {found}")

    def taken(self) -> None:
        """Take notice of a step that was taken."""
        self._in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return both counts."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what `state_dict` gave."""
        self.total, self._in_a_row = int(state["total"]), int(state["in_a_row"])


@contextlib.contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Give the model's buffers their values back afterwards: those of observers and averages."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class Means:
    """Means of what the steps give, each over the steps that gave it; on the device until asked."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add what one step gave, scalars by name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, Tensor]:
        """Return the means, and begin anew."""
        found = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = {name: int(count) for name, count in state["counts"].items()}
