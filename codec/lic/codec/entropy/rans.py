"""Writer and Reader: groups of symbols <-> the entropy stream of codec/FORMAT.md.

Shapes: a group has any shape; its indexes have the same one. Indexes that are constant along the
trailing axes, such as a factorized prior's, are given as a view without memory of its own:

    np.broadcast_to(channels[:, None, None], (C, h, w))

The coder sees the zero strides and codes runs. The bytes are those of the full array.
"""

import importlib
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import _rans_py
from lic.codec.entropy.tables import Tables
from lic.codec.errors import BitstreamError, ConfigError, NumericsError

KernelName = Literal["c", "python"]

_LANES = 4
_LOWER = 1 << 16
# A state loses at least four fifths of a symbol's ideal length (that little where it is near 2**16
# and the symbol frequent), and a word brings at most a fiftieth more than its 16 bits: so much of
# the ideal length must be there, whatever the symbols.
_CERTAIN = 0.75
# Up to here memory and time are small, however little there is to read them from.
_FREE_SYMBOLS = 1 << 16
_INT16 = np.iinfo(np.int16)
_PROBLEMS = {
    _rans_py.OUT_OF_WORDS: "the entropy stream ends too early",
    _rans_py.OUT_OF_ESCAPES: "the escape stream ends too early",
    _rans_py.BAD_ESCAPE: "the escape stream holds a value that no encoder writes",
}

try:
    _c: Any = importlib.import_module("lic.codec.entropy._rans")
except ImportError:
    _c = None

_prepared: dict[str, WeakKeyDictionary[Tables, Any]] = {
    "c": WeakKeyDictionary(),
    "python": WeakKeyDictionary(),
}


class SymbolCoder(Protocol):
    """Writes a group of symbols, or reads the next one; returns it either way."""

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Code one group.

        Args:
            symbols: The group to write, within int16; None when reading.
            indexes: The table of each symbol, in the group's shape.

        Returns:
            The group as int16.
        """
        ...


def c_kernel() -> Any:
    """Return the module of the C kernel, None where it is not built."""
    return _c


def kernel_name(kernel: KernelName | None = None) -> KernelName:
    """Return the kernel that a coder made with this argument uses: "c" where it is built.

    Raises:
        ConfigError: The kernel asked for is unknown or not built.
    """
    if kernel not in ("c", "python", None):
        raise ConfigError(f"kernel must be 'c', 'python' or None, not {kernel!r}")
    if kernel == "c" and _c is None:
        raise ConfigError("the C kernel is not built; reinstall lic where a C compiler is found")
    return kernel or ("python" if _c is None else "c")


class _Coder:
    """What writing and reading share: the tables in the kernel's form, and the checks."""

    def __init__(self, tables: Tables, kernel: KernelName | None) -> None:
        name = kernel_name(kernel)
        self._kernel: Any = _c if name == "c" else _rans_py
        self._count = len(tables)
        known = _prepared[name]
        self._tables = known.get(tables)
        if self._tables is None:
            arrays = (tables.quantized_cdf, tables.cdf_length, tables.offset)
            self._tables = known[tables] = self._kernel.prepare(*arrays)

    def _runs(self, indexes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.uint16], int]:
        """Return flat indexes (n,) and how many symbols in a row share each."""
        _check_integers("indexes", indexes)
        run = 1
        if indexes.size:
            while indexes.ndim and (indexes.strides[-1] == 0 or indexes.shape[-1] == 1):
                run *= indexes.shape[-1]
                indexes = indexes[..., 0]
            low = 0 if indexes.dtype.kind == "u" else int(indexes.min())
            high = int(indexes.max())
            if low < 0 or high >= self._count:
                bad = low if low < 0 else high
                raise ConfigError(f"index {bad} selects none of the {self._count} entropy tables")
        return np.ascontiguousarray(indexes, dtype=np.uint16).reshape(-1), run


