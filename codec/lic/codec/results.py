"""What coding gives: files in memory and decoded pictures, and how long each stage took."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.container import Header, LicFile, Model, Tile, serialize
from lic.codec.image_io import Described, Picture, decode_alpha, encode_alpha
from lic.codec.regions import Area
from lic.codec.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A finished .lic file in memory.

    Attributes:
        data: the whole file.
        header: its HEAD.
        stages: milliseconds of convert, pad, transform, entropy and container; of context (see
            `Codec.coding_stage`), copy and quantise where the engine can tell them apart.
        notes: what the reader of the file should know, such as a lost bit depth.
    """

    data: bytes
    header: Header
    stages: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded picture, and milliseconds by stage as in `Encoded`, from container to convert."""

    picture: Picture
    stages: dict[str, float]
    notes: tuple[str, ...] = ()


def finish(
    picture: Described,
    header: Header,
    tiles: tuple[Tile, ...],
    model: Model | None,
    stages: Stages,
) -> Encoded:
    """Put tiles and the picture's metadata into a file."""
    with stages.measure("container"):
        file = LicFile(
            header=header,
            tiles=tiles,
            model=model,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            alpha=None if picture.alpha is None else encode_alpha(picture.alpha),
        )
        data = serialize(file)
    return Encoded(data=data, header=header, stages=stages.milliseconds, notes=picture.notes)


def restore(file: LicFile, pixels: NDArray[np.uint8], area: Area, stages: Stages) -> Decoded:
    """Put the metadata back around the decoded pixels (a, b, C) of an area of the picture."""
    with stages.measure("container"):
        about = facts(file, area)
    picture = Picture(pixels=pixels, **about)
    return Decoded(picture=picture, stages=stages.milliseconds, notes=file.warnings)


def facts(file: LicFile, area: Area) -> dict[str, Any]:
    """Return the fields of `Described` for an area of a file's picture.

    Raises:
        BitstreamError: the alpha plane is damaged.
    """
    header = file.header
    alpha = None
    if file.alpha is not None:
        alpha = decode_alpha(file.alpha, width=header.width, height=header.height)[area]
    return {
        "alpha": alpha,
        "bit_depth": header.bit_depth,
        "orientation": header.orientation,
        "icc": file.icc,
        "exif": file.exif,
        "xmp": file.xmp,
        "notes": file.warnings,
    }
