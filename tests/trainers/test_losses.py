import itertools
import math

import numpy as np
import pytest
import pytorch_msssim
import torch
from torch import Tensor

from lic.codec import metrics
from lic.codec.errors import ConfigError
from lic.codec.models import Output
from lic.codec.models.blocks import LowerBound
from lic.trainers.config import LossConfig
from lic.trainers.losses import ms_ssim, ms_ssim_note, ms_ssim_scales, terms_of

MSE, RECON, RD = (LossConfig(loss=loss) for loss in ("mse", "recon", "rd"))


def output(x_hat: Tensor) -> Output:
    return Output(x_hat, {"y": torch.full((4,), 0.5)})


def noisy(crops: Tensor, amount: float) -> Tensor:
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(1))
    return (crops + amount * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def large(smooth_crops: Tensor) -> Tensor:
    """Two crops (2, 3, 192, 176), which have room for five scales."""
    tiles = smooth_crops[:8].reshape(2, 2, 2, 3, 128, 128).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(2, 3, 256, 256)[..., 20:212, 40:216]


def gradient(x_hat: Tensor, x: Tensor) -> Tensor:
    x_hat = x_hat.clone().requires_grad_()
    (grad,) = torch.autograd.grad(1 - ms_ssim(x_hat, x), x_hat)
    return grad


def test_the_terms_are_those_of_a_hand_computation() -> None:
    x = torch.zeros(2, 3, 2, 4)
    x_hat = torch.full_like(x, 0.1)
    x_hat[1] = 0.3
    # 5 symbols of 2 bits and 2 of 3 bits, over 2 * 2 * 4 pixels.
    likelihoods = {"y": torch.full((5,), 0.25), "z": torch.full((1, 2), 0.125)}
    terms = terms_of(Output(x_hat, likelihoods), x, LossConfig(loss="rd", alpha_l1=1.0))
    assert float(terms.bpp) == pytest.approx((5 * 2 + 2 * 3) / 16)
    assert float(terms.mse) == pytest.approx((0.01 + 0.09) / 2)
    assert terms.l1 is not None
    assert float(terms.l1) == pytest.approx((0.1 + 0.3) / 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MSE, {"bpp", "mse"}),
        (RECON, {"bpp", "mse", "l1", "ms_ssim"}),
        (RD, {"bpp", "mse", "l1", "ms_ssim"}),
        (LossConfig(loss="recon", alpha_l1=1.0), {"bpp", "mse", "l1"}),
        (LossConfig(loss="rd", alpha_l1=0.0), {"bpp", "mse", "ms_ssim"}),
    ],
)
def test_only_what_the_loss_needs_is_computed(config: LossConfig, expected: set[str]) -> None:
    x = torch.rand(1, 3, 16, 16).requires_grad_()
    found = terms_of(output(x), x.detach(), config).detached()
    assert set(found) == expected | {"floored_symbols"}
    assert not any(value.requires_grad for value in found.values())


