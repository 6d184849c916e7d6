"""Pictures to sizes that networks accept, and back."""

# Shapes: H W pixels, C channels.

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
