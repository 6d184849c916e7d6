import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lic.trainers.objective_options import SpectralConfig
from lic.trainers.spectral import Curriculum, dct_matrix, low_pass_mask


def curriculum(**options: Any) -> Curriculum:
    return Curriculum(SpectralConfig(**{"spectral_reg": True, **options}))


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def extreme(epoch: float) -> Tensor:
    """Return a picture (1, 3, 32, 32) of zeros and ones that, filtered, leaves [0, 1].

    Hardly any photo does. Here all pixels with a negative share in the middle one are alike.
    """
    points = torch.zeros(1, 3, 32, 32)
    points[..., 16, 16] = 1
    weights = curriculum()(points, epoch)
    x = (weights > 0).float()
    return torch.cat((x[:, :1], 1 - x[:, 1:]), dim=1)


def psnr(x: Tensor, y: Tensor) -> float:
    return -10 * math.log10(float((x - y).square().mean()))


def naive(plane: list[list[float]], tau: float) -> list[list[float]]:
    """Filter a small plane by sums of cosines."""
    height, width = len(plane), len(plane[0])

    def wave(k: int, n: int, size: int) -> float:
        gain = math.sqrt((1 if k == 0 else 2) / size)
        return gain * math.cos(math.pi * k * (2 * n + 1) / (2 * size))

    result = [[0.0] * width for _ in range(height)]
    for u in range(height):
        for v in range(width):
            radius = math.sqrt((u / height) ** 2 + (v / width) ** 2)
            basis = [[wave(u, i, height) * wave(v, j, width) for j in range(width)]
                     for i in range(height)]  # fmt: skip
            value = sum(plane[i][j] * basis[i][j] for i in range(height) for j in range(width))
            value *= max(0.0, (tau - radius) / tau)
            for i in range(height):
                for j in range(width):
                    result[i][j] += value * basis[i][j]
    return result


@pytest.mark.parametrize("size", [1, 8, 96, 256, 512])
def test_the_transform_is_orthonormal(size: int) -> None:
    matrix = dct_matrix(size)
    assert matrix.dtype is torch.float32
    # The product in float64: float32 rounds the sums of 96 by as much as is allowed here.
    product = matrix.double() @ matrix.double().T
    assert (product - torch.eye(size)).abs().max() < 1e-6
    x = noise(2, size, size)
    assert (matrix.T @ (matrix @ x @ matrix.T) @ matrix - x).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 6), (7, 3)])
@pytest.mark.parametrize("epoch", [20.0, 77.5])
def test_pictures_are_filtered_as_by_sums_of_cosines(height: int, width: int, epoch: float) -> None:
    filter_, x = curriculum(), noise(2, 3, height, width)
    tau = filter_.tau(epoch)
    assert tau is not None
    expected = torch.tensor([[naive(plane.tolist(), tau) for plane in item] for item in x])
    assert (expected - x).abs().max() > 0.1
    torch.testing.assert_close(filter_(x, epoch), expected, rtol=0, atol=1e-6)


def test_an_instance_serves_pictures_of_several_sizes() -> None:
    filter_ = curriculum()
    for shape in ((1, 3, 8, 16), (2, 3, 16, 8), (1, 3, 8, 16)):
        x = noise(*shape)
        assert torch.equal(filter_(x, 30.0), curriculum()(x, 30.0))


@pytest.mark.parametrize(
    ("epoch", "tau"),
    [(0, 0.05), (25, 0.2875), (50, 0.525), (75, 0.7625), (99, 0.9905), (100, None), (3000, None)],
)
def test_the_radius_by_epoch(epoch: float, tau: float | None) -> None:
    found = curriculum().tau(epoch)
    assert (found is None) == (tau is None)
    assert found == pytest.approx(tau, abs=1e-12)


def test_the_radius_has_the_options_of_the_run() -> None:
    filter_ = curriculum(tau_init=0.2, tau_final=0.6, truncation_epochs=4.0)
    assert [filter_.tau(e) for e in (0, 1, 3.5, 4)] == [0.2, pytest.approx(0.3), 0.55, None]
    assert curriculum(spectral_reg=False).tau(0) is None


