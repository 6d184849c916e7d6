import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models import (
    ACTIVATIONS,
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
    bits,
)
from lic.codec.models.gdnish import EncoderGain
from lic.trainers.config import TrainConfig
from lic.trainers.model_options import ModelConfig
from lic.trainers.start import STEP_AT_0013, fit_densities, pca_start, prepare

# lambda so large that rounding to one quantisation step does not show.
FINE = 1e6


def build(
    n: int, m: int, *, encoder: Any = "relu", decoder: Any = "relu", gain: EncoderGain | None = None
) -> FactorizedPrior:
    torch.manual_seed(0)
    config = FactorizedConfig(
        N=n, M=m, encoder_activation=encoder, decoder_activation=decoder, encoder_gain=gain
    )
    return FactorizedPrior(config).eval()


def hyperprior(n: int, m: int, act: Any = "relu") -> ScaleHyperprior:
    torch.manual_seed(0)
    config = HyperpriorConfig(N=n, M=m, encoder_activation=act, decoder_activation=act)
    return ScaleHyperprior(config).eval()


@torch.no_grad()
def mse(model: FactorizedPrior | ScaleHyperprior, crops: Tensor) -> float:
    """Return the error with rounded latents, in grey levels squared."""
    x_hat = model.synthesize(torch.round(model.analyze(crops)))
    return float(F.mse_loss(x_hat, crops)) * 255**2


@torch.no_grad()
def mean_bpp(model: FactorizedPrior | ScaleHyperprior, crops: Tensor) -> float:
    likelihoods = model.eval()(crops).likelihoods
    return float(bits(likelihoods)) / (crops.shape[0] * crops.shape[2] * crops.shape[3])


def best_block_transform(crops: Tensor, components: int) -> float:
    """Return the error of the best `components` of 16x16 blocks, in grey levels squared."""
    blocks = F.unfold(crops, 16, stride=16).transpose(1, 2).reshape(-1, 768).double()
    values = torch.linalg.eigvalsh(torch.cov(blocks.T, correction=0))
    return float(values[:-components].sum()) / 768 * 255**2


def test_the_start_is_near_the_best_block_transform_of_its_size(smooth_crops: Tensor) -> None:
    model = build(24, 32)
    before = mse(model, smooth_crops)
    pca_start(model, smooth_crops, lmbda=FINE)
    best = best_block_transform(smooth_crops, 32)
    after = mse(model, smooth_crops)
    assert best < after < 1.5 * best
    assert after < before / 50


def test_with_all_components_nearly_nothing_is_lost(smooth_crops: Tensor) -> None:
    """What is: values beyond the head room, and the mean's difference between four phases."""
    model = build(193, 768)
    pca_start(model, smooth_crops, lmbda=FINE)
    assert mse(model, smooth_crops) < 2.0


def test_a_wider_model_loses_nothing(smooth_crops: Tensor) -> None:
    """M = 120 has room for more than the 4 * 23 components of its last layer."""
    narrow, wide = build(24, 92), build(24, 120)
    for model in (narrow, wide):
        pca_start(model, smooth_crops, lmbda=FINE)
    assert mse(wide, smooth_crops) == pytest.approx(mse(narrow, smooth_crops), rel=1e-3)


def test_the_decoder_gives_the_mean_colours_of_flat_latents(smooth_crops: Tensor) -> None:
    model = build(24, 32)
    pca_start(model, smooth_crops, lmbda=0.013)
    with torch.no_grad():
        x_hat = model.synthesize(torch.zeros(1, 32, 4, 4))[0]
    mean = smooth_crops.mean(dim=(0, 2, 3))
    assert torch.allclose(x_hat.mean(dim=(1, 2)), mean, atol=0.02)
    assert float(x_hat.std(dim=(1, 2)).max()) < 0.03


def test_the_quantisation_step_goes_with_one_over_the_root_of_lambda(smooth_crops: Tensor) -> None:
    deviations = []
    for lmbda in (0.013, 4 * 0.013):
        model = build(24, 32)
        pca_start(model, smooth_crops, lmbda=lmbda)
        with torch.no_grad():
            deviations.append(model.analyze(smooth_crops).std(dim=(0, 2, 3)))
    assert torch.allclose(deviations[1], 2 * deviations[0], rtol=1e-3)
    # The transform is orthonormal: latents and what is left out share the pictures' energy.
    energy = float((deviations[0] ** 2).sum()) * STEP_AT_0013**2 / 768
    blocks = F.unfold(smooth_crops, 16, stride=16)
    expected = float(blocks.var(dim=(0, 2)).mean()) * 255**2
    assert energy + best_block_transform(smooth_crops, 32) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("encoder", "decoder"), list(itertools.product(ACTIVATIONS, repeat=2)))
def test_every_activation_starts_near_the_best_block_transform(
    smooth_crops: Tensor, encoder: str, decoder: str
) -> None:
    model = build(24, 32, encoder=encoder, decoder=decoder)
    crops = smooth_crops[:4]
    pca_start(model, crops, lmbda=FINE)
    best = best_block_transform(crops, 32)
    assert best < mse(model, crops) < 1.6 * best


