"""Code a picture again as a curve's system did, to show what comes back.

Shapes: H W pixels, C channels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from lic.codec.benchmark import classic
from lic.codec.benchmark.schema import Curve
from lic.codec.container import parse
from lic.codec.errors import ConfigError
from lic.codec.image_io import Picture
from lic.codec.library import select
from lic.codec.pipeline import Codec


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pixels (H, W, C) of a file that was decoded, and the file's digest and size."""

    pixels: classic.Pixels
    sha256: str
    bytes: int


Reconstruct = Callable[[Curve, str, Picture], Reconstruction]
_CLASSIC = {"JPEG": "JPEG", "WebP": "WEBP"}


def reconstruct(curve: Curve, setting: str, picture: Picture) -> Reconstruction:
    """Return what a system makes of a picture at a setting.

    Raises:
        ConfigError: nothing here codes as this system.
        LicError: its model is missing, or coding failed.
    """
    if curve.kind == "lic":
        codec = _codec(curve.system, int(setting), str(curve.details.get("backend", "auto")))
        data = codec.compress(picture).data
        pixels = codec.decompress(parse(data)).picture.pixels
    elif curve.system in _CLASSIC:
        data = classic.code(picture.pixels, _CLASSIC[curve.system], int(setting))
        pixels = classic.decode(data, picture.channels)
    else:
        raise ConfigError(f"{curve.system}: found no codec of this name to code a picture again")
    digest = hashlib.sha256(data).hexdigest()
    return Reconstruction(pixels=pixels, sha256=digest, bytes=len(data))


@lru_cache(maxsize=2)
def _codec(model: str, rate_point: int, backend: str) -> Codec:
    return Codec(select(model, rate_point), backend=backend)
