import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.codec.models.blocks import GDN
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock
from lic.trainers.model_options import ActivationConfig, ReplacementConfig
from lic.trainers.models import Balle2018, gain_of
from lic.trainers.replacement import Replaced, replace_activations
from lic.trainers.start import STEP_AT_0013, pca_start

NUMBERS = (1, 3, 5)
SIDES = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}


def build(crops: Tensor, act: Any = "gdn", arch: str = "factorized") -> Balle2018:
    """Return a small model whose non-linearities do much: gains from 0.3 to 2."""
    torch.manual_seed(0)
    options: Any = {"N": 16, "M": 16, "encoder_activation": act, "decoder_activation": act}
    model: Balle2018 = (
        FactorizedPrior(FactorizedConfig(**options))
        if arch == "factorized"
        else ScaleHyperprior(HyperpriorConfig(**options))
    )
    pca_start(model, crops, lmbda=0.013)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GDN):
                beta = torch.rand_like(module.beta) + 0.5
                # Hidden values of the start are in steps of 24 grey levels.
                scale = (STEP_AT_0013 / 255) ** (1 if module.simplified else 2)
                gamma = 0.2 * scale * torch.rand_like(module.gamma) ** 4
                module.beta.copy_(module.beta_reparam.init(beta))
                module.gamma.copy_(module.gamma_reparam.init(gamma))
    return model.eval()


def swap(
    model: Balle2018,
    crops: Tensor,
    act: str,
    parts: str = "all",
    init: str = "fit",
    **options: Any,
) -> Replaced:
    torch.manual_seed(0)
    activation = ActivationConfig(act=act, **options)
    replacement = ReplacementConfig(replace_parts=parts, replace_init=init)
    return replace_activations(model, activation, replacement, crops)


@torch.no_grad()
def errors(model: Balle2018, wanted: Balle2018, x: Tensor) -> tuple[float, float]:
    """Return the errors of latents and pictures against another model's, 1 for no relation."""
    y, x_hat = wanted.analyze(x), wanted(x).x_hat
    latents = F.mse_loss(model.analyze(x), y) / y.var()
    return float(latents), float(F.mse_loss(model(x).x_hat, x_hat) / x_hat.var())


@pytest.mark.parametrize("parts", SIDES)
@pytest.mark.parametrize(
    ("act", "most"), [("relu", (0.15, 0.2)), ("igdn1", (0.05, 0.05)), ("gdnish", (0.05, 0.1))]
)
def test_a_fitted_stand_in_does_nearly_what_gdn_did(
    smooth_crops: Tensor, act: str, most: tuple[float, float], parts: str
) -> None:
    """On pictures that it was not fitted to, and many times better than layers as made."""
    model = build(smooth_crops)
    seen, unseen = smooth_crops[:4], smooth_crops[4:]
    plain = errors(swap(model, seen, act, parts, "plain").model, model, unseen)
    fitted = errors(swap(model, seen, act, parts).model, model, unseen)
    for before, after, limit in zip(plain, fitted, most, strict=True):
        assert after < limit
        assert after < before / 3 or before == after == 0


@pytest.mark.parametrize("arch", ["factorized", "hyperprior"])
@pytest.mark.parametrize("parts", SIDES)
@pytest.mark.parametrize("act", ["relu", "igdn1", "gdnish"])
@pytest.mark.parametrize("init", ["plain", "fit"])
def test_only_the_sides_that_were_asked_for_change(
    smooth_crops: Tensor, arch: str, parts: str, act: str, init: str
) -> None:
    model = build(smooth_crops, arch=arch)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    new, modules, _ = swap(model, smooth_crops[:2], act, parts, init)
    assert type(new) is type(model) and new is not model
    assert modules == [f"{side}.{number}" for side in SIDES[parts] for number in NUMBERS]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    blocks = {"relu": nn.ReLU, "igdn1": GDN, "gdnish": EncoderBlock | DecoderBlock}
    state = new.state_dict()
    assert all(isinstance(new.get_submodule(name), blocks[act]) for name in modules)
    for name, value in before.items():
        replaced = name.startswith(tuple(f"{m}." for m in modules))
        solved = init == "fit" and name.startswith(tuple(f"{s}." for s in SIDES[parts]))
        if not replaced and not solved:
            assert torch.equal(state[name], value), name
    sides = {"encoder": new.config.encoder_activation, "decoder": new.config.decoder_activation}
    wanted = {side: act if parts in (side, "all") else "gdn" for side in sides}
    assert sides == wanted


