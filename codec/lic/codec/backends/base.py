"""What every engine offers: an analysis, the steps between, a synthesis.

Shapes: M latent channels, H W pixels (multiples of the model's stride), h = H / 16, w = W / 16.
"""

import re
from abc import ABC, abstractmethod
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import window_margins
from lic.codec.bundle import MANIFEST, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.latents import FactorizedSteps, State, Steps, dequantise, quantise
from lic.codec.tiling import Strip
from lic.codec.windows import Span, Windows, cut


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
# for every pixel, and a picture may have 2^28. The smaller model's take 150 in the analysis and 480
# in the synthesis, with ONNX Runtime on a CPU; the larger the windows, the less is seen twice.
ANALYSIS_PIXELS = 3 * 2**20
SYNTHESIS_PIXELS = 2**20


class FactorizedBackend(ABC):
    """What the engines share for the factorized prior, whose state is its symbols (M, h, w).

    Networks see large pictures through windows, which changes results by no more than
    floating-point rounding. An encoder that is not local, whose channel gates look at the whole
    picture, takes it in one piece, and its memory grows with the picture.

    Networks know latents only. `any_step` tells whether they can be quantised in other steps than
    1: not where networks take symbols for latents.
    """

    any_step = True

    def __init__(self, bundle: Bundle) -> None:
        # One table a channel, so a set of tables says how many there are.
        self.channels = len(bundle.tables.of_set(0))
        self.stride = bundle.manifest.stride
        try:
            self._margins = window_margins(bundle.manifest.config)
        except ConfigError as error:
            raise ModelMismatchError(f"{bundle.path / MANIFEST}: {error}") from None
        self.steps: Steps = FactorizedSteps(self.channels)

    def blank(self, height: int, width: int) -> State:
        """Return the symbols' shape (M, h, w)."""
        return self.channels, height // self.stride, width // self.stride

    def analysis_windows(self, height: int, width: int) -> Windows:
        """Return what the analysis sees, one after the other, of h x w latents."""
        rows, columns = (Span(0, side, side) for side in (height, width))
        return cut(rows, columns, self._margins.encoder, ANALYSIS_PIXELS // self.stride**2)

    def synthesis_windows(self, rows: Span, columns: Span) -> Windows:
        """Return what the synthesis sees, one after the other, to give what is wanted."""
        return cut(rows, columns, self._margins.decoder, SYNTHESIS_PIXELS // self.stride**2)

    def latents(self, x: NDArray[np.float32], rows: Strip, columns: Strip) -> NDArray[np.float32]:
        """Return y less the medians (M, a, b), which is quantised, of what a window keeps.

        `x` (1, 3, H, W) in [0, 1] is all that the window shows.
        """
        y = self._encode(x)[0, :, rows.inner, columns.inner]
        return y.astype(np.float32, copy=False)

    def pixels(
        self, symbols: NDArray[np.int16], rows: Strip, columns: Strip, step: float
    ) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) in [0, 1] of what a window keeps.

        `symbols` (M, a, b) are all that the window shows, quantised in this step.
        """
        x_hat = self._decode(dequantise(symbols[None], step))
        return x_hat[:, :, _scaled(rows.inner, self.stride), _scaled(columns.inner, self.stride)]

    def analyze(self, x: NDArray[np.float32], step: float = 1.0) -> State:
        """Return symbols (M, h, w) of x (1, 3, H, W) in [0, 1], quantised in a step."""
        _, height, width = self.blank(*x.shape[2:])
        y = np.empty((self.channels, height, width), np.float32)
        windows = self.analysis_windows(height, width)
        for rows, columns in product(windows.rows, windows.columns):
            area = (_scaled(side.outer, self.stride) for side in (rows, columns))
            y[:, rows.kept, columns.kept] = self.latents(x[:, :, *area], rows, columns)
        return quantise(y, step)

    def synthesize(self, state: State, step: float = 1.0) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) in [0, 1] from symbols (M, h, w) that were quantised so."""
        _, height, width = state.shape
        x_hat = np.empty((1, 3, height * self.stride, width * self.stride), np.float32)
        windows = self.synthesis_windows(Span(0, height, height), Span(0, width, width))
        for rows, columns in product(windows.rows, windows.columns):
            area = (_scaled(side.kept, self.stride) for side in (rows, columns))
            symbols = state[:, rows.outer, columns.outer]
            x_hat[:, :, *area] = self.pixels(symbols, rows, columns, step)
        return x_hat

    @abstractmethod
    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return y less the medians (1, M, h, w) of x (1, 3, H, W)."""

    @abstractmethod
    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x_hat (1, 3, H, W) from y_hat less the medians (1, M, h, w)."""


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)
