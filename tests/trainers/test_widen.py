from typing import Any

import pytest
import torch
from torch import Tensor

from lic.codec.errors import ConfigError
from lic.codec.models import (
    HPCM,
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
    bits,
    hpcm_config,
)
from lic.trainers.models import can_widen
from lic.trainers.start import fit_densities, pca_start
from lic.trainers.widen import QUIET, widen

Model = FactorizedPrior | ScaleHyperprior


def build(kind: type[Model], act: Any, n: int = 6, m: int = 8) -> Model:
    torch.manual_seed(0)
    config = FactorizedConfig if kind is FactorizedPrior else HyperpriorConfig
    return kind(config(N=n, M=m, encoder_activation=act, decoder_activation=act)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def crops(smooth_crops: Tensor) -> Tensor:
    return smooth_crops[:4, :, :64, :64]


@pytest.mark.parametrize("act", ["relu", "gdn", "igdn1"])
@pytest.mark.parametrize("kind", [FactorizedPrior, ScaleHyperprior])
@torch.no_grad()
def test_a_wider_model_gives_the_same(kind: type[Model], act: Any, crops: Tensor) -> None:
    old = build(kind, act)
    pca_start(old, crops, lmbda=0.013)
    new = widen(old, 10, 16, crops).eval()
    assert (new.config.N, new.config.M) == (10, 16)
    y, wider = old.analyze(crops), new.analyze(crops)
    torch.testing.assert_close(wider[:, :8], y, rtol=1e-5, atol=1e-5)
    assert wider[:, 8:].std(dim=(0, 2, 3)).tolist() == pytest.approx([QUIET] * 8, rel=1e-3)
    # Whatever new latents say, the picture does not hear it yet.
    x_hat = old.synthesize(torch.round(y))
    torch.testing.assert_close(new.synthesize(torch.round(wider)), x_hat, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_old_latents_keep_their_densities(crops: Tensor) -> None:
    old = build(FactorizedPrior, "relu")
    pca_start(old, crops, lmbda=0.013)
    y = old.analyze(crops)
    new = widen(old, 10, 16, crops).eval()
    quiet = torch.zeros(4, 8, 4, 4)
    before = old.entropy_bottleneck(y)[1]
    after = new.entropy_bottleneck(torch.cat([y, quiet], dim=1))[1]
    torch.testing.assert_close(after[:, :8], before)
    assert float(after[:, 8:].min()) > 0.5


@pytest.mark.parametrize("kind", [FactorizedPrior, ScaleHyperprior])
def test_fitted_new_latents_cost_next_to_nothing(kind: type[Model], crops: Tensor) -> None:
    old = build(kind, "relu")
    pca_start(old, crops, lmbda=0.013)
    torch.manual_seed(0)
    own = fit_densities(old, crops)
    wider = fit_densities(widen(old, 10, 16, crops), crops)
    assert wider < 1.1 * own


@pytest.mark.parametrize("act", ["relu", "gdn", "igdn1"])
def test_new_channels_learn(act: Any, crops: Tensor) -> None:
    old = build(FactorizedPrior, act)
    pca_start(old, crops, lmbda=0.013)
    new = widen(old, 10, 16, crops).train()
    # Rows of new outputs, and of what old outputs begin to hear of new inputs.
    fresh = {
        "g_a.0.weight": (slice(6, None),),
        "g_a.6.weight": (slice(8, None),),
        "g_a.2.weight": (slice(6), slice(6, None)),
        "g_s.0.weight": (slice(8, None), slice(6)),
        "g_s.6.weight": (slice(6, None),),
    }
    parameters = dict(new.named_parameters())
    before = {name: parameters[name][rows].detach().clone() for name, rows in fresh.items()}
    optimizer = torch.optim.Adam(new.parameters(), lr=1e-3)
    for _ in range(4):
        x_hat, likelihoods = new(crops)
        loss = 0.013 * 255**2 * ((x_hat - crops) ** 2).mean() + bits(likelihoods) / (4 * 64 * 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, rows in fresh.items():
        assert bool((parameters[name][rows] != before[name]).float().mean() > 0.9), name


def test_only_wider_sizes_with_a_name_widen() -> None:
    model = build(FactorizedPrior, "relu")
    assert can_widen(model, "lite") and can_widen(model, "4")
    assert not can_widen(model, "custom")
    for n, m in ((64, 96), (65, 8), (6, 97)):
        assert not can_widen(build(FactorizedPrior, "relu", n, m), "lite")
    assert not can_widen(HPCM(hpcm_config("tiny", "upstream")), "4")


def test_what_cannot_be_widened_is_refused(crops: Tensor) -> None:
    with pytest.raises(ConfigError, match="N = 6, M = 8 cannot be widened to N = 5, M = 8"):
        widen(build(FactorizedPrior, "relu"), 5, 8, crops)
    with pytest.raises(ConfigError, match="gdnish cannot be widened"):
        widen(build(FactorizedPrior, "gdnish"), 10, 16, crops)
