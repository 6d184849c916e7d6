"""Pictures to what networks accept, and back: padding, strips, tiles and their seams, samples."""

# Shapes: H W pixels, C channels; a tile's coded area has h w pixels.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil, lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lic.codec.container import Header
from lic.codec.container.header import MAX_TILE_SIDE, MIN_TILE_SIDE, TILE_UNIT
from lic.codec.errors import BitstreamError, ConfigError, NumericsError
from lic.codec.image_io import PixelSource
from lic.codec.stages import stage

# Networks with a context keep some kilobytes for every pixel, and memory grows with the area.
TILE_PIXELS = 2048 * 2048
# Of tiles of latents: small enough to decode a part of a picture at little cost. What begins anew
# in each, the coder's states and contexts, is won back by a set of tables for each: the file of 10
# megapixels of photos side by side is 0.2 % smaller than in one tile.
LATENT_TILE_SIDE = 1024
# What a decoder accepts of others: the largest tile that can be asked for.
LARGEST_TILE_PIXELS = MAX_TILE_SIDE**2
# Wide enough for a ramp that hides the seam; pixels on both sides of a border are paid for twice,
# 3 % of the rate at 2048 px.
OVERLAP = 16


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How pictures grow to sizes that a model takes: a property of the model.

    Attributes:
        multiple: padded sides are multiples of it.
        centred: False repeats the last column and row at the right and bottom: cheaper to code
            than a black border, and it works from 1 x 1 pixels on, where a reflection has nothing
            to reflect. True sets the picture into the middle of black, an odd pixel more at the
            right and bottom, as the published HPCM test script does.
    """

    multiple: int
    centred: bool = False

    def padded(self, side: int) -> int:
        """Return the padded length of a side in px."""
        return _round_up(side, self.multiple)

    def pad(self, pixels: NDArray[np.uint8], *, alone: bool = True) -> NDArray[np.uint8]:
        """Return pixels (H, W, C) padded to (H', W', C).

        Not `alone` is one of several tiles: black next to the pixels of a neighbour would cost
        bits and show in the seam, so the nearest pixel is repeated. A decoder need not know.
        """
        height, width = pixels.shape[:2]
        around = (self._around(height), self._around(width), (0, 0))
        return np.pad(pixels, around, mode="constant" if self.centred and alone else "edge")

    def crop(self, planes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """Return the (C, height, width) of planes (C, H', W') that is no padding, as a view."""
        (top, _), (left, _) = self._around(height), self._around(width)
        return planes[:, top : top + height, left : left + width]

    def _around(self, side: int) -> tuple[int, int]:
        """Return the px before and after a side."""
        extra = self.padded(side) - side
        before = extra // 2 if self.centred else 0
        return before, extra - before


class Strip(NamedTuple):
    """Rows of a long picture: those to keep, and those around them that a network must see."""

    start: int
    stop: int
    outer_start: int
    outer_stop: int

    @property
    def inner(self) -> slice:
        """The rows to keep, counted from the first one that the network saw."""
        return slice(self.start - self.outer_start, self.stop - self.outer_start)

    @property
    def kept(self) -> slice:
        """The rows to keep."""
        return slice(self.start, self.stop)

    @property
    def outer(self) -> slice:
        """All rows that the network sees."""
        return slice(self.outer_start, self.outer_stop)


def strips(rows: int, size: int, margin: int) -> Iterator[Strip]:
    """Yield strips of `size` rows that cover `rows`, each with up to `margin` rows around it.

    With a margin of at least the network's receptive field, what is kept equals the result for
    the whole: at the picture's own border a strip ends where the picture does.
    """
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        yield Strip(start, stop, max(0, start - margin), min(rows, stop + margin))


class Grid(NamedTuple):
    """Tiles as HEAD stores them: sides of what one owns and overlap, in px; zeros are one tile."""

    tile_width: int = 0
    tile_height: int = 0
    overlap: int = 0


def plan(height: int, width: int, multiple: int, tile: int | None = None) -> Grid:
    """Return how a picture of height x width px is cut for a model of large memory.

    Small pictures are one tile. Of larger ones, tiles together code as few px as possible, and
    tiles along a side are as even as whole multiples allow; a tile and its overlap on both sides
    is a multiple, so that no tile inside the picture is padded.

    Args:
        height: px.
        width: px.
        multiple: of the model's padding.
        tile: side in px of a tile with its overlap; None chooses.

    Raises:
        ConfigError: `tile` is no side that this model and the format can have.
    """
    if tile is not None:
        check_tile(tile, multiple)
        owned = [_whole(side, tile) or tile - 2 * OVERLAP for side in (width, height)]
        return _grid(height, width, *owned)
    padded = _round_up(height, multiple) * _round_up(width, multiple)
    if padded <= TILE_PIXELS and max(height, width) <= MAX_TILE_SIDE:
        return Grid()
    options = product(_cuts(width, multiple), _cuts(height, multiple))
    across, down = min(options, key=lambda cuts: _cost(*cuts))
    return _grid(height, width, across.owned, down.owned)


def plan_latents(height: int, width: int, tile: int | None = None) -> Grid:
    """Return the tiles of latents of a picture of height x width px: large ones are cut.

    Args:
        height: px.
        width: px.
        tile: side in px of a tile; None chooses.

    Raises:
        ConfigError: `tile` is no side that the format can have.
    """
    if tile is None and height * width <= TILE_PIXELS:
        return Grid()
    side = LATENT_TILE_SIDE if tile is None else tile
    check_latent_tile(side)
    return Grid() if side >= max(height, width) else Grid(side, side)


def check_latent_tile(tile: int) -> None:
    """Refuse a side that the format cannot have.

    Raises:
        ConfigError: names the option and what it takes.
    """
    _check_side(tile, range(MIN_TILE_SIDE, MAX_TILE_SIDE + 1, TILE_UNIT))


def check_tile(tile: int, multiple: int) -> None:
    """Refuse a coded side that a model of this padding, or the format, cannot have.

    Raises:
        ConfigError: names the option and what it takes.
    """
    _check_side(tile, _coded_sides(multiple))


def _check_side(tile: int, sides: range) -> None:
    if tile not in sides:
        raise ConfigError(
            f"--tile is {tile}; this model takes multiples of {sides.step} from {sides[0]} to "
            f"{sides[-1]} px"
        )


class _Cut(NamedTuple):
    """One side of a picture in tiles: px that one owns, how many, px coded in all and at most."""

    owned: int
    tiles: int
    coded: int
    longest: int


def _cuts(side: int, multiple: int) -> list[_Cut]:
    """Return for every possible number of tiles along a side the most even cut."""
    owned = [coded - 2 * OVERLAP for coded in _coded_sides(multiple)]
    # Of all that give as many tiles the shortest stays: it comes last.
    sides = {ceil(side / tile): tile for tile in reversed(owned)}
    if whole := _whole(side, MAX_TILE_SIDE):
        sides[1] = whole
    return [_cut(side, tile, multiple) for tile in sides.values()]


def _cut(side: int, owned: int, multiple: int) -> _Cut:
    coded = [
        _round_up(strip.outer_stop - strip.outer_start, multiple)
        for strip in strips(side, owned, OVERLAP)
    ]
    return _Cut(owned, len(coded), sum(coded), max(coded))


def _cost(across: _Cut, down: _Cut) -> tuple[int, int, int]:
    """Return memory beyond the bound, then px to code, then the number of tiles."""
    return (
        max(TILE_PIXELS, across.longest * down.longest),
        across.coded * down.coded,
        across.tiles * down.tiles,
    )


def _coded_sides(multiple: int) -> range:
    """Return the coded sides of tiles with neighbours on both sides.

    Raises:
        ConfigError: no tile of the format suits the model.
    """
    step = lcm(multiple, TILE_UNIT)
    first = _round_up(MIN_TILE_SIDE + 2 * OVERLAP, step)
    sides = range(first, MAX_TILE_SIDE + 1, step)
    if not sides:
        raise ConfigError(f"no tile of the format has sides that are multiples of {multiple} px")
    return sides


def _whole(side: int, most: int) -> int:
    """Return the px that the one tile along a side owns, 0 where it would need more than `most`."""
    return 0 if side > most else max(MIN_TILE_SIDE, _round_up(side, TILE_UNIT))


def _grid(height: int, width: int, tile_width: int, tile_height: int) -> Grid:
    if tile_width >= width and tile_height >= height:
        return Grid()
    return Grid(tile_width, tile_height, OVERLAP)


def _round_up(value: int, multiple: int) -> int:
    return value + -value % multiple


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tile lies: what it owns, and around it what is coded."""

    index: int
    row: int
    column: int
    rows: Strip
    columns: Strip

    @property
    def height(self) -> int:
        """Coded rows in px."""
        return self.rows.outer_stop - self.rows.outer_start

    @property
    def width(self) -> int:
        """Coded columns in px."""
        return self.columns.outer_stop - self.columns.outer_start


