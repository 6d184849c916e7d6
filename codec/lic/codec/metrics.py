"""Rate and distortion of 8-bit pictures.

Shapes: H W pixels, C channels. Pictures are uint8 (H, W, C) with a peak of 255.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ImageError

_Plane = NDArray[np.float64]

_PEAK: Final = 255.0
_C1: Final = (0.01 * _PEAK) ** 2
_C2: Final = (0.03 * _PEAK) ** 2
_SCALE_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_TAPS: Final = 11
_SIGMA: Final = 1.5
# Bands keep the maps of a large picture in the cache, which is twice as fast.
_BAND_ROWS: Final = 64
# ITU-R BT.601, as JPEG (JFIF) has it.
_LUMA: Final = (0.299, 0.587, 0.114)

MS_SSIM_LEAST_SIDE: Final = (_TAPS - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1) + 1
"""Smaller sides have no room for all scales; their figures do not compare."""


def _gaussian_window() -> tuple[float, ...]:
    taps = [math.exp(-((i - _TAPS // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_TAPS)]
    return tuple(tap / sum(taps) for tap in taps)


_WINDOW: Final = _gaussian_window()


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Return bits per pixel of a file of `n_bytes`; count the whole file."""
    return 8 * n_bytes / (width * height)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB over all samples; `inf` for equal pictures.

    Raises:
        ImageError: The pictures differ in shape.
    """
    _check_shapes(a, b)
    error = a.astype(np.float32) - b.astype(np.float32)
    mse = float(np.mean(np.square(error), dtype=np.float64))
    return 10 * math.log10(_PEAK**2 / mse) if mse else math.inf


def psnr_y(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of luma (BT.601, full range, not rounded) in dB.

    Of gray pictures it is that of their samples. `inf` for equal luma.

    Raises:
        ImageError: The pictures differ in shape.
    """
    _check_shapes(a, b)
    if a.shape[2] == 1:
        return psnr(a, b)
    # Luma is linear: that of the difference is the difference of luma, in half the memory.
    difference = a.astype(np.float32) - b.astype(np.float32)
    luma = sum(weight * difference[..., i] for i, weight in enumerate(_LUMA))
    mse = float(np.mean(np.square(luma), dtype=np.float64))
    return 10 * math.log10(_PEAK**2 / mse) if mse else math.inf


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the multi-scale structural similarity, 0..1, mean over the channels.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment",
    2003: an 11-tap Gaussian window (sigma 1.5) without padding and five scales, halved by a 2 x 2
    mean. Odd sides are padded by a zero row or column in front, as pytorch-msssim does, so that
    figures compare with the literature.

    A picture whose smaller side is below 161 pixels has no room for five windows: it uses the
    scales that fit, with their weights rescaled to sum to one. Sides below 11 pixels are first
    extended to 11 by repeating the border. Such figures do not compare with those of large
    pictures.

    Raises:
        ImageError: The pictures differ in shape.
    """
    _check_shapes(a, b)
    weights = _weights(min(a.shape[:2]))
    grow = [(0, max(0, _TAPS - side)) for side in a.shape[:2]]
    values = []
    for channel in range(a.shape[2]):
        planes = (np.pad(picture[..., channel], grow, mode="edge") for picture in (a, b))
        x, y = (plane.astype(np.float64) for plane in planes)
        values.append(_ms_ssim_plane(x, y, weights))
    return sum(values) / len(values)


def ms_ssim_db(value: float) -> float:
    """Return an MS-SSIM in dB, -10 log10(1 - value); `inf` for 1."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def _check_shapes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise ImageError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")


def _weights(smaller_side: int) -> tuple[float, ...]:
    """Return the weights of the scales in which the window fits (pytorch-msssim's criterion)."""
    scales = 1
    while scales < len(_SCALE_WEIGHTS) and smaller_side > (_TAPS - 1) * 2**scales:
        scales += 1
    if scales == len(_SCALE_WEIGHTS):
        return _SCALE_WEIGHTS
    total = sum(_SCALE_WEIGHTS[:scales])
    return tuple(weight / total for weight in _SCALE_WEIGHTS[:scales])


def _ms_ssim_plane(x: _Plane, y: _Plane, weights: tuple[float, ...]) -> float:
    product = 1.0
    for weight in weights[:-1]:
        _, contrast = _ssim(x, y)
        product *= math.pow(max(contrast, 0.0), weight)
        x, y = _halve(x), _halve(y)
    similarity, _ = _ssim(x, y)
    return product * math.pow(max(similarity, 0.0), weights[-1])


def _ssim(x: _Plane, y: _Plane) -> tuple[float, float]:
    """Return the means over a plane (H, W) of SSIM and of its contrast-structure term."""
    rows = x.shape[0] - _TAPS + 1
    similarity = contrast = 0.0
    for top in range(0, rows, _BAND_ROWS):
        band = slice(top, min(top + _BAND_ROWS, rows) + _TAPS - 1)
        sums = _ssim_sums(x[band], y[band])
        similarity += sums[0]
        contrast += sums[1]
    area = rows * (x.shape[1] - _TAPS + 1)
    return similarity / area, contrast / area


def _ssim_sums(x: _Plane, y: _Plane) -> tuple[float, float]:
    mean_x, mean_y = _blur(x), _blur(y)
    mean_xy = mean_x * mean_y
    mean_squares = mean_x * mean_x + mean_y * mean_y
    # The two variances occur only as a sum, which saves one of five blurs.
    variances = _blur(x * x + y * y) - mean_squares
    covariance = _blur(x * y) - mean_xy
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_xy + _C1) / (mean_squares + _C1)
    return float(np.sum(luminance * contrast)), float(np.sum(contrast))


def _blur(plane: _Plane) -> _Plane:
    return _blur_rows(_blur_rows(plane).T).T


def _blur_rows(plane: _Plane) -> _Plane:
    """Return the window applied down a plane (H, W): (H - 10, W)."""
    rows = plane.shape[0] - _TAPS + 1
    centre = _TAPS // 2
    out = _WINDOW[centre] * plane[centre : centre + rows]
    for tap in range(centre):
        mirrored = _TAPS - 1 - tap
        out += _WINDOW[tap] * (plane[tap : tap + rows] + plane[mirrored : mirrored + rows])
    return out


def _halve(plane: _Plane) -> _Plane:
    height, width = plane.shape
    padded = np.pad(plane, ((height % 2, height % 2), (width % 2, width % 2)))
    height, width = (side // 2 * 2 for side in padded.shape)
    even = padded[:height, :width]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
