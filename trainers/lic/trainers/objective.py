"""How the terms of a loss become one number."""

from typing import Any, Protocol

from torch import Tensor

from lic.trainers.losses import Terms


class Objective(Protocol):
    """Combines terms into the scalar to minimise, and keeps whatever state that takes."""

    def loss(self, terms: Terms, step: int) -> Tensor:
        """Return the scalar loss of a batch at `step`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


class RateDistortion:
    """bpp + lambda 255^2 MSE (Balle et al. 2018), lambda on CompressAI's scale."""

    def __init__(self, lmbda: float) -> None:
        self.lmbda = lmbda

    def loss(self, terms: Terms, step: int) -> Tensor:  # noqa: ARG002
        """Return the scalar loss of a batch."""
        return terms.bpp + self.lmbda * 255**2 * terms.mse

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: lambda is an option of the run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""
