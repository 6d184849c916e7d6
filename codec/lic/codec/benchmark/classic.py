"""Classic codecs for comparison, through Pillow: whole files, decoded again.

Shapes: H W pixels, C channels.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from lic.codec.errors import ConfigError, LimitError
from lic.codec.image_io.reader import open_image
from lic.codec.metrics import ms_ssim, psnr

Pixels = NDArray[np.uint8]
Save = Callable[[int, Mapping[str, str], int], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What there is to know of a format.

    Attributes:
        name: for people.
        pillow: what Pillow calls it.
        largest_side: in pixels, what its header (WebP) or its usual writer (JPEG) can hold.
        settings: qualities from few bits to many; compression ratios of JPEG 2000.
        usual: one of them that people use.
        least, most: settings that it takes.
        options: by name the values that it takes, the default first.
        save: Pillow's arguments for a setting, options, and a number of channels.
        feature: by which Pillow tells whether it can, and the library's version.
        library: its name.
    """

    name: str
    pillow: str
    settings: tuple[int, ...]
    usual: int
    save: Save
    feature: str
    library: str
    largest_side: int = 2**31 - 1
    least: int = 0
    most: int = 100
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _digits(first: int, last: int, default: int) -> tuple[str, ...]:
    return (str(default), *(str(i) for i in range(first, last + 1) if i != default))


def _save_jpeg(quality: int, options: Mapping[str, str], _: int) -> dict[str, Any]:
    optimise = options["optimise"] == "yes"
    return {"quality": quality, "optimize": optimise, "subsampling": options["subsampling"]}


def _save_webp(quality: int, options: Mapping[str, str], _: int) -> dict[str, Any]:
    return {"quality": quality, "method": int(options["method"])}


def _save_avif(quality: int, options: Mapping[str, str], _: int) -> dict[str, Any]:
    # One thread: how many there are decides how a picture is cut into tiles.
    threads = {"max_threads": 1}
    speed, subsampling = int(options["speed"]), options["subsampling"]
    return {"quality": quality, "speed": speed, "subsampling": subsampling, **threads}


def _save_jpeg2000(ratio: int, _: Mapping[str, str], channels: int) -> dict[str, Any]:
    # Without the colour transform, Pillow's default, it needs a third more bits on photos.
    colour = {"mct": 1} if channels == 3 else {}
    return {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True, **colour}


def _save_jxl(quality: int, options: Mapping[str, str], _: int) -> dict[str, Any]:
    return {"quality": quality, "effort": int(options["effort"]), "num_threads": 0}


