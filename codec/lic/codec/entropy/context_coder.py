"""Writer and reader of tiles whose tables the contexts choose.

They stand where `Writer` and `Reader` do: a tile is one group of symbols (C, h, w). Of the
indexes that come with it only the shape counts.

Shapes: C channels, h w rows and columns of a tile's latents.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import _contexts_py
from lic.codec.entropy.contexts import Contexts
from lic.codec.entropy.meter import Meter
from lic.codec.entropy.rans import (
    KernelName,
    Reader,
    SymbolCoder,
    Writer,
    as_int16,
    c_kernel,
    kernel_name,
)
from lic.codec.errors import ConfigError

_prepared: dict[str, WeakKeyDictionary[Contexts, Any]] = {
    "c": WeakKeyDictionary(),
    "python": WeakKeyDictionary(),
}


class _Prepared:
    """Contexts in the form that a kernel wants, made once for all tiles."""

    def __init__(self, contexts: Contexts, kernel: KernelName | None) -> None:
        name = kernel_name(kernel)
        self.kernel: Any = c_kernel() if name == "c" else _contexts_py
        known = _prepared[name]
        self.contexts = known.get(contexts)
        if self.contexts is None:
            arrays = contexts.choice().values()
            self.contexts = known[contexts] = self.kernel.prepare_contexts(*arrays)

    def residuals(self, symbols: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Return what is coded of symbols (C, h, w), and by which tables, both (h * w * C,)."""
        _, height, width = symbols.shape
        coded, indexes = np.empty(symbols.size, np.int16), np.empty(symbols.size, np.uint16)
        flat = symbols.reshape(-1)
        self.kernel.find_contexts(self.contexts, flat, coded, indexes, height, width)
        return coded, indexes


def context_symbols(
    contexts: Contexts, symbols: NDArray[np.int16]
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Return what is coded of a tile and by which table, both (h, w, C) in the order of coding.

    Args:
        contexts: How tables are chosen.
        symbols: (C, h, w), in the order of the latents.
    """
    _check_shape(symbols.shape, contexts)
    count, height, width = symbols.shape
    coded, indexes = _Prepared(contexts, None).residuals(np.ascontiguousarray(symbols))
    shape = (height, width, count)
    return coded.reshape(shape), indexes.reshape(shape)


def _check_shape(shape: tuple[int, ...], contexts: Contexts) -> None:
    if len(shape) != 3 or shape[0] != len(contexts):
        raise ConfigError(f"a tile is {shape}; expected ({len(contexts)}, rows, columns)")


class ContextWriter(Writer):
    """Collects tiles and writes them at once.

    Args:
        contexts: How tables are chosen, and the tables.
        kernel: As of `Writer`.

    Raises:
        ConfigError: The kernel is not available.
    """

    def __init__(self, contexts: Contexts, *, kernel: KernelName | None = None) -> None:
        super().__init__(contexts.tables, kernel=kernel)
        self._contexts = contexts
        self._choice = _Prepared(contexts, kernel)

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Take the next tile, symbols (C, h, w), and return it as int16.

        Raises:
            ConfigError: A shape or dtype is wrong, or the writer has finished.
            NumericsError: A symbol does not fit int16.
        """
        if symbols is None:
            raise ConfigError("a writer needs symbols; only a reader takes None")
        if symbols.shape != indexes.shape:
            raise ConfigError(f"symbols are {symbols.shape} but their indexes {indexes.shape}")
        _check_shape(symbols.shape, self._contexts)
        self.check()
        tile = as_int16(symbols)
        if tile.size:
            self._groups.append((*self._choice.residuals(tile), 1))
        return tile


class ContextReader(Reader):
    """Reads back, tile by tile, what a `ContextWriter` wrote.

    Args:
        contexts: The writer's.
        streams: What `ContextWriter.finish` returned.
        kernel: As of `Reader`.

    Raises:
        BitstreamError: No writer makes such streams.
        ConfigError: The kernel is not available.
    """

    def __init__(
        self,
        contexts: Contexts,
        streams: tuple[bytes, ...],
        *,
        kernel: KernelName | None = None,
    ) -> None:
        super().__init__(contexts.tables, streams, kernel=kernel)
        self._contexts = contexts
        self._choice = _Prepared(contexts, kernel)

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Return the next tile, int16 in the shape of `indexes`, (C, h, w).

        Raises:
            ConfigError: `symbols` is not None, or the shape is wrong.
            BitstreamError: The stream is damaged; the reader is of no more use.
        """
        if symbols is not None:
            raise ConfigError("a reader takes None for the symbols; only a writer needs them")
        _check_shape(indexes.shape, self._contexts)
        self.check()
        self.expect(indexes)
        tile = np.zeros(indexes.shape, np.int16)
        if tile.size:
            self._read(tile.reshape(-1), indexes, 1)
        return tile

    def expect(self, indexes: NDArray[np.integer[Any]]) -> None:
        """Refuse a tile that the rest of the streams cannot hold, before there is memory for it.

        Raises:
            BitstreamError: Even the cheapest symbols of the tables to choose from take more.
        """
        _, height, width = indexes.shape
        least = self._least_bits[self._contexts.table_map].min(axis=1).sum()
        self._check_bits(float(least) * height * width, indexes.size)

    def _decode(self, group: NDArray[np.int16], indexes: NDArray[Any], run: int) -> int:  # noqa: ARG002
        _, height, width = indexes.shape
        status: int = self._choice.kernel.decode_contexts(
            self._tables, self._choice.contexts, self._state, self._words, self._escapes,
            group, height, width,
        )  # fmt: skip
        return status


class ContextMeter(Meter):
    """A coder that passes tiles through to another and keeps what each costs.

    Attributes:
        bits: of each tile so far, as of `Meter`.
    """

    def __init__(self, coder: SymbolCoder, contexts: Contexts) -> None:
        super().__init__(coder, contexts.tables)
        self._contexts = contexts

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Code one tile with the other coder; same arguments, result and errors."""
        known = self._coder.code(symbols, indexes)
        self.bits.append(self._measure(*context_symbols(self._contexts, known)))
        return known
