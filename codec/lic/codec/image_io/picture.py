"""A picture in memory: 8-bit pixels, alpha, and the metadata that travels with them."""

# Shapes: H W pixels as stored, C channels (1 gray, 3 RGB).

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError
from lic.codec.image_io.exif import minimal_exif, read_orientation, with_orientation

METADATA_KINDS: Final = ("exif", "icc", "xmp")

_XMP_ORIENTATION: Final = re.compile(rb"""(tiff:Orientation(?:=["']|>))[1-8](["'<])""")


class PixelSource(Protocol):
    """Pixels uint8 (H, W, C) from which areas are taken: an array, or what reads them by and by."""

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W, C."""
        ...

    def __getitem__(self, area: tuple[slice, slice], /) -> NDArray[np.uint8]:
        """Return rows and columns; what lies beyond the picture is cut off."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Described(ABC):
    """What travels with the pixels of a picture, which are stored before `orientation` is applied.

    Attributes:
        alpha: uint8 (H, W), not premultiplied; None for an opaque picture.
        bit_depth: Bits per sample of the source, 1..16.
        orientation: 1..8 as in EXIF; it overrides what `exif` says.
        icc: ICC profile, opaque.
        exif: EXIF as a TIFF structure, without the "Exif" prefix of JPEG.
        xmp: XMP packet, opaque.
        notes: What was converted or lost on the way here, for people.
    """

    alpha: NDArray[np.uint8] | None = None
    bit_depth: int = 8
    orientation: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """H, W, C of the pixels."""

    @property
    def height(self) -> int:
        """Rows as stored."""
        return int(self.shape[0])

    @property
    def width(self) -> int:
        """Columns as stored."""
        return int(self.shape[1])

    @property
    def channels(self) -> int:
        """1 gray, 3 RGB."""
        return int(self.shape[2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture(Described):
    """A picture in memory; see `Described`.

    Attributes:
        pixels: uint8 (H, W, C).
    """

    pixels: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W, C of the pixels."""
        return self.pixels.shape

    @property
    def source(self) -> PixelSource:
        """The pixels, to take areas from."""
        return self.pixels

    @property
    def samples(self) -> NDArray[np.uint8]:
        """Pixels and alpha as one array: (H, W) gray, else (H, W, 2 to 4) with alpha last."""
        if self.alpha is not None:
            return np.concatenate([self.pixels, self.alpha[..., None]], axis=2)
        # (H, W, 1) is no gray picture to Pillow and others.
        return self.pixels[..., 0] if self.channels == 1 else self.pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyPicture(Described):
    """A picture too large to hold whole in the form that networks take; see `Described`.

    Attributes:
        source: gives areas of the pixels as often as they are wanted.
    """

    source: PixelSource

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W, C of the pixels."""
        return self.source.shape

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """All pixels (H, W, C), made anew each time."""
        return self.source[: self.height, : self.width]


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureInParts(Described):
    """A picture whose pixels come part by part, once; see `Described`.

    Attributes:
        size: H, W, C.
        parts: rows and columns with their pixels uint8 (a, b, C); all together cover the picture
            once, rows of parts from top to bottom.
    """

    size: tuple[int, int, int]
    parts: Iterator[tuple[tuple[slice, slice], NDArray[np.uint8]]]

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W, C of the pixels."""
        return self.size


_Kind = TypeVar("_Kind", bound=Described)


def apply_metadata_policy(picture: _Kind, keep: Literal["all", "none"] | Collection[str]) -> _Kind:
    """Return the picture with only the kinds of metadata that `keep` names.

    The orientation is part of how pixels are shown and stays whatever is dropped.

    Args:
        picture: What was read.
        keep: "all", "none", or some of `METADATA_KINDS`.

    Raises:
        ConfigError: An unknown kind.
    """
    kinds = check_metadata_policy(keep)
    if keep == "all":
        return picture
    return replace(
        picture,
        icc=picture.icc if "icc" in kinds else None,
        exif=picture.exif if "exif" in kinds else None,
        xmp=picture.xmp if "xmp" in kinds else None,
    )


def check_metadata_policy(keep: Literal["all", "none"] | Collection[str]) -> frozenset[str]:
    """Return the kinds of metadata that `keep` stands for.

    Raises:
        ConfigError: An unknown kind.
    """
    if keep == "all":
        return frozenset(METADATA_KINDS)
    kinds = set() if keep == "none" else {keep} if isinstance(keep, str) else set(keep)
    if unknown := kinds.difference(METADATA_KINDS):
        raise ConfigError(
            f"unknown metadata {', '.join(sorted(unknown))}; "
            f"expected all, none, or some of {', '.join(METADATA_KINDS)}"
        )
    return frozenset(kinds)


def orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, ...) as they are to be seen; 5..8 swap H and W."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_area(
    area: tuple[slice, slice], height: int, width: int, orientation: int
) -> tuple[slice, slice]:
    """Return where an area of a stored picture of height x width px is to be seen."""
    rows, columns = area
    if orientation >= 5:
        rows, columns, height, width = columns, rows, width, height
    if orientation in (3, 4, 7, 8):
        rows = slice(height - rows.stop, height - rows.start)
    if orientation in (2, 3, 6, 7):
        columns = slice(width - columns.stop, width - columns.start)
    return rows, columns


def stored_area(
    area: tuple[slice, slice], height: int, width: int, orientation: int
) -> tuple[slice, slice]:
    """Return where an area that is seen lies in the stored picture of height x width px."""
    # A quarter turn is undone by the other one; all else undoes itself.
    undone = {6: 8, 8: 6}.get(orientation, orientation)
    seen = (width, height) if orientation >= 5 else (height, width)
    return turned_area(area, *seen, undone)


def upright(picture: Picture) -> Picture:
    """Return the picture with its orientation applied to the pixels and reset in the metadata."""
    if picture.orientation == 1:
        return tag_orientation(picture)
    pixels = orient(picture.pixels, picture.orientation)
    return tag_orientation(replace(picture, pixels=pixels, **_turned(picture)), must_reset=True)


def turned_parts(picture: PictureInParts) -> PictureInParts:
    """Return what `upright` does; every part is turned for itself, when it comes."""
    turn = picture.orientation
    if turn == 1:
        return tag_orientation(picture)
    height, width, channels = picture.size
    parts = (
        (turned_area(area, height, width, turn), orient(pixels, turn))
        for area, pixels in picture.parts
    )
    size = (width, height, channels) if turn >= 5 else picture.size
    turned = replace(picture, size=size, parts=parts, **_turned(picture))
    return tag_orientation(turned, must_reset=True)


def _turned(picture: Described) -> dict[str, Any]:
    """Return what changes beside the pixels."""
    alpha = None if picture.alpha is None else orient(picture.alpha, picture.orientation)
    return {"alpha": alpha, "orientation": 1}


def in_one_part(picture: Picture) -> PictureInParts:
    """Return a picture in memory as one that comes."""
    facts = {field.name: getattr(picture, field.name) for field in fields(Described)}
    whole = slice(0, picture.height), slice(0, picture.width)
    size = (picture.height, picture.width, picture.channels)
    return PictureInParts(size=size, parts=iter([(whole, picture.pixels)]), **facts)


def tag_orientation(picture: _Kind, *, must_reset: bool = False) -> _Kind:
    """Return the picture with EXIF and XMP that agree with its orientation.

    EXIF that cannot be parsed stays as it is unless it could contradict the orientation.
    """
    exif, xmp, notes = agreeing_metadata(
        picture.orientation, picture.exif, picture.xmp, must_reset=must_reset
    )
    return replace(picture, exif=exif, xmp=xmp, notes=picture.notes + notes)


def agreeing_metadata(
    orientation: int, exif: bytes | None, xmp: bytes | None, *, must_reset: bool = False
) -> tuple[bytes | None, bytes | None, tuple[str, ...]]:
    """Return EXIF and XMP as in `tag_orientation`, and notes on what was lost."""
    notes: tuple[str, ...] = ()
    if exif is None:
        exif = minimal_exif(orientation) if orientation != 1 else None
    elif must_reset or (read_orientation(exif) or 1) != orientation:
        exif = with_orientation(exif, orientation)
        if exif is None:
            notes = ("EXIF dropped: it is damaged and its orientation cannot be corrected",)
            exif = minimal_exif(orientation) if orientation != 1 else None
    if xmp is not None:
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>%d\g<2>" % orientation, xmp)
    return exif, xmp, notes
