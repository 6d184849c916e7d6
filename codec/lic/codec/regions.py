"""Parts of pictures that are decoded without the rest."""

from typing import NamedTuple

from lic.codec.container import Header
from lic.codec.errors import ConfigError
from lic.codec.image_io import stored_area

Area = tuple[slice, slice]
"""Rows and columns of a picture."""


def common(one: slice, other: slice) -> slice:
    """Return what two stretches of a side have in common, which may be less than nothing."""
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def relative(part: slice, whole: slice) -> slice:
    """Return where a part lies within the whole."""
    return slice(part.start - whole.start, part.stop - whole.start)


class Region(NamedTuple):
    """A part of a picture as it is seen, that is with its orientation applied; in px."""

    x: int
    y: int
    width: int
    height: int

    def area(self, header: Header) -> Area:
        """Return where it lies in the picture as stored.

        Raises:
            ConfigError: it is empty, or not all of it lies in the picture.
        """
        across, down = header.width, header.height
        if header.orientation >= 5:
            across, down = down, across
        inside = 0 <= self.x < self.x + self.width <= across
        if not (inside and 0 <= self.y < self.y + self.height <= down):
            raise ConfigError(
                f"region {self.x},{self.y},{self.width},{self.height} (x, y, width, height) is not "
                f"within the picture of {across} x {down} px; expected a part of it of at least "
                "1 x 1 px"
            )
        seen = slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)
        return stored_area(seen, header.height, header.width, header.orientation)


def whole(header: Header) -> Area:
    """Return all of a picture."""
    return slice(0, header.height), slice(0, header.width)
