"""Classic codecs through Pillow, for comparison: whole files, decoded again.

Shapes: H W pixels, C channels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.metrics import ms_ssim, psnr

Pixels = NDArray[np.uint8]
# What the formats' headers (WebP) or their usual writer (JPEG) can hold.
MAX_SIDES = {"JPEG": 65500, "WEBP": 16383}
JPEG_QUALITIES = (5, 8, 10, 12, 15, 18, 20, 25, 30, 40, 50, 60, 70, 80, 90)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file: its codec and setting, size in bytes, quality, and what it decodes to."""

    codec: str
    quality: int
    size: int
    psnr: float
    ms_ssim: float
    pixels: Pixels


def fits(pixels: Pixels, codec: str) -> bool:
    """Return whether a codec has room for pixels (H, W, C)."""
    return bool(max(pixels.shape[:2]) <= MAX_SIDES[codec])


def code(pixels: Pixels, codec: str, quality: int) -> bytes:
    """Return the file of pixels (H, W, C): "JPEG" optimised with 4:2:0, or "WEBP"."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    if codec == "JPEG":
        image.save(buffer, codec, quality=quality, optimize=True, subsampling="4:2:0")
    else:
        image.save(buffer, codec, quality=quality, method=6)
    return buffer.getvalue()


def decode(data: bytes, channels: int) -> Pixels:
    """Return pixels (H, W, C) of a file."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def nearest_size(pixels: Pixels, codec: str, size: int) -> Point:
    """Return the setting whose file of pixels (H, W, C) comes nearest to `size` bytes."""
    low, high = 0, 100
    files: dict[int, bytes] = {}
    while low <= high:
        middle = (low + high) // 2
        files[middle] = code(pixels, codec, middle)
        if len(files[middle]) < size:
            low = middle + 1
        else:
            high = middle - 1
    quality = min(files, key=lambda q: abs(len(files[q]) - size))
    decoded = decode(files[quality], pixels.shape[2])
    return Point(
        codec=codec,
        quality=quality,
        size=len(files[quality]),
        psnr=psnr(pixels, decoded),
        ms_ssim=ms_ssim(pixels, decoded),
        pixels=decoded,
    )


def jpeg_curve(pictures: Sequence[Pixels]) -> list[tuple[float, float]]:
    """Return (mean bpp, mean PSNR) over pictures at every setting of JPEG_QUALITIES.

    Empty where a picture is too large for JPEG: a curve of the others would compare with nothing.
    """
    if not all(fits(pixels, "JPEG") for pixels in pictures):
        return []
    curve = []
    for quality in JPEG_QUALITIES:
        files = [code(pixels, "JPEG", quality) for pixels in pictures]
        rates = [
            len(f) * 8 / (p.shape[0] * p.shape[1]) for f, p in zip(files, pictures, strict=True)
        ]
        qualities = [psnr(p, decode(f, p.shape[2])) for f, p in zip(files, pictures, strict=True)]
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
