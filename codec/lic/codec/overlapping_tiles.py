"""Overlapping tiles: each is coded as a picture of its own, and blended with its neighbours.

Shapes: H W pixels, C channels.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends import Backend
from lic.codec.container import Header
from lic.codec.image_io import PixelSource
from lic.codec.latents import State
from lic.codec.regions import Area, common, relative
from lic.codec.stages import Stages
from lic.codec.tiling import (
    Padding,
    Place,
    Seams,
    check_finite,
    from_network,
    naming,
    places,
    tile_to_network,
    to_levels,
)


def analyses(
    backend: Backend, header: Header, pixels: PixelSource, padding: Padding, stages: Stages
) -> Iterator[tuple[Place, State]]:
    """Yield every tile with its state, in order of their index."""
    for place in places(header):
        with naming(place, header):
            with stages.measure("convert"):
                x = tile_to_network(pixels, place, padding)
            with stages.measure("transform"):
                state = backend.analyze(x)
        yield place, state
        # It may lie in the device's memory, which the next tile needs.
        del x, state


def wanted(header: Header, area: Area) -> list[Place]:
    """Return the tiles that know pixels of an area, in order of their index."""
    return [
        place
        for place in places(header)
        if all(
            side.outer_start < part.stop and part.start < side.outer_stop
            for side, part in zip((place.rows, place.columns), area, strict=True)
        )
    ]


def areas(
    backend: Backend,
    header: Header,
    area: Area,
    padding: Padding,
    read: Callable[[Place], State],
    stages: Stages,
) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
    """Yield parts of an area of the picture with their pixels (a, b, C).

    Args:
        backend: runs the synthesis.
        header: of the file.
        area: rows and columns of the picture.
        padding: of the model.
        read: returns the state of a tile with all symbols known; asked once for each of `wanted`,
            in order.
        stages: for the time it takes.

    Raises:
        NumericsError: the synthesis gave pixels that are not finite.
    """
    seams = Seams(header.overlap)
    for place in wanted(header, area):
        with naming(place, header):
            state = read(place)
            with stages.measure("transform"):
                x_hat = backend.synthesize(state)
                check_finite(x_hat)
            # It may lie in the device's memory, which the next tile needs.
            del state
        with stages.measure("convert"):
            planes = padding.crop(from_network(x_hat, header.colour), place.height, place.width)
            final, planes = seams.join(place, planes)
            part = tuple(common(*both) for both in zip(final, area, strict=True))
            if any(side.start >= side.stop for side in part):
                continue
            inner = (relative(*both) for both in zip(part, final, strict=True))
            levels = to_levels(planes[:, *inner])
        yield (part[0], part[1]), levels
