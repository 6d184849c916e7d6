"""The contexts' arithmetic in Python: the oracle of `_contexts.h`, and the fallback without it.

The functions have the kernel's signatures and give the same tables, bytes and states.

Shapes: C channels in the order of coding, h w rows and columns of a tile's latents.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import _rans_py
from lic.codec.entropy.contexts import (
    CLASS_SHIFT,
    CLASSES,
    GROUP,
    LEVELS,
    NEIGHBOURS,
    SUM_SHIFT,
    VALUE_SHIFT,
)

_INT16 = np.iinfo(np.int16)
# Rows up and columns to the left of the neighbours.
_AROUND = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))


class _Choice(NamedTuple):
    levels: NDArray[np.uint8]
    order: NDArray[np.uint16]
    mean: NDArray[np.uint8]
    beside: NDArray[np.int8]
    into: NDArray[np.int8]
    from_sums: NDArray[np.int8]
    bias: NDArray[np.int32]
    table_map: NDArray[np.uint8]
    predicted: NDArray[np.uint16]
    weights: NDArray[np.int8]


def prepare_contexts(*arrays: NDArray[Any]) -> _Choice:
    """Return the contexts in the form that the other functions want."""
    return _Choice(*arrays)


def find_contexts(
    contexts: _Choice,
    symbols: NDArray[np.int16],
    coded: NDArray[np.int16],
    indexes: NDArray[np.uint16],
    height: int,
    width: int,
) -> None:
    """Fill `coded` and `indexes` (h * w * C), position by position, from symbols (C * h * w)."""
    count = len(contexts.order)
    values = symbols.reshape(count, height, width)[contexts.order].astype(np.int64)
    residuals = values.copy()
    for number, channel in enumerate(contexts.predicted.tolist()):
        residuals[channel] -= _guesses(values[channel], contexts.weights[number])
    # Modulo 2^16, so that adding the guess gives back any symbol.
    residuals = residuals.astype(np.uint16).view(np.int16).astype(np.int64)
    activities = _activities(contexts, residuals)
    score = np.broadcast_to(contexts.bias[:, None, None].astype(np.int64), values.shape).copy()
    for k, (up, left) in enumerate(_AROUND):
        score += contexts.beside[:, k, None, None] * _shifted(activities, up, left)
    classes = _classes(contexts, score, activities)
    channels = np.arange(count)[:, None, None]
    indexes[:] = contexts.table_map[channels, classes].transpose(1, 2, 0).reshape(-1)
    coded[:] = residuals.transpose(1, 2, 0).reshape(-1)


def _activities(contexts: _Choice, residuals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what residuals (C, ...) count for, less each channel's mean."""
    levels = contexts.levels.astype(np.int64)[np.minimum(np.abs(residuals), LEVELS - 1)]
    mean = contexts.mean.astype(np.int64).reshape(-1, *[1] * (residuals.ndim - 1))
    found: NDArray[np.int64] = levels - mean
    return found


def _shifted(planes: NDArray[np.int64], up: int, left: int) -> NDArray[np.int64]:
    """Return planes (C, h, w) whose values lie `up` rows and `left` columns before; 0 outside."""
    count, height, width = planes.shape
    padded = np.zeros((count, height + 2, width + 4), np.int64)
    padded[:, 2:, 2:-2] = planes
    shifted: NDArray[np.int64] = padded[:, 2 - up : 2 - up + height, 2 - left : 2 - left + width]
    return shifted


