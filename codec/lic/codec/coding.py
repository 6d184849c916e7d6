"""How a bundle's symbols are coded: which tables, and which coder chooses among them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import Coder, Header, Tile
from lic.codec.entropy import (
    ContextMeter,
    ContextReader,
    Contexts,
    ContextWriter,
    KernelName,
    Meter,
    Reader,
    SymbolCoder,
    Writer,
    cheapest_set,
)
from lic.codec.errors import BitstreamError, ModelMismatchError, NumericsError


class Coding:
    """Writers and readers of a bundle's tiles.

    Args:
        bundle: the model.
        contexts: whether files are written with its contexts, where it has any. Files of both
            kinds are read.
    """

    def __init__(self, bundle: Bundle, *, contexts: bool = True) -> None:
        self._chosen = contexts and bundle.contexts is not None
        self._bundle = bundle
        self._tables = bundle.tables

    @property
    def coder(self) -> Coder:
        """What new files are coded with."""
        return Coder.CONTEXTS if self._chosen else Coder.RANS

    def check(self, header: Header) -> None:
        """Refuse a file that was not made with this bundle.

        Raises:
            BitstreamError: its coder does not go with its fingerprint.
            ModelMismatchError: it was made with another model, or with other contexts.
        """
        known = self._bundle.fingerprints
        if header.fingerprint not in known.values():
            found = ", ".join(value.hex() for value in known.values())
            raise ModelMismatchError(
                f"the file was made with model {header.fingerprint.hex()}, expected {found} "
                f"({self._bundle.label}); decode with the model, and the contexts, it was made with"
            )
        if known.get(header.coder) != header.fingerprint:
            raise BitstreamError(
                f"chunk HEAD at byte 8: coder {header.coder.name.lower()}, but fingerprint "
                f"{header.fingerprint.hex()} of {self._bundle.label} is that of another coder"
            )

    def tables_for(self, header: Header, symbols: NDArray[np.int16]) -> int:
        """Return the set of tables that codes a factorized prior's symbols (M, h, w) best."""
        return cheapest_set(self._tables, symbols) if header.coder is Coder.RANS else 0

    def writer(self, header: Header, tables: int, kernel: KernelName | None = None) -> Writer:
        """Return the writer of a tile with a set of tables."""
        if header.coder is Coder.CONTEXTS:
            return ContextWriter(self._contexts, kernel=kernel)
        return Writer(self._tables.of_set(tables), kernel=kernel)

    def reader(self, header: Header, tile: Tile) -> Reader:
        """Return the reader of a tile.

        Raises:
            BitstreamError: no encoder writes such streams, or there is no such set of tables.
        """
        if header.coder is Coder.CONTEXTS:
            if tile.tables:
                raise BitstreamError(
                    f"coded with set {tile.tables} of the model's tables, but contexts have one"
                )
            return ContextReader(self._contexts, tile.streams)
        return Reader(self._tables.of_set(tile.tables), tile.streams)

    def meter(self, header: Header, tile: Tile, reader: SymbolCoder) -> Meter:
        """Return a coder that tells what the groups of a tile cost."""
        if header.coder is Coder.CONTEXTS:
            return ContextMeter(reader, self._contexts)
        return Meter(reader, self._tables.of_set(tile.tables))

    @property
    def _contexts(self) -> Contexts:
        contexts = self._bundle.contexts
        assert contexts is not None, "a file's fingerprint names contexts that are there"
        return contexts


class Counted:
    """A coder that passes everything through to another and counts the groups that came back."""

    def __init__(self, coder: SymbolCoder) -> None:
        self.groups = 0
        self._coder = coder

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Return the next group."""
        known = self._coder.code(symbols, indexes)
        self.groups += 1
        return known


def other_symbols(how: str) -> NumericsError:
    """Return the error that says how an intact stream gave other symbols than the encoder's."""
    return NumericsError(
        f"the stream is intact but gave other symbols ({how}): this device computes other entropy "
        "parameters than the encoder's; decode with the encoder's backend on the same kind of "
        "device"
    )
