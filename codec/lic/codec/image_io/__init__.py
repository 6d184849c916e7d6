"""Picture files to arrays and metadata, and back."""

from lic.codec.image_io.lossless import (
    decode_alpha,
    decode_lossless,
    encode_alpha,
    encode_lossless,
)
from lic.codec.image_io.picture import (
    METADATA_KINDS,
    Described,
    LazyPicture,
    Picture,
    PictureInParts,
    PixelSource,
    agreeing_metadata,
    apply_metadata_policy,
    check_metadata_policy,
    orient,
    stored_area,
    tag_orientation,
    turned_area,
    upright,
)
from lic.codec.image_io.reader import READABLE, READABLE_SUFFIXES, picture_from_image, read_picture
from lic.codec.image_io.writer import WRITABLE, encode_picture, write_picture

__all__ = [
    "METADATA_KINDS",
    "READABLE",
    "READABLE_SUFFIXES",
    "WRITABLE",
    "Described",
    "LazyPicture",
    "Picture",
    "PictureInParts",
    "PixelSource",
    "agreeing_metadata",
    "apply_metadata_policy",
    "check_metadata_policy",
    "decode_alpha",
    "decode_lossless",
    "encode_alpha",
    "encode_lossless",
    "encode_picture",
    "orient",
    "picture_from_image",
    "read_picture",
    "stored_area",
    "tag_orientation",
    "turned_area",
    "upright",
    "write_picture",
]
