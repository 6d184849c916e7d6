import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import metrics
from lic.codec.errors import ImageError
from lic.codec.metrics import MS_SSIM_LEAST_SIDE, bpp, ms_ssim, ms_ssim_db, psnr, psnr_y

Pixels = NDArray[np.uint8]


def random_pair(height: int, width: int, channels: int = 3) -> tuple[Pixels, Pixels]:
    rng = np.random.default_rng(height * 10_000 + width)
    a = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return a, (a + rng.normal(0, 20, a.shape)).clip(0, 255).astype(np.uint8)


def natural_pair(height: int, width: int) -> tuple[Pixels, Pixels]:
    """Smooth shading with edges and grain, and a blocky version of it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    shade = 128 + 60 * np.sin(x / 23) * np.cos(y / 31) + 50 * ((x + y) // 40 % 2)
    planes = np.stack([shade, shade * 0.8, 255 - shade], axis=-1)
    a = (planes + rng.normal(0, 3, planes.shape)).clip(0, 255).astype(np.uint8)
    return a, (a // 16 * 16 + 8).astype(np.uint8)


def test_psnr_of_a_known_error() -> None:
    a = np.full((4, 6, 3), 100, np.uint8)
    assert psnr(a, a + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5), abs=1e-9)


def test_psnr_does_not_wrap_around() -> None:
    black, white = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)
    assert psnr(black, white) == 0


def test_equal_pictures() -> None:
    a, _ = random_pair(180, 170)
    assert psnr(a, a) == math.inf
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ms_ssim_db(1.0) == math.inf


def test_small_rates_and_decibels() -> None:
    assert bpp(4900, 768, 512) == pytest.approx(0.0996907, abs=1e-6)
    assert ms_ssim_db(0.99) == pytest.approx(20)


@pytest.mark.parametrize("function", [psnr, ms_ssim])
def test_different_shapes_are_refused(function: type) -> None:
    with pytest.raises(ImageError, match="cannot be compared"):
        function(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 1), np.uint8))


@pytest.mark.parametrize(
    "pair",
    [
        random_pair(161, 161),
        random_pair(200, 333),
        random_pair(257, 162, 1),
        natural_pair(256, 384),
        natural_pair(235, 301),
    ],
    ids=["smallest", "odd", "gray", "natural", "natural-odd"],
)
def test_ms_ssim_agrees_with_pytorch_msssim(pair: tuple[Pixels, Pixels]) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    a, b = (torch.from_numpy(p.transpose(2, 0, 1)[None].astype(np.float64)) for p in pair)
    assert ms_ssim(*pair) == pytest.approx(float(reference.ms_ssim(a, b, data_range=255)), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (10, 11), (11, 11), (40, 41), (160, 500)])
def test_ms_ssim_of_small_pictures_is_defined(size: tuple[int, int]) -> None:
    a, b = random_pair(*size)
    assert ms_ssim(a, a) == pytest.approx(1)
    assert 0 <= ms_ssim(a, b) < 1


def test_psnr_of_luma_is_that_of_the_weighted_sum() -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.integers(0, 256, (9, 7, 3), np.uint8) for _ in range(2))
    luma = [0.299 * p[..., 0] + 0.587 * p[..., 1] + 0.114 * p[..., 2] for p in (a, b)]
    expected = 10 * math.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))
    assert psnr_y(a, b) == pytest.approx(expected, abs=1e-5)
    assert psnr_y(a, a) == math.inf
    assert psnr_y(a[..., :1], b[..., :1]) == psnr(a[..., :1], b[..., :1])
    # An error that only colour sees: blue by 2 either way is hardly any luma.
    blue = np.clip(a.astype(int) + np.array([0, 0, 2]), 0, 255).astype(np.uint8)
    assert psnr_y(a, blue) > psnr(a, blue) + 10


def test_pictures_of_the_least_side_have_all_scales() -> None:
    assert MS_SSIM_LEAST_SIDE == 161
    assert len(metrics._weights(161)) == 5 and len(metrics._weights(160)) == 4
