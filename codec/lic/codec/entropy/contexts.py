"""Contexts: integers that choose each symbol's table from symbols that are known already.

No network and no floating point takes part, so every machine chooses the same tables. The
arithmetic stands in codec/FORMAT.md, "Contexts".

Shapes: C channels, h w rows and columns of a tile's latents, T tables.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy.tables import Tables, frozen_integers
from lic.codec.errors import ConfigError, ModelMismatchError

NEIGHBOURS: Final = 6
"""Left, top, top left, top right, left but one, top but one."""
RANK: Final = 4
"""Sums over the channels that are known at a position."""
GROUP: Final = 4
"""Channels whose tables are chosen at once: the sums hold those of the groups before."""
CLASSES: Final = 64
CLASS_SHIFT: Final = 9
SUM_SHIFT: Final = 6
VALUE_SHIFT: Final = 6
LEVELS: Final = 256
MAX_CHANNELS: Final = 4096
MAX_PREDICTED: Final = 64
BIAS_LIMIT: Final = 2**24
BESIDE_LIMIT: Final = 128
"""Of a channel's weights, their magnitudes summed: with activities, sums fit 16 bits."""
MAX_TABLES: Final = 256

_DTYPES: dict[str, type[np.integer[Any]]] = {
    "levels": np.uint8,
    "order": np.uint16,
    "mean": np.uint8,
    "beside": np.int8,
    "into": np.int8,
    "from_sums": np.int8,
    "bias": np.int32,
    "table_map": np.uint8,
    "predicted": np.uint16,
    "weights": np.int8,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """How the tables of C channels are chosen. Channels count as they are coded, not as they lie.

    Attributes:
        levels: (256,) uint8, the activity of a magnitude; larger magnitudes have the last one's.
        order: (C,) uint16, which channel of the latents is coded first, second, ...
        mean: (C,) uint8, the activity that a neighbour outside the tile counts as.
        beside: (C, 6) int8, weights of the activities around, in the order of `NEIGHBOURS`.
        into: (C, 4) int8, what a channel's activity adds to the four sums.
        from_sums: (C, 4) int8, weights of the four sums.
        bias: (C,) int32.
        table_map: (C, 64) uint8, the table of each class.
        predicted: (P,) uint16, channels that are coded as differences to a prediction.
        weights: (P, 6) int8, weights of the values around, in 64ths.
        tables: What there is to choose from, at most 256.

    Raises:
        ConfigError: An array has the wrong shape or kind.
        ModelMismatchError: A number is out of range.
    """

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
    tables: Tables

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, frozen_integers(name, getattr(self, name), dtype))
        count, predicted = len(self.order), len(self.predicted)
        shapes: dict[str, tuple[int, ...]] = {
            "levels": (LEVELS,), "order": (count,), "mean": (count,),
            "beside": (count, NEIGHBOURS), "into": (count, RANK), "from_sums": (count, RANK),
            "bias": (count,), "table_map": (count, CLASSES), "predicted": (predicted,),
            "weights": (predicted, NEIGHBOURS),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ConfigError(f"{name} of the contexts is {found}; expected {shape}")
        self._check_ranges(count, predicted)

    def _check_ranges(self, count: int, predicted: int) -> None:
        if not 1 <= count <= MAX_CHANNELS or predicted > min(count, MAX_PREDICTED):
            raise ModelMismatchError(
                f"contexts of {count} channels, {predicted} of them predicted: expected 1 to "
                f"{MAX_CHANNELS} and at most {MAX_PREDICTED}"
            )
        if sorted(self.order.tolist()) != list(range(count)):
            raise ModelMismatchError("the contexts' order does not name each channel once")
        named = self.predicted.tolist()
        if len(set(named)) < predicted or any(channel >= count for channel in named):
            raise ModelMismatchError("the contexts predict a channel twice, or one that is not")
        if np.abs(self.bias.astype(np.int64)).max() > BIAS_LIMIT:
            raise ModelMismatchError(f"a bias of the contexts is beyond ±{BIAS_LIMIT}")
        named_tables = int(self.table_map.max()) + 1
        if named_tables > len(self.tables):
            raise ModelMismatchError(
                f"the contexts choose among {named_tables} tables, there are {len(self.tables)}"
            )
        if np.abs(self.beside.astype(np.int64)).sum(axis=1).max() > BESIDE_LIMIT:
            raise ModelMismatchError(
                f"the weights of a channel's neighbours sum to more than {BESIDE_LIMIT}"
            )

    def __len__(self) -> int:
        return len(self.order)

    def digest(self) -> bytes:
        """Return the SHA-256 (32 bytes) of all that decides which table is taken."""
        digest = hashlib.sha256(b"contexts 1")
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
        digest.update(self.tables.digest())
        return digest.digest()

    def choice(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that choose, without the tables, by name and in this class's order."""
        return {name: getattr(self, name) for name in _DTYPES}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name, ready for `np.savez` without pickle."""
        return {**self.choice(), **self.tables.to_arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Contexts":
        """Build contexts from what `to_arrays` gave; other names in the mapping are ignored.

        Raises:
            ModelMismatchError: An array is missing, or a number out of range.
            ConfigError: An array has the wrong shape or kind.
        """
        missing = [name for name in _DTYPES if name not in arrays]
        if missing:
            raise ModelMismatchError(f"the contexts lack {', '.join(missing)}")
        return cls(**{name: arrays[name] for name in _DTYPES}, tables=Tables.from_arrays(arrays))
