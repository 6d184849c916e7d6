"""Learned image compression: pictures to .lic files and back.

    from pathlib import Path
    from lic.codec import decompress, open_codec, read_picture

    data = open_codec(rate_point=2).compress(read_picture(Path("photo.png"))).data
    picture = decompress(data).picture

Every name is imported when it is first used, so that a command that reads a header does not wait
for numpy, and nothing waits for torch or ONNX Runtime before a codec is opened.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# From 1.29, ONNX Runtime on Linux keeps an identity of the machine in the user's cache and reports
# to its maker unless this is set before it is imported. Who wants that sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from lic.codec.arrays import decode as decode
    from lic.codec.arrays import encode as encode
    from lic.codec.container import Header as Header
    from lic.codec.container import Limits as Limits
    from lic.codec.container import parse_header as parse_header
    from lic.codec.decoding import decompress as decompress
    from lic.codec.errors import BitstreamError as BitstreamError
    from lic.codec.errors import ConfigError as ConfigError
    from lic.codec.errors import ExportError as ExportError
    from lic.codec.errors import ImageError as ImageError
    from lic.codec.errors import LicError as LicError
    from lic.codec.errors import LimitError as LimitError
    from lic.codec.errors import ModelMismatchError as ModelMismatchError
    from lic.codec.errors import NumericsError as NumericsError
    from lic.codec.errors import OutputError as OutputError
    from lic.codec.errors import TargetError as TargetError
    from lic.codec.errors import TrainingError as TrainingError
    from lic.codec.image_io import Picture as Picture
    from lic.codec.image_io import read_picture as read_picture
    from lic.codec.image_io import write_picture as write_picture
    from lic.codec.pipeline import Codec as Codec
    from lic.codec.pipeline import open_codec as open_codec
    from lic.codec.rate_control import Controlled as Controlled
    from lic.codec.rate_control import RateControl as RateControl
    from lic.codec.rate_control import Target as Target
    from lic.codec.regions import Region as Region
    from lic.codec.results import Decoded as Decoded
    from lic.codec.results import Encoded as Encoded

_ERRORS = (
    "BitstreamError ConfigError ExportError ImageError LicError LimitError ModelMismatchError "
    "NumericsError OutputError TargetError TrainingError"
)
_HOMES = {
    **dict.fromkeys(_ERRORS.split(), "errors"),
    **dict.fromkeys(("decode", "encode"), "arrays"),
    "decompress": "decoding",
    **dict.fromkeys(("Header", "Limits", "parse_header"), "container"),
    **dict.fromkeys(("Picture", "read_picture", "write_picture"), "image_io"),
    **dict.fromkeys(("Codec", "open_codec"), "pipeline"),
    "Region": "regions",
    **dict.fromkeys(("Controlled", "RateControl", "Target"), "rate_control"),
    **dict.fromkeys(("Decoded", "Encoded"), "results"),
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