_SUBSAMPLING = ("4:2:0", "4:2:2", "4:4:4")
FORMATS = {
    "jpeg": Format(
        name="JPEG",
        pillow="JPEG",
        largest_side=65500,
        settings=(5, 8, 10, 12, 15, 18, 20, 25, 30, 40, 50, 60, 70, 80, 90),
        usual=80,
        options={"subsampling": _SUBSAMPLING, "optimise": ("yes", "no")},
        save=_save_jpeg,
        feature="libjpeg_turbo",
        library="libjpeg-turbo",
    ),
    "webp": Format(
        name="WebP",
        pillow="WEBP",
        largest_side=16383,
        settings=(1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90),
        usual=80,
        options={"method": _digits(0, 6, default=6)},
        save=_save_webp,
        feature="webp",
        library="libwebp",
    ),
    "avif": Format(
        name="AVIF",
        pillow="AVIF",
        largest_side=65536,
        settings=(5, 10, 20, 30, 40, 50, 60, 70, 80, 90),
        usual=60,
        options={"speed": _digits(0, 10, default=6), "subsampling": _SUBSAMPLING},
        save=_save_avif,
        feature="avif",
        library="libavif",
    ),
    "jpeg2000": Format(
        name="JPEG 2000",
        pillow="JPEG2000",
        settings=(300, 200, 150, 100, 75, 50, 35, 25, 17, 12, 8),
        usual=25,
        least=1,
        most=10000,
        save=_save_jpeg2000,
        feature="jpg_2000",
        library="OpenJPEG",
    ),
    "jpegxl": Format(
        name="JPEG XL",
        pillow="JXL",
        settings=(5, 10, 20, 30, 40, 50, 60, 70, 80, 90),
        usual=80,
        options={"effort": _digits(1, 9, default=7)},
        save=_save_jxl,
        feature="",
        library="pillow-jxl-plugin",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Classic:
    """A classic codec with its options and the settings to measure, a `System`.

    Args:
        key: of FORMATS.
        settings: as texts, from few bits to many; by default the format's.
        options: other than the format's defaults.

    Raises:
        ConfigError: an unknown format, setting or option, or its library is not installed.
    """

    key: str
    settings: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["classic"] = "classic"

    def __post_init__(self) -> None:
        if self.key not in FORMATS:
            raise ConfigError(f"codec is {self.key!r}; expected one of {', '.join(FORMATS)}")
        check_installed(self.key)
        known = self.format.options
        for name, value in self.options.items():
            if name not in known:
                takes = ", ".join(known) or "none"
                raise ConfigError(f"{self.key} has no option {name!r}; it has {takes}")
            if value not in known[name]:
                expected = ", ".join(sorted(known[name]))
                raise ConfigError(f"{self.key}: {name} is {value!r}; expected one of {expected}")
        settings = self.settings or tuple(str(setting) for setting in self.format.settings)
        object.__setattr__(self, "settings", settings)
        for setting in settings:
            self._number(setting)

    @property
    def format(self) -> Format:
        """What there is to know of its format."""
        return FORMATS[self.key]

    @property
    def name(self) -> str:
        """The format's name, and options that are not its defaults."""
        odd = [
            f"{name}={value}"
            for name, value in self._all_options.items()
            if value != self.format.options[name][0]
        ]
        return " ".join([self.format.name, *odd])

    @property
    def details(self) -> dict[str, Any]:
        """What fixes its output."""
        return {"library": library(self.key), "options": self._all_options}

    def identity(self, setting: str) -> dict[str, Any]:
        """Return all that decides a file's bytes and its pixels."""
        return {"format": self.key, "setting": setting, **self.details}

    def open(self) -> None:
        """Nothing has to be loaded."""

    def fits(self, pixels: Pixels) -> bool:
        """Return whether the format has room for pixels (H, W, C)."""
        return bool(max(pixels.shape[:2]) <= self.format.largest_side)

    def code(self, pixels: Pixels, setting: str) -> bytes:
        """Return the file of pixels (H, W, C).

        Raises:
            LimitError: the picture is too large for the format.
        """
        if not self.fits(pixels):
            height, width = pixels.shape[:2]
            raise LimitError(
                f"{self.format.name} holds at most {self.format.largest_side} pixels a side; the "
                f"picture has {width} x {height}"
            )
        _load_plugin(self.key)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        arguments = self.format.save(self._number(setting), self._all_options, pixels.shape[2])
        buffer = io.BytesIO()
        image.save(buffer, self.format.pillow, **arguments)
        return buffer.getvalue()

    def decode(self, data: bytes, channels: int = 3) -> Pixels:
        """Return pixels (H, W, C) of a file."""
        _load_plugin(self.key)
        with open_image(io.BytesIO(data), [self.format.pillow]) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)

    @cached_property
    def _all_options(self) -> dict[str, str]:
        return {
            name: self.options.get(name, values[0]) for name, values in self.format.options.items()
        }

    def _number(self, setting: str) -> int:
        least, most = self.format.least, self.format.most
        if not (setting.isdecimal() and least <= int(setting) <= most):
            raise ConfigError(f"{self.key}: quality is {setting!r}; expected {least} to {most}")
        return int(setting)


def parse_classic(text: str, settings: Sequence[str] = ()) -> Classic:
    """Return the codec of a text such as "jpeg" or "jpeg:subsampling=4:4:4,optimise=no".

    Raises:
        ConfigError: as `Classic`, or the text has another form.
    """
    key, _, rest = text.partition(":")
    options = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"codec is {text!r}; expected options as in {key}:option=value")
        options[name] = value
    return Classic(key=key, settings=tuple(settings), options=options)