@pytest.mark.parametrize("tau", [0.05, 0.3, 1.0])
def test_the_mask_opens_from_the_mean(tau: float) -> None:
    mask, wider = low_pass_mask(24, 32, tau), low_pass_mask(24, 32, tau + 0.01)
    assert mask[0, 0] == 1
    assert mask.min() == 0 and mask.max() == 1
    # Not increasing with the frequency, not decreasing with tau.
    assert (mask.diff(dim=0) <= 0).all() and (mask.diff(dim=1) <= 0).all()
    assert (wider >= mask).all() and (wider > mask).any()


def test_at_a_radius_of_one_the_mask_is_not_the_identity() -> None:
    places = torch.arange(64, dtype=torch.float64) / 64
    radius = (places[:, None].square() + places.square()).sqrt()
    mask = low_pass_mask(64, 64, 1.0).double()
    torch.testing.assert_close(mask, (1 - radius).clamp_min(0), rtol=0, atol=1e-6)
    assert float((mask == 0).double().mean()) == pytest.approx(1 - math.pi / 4, abs=0.02)


@pytest.mark.parametrize("epoch", [0.0, 40.0, 99.9])
def test_the_mean_stays(epoch: float) -> None:
    x = noise(4, 3, 256, 192)
    means = (v.double().mean((-2, -1)) for v in (x, curriculum()(x, epoch)))
    first, second = means
    assert (first - second).abs().max() < 1e-7
    flat = torch.full((1, 3, 64, 64), 0.7)
    assert torch.equal(curriculum()(flat, epoch), flat)


def test_once_over_off_or_not_training_pictures_are_the_very_same() -> None:
    x = noise(1, 3, 16, 16)
    assert curriculum()(x, 99.9) is not x
    assert curriculum()(x, 100) is x
    assert curriculum(spectral_reg=False)(x, 0) is x
    assert curriculum().eval()(x, 0) is x
    for target in ("truncated", "original"):
        filter_ = curriculum(truncation_target=target)
        for pair in (filter_.pair(x, 100), filter_.eval().pair(x, 0)):
            assert pair[0] is x and pair[1] is x


def test_autocast_does_not_touch_it() -> None:
    x = noise(1, 3, 64, 64)
    expected = curriculum()(x, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(curriculum()(x, 50), expected)
    half = curriculum()(x.bfloat16(), 50)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.01)


def test_the_end_is_a_jump_unless_it_is_blended_in(smooth_crops: Tensor) -> None:
    jump, smooth = curriculum(), curriculum(truncation_continuous=True)
    assert 15 < psnr(jump(smooth_crops, 99.99), smooth_crops) < 35
    assert psnr(smooth(smooth_crops, 99.99), smooth_crops) > 80
    x = smooth_crops[:1]
    assert torch.equal(smooth(x, 0), jump(x, 0))
    expected = 0.64 * jump(x, 60) + 0.36 * x
    torch.testing.assert_close(smooth(x, 60), expected, rtol=0, atol=1e-6)


def test_pictures_get_sharper_with_the_epochs(smooth_crops: Tensor) -> None:
    filter_ = curriculum()
    quality = [psnr(filter_(smooth_crops, epoch), smooth_crops) for epoch in (0, 25, 50, 75, 99)]
    assert quality == sorted(quality) and quality[-1] - quality[0] > 3


def test_a_truncated_target_is_the_input_itself() -> None:
    x = extreme(60)
    seen, target = curriculum().pair(x, 60)
    assert seen is target
    assert torch.equal(seen, curriculum()(x, 60))
    # Not clamped, or this picture would have high frequencies again.
    assert seen.min() < 0 and seen.max() > 1


def test_with_the_original_as_target_the_input_is_a_picture() -> None:
    x = extreme(60)
    filter_ = curriculum(truncation_target="original")
    seen, target = filter_.pair(x, 60)
    assert target is x
    assert torch.equal(seen, filter_(x, 60).clamp(0, 1))
    assert not torch.equal(seen, filter_(x, 60))