def test_gain_blocks_without_a_residual_pass_the_start_as_well(smooth_crops: Tensor) -> None:
    """Their ReLU6 would cut off whatever is larger than the block was made for."""
    gain = EncoderGain(residual=False, t=1, eca=True)
    model = build(24, 32, encoder="gdnish", decoder="gdnish", gain=gain)
    pca_start(model, smooth_crops, lmbda=FINE)
    assert mse(model, smooth_crops) < 1.5 * best_block_transform(smooth_crops, 32)


@pytest.mark.parametrize("act", ["relu", "gdn"])
def test_a_hyperprior_starts_with_scales_that_suit_its_latents(
    smooth_crops: Tensor, act: str
) -> None:
    model = hyperprior(24, 32, act)
    pca_start(model, smooth_crops, lmbda=0.013)
    assert mse(model, smooth_crops) < 3 * mse(build_started(smooth_crops), smooth_crops)
    with torch.no_grad():
        y = model.analyze(smooth_crops)
        scales = model.begin(torch.round(model.hyper_analyze(y))).scales
    ratio = scales.mean(dim=(0, 2, 3)) / y.std(dim=(0, 2, 3))
    assert 0.5 < float(ratio.median()) < 2
    before = mean_bpp(model, smooth_crops)
    fit_densities(model, smooth_crops, steps=40, lr=0.05)
    assert mean_bpp(model, smooth_crops) < before


def build_started(crops: Tensor) -> FactorizedPrior:
    model = build(24, 32)
    pca_start(model, crops, lmbda=0.013)
    return model


def test_one_hidden_channel_is_refused(smooth_crops: Tensor) -> None:
    with pytest.raises(ConfigError, match="N of 2 or more with ReLU, found 1"):
        pca_start(build(1, 12), smooth_crops, lmbda=0.013)
    pca_start(build(2, 3), smooth_crops, lmbda=0.013)
    # Without head room there are no constants to carry.
    pca_start(build(1, 3, decoder="gdn"), smooth_crops, lmbda=0.013)


def test_fitting_densities_lowers_the_rate_and_leaves_the_transforms(smooth_crops: Tensor) -> None:
    model = build(8, 12)
    pca_start(model, smooth_crops, lmbda=0.013)
    transforms = {k: v.clone() for k, v in model.g_a.state_dict().items()}
    before = mean_bpp(model, smooth_crops)
    stated = fit_densities(model, smooth_crops, steps=60, lr=0.05)
    after = mean_bpp(model, smooth_crops)
    assert after < before - 0.005
    # What it states is with noise in place of rounding.
    assert stated == pytest.approx(after, rel=0.25)
    assert all(torch.equal(v, transforms[k]) for k, v in model.g_a.state_dict().items())


@pytest.mark.parametrize("arch", ["factorized", "hyperprior"])
def test_what_may_not_learn_is_not_fitted(smooth_crops: Tensor, arch: str) -> None:
    model = build(4, 4) if arch == "factorized" else hyperprior(4, 4)
    model.requires_grad_(False)
    if arch == "hyperprior":
        model.entropy_bottleneck.requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert fit_densities(model, smooth_crops[:2], steps=3) > 0
    changed = {k.split(".")[0] for k, v in model.state_dict().items() if not v.equal(before[k])}
    assert changed == ({"entropy_bottleneck"} if arch == "hyperprior" else set())
    assert not model.training


class Fake:
    """Training data that is a few random crops."""

    def wider(self, *, crop: int, batch: int) -> "Fake":
        assert crop == 192 and batch == 16
        return self

    def batch(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)


def prepared(start: str, *, fresh: bool, arch: str) -> set[str]:
    """Return the parts of a model that `prepare` changed."""
    model = build(4, 4) if arch == "factorized" else hyperprior(4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    prepare(model, Fake(), TrainConfig(model=ModelConfig(start=start)), fresh=fresh)
    return {k.split(".")[0] for k, v in model.state_dict().items() if not v.equal(before[k])}


ENTROPY = {"factorized": {"entropy_bottleneck"}, "hyperprior": {"entropy_bottleneck", "h_a", "h_s"}}


@pytest.mark.parametrize("arch", ENTROPY)
def test_a_fresh_model_gets_the_start_that_was_asked_for(arch: str) -> None:
    assert prepared("random", fresh=True, arch=arch) == set()
    assert prepared("pca", fresh=True, arch=arch) == {"g_a", "g_s", *ENTROPY[arch]}


@pytest.mark.parametrize("start", ["pca", "random"])
@pytest.mark.parametrize("arch", ENTROPY)
def test_a_warm_model_keeps_its_transforms(arch: str, start: str) -> None:
    assert prepared(start, fresh=False, arch=arch) == ENTROPY[arch]