def test_options_of_gain_blocks_reach_the_model(smooth_crops: Tensor) -> None:
    options: dict[str, Any] = {
        "enc_t": 3, "enc_kdw": 5, "enc_eca": True, "enc_residual": False,
        "dec_k": 5, "dec_gmin": 0.25, "dec_gmax": 3.0, "dec_residual": True,
    }  # fmt: skip
    model = build(smooth_crops)
    new = swap(model, smooth_crops[:4], "gdnish", **options).model
    assert new.config.encoder_gain is not None and new.config.decoder_gain is not None
    assert new.config.encoder_gain.to_dict() == {
        "t": 3, "kdw": 5, "eca": True, "residual": False
    }  # fmt: skip
    assert new.config.decoder_gain.to_dict() == {
        "k": 5, "gmin": 0.25, "gmax": 3.0, "residual": True
    }  # fmt: skip
    latents, _ = errors(new, model, smooth_crops[4:])
    assert latents < 0.1
    activation = ActivationConfig(**options)
    assert gain_of(activation, "encoder") == new.config.encoder_gain


def test_relu_is_not_in_place_and_passes_nearly_everything(smooth_crops: Tensor) -> None:
    new = swap(build(smooth_crops), smooth_crops[:4], "relu").model
    with torch.no_grad():
        x = new.g_a[0](smooth_crops)
        assert float((x <= 0).float().mean()) < 0.02
        before = x.clone()
        new.g_a[1](x)
    assert torch.equal(x, before)


def test_gdn1_is_replaced_as_gdn_is(smooth_crops: Tensor) -> None:
    model = build(smooth_crops, "igdn1")
    latents, pictures = errors(swap(model, smooth_crops[:4], "gdnish").model, model, smooth_crops)
    assert latents < 0.1 and pictures < 0.2


def test_a_fit_is_the_same_every_time(smooth_crops: Tensor) -> None:
    model = build(smooth_crops)
    one, two = (swap(model, smooth_crops[:2], "gdnish").model.state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_what_follows_can_train(smooth_crops: Tensor) -> None:
    model = build(smooth_crops).train()
    new = swap(model, smooth_crops[:2], "gdnish").model
    assert new.training and model.training
    assert all(p.requires_grad and p.grad is None for p in new.parameters())


def test_a_side_that_has_no_gdn_is_left_and_told(smooth_crops: Tensor) -> None:
    model = swap(build(smooth_crops), smooth_crops[:2], "relu", "encoder").model
    new, modules, notes = swap(model, smooth_crops[:2], "gdnish", "all")
    assert modules == ["g_s.1", "g_s.3", "g_s.5"]
    assert new.config.encoder_activation == "relu"
    assert notes == ["left as it is: relu in the encoder"]


@pytest.mark.parametrize("parts", SIDES)
def test_nothing_to_replace_is_an_error(smooth_crops: Tensor, parts: str) -> None:
    relu = build(smooth_crops, "relu")
    with pytest.raises(ConfigError, match=f"--replace-parts is {parts} .* has relu in the .*coder"):
        swap(relu, smooth_crops, "gdnish", parts)
    simplified = build(smooth_crops, "igdn1")
    with pytest.raises(ConfigError, match=r"igdn1 in the .*coder already"):
        swap(simplified, smooth_crops, "igdn1", parts)


def test_gdn_does_not_replace_gdn(smooth_crops: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"--act is gdn, .* expected relu, gdnish or igdn1"):
        swap(build(smooth_crops), smooth_crops, "gdn")


def test_a_fit_needs_photos_and_plain_does_not(smooth_crops: Tensor) -> None:
    model = build(smooth_crops)
    activation, fit = ActivationConfig(), ReplacementConfig()
    with pytest.raises(ConfigError, match="--replace-init fit needs photos"):
        replace_activations(model, activation, fit)
    new, _, notes = replace_activations(model, activation, ReplacementConfig(replace_init="plain"))
    assert new.config.decoder_activation == "relu"
    assert "cuts off half" in notes[0]


def test_a_wide_scale_table_is_carried_over(smooth_crops: Tensor) -> None:
    model = build(smooth_crops, arch="hyperprior")
    scales = torch.linspace(0.3, 30, 40)
    state = {**copy.deepcopy(model.state_dict()), "gaussian_conditional.scale_table": scales}
    model.load_state_dict(state)
    new = swap(model, smooth_crops[:2], "relu", init="plain").model
    assert isinstance(new, ScaleHyperprior) and torch.equal(new.levels, scales)
