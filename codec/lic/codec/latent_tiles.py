"""Tiles of latents: a picture of a factorized prior on its way through windows and tiles.

Windows are what networks see at once, tiles what is coded as one; neither knows of the other. Of a
picture only what both still need is in memory.

Shapes: H W pixels, C channels, M latent channels, h w latent rows and columns.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends.base import FactorizedBackend
from lic.codec.container import Header
from lic.codec.image_io import PixelSource
from lic.codec.latents import State
from lic.codec.regions import Area, common, relative
from lic.codec.stages import Stages
from lic.codec.tiling import (
    Padding,
    Place,
    Strip,
    check_finite,
    from_network,
    places,
    to_levels,
    to_network,
)
from lic.codec.windows import Span, Windows


def analyses(
    backend: FactorizedBackend, header: Header, pixels: PixelSource, stages: Stages
) -> Iterator[tuple[Place, NDArray[np.float32]]]:
    """Yield every tile with its y less the medians (M, a, b), in order of their index."""
    bands = _bands(backend, header, pixels, stages)
    waiting = np.empty((backend.channels, 0, _up(header.width, backend.stride)), np.float32)
    for _, row in groupby(places(header), lambda place: place.row):
        tiles = list(row)
        height = _up(tiles[0].height, backend.stride)
        while waiting.shape[1] < height:
            band = next(bands)
            waiting = np.concatenate([waiting, band], axis=1) if waiting.size else band
        for place in tiles:
            columns = _latents(place.columns.kept, backend.stride)
            yield place, np.ascontiguousarray(waiting[:, :height, columns])
        waiting = waiting[:, height:]


def _bands(
    backend: FactorizedBackend, header: Header, pixels: PixelSource, stages: Stages
) -> Iterator[NDArray[np.float32]]:
    """Yield y less the medians, (M, a, w), a row of windows at a time."""
    height, width = (_up(side, backend.stride) for side in (header.height, header.width))
    # Only what lies at the picture's own border is padded: at its right and bottom.
    padding = Padding(multiple=backend.stride)
    windows = backend.analysis_windows(height, width)
    for rows in windows.rows:
        y = np.empty((backend.channels, rows.stop - rows.start, width), np.float32)
        for columns in windows.columns:
            with stages.measure("convert"):
                down, across = (_pixels(side.outer, backend.stride) for side in (rows, columns))
                x = to_network(pixels[down, across], padding)
            with stages.measure("transform"):
                y[:, :, columns.kept] = backend.latents(x, rows, columns)
        yield y


def wanted(backend: FactorizedBackend, header: Header, area: Area) -> list[Place]:
    """Return the tiles that an area of the picture hangs on, in order of their index."""
    windows = _windows(backend, header, area)
    rows, columns = (_pixels(_seen(side), backend.stride) for side in windows)
    return [p for p in places(header) if _meet(p.rows, rows) and _meet(p.columns, columns)]


def areas(
    backend: FactorizedBackend,
    header: Header,
    area: Area,
    read: Callable[[Place], State],
    stages: Stages,
) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
    """Yield parts of an area of the picture with their pixels (a, b, C), row by row of windows.

    Args:
        backend: runs the synthesis.
        header: of the file.
        area: rows and columns of the picture.
        read: returns the symbols (M, a, b) of a tile; asked once for each of `wanted`, in order.
        stages: for the time it takes.

    Raises:
        NumericsError: the synthesis gave pixels that are not finite.
    """
    windows = _windows(backend, header, area)
    symbols = _Symbols(backend, header, area, read)
    for rows in windows.rows:
        known = symbols.rows(rows.outer)
        for columns in windows.columns:
            with stages.measure("transform"):
                seen = known[:, :, symbols.columns(columns.outer)]
                x_hat = backend.pixels(seen, rows, columns, header.step)
                check_finite(x_hat)
            with stages.measure("convert"):
                kept = tuple(_pixels(side.kept, backend.stride) for side in (rows, columns))
                part = tuple(common(*both) for both in zip(kept, area, strict=True))
                inner = (relative(*both) for both in zip(part, kept, strict=True))
                levels = to_levels(from_network(x_hat, header.colour)[:, *inner])
            yield (part[0], part[1]), levels


class _Symbols:
    """The symbols of a picture's tiles, read when they are needed and dropped thereafter."""

    def __init__(
        self,
        backend: FactorizedBackend,
        header: Header,
        area: Area,
        read: Callable[[Place], State],
    ) -> None:
        self._stride, self._read = backend.stride, read
        tiles = wanted(backend, header, area)
        self._tile_rows = groupby(tiles, lambda place: place.row)
        seen = _seen(_windows(backend, header, area).columns)
        self._left, width = seen.start, seen.stop - seen.start
        # Rows from `_top` on, of the columns that are seen.
        self._top = _latents(tiles[0].rows.kept, self._stride).start
        self._known = np.empty((backend.channels, 0, width), np.int16)

    def rows(self, wanted: slice) -> NDArray[np.int16]:
        """Return the symbols (M, a, b) of rows; what is above them is let go."""
        self._known = self._known[:, max(0, wanted.start - self._top) :]
        self._top = max(self._top, wanted.start)
        while self._top + self._known.shape[1] < wanted.stop:
            self._append(list(next(self._tile_rows)[1]))
        return self._known[:, wanted.start - self._top : wanted.stop - self._top]

    def columns(self, seen: slice) -> slice:
        """Return where columns of the picture lie in `rows`."""
        return slice(seen.start - self._left, seen.stop - self._left)

    def _append(self, tiles: list[Place]) -> None:
        """Read a row of tiles."""
        old = self._known.shape[1]
        bottom = _latents(tiles[0].rows.kept, self._stride).stop
        shape = (self._known.shape[0], bottom - self._top, self._known.shape[2])
        known = None
        for place in tiles:
            symbols = self._read(place)
            # Not before: a header can claim any size, its tiles' symbols cannot.
            if known is None:
                known = np.empty(shape, np.int16)
                known[:, :old] = self._known
            first = _latents(place.columns.kept, self._stride).start - self._left
            before = max(0, -first)
            room = known[:, old:, max(0, first) :]
            part = symbols[:, symbols.shape[1] - room.shape[1] :, before:]
            count = min(room.shape[2], part.shape[2])
            room[:, :, :count] = part[:, :, :count]
        assert known is not None, "a row of tiles has a tile"
        self._known = known


def _windows(backend: FactorizedBackend, header: Header, area: Area) -> Windows:
    stride = backend.stride

    def span(part: slice, side: int) -> Span:
        return Span(part.start // stride, _up(part.stop, stride), _up(side, stride))

    return backend.synthesis_windows(span(area[0], header.height), span(area[1], header.width))


def _seen(side: tuple[Strip, ...]) -> slice:
    return slice(side[0].outer_start, side[-1].outer_stop)


def _meet(own: Strip, pixels: slice) -> bool:
    return bool(own.start < pixels.stop and pixels.start < own.stop)


def _up(length: int, stride: int) -> int:
    return -(-length // stride)


def _latents(pixels: slice, stride: int) -> slice:
    """Return the latents of a tile's pixels."""
    return slice(pixels.start // stride, _up(pixels.stop, stride))


def _pixels(latents: slice, stride: int) -> slice:
    """Return the pixels of latents; the last ones may lie beyond the picture."""
    return slice(latents.start * stride, latents.stop * stride)