def installed_formats() -> list[str]:
    """Return the keys of FORMATS that can be coded here."""
    return [key for key in FORMATS if _lacks(key) is None]


def check_installed(key: str) -> None:
    """Refuse a format whose library is missing.

    Raises:
        ConfigError: says what to install.
    """
    missing = _lacks(key)
    if missing:
        raise ConfigError(f"codec {key!r} needs {missing}")


def _load_plugin(key: str) -> None:
    """Make Pillow know a format; a codec that came from another process has not done it here."""
    if key == "jpegxl":
        import pillow_jxl  # noqa: F401  # It tells Pillow about itself.


def _lacks(key: str) -> str | None:
    if key == "jpegxl":
        if find_spec("pillow_jxl") is None:
            return "pillow-jxl-plugin; in lic's own folder: pip install '.[jxl]'"
    # Pillow has JPEG in any case; only which library it is differs.
    elif key != "jpeg" and not features.check(FORMATS[key].feature):
        return f"a Pillow with {FORMATS[key].library}; the one installed was built without"
    return None


def library(key: str) -> str:
    """Return which library codes a format, with its version."""
    form = FORMATS[key]
    if key == "jpegxl":
        try:
            return f"{form.library} {version(form.library)}"
        except PackageNotFoundError:
            return form.library
    if key == "jpeg" and not features.check(form.feature):
        return f"libjpeg {features.version('jpg')}"
    found = f"{form.library} {features.version(form.feature)}"
    if key == "avif":
        from PIL import _avif

        # libavif leaves coding to another library.
        found += f" ({_avif.codec_versions()})"
    return found


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file: its codec and setting, size in bytes, quality, and what it decodes to."""

    codec: str
    quality: int
    size: int
    psnr: float
    ms_ssim: float
    pixels: Pixels


def nearest_size(pixels: Pixels, codec: Classic, size: int) -> Point:
    """Return the quality whose file of pixels (H, W, C) comes nearest to `size` bytes."""
    low, high = codec.format.least, codec.format.most
    files: dict[int, bytes] = {}
    while low <= high:
        middle = (low + high) // 2
        files[middle] = codec.code(pixels, str(middle))
        if len(files[middle]) < size:
            low = middle + 1
        else:
            high = middle - 1
    quality = min(files, key=lambda q: abs(len(files[q]) - size))
    decoded = codec.decode(files[quality], pixels.shape[2])
    return Point(
        codec=codec.format.pillow,
        quality=quality,
        size=len(files[quality]),
        psnr=psnr(pixels, decoded),
        ms_ssim=ms_ssim(pixels, decoded),
        pixels=decoded,
    )


def jpeg_curve(pictures: Sequence[Pixels]) -> list[tuple[float, float]]:
    """Return JPEG's (mean bpp, mean PSNR) over pictures at each of its settings.

    Empty where a picture is too large for JPEG: a curve of the others would compare with nothing.
    """
    jpeg = Classic(key="jpeg")
    if not all(jpeg.fits(pixels) for pixels in pictures):
        return []
    curve = []
    for setting in jpeg.settings:
        files = [jpeg.code(pixels, setting) for pixels in pictures]
        rates = [
            len(f) * 8 / (p.shape[0] * p.shape[1]) for f, p in zip(files, pictures, strict=True)
        ]
        decoded = [jpeg.decode(f, p.shape[2]) for f, p in zip(files, pictures, strict=True)]
        qualities = [psnr(p, d) for p, d in zip(pictures, decoded, strict=True)]
        curve.append((float(np.mean(rates)), float(np.mean(qualities))))
    return curve


def rate_at(curve: Sequence[tuple[float, float]], quality: float) -> float | None:
    """Return the rate of a (bpp, PSNR) curve at a PSNR; None outside of the curve.

    Between points the logarithm of the rate is taken as linear in PSNR.
    """
    if not curve:
        return None
    rates, qualities = zip(*sorted(curve, key=lambda point: point[1]), strict=True)
    if not qualities[0] <= quality <= qualities[-1]:
        return None
    return float(np.exp(np.interp(quality, qualities, np.log(rates))))
