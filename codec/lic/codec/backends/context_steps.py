"""The groups of a model with a context, and the tables of their symbols, for every engine.

First z, channel by channel; then for each of the model's steps two groups, its nudges and its part
of y. In the bundle's file lie N tables for z, one for each level of y's scales, one for nudges.

Shapes: B batch, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16; a step's part of y has
n latents of any shape, b blocks of them share a nudge each (`lic.codec.nudges`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.latents import State
from lic.codec.nudges import block_count, checked


@dataclass(kw_only=True)
class ContextState:
    """Latents on their way through the walk, as far as their order asks; engines add their own.

    Attributes:
        shape: of z, (B, N, h / 4, w / 4).
        z: rounded, an array of the engine's; None when decoding.
        nudges: of the step under way, (b,).
    """

    shape: tuple[int, ...]
    z: Any = None
    nudges: NDArray[np.int16] | None = None


class ContextSteps(ABC):
    """Orders latents. See `lic.codec.latents.Steps`; what computes is left to the engine.

    Args:
        parts: for each of the model's steps the part of y that it belongs to.
        tables: how many the bundle has.
        levels: how many of them are of y.
    """

    def __init__(self, parts: Sequence[str], tables: int, levels: int) -> None:
        self.groups: tuple[str, ...] = ("z", *(part for part in parts for _ in range(2)))
        self._channels = tables - levels - 1
        self._nudges_table = np.uint16(tables - 1)

    def shape_of_z(self, height: int, width: int) -> tuple[int, ...]:
        """Return (1, N, h / 4, w / 4) of one picture of H x W pixels."""
        return 1, self._channels, height // 64, width // 64

    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return a group's symbols (None when decoding) and the indexes of their tables."""
        encoding = state.z is not None
        if group == 0:
            channels = np.arange(self._channels, dtype=np.uint16)[:, None, None]
            symbols = self._symbols_of_z(state) if encoding else None
            return symbols, np.broadcast_to(channels, state.shape)
        step, is_y = divmod(group - 1, 2)
        if is_y:
            symbols = self._symbols_of_y(step, state) if encoding else None
            return symbols, self._indexes_of_y(state)
        blocks = block_count(self._predict(step, state))
        nudges = self._choose_nudges(state) if encoding else None
        return nudges, np.broadcast_to(self._nudges_table, (blocks,))

    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        """Return the state with a group's symbols known.

        Raises:
            BitstreamError: a nudge is none that an encoder writes.
        """
        step, is_y = divmod(group - 1, 2)
        if group == 0:
            self._begin(state, symbols)
        elif is_y:
            self._finish(step, state, symbols)
        else:
            state.nudges = checked(symbols)
        return state

    @abstractmethod
    def _symbols_of_z(self, state: Any) -> NDArray[np.int16]:
        """Return the encoder's symbols of z; NumericsError where one cannot be coded."""

    @abstractmethod
    def _begin(self, state: Any, symbols: NDArray[np.int16]) -> None:
        """Make z known."""

    @abstractmethod
    def _predict(self, step: int, state: Any) -> int:
        """Leave scales and means of a step in the state; return n."""

    @abstractmethod
    def _choose_nudges(self, state: Any) -> NDArray[np.int16]:
        """Return the encoder's nudges (b,) for the scales in the state."""

    @abstractmethod
    def _indexes_of_y(self, state: Any) -> NDArray[np.uint16]:
        """Return the tables of the step's latents by its scales and nudges."""

    @abstractmethod
    def _symbols_of_y(self, step: int, state: Any) -> NDArray[np.int16]:
        """Return the encoder's symbols of a step; NumericsError where one cannot be coded."""

    @abstractmethod
    def _finish(self, step: int, state: Any, symbols: NDArray[np.int16]) -> None:
        """Make a step's part of y known to the steps after it."""
