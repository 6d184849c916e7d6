"""A picture in memory: 8-bit pixels, alpha, and the metadata that travels with them."""

# Shapes: H W pixels as stored, C channels (1 gray, 3 RGB).

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError
from lic.codec.image_io.exif import minimal_exif, read_orientation, with_orientation

METADATA_KINDS: Final = ("exif", "icc", "xmp")

_XMP_ORIENTATION: Final = re.compile(rb"""(tiff:Orientation(?:=["']|>))[1-8](["'<])""")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """Pixels as stored in a file, that is before `orientation` is applied.

    Attributes:
        pixels: uint8 (H, W, C).
        alpha: uint8 (H, W), not premultiplied; None for an opaque picture.
        bit_depth: Bits per sample of the source, 1..16.
        orientation: 1..8 as in EXIF; it overrides what `exif` says.
        icc: ICC profile, opaque.
        exif: EXIF as a TIFF structure, without the "Exif" prefix of JPEG.
        xmp: XMP packet, opaque.
        notes: What was converted or lost on the way here, for people.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    bit_depth: int = 8
    orientation: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Rows as stored."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns as stored."""
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        """1 gray, 3 RGB."""
        return int(self.pixels.shape[2])

    @property
    def samples(self) -> NDArray[np.uint8]:
        """Pixels and alpha as one array: (H, W) gray, else (H, W, 2 to 4) with alpha last."""
        if self.alpha is not None:
            return np.concatenate([self.pixels, self.alpha[..., None]], axis=2)
        # (H, W, 1) is no gray picture to Pillow and others.
        return self.pixels[..., 0] if self.channels == 1 else self.pixels


def apply_metadata_policy(
    picture: Picture, keep: Literal["all", "none"] | Collection[str]
) -> Picture:
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


def upright(picture: Picture) -> Picture:
    """Return the picture with its orientation applied to the pixels and reset in the metadata."""
    if picture.orientation == 1:
        return tag_orientation(picture)
    turned = replace(
        picture,
        pixels=orient(picture.pixels, picture.orientation),
        alpha=None if picture.alpha is None else orient(picture.alpha, picture.orientation),
        orientation=1,
    )
    return tag_orientation(turned, must_reset=True)


def tag_orientation(picture: Picture, *, must_reset: bool = False) -> Picture:
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
