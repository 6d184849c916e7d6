"""Bytes of .lic files to pictures, with whichever model they ask for.

Shapes: H W pixels, C channels.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from lic.codec.container import Coder, Header, LicFile, Limits, Model, parse, read_part
from lic.codec.image_io import PictureInParts, decode_lossless, in_one_part
from lic.codec.library import for_fingerprint
from lic.codec.pipeline import Codec
from lic.codec.regions import Area, Region, relative, whole
from lic.codec.results import Decoded, facts, restore
from lic.codec.stages import Stages

Find = Callable[[bytes, Model | None], Codec]


def decompress(
    data: bytes,
    *,
    find: Find | None = None,
    limits: Limits | None = None,
    region: Region | None = None,
) -> Decoded:
    """Decode a .lic file, or a part of its picture.

    Args:
        data: the file.
        find: returns the codec for a fingerprint and the model's readable name; not called for
            lossless files. None opens whichever installed model the file asks for.
        limits: sizes to refuse.
        region: of the picture as it is seen; only metadata and the tiles that it needs are looked
            at.

    Raises:
        BitstreamError: damaged or of an unknown version.
        ConfigError: the region is not within the picture.
        LimitError: larger than `limits`, or a tile larger than its model, allow.
        ModelMismatchError: no installed model has the file's fingerprint.
        NumericsError: this device gives other symbols than the encoder's.
    """
    stages = Stages()
    opened = _open(io.BytesIO(data), find, limits, region, stages)
    if opened.codec is None:
        return _lossless(opened.file, opened.area, stages)
    decoded = opened.codec.decompress(opened.file, region)
    stages.add(decoded.stages)
    return replace(decoded, stages=stages.milliseconds)


@dataclass(frozen=True, kw_only=True)
class DecodedInParts:
    """A picture that is decoded as its parts are taken, and milliseconds by stage up to then."""

    picture: PictureInParts
    stages: dict[str, float]
    notes: tuple[str, ...] = ()


def decompress_parts(
    stream: IO[bytes],
    *,
    find: Find | None = None,
    limits: Limits | None = None,
    region: Region | None = None,
) -> DecodedInParts:
    """Decode a .lic file, or a part of its picture, part by part.

    Args:
        stream: it can seek, and begins with the file. Of one whose region is asked for, only
            metadata and the tiles that it needs are read.
        find: as for `decompress`.
        limits: as for `decompress`.
        region: as for `decompress`.

    Raises:
        LicError: as `decompress` does; what only symbols and networks tell, when the parts are
            taken.
    """
    stages = Stages()
    opened = _open(stream, find, limits, region, stages)
    file, area, codec = opened.file, opened.area, opened.codec
    if codec is None:
        decoded = _lossless(file, area, stages)
        return DecodedInParts(
            picture=in_one_part(decoded.picture), stages=decoded.stages, notes=decoded.notes
        )
    with stages.measure("container"):
        about = facts(file, area)
    rows, columns = (side.stop - side.start for side in area)
    parts = (
        ((relative(part[0], area[0]), relative(part[1], area[1])), pixels)
        for part, pixels in codec.parts(file, area, stages)
    )
    return DecodedInParts(
        picture=PictureInParts(size=(rows, columns, file.header.colour), parts=parts, **about),
        stages=stages.milliseconds,
        notes=(*file.warnings, *codec.backend.notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A file with the tiles that an area of its picture needs, and its codec; None if lossless."""

    file: LicFile
    area: Area
    codec: Codec | None


def _open(
    stream: IO[bytes],
    find: Find | None,
    limits: Limits | None,
    region: Region | None,
    stages: Stages,
) -> _Opened:
    codec: Codec | None = None

    def codec_of(header: Header, model: Model | None) -> Codec | None:
        if header.coder is Coder.LOSSLESS:
            return None
        return (find or _installed)(header.fingerprint, model)

    def wanted(header: Header, model: Model | None) -> list[int]:
        nonlocal codec
        assert region, "of whole pictures all is wanted"
        area = region.area(header)
        codec = codec_of(header, model)
        if codec is None:
            return [0]
        codec.check_sizes(header)
        return [place.index for place in codec.wanted(header, area)]

    with stages.measure("container"):
        file = read_part(stream, wanted, limits) if region else parse(stream.read(), limits)
    if region:
        return _Opened(file=file, area=region.area(file.header), codec=codec)
    codec = codec_of(file.header, file.model)
    return _Opened(file=file, area=whole(file.header), codec=codec)


def _lossless(file: LicFile, area: Area, stages: Stages) -> Decoded:
    header = file.header
    with stages.measure("entropy"):
        pixels = decode_lossless(
            file.tiles[0].streams[0],
            width=header.width,
            height=header.height,
            channels=header.colour,
        )
    return restore(file, np.ascontiguousarray(pixels[area]), area, stages)


def _installed(fingerprint: bytes, hint: Model | None) -> Codec:
    return Codec(for_fingerprint(fingerprint, hint))
