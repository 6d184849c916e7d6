"""Classic codecs for comparing times, through Pillow.

Shapes: H W pixels, C channels.
"""

import io
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from lic.codec.benchmark import classic
from lic.codec.benchmark.classic import Pixels
from lic.codec.errors import ConfigError


class Setting(NamedTuple):
    """What a codec takes: its usual quality and the range, and what Pillow calls its library."""

    usual: int
    least: int
    most: int
    library: str


SETTINGS: dict[str, Setting] = {
    "jpeg": Setting(75, 1, 95, "jpg"),
    "webp": Setting(75, 0, 100, "webp"),
    "avif": Setting(60, 0, 100, "avif"),
    "jpeg2000": Setting(35, 10, 60, "jpg_2000"),
    "jxl": Setting(75, 0, 100, ""),
}
# Its own plug-in for Pillow.
_JXL = "pillow_jxl"


def classic_setting(text: str) -> tuple[str, int]:
    """Return codec and quality of "NAME" or "NAME:QUALITY".

    Raises:
        ConfigError: there is no such codec or quality.
    """
    name, colon, quality = text.lower().partition(":")
    if name not in SETTINGS:
        raise ConfigError(f"--codec is {text!r}; expected one of {', '.join(SETTINGS)}")
    usual, least, most, _ = SETTINGS[name]
    if not colon:
        return name, usual
    if not quality.isdecimal() or not least <= int(quality) <= most:
        raise ConfigError(f"--codec is {text!r}; expected a quality of {least} to {most}")
    return name, int(quality)


class ClassicCodec:
    """A codec at one quality; of JPEG 2000 that is the PSNR in dB to aim at.

    Raises:
        ConfigError: this Pillow lacks it.
    """

    def __init__(self, name: str, quality: int) -> None:
        self._name, self._quality, self._channels = name, quality, 3
        library = SETTINGS[name].library
        if name == "jxl":
            if find_spec(_JXL) is None:
                raise ConfigError("jxl needs pillow-jxl-plugin, which is not installed")
            __import__(_JXL)
        elif not features.check(library):
            raise ConfigError(f"this Pillow was built without {library}, which {name} needs")

    def code(self, pixels: Pixels) -> bytes:
        """Return the file of pixels (H, W, C)."""
        self._channels = pixels.shape[2]
        if self._name in ("jpeg", "webp"):
            return classic.code(pixels, self._name.upper(), self._quality)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": self._quality}
        if self._name == "jpeg2000":
            options = {"quality_mode": "dB", "quality_layers": [self._quality]}
            options["irreversible"] = True
        image.save(buffer, self._name.upper(), **options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Pixels:
        """Return pixels (H, W, C) of a file with as many channels as the last one coded."""
        return np.ascontiguousarray(classic.decode(data, self._channels))