def places(header: Header) -> Iterator[Place]:
    """Yield the places of a picture's tiles in order of their index: row by row."""
    rows = strips(header.height, header.tile_height or header.height, header.overlap)
    for row, down in enumerate(rows):
        columns = strips(header.width, header.tile_width or header.width, header.overlap)
        for column, across in enumerate(columns):
            index = row * header.tiles_across + column
            yield Place(index=index, row=row, column=column, rows=down, columns=across)


@contextmanager
def naming(place: Place, header: Header) -> Iterator[None]:
    """Say in which of several tiles something is wrong."""
    try:
        yield
    except (BitstreamError, NumericsError) as error:
        if header.tile_count == 1:
            raise
        where = f"tile {place.index} (row {place.row}, column {place.column})"
        raise type(error)(f"{where}: {error}") from error


class Seams:
    """Joins decoded tiles that come in order of their index.

    Within `overlap` px of a border two tiles are known (four where borders cross) and fade into
    each other linearly. What a later tile will still change is kept: columns of the tile before,
    rows of the tiles above. All else is handed on at once.

    The tiles may be those of a part of the grid. Those of its first row and column are not blended
    with neighbours that were left out.
    """

    def __init__(self, overlap: int) -> None:
        self._overlap = overlap
        self._first: Place | None = None
        self._left = np.empty((0, 0, 0), np.float32)
        self._above: dict[int, NDArray[np.float32]] = {}

    def join(
        self, place: Place, planes: NDArray[np.float32]
    ) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
        """Return what is final now, rows and columns of the picture, and its planes (C, a, b).

        `planes` (C, h, w) are those of the tile's whole coded area; they are overwritten.
        """
        rows, columns = self._final(place.rows), self._final(place.columns)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self._first = self._first or place
        if place.column > self._first.column:
            self._fade(self._left, planes)
        self._left = planes[:, :, width:].copy()
        planes = planes[:, :, :width]
        if place.row > self._first.row:
            above = self._above[place.column]
            self._fade(above.swapaxes(1, 2), planes.swapaxes(1, 2))
        self._above[place.column] = planes[:, height:].copy()
        return (rows, columns), planes[:, :height]

    def _final(self, strip: Strip) -> slice:
        """Return what of a strip no later one changes."""
        last = strip.outer_stop == strip.stop
        return slice(strip.outer_start, strip.stop - (0 if last else self._overlap))

    def _fade(self, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Blend the last columns of a tile (C, h, b) into the first of the next, (C, h, w)."""
        zone = after[:, :, : before.shape[2]]
        weights = (np.arange(zone.shape[2], dtype=np.float32) + 0.5) / max(1, 2 * self._overlap)
        # Not a sum of two products: where both tiles agree, nothing is rounded.
        zone[...] = before + weights * (zone - before)


def to_network(
    pixels: NDArray[np.uint8], padding: Padding, *, alone: bool = True
) -> NDArray[np.float32]:
    """Return x (1, 3, H', W') in [0, 1] from pixels (H, W, C), padded; `alone`: no tile of many."""
    with stage("pad"):
        padded = padding.pad(pixels, alone=alone)
    planes = np.broadcast_to(padded.transpose(2, 0, 1), (3, *padded.shape[:2]))
    # A product with 1 / 255 is another number for half of all levels than what models train on.
    return np.divide(planes, np.float32(255), dtype=np.float32, order="C")[None]


def tile_to_network(pixels: PixelSource, place: Place, padding: Padding) -> NDArray[np.float32]:
    """Return x (1, 3, H', W') of a tile's coded area, padded, from a picture's pixels (H, W, C)."""
    area = pixels[place.rows.outer, place.columns.outer]
    return to_network(area, padding, alone=area.shape == pixels.shape)


def check_finite(x_hat: NDArray[np.float32]) -> None:
    """Refuse what no pixel can be made of.

    Raises:
        NumericsError: a sample is NaN or infinite.
    """
    if not np.isfinite(x_hat).all():
        raise NumericsError(
            "the synthesis gave pixels that are NaN or infinite; the network's weights or "
            "precision are at fault (half precision overflows like this)"
        )


def from_network(x_hat: NDArray[np.float32], colour: int) -> NDArray[np.float32]:
    """Return planes (C, H', W') of x_hat (1, 3, H', W'); gray is the mean of the channels."""
    planes: NDArray[np.float32] = x_hat[0]
    return planes.mean(axis=0, keepdims=True) if colour == 1 else planes


def to_levels(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return pixels (H, W, C) from planes (C, H, W) in [0, 1]."""
    levels = planes * np.float32(255)
    np.rint(levels, out=levels)
    return levels.astype(np.uint8).transpose(1, 2, 0)
