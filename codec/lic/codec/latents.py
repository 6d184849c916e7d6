"""The coding walk: the order in which latents become symbols, written once for both directions.

Shapes: M latent channels, h w latent rows and columns.
"""

import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import SymbolCoder
from lic.codec.errors import NumericsError
from lic.codec.stages import stage

State = Any
SYMBOL_LIMIT = 2**15 - 1
# Larger than any symbol: how networks say that a latent cannot be coded. The conversion of NaN and
# of infinity to integers would differ from machine to machine, and on some give a harmless zero.
UNCODABLE = 2**16
_CHUNK = 2**18


class Steps(Protocol):
    """What the walk asks of a codec: its groups of symbols, one after the other.

    The state is opaque here; a backend may keep it on its device. `groups` names for each group
    the part of the latents that it belongs to, such as z, or the scale s1.
    """

    groups: tuple[str, ...]

    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return a group's symbols (None when decoding) and the indexes of their tables."""
        ...

    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        """Return the state with a group's symbols known."""
        ...


def walk(steps: Steps, state: State, coder: SymbolCoder) -> tuple[State, int]:
    """Code every group in order; returns the final state and the symbols' CRC-32.

    A writer and a reader as `coder` make this the encoder and the decoder.
    """
    crc = 0
    for group in range(len(steps.groups)):
        symbols, indexes = steps.propose(group, state)
        with stage("entropy"):
            symbols = coder.code(symbols, indexes)
        crc = zlib.crc32(np.ascontiguousarray(symbols, dtype="<i2").data, crc)
        state = steps.accept(group, state, symbols)
    return state, crc


class FactorizedSteps:
    """One group, channel by channel; a channel's table is its number: no network takes part.

    The state is symbols (M, h, w), or (M, h, w) as a tuple of lengths before they are read.
    """

    groups: tuple[str, ...] = ("y",)

    def __init__(self, channels: int) -> None:
        self._indexes = np.arange(channels, dtype=np.uint16)[:, None, None]

    def propose(
        self,
        group: int,  # noqa: ARG002
        state: State,
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return symbols (M, h, w), or None, and indexes that broadcast to them."""
        if isinstance(state, tuple):
            return None, np.broadcast_to(self._indexes, state)
        return state, np.broadcast_to(self._indexes, state.shape)

    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:  # noqa: ARG002
        """Return symbols (M, h, w)."""
        return symbols


def quantise(y: NDArray[np.float32], step: float = 1.0) -> NDArray[np.int16]:
    """Return latents less their medians (any shape) as symbols of a quantisation step.

    Raises:
        NumericsError: a latent is not finite or too large to code.
    """
    values = y.reshape(-1)
    symbols = np.empty(y.size, np.int16)
    # In chunks: of a large picture each copy of all latents takes as much as its pixels.
    for start in range(0, y.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        rounded = _rounded(values[part], step)
        # NaN is the largest of all for numpy, and compares with nothing.
        if not np.abs(rounded).max() <= SYMBOL_LIMIT:
            whole = _rounded(y, step)
            marked = np.where(np.abs(whole) <= SYMBOL_LIMIT, whole, np.float32(UNCODABLE))
            return checked_symbols(marked.astype(np.int32), "y")
        symbols[part] = rounded
    return symbols.reshape(y.shape)


def _rounded(y: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    # Of two equally near integers rint takes the even one.
    whole: NDArray[np.float32] = np.rint(y if step == 1 else y / np.float32(step))
    return whole


def dequantise(symbols: NDArray[np.int16], step: float = 1.0) -> NDArray[np.float32]:
    """Return y_hat less the medians (any shape): exact products, rounded to float32 once."""
    y_hat = symbols.astype(np.float32)
    return y_hat if step == 1 else y_hat * np.float32(step)


def checked_symbols(values: NDArray[np.int32], name: str) -> NDArray[np.int16]:
    """Return values as 16-bit symbols.

    Raises:
        NumericsError: a value is out of range, which is also how graphs pass on NaN and infinity.
    """
    if values.size and max(int(values.max()), -int(values.min())) > SYMBOL_LIMIT:
        worst = int(np.argmax(np.abs(values.astype(np.int64))))
        place = ", ".join(str(int(i)) for i in np.unravel_index(worst, values.shape))
        raise NumericsError(
            f"latent tensor {name}: the value at [{place}] is NaN, infinite or beyond "
            f"±{SYMBOL_LIMIT} and cannot be coded; the network's weights or precision are at "
            "fault (half precision overflows like this)"
        )
    return values.astype(np.int16)