def _classes(
    contexts: _Choice, score: NDArray[np.int64], activities: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return classes (C, h, w): scores, and sums over the channels of the groups before."""
    total = score
    sums = np.zeros((contexts.into.shape[1], *score.shape[1:]), np.int64)
    for first in range(0, len(contexts.order), GROUP):
        group = slice(first, first + GROUP)
        known = np.clip(sums >> SUM_SHIFT, _INT16.min, _INT16.max)
        total[group] += np.tensordot(contexts.from_sums[group].astype(np.int64), known, 1)
        sums += np.tensordot(contexts.into[group].T.astype(np.int64), activities[group], 1)
    classes: NDArray[np.int64] = np.clip(total >> CLASS_SHIFT, 0, CLASSES - 1)
    return classes


def _guesses(plane: NDArray[np.int64], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return predictions (h, w) of a channel's values."""
    guesses = [
        [_guess(plane, y, x, weights) for x in range(plane.shape[1])] for y in range(len(plane))
    ]
    return np.array(guesses, np.int64)


def _guess(plane: NDArray[Any], y: int, x: int, weights: NDArray[np.int8]) -> int:
    """Return the prediction at (y, x); what lies outside is as the nearest that is known."""
    left = int(plane[y, x - 1]) if x else int(plane[y - 1, 0]) if y else 0
    top = int(plane[y - 1, x]) if y else left
    around = [
        left,
        top,
        int(plane[y - 1, x - 1]) if y and x else top,
        int(plane[y - 1, x + 1]) if y and x + 1 < plane.shape[1] else top,
        int(plane[y, x - 2]) if x > 1 else left,
        int(plane[y - 2, x]) if y > 1 else top,
    ]
    total = sum(int(w) * v for w, v in zip(weights.tolist(), around, strict=True))
    total += 1 << (VALUE_SHIFT - 1)
    return max(_INT16.min, min(_INT16.max, total >> VALUE_SHIFT))


def decode_contexts(
    tables: Any,
    contexts: _Choice,
    state: NDArray[np.uint64],
    words: bytes,
    escapes: bytes,
    symbols: NDArray[np.int16],
    height: int,
    width: int,
) -> int:
    """Read a tile into `symbols` (C * h * w), update `state`; return what stopped it, or DONE."""
    count = len(contexts.order)
    values = symbols.reshape(count, height, width)
    coded = np.zeros((count, height + 2, width + 4), np.int64)
    slots = {channel: k for k, channel in enumerate(contexts.predicted.tolist())}
    weights = contexts.beside.astype(np.int64)
    for y in range(height):
        for x in range(width):
            around = np.stack([coded[:, y + 2 - up, x + 2 - left] for up, left in _AROUND], axis=1)
            assert around.shape == (count, NEIGHBOURS)
            score = contexts.bias + (weights * around).sum(axis=1)
            residuals = np.zeros(count, np.int16)
            status = _decode_position(tables, contexts, score, state, (words, escapes), residuals)
            if status:
                return status
            coded[:, y + 2, x + 2] = _activities(contexts, residuals.astype(np.int64))
            for channel, k in slots.items():
                plane = values[contexts.order[channel]]
                guess = _guess(plane, y, x, contexts.weights[k])
                residuals[channel] = _wrapped(int(residuals[channel]) + guess)
            values[contexts.order, y, x] = residuals
    return _rans_py.DONE


def _decode_position(
    tables: Any,
    contexts: _Choice,
    score: NDArray[np.int64],
    state: NDArray[np.uint64],
    streams: tuple[bytes, bytes],
    residuals: NDArray[np.int16],
) -> int:
    sums = np.zeros(contexts.into.shape[1], np.int64)
    for first in range(0, len(contexts.order), GROUP):
        group = slice(first, first + GROUP)
        known = np.clip(sums >> SUM_SHIFT, _INT16.min, _INT16.max)
        total = score[group] + contexts.from_sums[group].astype(np.int64) @ known
        classes = np.clip(total >> CLASS_SHIFT, 0, CLASSES - 1)
        rows = contexts.table_map[group]
        indexes = rows[np.arange(len(rows)), classes].astype(np.uint16)
        found = residuals[group]
        status = _rans_py.decode(tables, state, *streams, found, indexes, 1)
        if status:
            return status
        levels = contexts.levels[np.minimum(np.abs(found.astype(np.int64)), LEVELS - 1)]
        activities = levels.astype(np.int64) - contexts.mean[group]
        sums += contexts.into[group].T.astype(np.int64) @ activities
    return _rans_py.DONE


def _wrapped(value: int) -> int:
    """Return a value modulo 2^16 as int16."""
    return (value + 2**15) % 2**16 - 2**15