def test_symbols_of_the_least_likelihood_are_counted() -> None:
    x = torch.rand(1, 3, 16, 16)
    bound = LowerBound(1e-9)
    likelihoods = {
        "y": bound(torch.tensor([0.5, 1e-9, 0.0, 1.1e-9])),
        "z": bound(torch.tensor([1e-12])),
    }
    assert float(terms_of(Output(x, likelihoods), x, MSE).detached()["floored_symbols"]) == 3


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_terms_are_in_single(autocast: bool) -> None:
    x = torch.rand(1, 3, 32, 32)
    half = (x + 0.01).bfloat16()
    likelihoods = {"y": torch.full((70_001,), 0.3).bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = terms_of(Output(half, likelihoods), x, RD)
    single = {"y": likelihoods["y"].float()}
    expected = terms_of(Output(half.float(), single), x, RD)
    assert all(value.dtype == torch.float32 for value in terms.detached().values())
    assert terms.detached() == expected.detached()


def test_ms_ssim_is_that_of_pytorch_msssim_in_value_and_gradient(large: Tensor) -> None:
    x_hat = noisy(large, 0.1).double().requires_grad_()
    x = large.double()
    reference = pytorch_msssim.ms_ssim(x_hat, x, data_range=1.0)
    value = ms_ssim(x_hat, x)
    assert value.item() == pytest.approx(reference.item(), abs=1e-6)
    (expected,) = torch.autograd.grad(reference, x_hat)
    (found,) = torch.autograd.grad(value, x_hat)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    single = ms_ssim(x_hat.detach().float(), large)
    assert float(single) == pytest.approx(value.item(), abs=1e-5)


@pytest.mark.parametrize("size", [(11, 11), (20, 47), (21, 30), (41, 64), (80, 81), (128, 128)])
def test_small_crops_have_the_ms_ssim_of_the_metrics(
    size: tuple[int, int], smooth_crops: Tensor
) -> None:
    rows, columns = size
    pixels = (smooth_crops[:1, :, :rows, :columns] * 255).round()
    other = (noisy(pixels / 255, 0.1) * 255).round()
    a, b = (t[0].permute(1, 2, 0).numpy().astype(np.uint8) for t in (pixels, other))
    value = ms_ssim(other / 255, pixels / 255)
    assert float(value) == pytest.approx(metrics.ms_ssim(a, b), abs=2e-5)
    assert 0 < float(value) < 1


@pytest.mark.parametrize(
    ("side", "scales"), [(11, 1), (20, 1), (21, 2), (41, 3), (81, 4), (160, 4), (161, 5), (999, 5)]
)
def test_scales_that_fit_are_used(side: int, scales: int) -> None:
    assert ms_ssim_scales(side) == scales


def test_a_user_hears_of_scales_that_do_not_fit() -> None:
    assert ms_ssim_note(176) == ""
    assert ms_ssim_note(128).startswith("MS-SSIM of 128 pixel crops has room for 4 of 5 scales")


@pytest.mark.parametrize("size", [(10, 64), (64, 10)])
def test_crops_without_room_for_one_window_are_refused(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size)
    with pytest.raises(ConfigError, match="of 10 pixels; expected 11 or more"):
        terms_of(output(x), x, RECON)
    # The other loss has no window.
    assert terms_of(output(x), x, MSE).ms_ssim is None


def test_values_out_of_range_count_as_clamped(smooth_crops: Tensor) -> None:
    x = smooth_crops[:1, :, :32, :32]
    wild = (x - 0.5) * 3 + 0.5
    assert float(wild.min()) < 0
    assert float(wild.max()) > 1
    assert torch.equal(ms_ssim(wild, x), ms_ssim(wild.clamp(0, 1), x))


def test_gradients_only_pull_values_out_of_range_back(smooth_crops: Tensor) -> None:
    x = smooth_crops[:1, :, :32, :32]
    wild = (x - 0.5) * 3 + 0.5
    step, inner = gradient(wild, x), gradient(wild.clamp(0, 1), x)
    above, below = wild > 1, wild < 0
    assert torch.equal(step[~(above | below)], inner[~(above | below)])
    # Descent lowers what is above and raises what is below.
    assert float(step[below].max()) <= 0 <= float(step[above].min())
    # Not by being nought, as behind a plain clamp.
    assert float(step[below].min()) < 0 < float(step[above].max())


@pytest.mark.parametrize("kind", ["inverted", "flat", "equal", "black"])
def test_gradients_are_finite_where_structure_is_lost(kind: str, smooth_crops: Tensor) -> None:
    x = smooth_crops[:2]
    x_hat = {
        "inverted": 1 - x, "flat": torch.full_like(x, 0.5), "equal": x, "black": torch.zeros_like(x)
    }[kind]  # fmt: skip
    assert bool(torch.isfinite(gradient(x_hat, x)).all())
    assert bool(torch.isfinite(gradient(x, x_hat)).all())
    value = float(ms_ssim(x_hat, x))
    assert value == pytest.approx(1) if kind == "equal" else 0 <= value < 0.9


def test_planes_do_not_see_each_other(smooth_crops: Tensor) -> None:
    x = smooth_crops[:2, :, :48, :48]
    x_hat = noisy(x, 0.2)
    alone = [
        float(ms_ssim(x_hat[i : i + 1, c : c + 1], x[i : i + 1, c : c + 1]))
        for i, c in itertools.product(range(2), range(3))
    ]
    assert float(ms_ssim(x_hat, x)) == pytest.approx(sum(alone) / 6, abs=1e-6)


def test_the_memory_layout_does_not_matter(smooth_crops: Tensor) -> None:
    x = smooth_crops[:2, :, :48, :48]
    x_hat = noisy(x, 0.1)
    last = x_hat.contiguous(memory_format=torch.channels_last)
    assert float(ms_ssim(last, x)) == pytest.approx(float(ms_ssim(x_hat, x)), abs=1e-6)


def test_rate_and_distortion_pull_on_the_network() -> None:
    x_hat = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    likelihood = torch.tensor([0.5], requires_grad=True)
    terms = terms_of(Output(x_hat, {"y": likelihood}), torch.zeros(1, 3, 2, 2), MSE)
    (rate,) = torch.autograd.grad(terms.bpp, likelihood)
    assert float(rate) == pytest.approx(-1 / (0.5 * math.log(2)) / 4)
    (distortion,) = torch.autograd.grad(terms.mse, x_hat)
    assert torch.allclose(distortion, torch.full_like(x_hat, 2 * 0.5 / 12))
