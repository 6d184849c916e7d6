"""Learned image compression: pictures to .lic files and back.

    from lic.codec import open_codec, read_picture, write_picture
    codec = open_codec(rate_point=2)
    data = codec.compress(read_picture(Path("photo.png"))).data
    picture = decompress(data).picture

Needs numpy and Pillow; ONNX Runtime or torch is imported when a codec is opened.
"""

from typing import Any

from lic.codec.container import Header, Limits, Model, parse_header
from lic.codec.errors import (
    BitstreamError,
    ConfigError,
    ExportError,
    ImageError,
    LicError,
    LimitError,
    ModelMismatchError,
    NumericsError,
    OutputError,
    TrainingError,
)
from lic.codec.image_io import Picture, read_picture, write_picture
from lic.codec.library import for_fingerprint, select
from lic.codec.pipeline import Codec, Decoded, Encoded
from lic.codec.pipeline import decompress as _decompress


def open_codec(
    model: str | None = None, rate_point: int | None = None, **options: Any
) -> Codec:
    """Return the codec of an installed model or a bundle's path.

    Args:
        model: family name or path; None is lic's embedded model.
        rate_point: None takes the middle one.
        **options: `backend`, `device` and `threads` of `Codec`.

    Raises:
        ModelMismatchError: no such bundle.
        ConfigError: no such rate point, backend or device.
    """
    return Codec(select(model, rate_point), **options)


def decompress(data: bytes, *, model: str | None = None, **options: Any) -> Decoded:
    """Decode a .lic file with whichever installed model it asks for.

    Args:
        data: the whole file.
        model: restrict the search to this bundle or family.
        **options: `backend`, `device` and `threads` of `Codec`, and `limits`.

    Raises:
        BitstreamError: damaged or of an unknown version.
        LimitError: larger than the limits allow.
        ModelMismatchError: the model is not installed.
        NumericsError: this device gives other symbols than the encoder's.
    """
    limits = options.pop("limits", None)

    def find(fingerprint: bytes, hint: Model | None) -> Codec:
        return Codec(for_fingerprint(fingerprint, hint, model=model), **options)

    return _decompress(data, find, limits=limits)


__all__ = [
    "BitstreamError",
    "Codec",
    "ConfigError",
    "Decoded",
    "Encoded",
    "ExportError",
    "Header",
    "ImageError",
    "LicError",
    "LimitError",
    "Limits",
    "ModelMismatchError",
    "NumericsError",
    "OutputError",
    "Picture",
    "TrainingError",
    "decompress",
    "open_codec",
    "parse_header",
    "read_picture",
    "write_picture",
]
