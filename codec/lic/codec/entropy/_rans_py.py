"""The kernel in Python: the oracle that `_rans.c` is tested against, and the fallback without it.

The three functions have the kernel's signatures and give the same bytes and the same states. They
rely on the checks in `rans.py`; the kernel repeats those for itself.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DONE, OUT_OF_WORDS, OUT_OF_ESCAPES, BAD_ESCAPE = range(4)
_LANES = 4
_LOWER = 1 << 16
_PRECISION = 14
_MASK = (1 << _PRECISION) - 1
_INT16 = range(-(1 << 15), 1 << 15)

_Array = NDArray[Any]


@dataclass(frozen=True)
class _Prepared:
    cdfs: list[list[int]]
    offsets: list[int]


def prepare(quantized_cdf: _Array, cdf_length: _Array, offset: _Array) -> _Prepared:
    """Return the tables in the form that `encode` and `decode` want."""
    rows = zip(quantized_cdf.tolist(), cdf_length.tolist(), strict=True)
    return _Prepared([row[:length] for row, length in rows], offset.tolist())


def encode(
    tables: _Prepared,
    state: NDArray[np.uint64],
    words: NDArray[np.uint8],
    escapes: NDArray[np.uint8],
    symbols: NDArray[np.int16],
    indexes: NDArray[np.uint16],
    run: int,
) -> int:
    """Write a group backwards, before what `words` and `escapes` hold already; update `state`."""
    *lanes, left, word, escape = map(int, state)
    cdfs, offsets = tables.cdfs, tables.offsets
    reverse = zip(symbols[::-1].tolist(), indexes[::-1].repeat(run).tolist(), strict=True)
    for symbol, index in reverse:
        left -= 1
        cdf, k = cdfs[index], symbol - offsets[index]
        slots = len(cdf) - 2
        if not 0 <= k < slots:
            varint = escape_bytes(k, slots)
            escapes[escape - len(varint) : escape] = np.frombuffer(varint, np.uint8)
            escape -= len(varint)
            k = slots
        start, freq = cdf[k], cdf[k + 1] - cdf[k]
        x = lanes[left % _LANES]
        if x >> (32 - _PRECISION) >= freq:
            word -= 2
            words[word], words[word + 1] = x & 255, x >> 8 & 255
            x >>= 16
        lanes[left % _LANES] = (x // freq << _PRECISION) + x % freq + start
    state[:] = [*lanes, left, word, escape]
    return DONE


def decode(
    tables: _Prepared,
    state: NDArray[np.uint64],
    words: bytes,
    escapes: bytes,
    symbols: NDArray[np.int16],
    indexes: NDArray[np.uint16],
    run: int,
) -> int:
    """Read a group into `symbols` and update `state`; return what stopped it, or DONE."""
    *lanes, count, word, escape = map(int, state)
    side = _Escapes(escapes, escape)
    status, found = DONE, []
    for index in indexes.repeat(run).tolist():
        x = lanes[count % _LANES]
        cdf, position = tables.cdfs[index], x & _MASK
        k = bisect_right(cdf, position) - 1
        x = (cdf[k + 1] - cdf[k]) * (x >> _PRECISION) + position - cdf[k]
        if k == len(cdf) - 2:
            k, status = side.read(k, tables.offsets[index])
        if x < _LOWER and status == DONE:
            if word + 2 > len(words):
                status = OUT_OF_WORDS
            else:
                x = x << 16 | words[word] | words[word + 1] << 8
                word += 2
        if status != DONE:
            break
        lanes[count % _LANES] = x
        found.append(tables.offsets[index] + k)
        count += 1
    symbols[: len(found)] = found
    state[:] = [*lanes, count, word, side.position]
    return status


def escape_bytes(k: int, slots: int) -> bytes:
    """Return the varint for a symbol `k` steps from its table's first, outside its `slots`."""
    value = (k - slots) << 1 if k >= 0 else (-1 - k) << 1 | 1
    return bytes(_groups(value))


def _groups(value: int) -> Iterator[int]:
    while value >= 128:
        yield value & 127 | 128
        value >>= 7
    yield value


@dataclass
class _Escapes:
    data: bytes
    position: int

    def read(self, slots: int, offset: int) -> tuple[int, int]:
        """Return the symbol's distance from its table's first, and a status."""
        value = size = 0
        while True:
            if self.position == len(self.data):
                return 0, OUT_OF_ESCAPES
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 127) << 7 * size
            size += 1
            if byte < 128 or size == 3:
                break
        k = -1 - (value >> 1) if value & 1 else slots + (value >> 1)
        shortest = byte < 128 and (byte > 0 or size == 1)
        return k, DONE if shortest and offset + k in _INT16 else BAD_ESCAPE
