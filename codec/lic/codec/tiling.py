"""Pictures to sizes that networks accept, and back."""

# Shapes: H W pixels, C channels.

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def pad_to_multiple(pixels: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, C) grown at the right and bottom to multiples of `multiple`.

    The last column and row are repeated: cheaper to code than a black border, and it works from
    1 x 1 pixels on, where a reflection has nothing to reflect.
    """
    height, width = pixels.shape[:2]
    extra = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    return np.pad(pixels, extra, mode="edge")


def crop(padded: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the top left (height, width, C) of padded (H, W, C), contiguous."""
    return np.ascontiguousarray(padded[:height, :width])


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


def strips(rows: int, size: int, margin: int) -> Iterator[Strip]:
    """Yield strips of `size` rows that cover `rows`, each with up to `margin` rows around it.

    With a margin of at least the network's receptive field, what is kept equals the result for
    the whole: at the picture's own border a strip ends where the picture does.
    """
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        yield Strip(start, stop, max(0, start - margin), min(rows, stop + margin))
