"""Pixels of large pictures, of which only areas become arrays."""

# Shapes: H W pixels as stored, C channels (1 gray, 3 RGB).

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import ImageError


class ImagePixels:
    """Pixels of an image that Pillow has loaded, of mode L, RGB or RGBA, whose alpha is left out.

    Pillow takes 4 bytes a pixel for colours; an array beside it would take 3 more.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.shape: tuple[int, ...] = (image.height, image.width, 1 if image.mode == "L" else 3)

    def __getitem__(self, area: tuple[slice, slice], /) -> NDArray[np.uint8]:
        """Return rows and columns; what lies beyond the picture is cut off."""
        top, bottom, _ = area[0].indices(self.shape[0])
        left, right, _ = area[1].indices(self.shape[1])
        samples = np.asarray(self._image.crop((left, top, right, bottom)))
        return samples[..., None] if self.shape[2] == 1 else samples[..., :3]


class RawPixels:
    """Pixels that lie in a file as they are, such as in a PPM; of these none stays in memory.

    Args:
        stream: It can seek; it must stay open.
        offset: Where the first pixel is.
        shape: H, W, C.

    Raises:
        ImageError: The file is too short.
    """

    def __init__(self, stream: BinaryIO, offset: int, shape: tuple[int, int, int]) -> None:
        self._stream, self._offset = stream, offset
        self.shape: tuple[int, ...] = shape
        found, expected = stream.seek(0, io.SEEK_END) - offset, shape[0] * shape[1] * shape[2]
        if found < expected:
            raise ImageError(f"truncated: found {found} bytes of pixels, expected {expected}")

    def __getitem__(self, area: tuple[slice, slice], /) -> NDArray[np.uint8]:
        """Return rows and columns; what lies beyond the picture is cut off."""
        height, width, channels = self.shape
        top, bottom, _ = area[0].indices(height)
        left, right, _ = area[1].indices(width)
        pixels = np.empty((bottom - top, right - left, channels), np.uint8)
        for row in range(bottom - top):
            self._stream.seek(self._offset + ((top + row) * width + left) * channels)
            if self._stream.readinto(pixels[row].data) != pixels[row].nbytes:  # type: ignore[attr-defined]
                raise ImageError("the file has become shorter while it was read")
        return pixels