class Writer(_Coder):
    """Collects groups and writes them all at once: rANS encodes from the last symbol to the first.

    Args:
        tables: What the symbols are coded with.
        kernel: "c" or "python" to insist on one; None takes the fastest there is.

    Raises:
        ConfigError: The kernel is not available.
    """

    def __init__(self, tables: Tables, *, kernel: KernelName | None = None) -> None:
        super().__init__(tables, kernel)
        self._groups: list[tuple[NDArray[np.int16], NDArray[np.uint16], int]] = []
        self._finished = False

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Take the next group, of any shape, and return it as int16.

        The arrays are copied and may be changed afterwards.

        Raises:
            ConfigError: A shape, dtype or index is wrong, or the writer has finished.
            NumericsError: A symbol does not fit int16.
        """
        self.check()
        if symbols is None:
            raise ConfigError("a writer needs symbols; only a reader takes None")
        if symbols.shape != indexes.shape:
            raise ConfigError(f"symbols are {symbols.shape} but their indexes {indexes.shape}")
        flat, run = self._runs(indexes)
        group = as_int16(symbols)
        if group.size:
            if np.may_share_memory(flat, indexes):
                flat = flat.copy()
            self._groups.append((group.reshape(-1), flat, run))
        return group.copy()

    def check(self) -> None:
        """Refuse a writer that has finished.

        Raises:
            ConfigError: It has.
        """
        if self._finished:
            raise ConfigError("the writer has finished; use one writer for each stream")

    def finish(self) -> tuple[bytes, ...]:
        """Return the streams: (rans,), or (rans, escapes) if a symbol was outside its table.

        No symbols at all give (b"",).

        Raises:
            ConfigError: The writer has finished before.
        """
        self.check()
        self._finished = True
        total = sum(group.size for group, _, _ in self._groups)
        if not total:
            return (b"",)
        # The most there can be: a word and a 3-byte varint for each symbol, and a spare word.
        words, escapes = np.empty(2 * total + 2, np.uint8), np.empty(3 * total, np.uint8)
        state = np.array([_LOWER] * _LANES + [total, words.size, escapes.size], np.uint64)
        for group, indexes, run in reversed(self._groups):
            self._kernel.encode(self._tables, state, words, escapes, group, indexes, run)
        self._groups.clear()
        rans = state[:_LANES].astype("<u4").tobytes() + words[int(state[5]) :].tobytes()
        side = escapes[int(state[6]) :].tobytes()
        return (rans, side) if side else (rans,)


class Reader(_Coder):
    """Reads back, group by group, what a Writer wrote.

    Args:
        tables: The writer's tables.
        streams: What `Writer.finish` returned.
        kernel: "c" or "python" to insist on one; None takes the fastest there is.

    Raises:
        BitstreamError: No writer makes such streams.
        ConfigError: The kernel is not available.
    """

    def __init__(
        self, tables: Tables, streams: tuple[bytes, ...], *, kernel: KernelName | None = None
    ) -> None:
        super().__init__(tables, kernel)
        self._least_bits = tables.least_bits
        if not 1 <= len(streams) <= 2:
            raise BitstreamError(f"there are {len(streams)} entropy streams, expected 1 or 2")
        if len(streams) == 2 and not (streams[0] and streams[1]):
            raise BitstreamError("an entropy stream is empty, expected no such stream at all")
        self._empty = not streams[0]
        self._escapes = streams[1] if len(streams) == 2 else b""
        self._words = streams[0][4 * _LANES :]
        self._failure: str | None = None
        self._state = np.zeros(_LANES + 3, np.uint64)
        self._state[:_LANES] = _LOWER if self._empty else _initial_lanes(streams[0])

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Return the next group, int16 in the shape of `indexes`.

        Raises:
            ConfigError: `symbols` is not None, or a dtype or index is wrong.
            BitstreamError: The stream is damaged; the reader is of no more use.
        """
        if symbols is not None:
            raise ConfigError("a reader takes None for the symbols; only a writer needs them")
        shape = indexes.shape
        flat, run = self._runs(indexes)
        self.check()
        if flat.size * run > _FREE_SYMBOLS:
            self._check_room(flat, run)
        group = np.empty(shape, np.int16)
        if group.size:
            self._read(group.reshape(-1), flat, run)
        return group

    def expect(self, indexes: NDArray[np.integer[Any]]) -> None:
        """Refuse a group that the rest of the streams cannot hold, before there is memory for it.

        `code` does so itself with large groups; this is for whoever wants to know earlier.

        Raises:
            BitstreamError: Even the cheapest symbols of their tables would take more.
            ConfigError: An index or its dtype is wrong.
        """
        self._check_room(*self._runs(indexes))

    def _check_room(self, indexes: NDArray[np.uint16], run: int) -> None:
        # Symbol by symbol this would cost as much as a third of the decoding.
        least = self._least_bits
        bits = least[indexes].sum() * run if run > 1 else least.min() * indexes.size
        self._check_bits(float(bits), indexes.size * run)

    def _check_bits(self, bits: float, symbols: int) -> None:
        """Refuse symbols that take at least so many bits, more than there are."""
        word, escape = (int(value) for value in self._state[_LANES + 1 :])
        left = len(self._words) - word + len(self._escapes) - escape
        # Four lanes hold 16 bits each beyond what they end with.
        if _CERTAIN * bits > 8 * left + 16 * _LANES:
            self._fail(
                f"{left} bytes of the entropy stream are left for {symbols} symbols, "
                f"which take at least {int(_CERTAIN * bits / 8)}"
            )

    def check(self) -> None:
        """Raise what stopped an earlier group.

        Raises:
            BitstreamError: The stream is damaged.
        """
        if self._failure:
            raise BitstreamError(self._failure)

    def _read(self, group: NDArray[np.int16], indexes: NDArray[Any], run: int) -> None:
        if self._empty:
            self._fail("the entropy stream is empty but symbols are wanted from it")
        first = int(self._state[_LANES])
        status = self._decode(group, indexes, run)
        if status:
            self._fail(f"{_PROBLEMS[status]}, within symbols {first} to {first + group.size - 1}")

    def _decode(self, group: NDArray[np.int16], indexes: NDArray[Any], run: int) -> int:
        status: int = self._kernel.decode(
            self._tables, self._state, self._words, self._escapes, group, indexes, run
        )
        return status

    def finish(self) -> None:
        """Check that the streams end where the symbols do.

        Raises:
            BitstreamError: They do not: some writer's streams for other symbols, or damaged ones.
        """
        self.check()
        count, word, escape = (int(value) for value in self._state[_LANES:])
        if not count and not self._empty:
            self._fail("the entropy stream is not empty but no symbols were wanted from it")
        if word != len(self._words):
            self._fail(f"{len(self._words) - word} bytes of the entropy stream are left over")
        if escape != len(self._escapes):
            self._fail(f"{len(self._escapes) - escape} bytes of the escape stream are left over")
        if (self._state[:_LANES] != _LOWER).any():
            self._fail("the entropy coder does not end in its initial state: the data is damaged")

    def _fail(self, message: str) -> None:
        self._failure = message
        raise BitstreamError(message)


def _initial_lanes(stream: bytes) -> NDArray[np.uint32]:
    if len(stream) < 4 * _LANES or len(stream) % 2:
        raise BitstreamError(
            f"the entropy stream has {len(stream)} bytes, expected an even number from 16 up"
        )
    lanes = np.frombuffer(stream, "<u4", _LANES).astype(np.uint32)
    if (lanes < _LOWER).any():
        raise BitstreamError("the entropy stream begins with a state below 2**16")
    return lanes


def _check_integers(name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "iu":
        raise ConfigError(f"{name} must be integers, not {values.dtype}")


def as_int16(symbols: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Return a contiguous copy as int16.

    Raises:
        NumericsError: A symbol does not fit.
    """
    _check_integers("symbols", symbols)
    if symbols.dtype != np.int16 and symbols.size:
        low, high = int(symbols.min()), int(symbols.max())
        if low < _INT16.min or high > _INT16.max:
            bad = low if low < _INT16.min else high
            raise NumericsError(f"symbol {bad} does not fit the coder's 16 bits")
    return np.array(symbols, dtype=np.int16, order="C")
