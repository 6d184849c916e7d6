"""What a training step may leave out, and what it must leave as it was."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

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
