"""What every engine offers: an analysis, the steps between, a synthesis.

Shapes: M latent channels, H W pixels (multiples of the model's stride), h = H / 16, w = W / 16.
"""

import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.latents import FactorizedSteps, State, Steps


class Backend(Protocol):
    """A loaded model on one engine. `steps` orders its latents for the coding walk."""

    name: str
    device: str
    notes: tuple[str, ...]
    steps: Steps

    def analyze(self, x: NDArray[np.float32]) -> State:
        """Return the state with all symbols of x (1, 3, H, W) in [0, 1] known.

        Raises:
            NumericsError: a latent is not finite or too large to code.
        """
        ...

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Make a direction ready now rather than at first use, so that faults show now."""
        ...

    def blank(self, height: int, width: int) -> State:
        """Return the decoder's first state for H x W pixels."""
        ...

    def synthesize(self, state: State) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) in [0, 1] from the state after the walk."""
        ...


OUT_OF_MEMORY = re.compile(
    "bad_alloc|bad allocation|can't allocate|allocate memory|out of memory", re.IGNORECASE
)


class FactorizedBackend:
    """What the engines share for the factorized prior, whose state is its symbols (M, h, w)."""

    def __init__(self, bundle: Bundle) -> None:
        # One table a channel, so the tables say how many there are.
        self._channels = len(bundle.tables)
        self._stride = bundle.manifest.stride
        self.steps: Steps = FactorizedSteps(self._channels)

    def blank(self, height: int, width: int) -> State:
        """Return the symbols' shape (M, h, w)."""
        return self._channels, height // self._stride, width // self._stride
