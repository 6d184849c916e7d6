from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedConfig, FactorizedPrior, bits
from lic.trainers.config import TrainConfig
from lic.trainers.data import RandomCrops, find_photos
from lic.trainers.start import STEP_AT_0013, fit_densities, pca_start, prepare

# lambda so large that rounding to one quantisation step does not show.
FINE = 1e6


def build(n: int, m: int, *, encoder: str = "relu", decoder: str = "relu") -> FactorizedPrior:
    torch.manual_seed(0)
    config = FactorizedConfig(
        N=n,
        M=m,
        encoder_activation=encoder,  # type: ignore[arg-type]
        decoder_activation=decoder,  # type: ignore[arg-type]
    )
    return FactorizedPrior(config).eval()


@torch.no_grad()
def mse(model: FactorizedPrior, crops: Tensor) -> float:
    """Return the error with rounded latents, in grey levels squared."""
    x_hat = model.synthesize(torch.round(model.analyze(crops)))
    return float(F.mse_loss(x_hat, crops)) * 255**2


@torch.no_grad()
def mean_bpp(model: FactorizedPrior, crops: Tensor) -> float:
    _, likelihoods = model.entropy_bottleneck(model.analyze(crops), training=False)
    return float(bits({"y": likelihoods})) / (crops.shape[0] * crops.shape[2] * crops.shape[3])


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


@pytest.mark.parametrize(("encoder", "decoder"), [("gdn", "gdn"), ("relu", "igdn1")])
def test_other_activations_are_refused(smooth_crops: Tensor, encoder: str, decoder: str) -> None:
    model = build(8, 12, encoder=encoder, decoder=decoder)
    with pytest.raises(ConfigError, match=f"needs ReLU on both sides, found .*{decoder}"):
        pca_start(model, smooth_crops, lmbda=0.013)


def test_one_hidden_channel_is_refused(smooth_crops: Tensor) -> None:
    with pytest.raises(ConfigError, match="N of 2 or more, found 1"):
        pca_start(build(1, 12), smooth_crops, lmbda=0.013)
    pca_start(build(2, 3), smooth_crops, lmbda=0.013)


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


def prepared(photos: Path, start: str, *, fresh: bool) -> tuple[set[str], FactorizedPrior]:
    """Return the parts of a model that `prepare` changed."""
    model = build(4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = TrainConfig(start=start, crop=32, batch=2)  # type: ignore[arg-type]
    crops = RandomCrops(find_photos(photos), crop=32, batch=2, seed=0)
    torch.manual_seed(0)
    prepare(model, crops, config, fresh=fresh)
    changed = {k.split(".")[0] for k, v in model.state_dict().items() if not v.equal(before[k])}
    return changed, model


def test_a_fresh_model_gets_the_start_that_was_asked_for(photos: Path) -> None:
    assert prepared(photos, "random", fresh=True)[0] == set()
    assert prepared(photos, "pca", fresh=True)[0] == {"g_a", "g_s", "entropy_bottleneck"}


@pytest.mark.parametrize("start", ["pca", "random"])
def test_a_warm_model_keeps_its_transforms(photos: Path, start: str) -> None:
    assert prepared(photos, start, fresh=False)[0] == {"entropy_bottleneck"}
