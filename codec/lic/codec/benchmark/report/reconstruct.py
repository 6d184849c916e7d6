"""Code a picture again as a curve's system did, to show what comes back.

Shapes: H W pixels, C channels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lic.codec.benchmark import classic
from lic.codec.benchmark.schema import Curve
from lic.codec.container import parse
from lic.codec.errors import ConfigError
from lic.codec.image_io import Picture
from lic.codec.library import for_fingerprint, select
from lic.codec.pipeline import Codec


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pixels (H, W, C) of a file that was decoded, and the file's digest and size."""

    pixels: classic.Pixels
    sha256: str
    bytes: int


Reconstruct = Callable[[Curve, str, Picture], Reconstruction]


def _key(system: str) -> str:
    """Return the key of a classic codec's format; its options may follow the name."""
    keys = {form.name: key for key, form in classic.FORMATS.items()}
    names = [name for name in keys if system == name or system.startswith(f"{name} ")]
    return keys[max(names, key=len)] if names else ""


def reconstruct(curve: Curve, setting: str, picture: Picture) -> Reconstruction:
    """Return what a system makes of a picture at a setting.

    Raises:
        ConfigError: nothing here codes as this system.
        LicError: its model is missing, or coding failed.
    """
    if curve.kind == "lic":
        codec = _codec(
            str(curve.details.get("fingerprints", {}).get(setting, "")),
            curve.system,
            setting,
            backend=str(curve.details.get("backend", "auto")),
            device=str(curve.details.get("device", "cpu")),
            threads=int(curve.details.get("threads", 0)),
            precision=str(curve.details.get("precision", "float32")),
        )
        data = codec.compress(picture).data
        pixels = codec.decompress(parse(data)).picture.pixels
    elif _key(curve.system):
        other = classic.Classic(key=_key(curve.system), options=curve.details.get("options", {}))
        data = other.code(picture.pixels, setting)
        pixels = other.decode(data, picture.channels)
    else:
        raise ConfigError(f"{curve.system}: found no codec of this name to code a picture again")
    digest = hashlib.sha256(data).hexdigest()
    return Reconstruction(pixels=pixels, sha256=digest, bytes=len(data))


@lru_cache(maxsize=2)
def _codec(fingerprint: str, model: str, rate_point: str, **options: Any) -> Codec:
    """Return the codec of a fingerprint; without one, that of the system's name.

    Names of systems may tell more than the model's, such as the backend.
    """
    if fingerprint:
        return Codec(for_fingerprint(bytes.fromhex(fingerprint)), **options)
    return Codec(select(model, int(rate_point)), **options)
