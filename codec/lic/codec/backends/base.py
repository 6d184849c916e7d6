"""What every engine offers: an analysis, the steps between, a synthesis.

Shapes: M latent channels, H W pixels (multiples of the model's stride), h = H / 16, w = W / 16.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import strip_margins
from lic.codec.bundle import MANIFEST, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.latents import FactorizedSteps, State, Steps, dequantise, quantise
from lic.codec.tiling import Strip, strips


class Backend(Protocol):
    """A loaded model on one engine. `steps` orders its latents for the coding walk."""

    name: str
    device: str
    steps: Steps

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it runs."""
        ...

    @property
    def provider(self) -> str:
        """What computes, as the engine tells it; "" before anything is loaded that could tell."""
        ...

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
    # The last is how cuBLAS and cuDNN say it.
    "bad_alloc|bad allocation|can't allocate|allocate memory|out of memory|ALLOC_FAILED",
    re.IGNORECASE,
)


# Networks see at most about this many pixels at once: their inner tensors take hundreds of bytes
# for every pixel, and a picture may have 2^28.
STRIP_PIXELS = 2**21


class FactorizedBackend(ABC):
    """What the engines share for the factorized prior, whose state is its symbols (M, h, w).

    Large pictures go through the networks in strips, which changes results by no more than
    floating-point rounding. An encoder that is not local, whose channel gates look at the whole
    picture, takes it in one piece, and its memory grows with the picture.

    Networks know latents only. `any_step` tells whether they can be quantised in other steps than
    1: not where networks take symbols for latents.
    """

    any_step = True

    def __init__(self, bundle: Bundle) -> None:
        # One table a channel, so a set of tables says how many there are.
        self._channels = len(bundle.tables.of_set(0))
        self._stride = bundle.manifest.stride
        try:
            self._margins = strip_margins(bundle.manifest.config)
        except ConfigError as error:
            raise ModelMismatchError(f"{bundle.path / MANIFEST}: {error}") from None
        self.steps: Steps = FactorizedSteps(self._channels)

    def blank(self, height: int, width: int) -> State:
        """Return the symbols' shape (M, h, w)."""
        return self._channels, height // self._stride, width // self._stride

    def analyze(self, x: NDArray[np.float32], step: float = 1.0) -> State:
        """Return symbols (M, h, w) of x (1, 3, H, W) in [0, 1], quantised in a step."""
        return quantise(self.latents(x), step)

    def latents(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return y less the medians (M, h, w) of x (1, 3, H, W) in [0, 1]: what is quantised."""
        rows = [
            self._encode(x[:, :, self._pixels(strip)])[0, :, strip.inner]
            for strip in self._strips(
                x.shape[2] // self._stride, x.shape[3] // self._stride, self._margins.encoder
            )
        ]
        y = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
        return y.astype(np.float32, copy=False)

    def synthesize(self, state: State, step: float = 1.0) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) in [0, 1] from symbols (M, h, w) that were quantised so."""
        _, height, width = state.shape
        x_hat = np.empty((1, 3, height * self._stride, width * self._stride), np.float32)
        for strip in self._strips(height, width, self._margins.decoder):
            y_hat = dequantise(state[None, :, strip.outer_start : strip.outer_stop], step)
            inner = slice(strip.inner.start * self._stride, strip.inner.stop * self._stride)
            kept = slice(strip.start * self._stride, strip.stop * self._stride)
            x_hat[:, :, kept] = self._decode(y_hat)[:, :, inner]
        return x_hat

    def _strips(self, height: int, width: int, margin: int | None) -> Iterator[Strip]:
        """Yield strips of latent rows that keep the networks' memory in bounds; None: one."""
        if margin is None:
            return strips(height, height, 0)
        return strips(height, max(1, STRIP_PIXELS // (width * self._stride**2)), margin)

    def _pixels(self, strip: Strip) -> slice:
        return slice(strip.outer_start * self._stride, strip.outer_stop * self._stride)

    @abstractmethod
    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return y less the medians (1, M, h, w) of x (1, 3, H, W)."""

    @abstractmethod
    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) from y_hat less the medians (1, M, h, w)."""
