import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedConfig, FactorizedPrior, bits, factorized_config
from lic.codec.models.blocks import Activation
from lic.codec.models.gdnish import DecoderGain, EncoderGain

MakeModel = Callable[..., FactorizedPrior]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> FactorizedPrior:
    return make_model()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 15), (33, 64)])
def test_any_picture_size_works(model: FactorizedPrior, size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = -(-height // 16), -(-width // 16)
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model.analyze(x)
        x_hat, likelihoods = model(x)
    assert y.shape == likelihoods["y"].shape == (2, 12, rows, columns)
    assert model.synthesize(y).shape == (2, 3, 16 * rows, 16 * columns)
    assert x_hat.shape == x.shape


@pytest.mark.parametrize(
    "size, total, g_a, g_s, bottleneck",
    [("1", 2_998_147, 1_493_312, 1_493_123, 11_712), ("8", 7_030_531, None, None, 320 * 61)],
)
def test_parameter_counts_are_those_of_the_published_models(
    size: str, total: int, g_a: int | None, g_s: int | None, bottleneck: int
) -> None:
    model = _meta(factorized_config(size))
    assert _count(model) == total
    assert _count(model.entropy_bottleneck) == bottleneck
    if g_a is not None:
        assert (_count(model.g_a), _count(model.g_s)) == (g_a, g_s)


def test_qualities_have_the_papers_widths() -> None:
    widths = [(c.N, c.M) for c in (factorized_config(str(q)) for q in range(1, 9))]
    assert widths == [(128, 192)] * 5 + [(192, 320)] * 3
    lite = factorized_config("lite", "relu")
    assert (lite.N, lite.M, lite.encoder_activation, lite.decoder_activation) == (
        64,
        96,
        "relu",
        "relu",
    )


def test_state_dict_has_the_names_and_shapes_of_compressai() -> None:
    shapes = {
        name: tuple(v.shape) for name, v in _meta(factorized_config("1")).state_dict().items()
    }
    assert shapes == _published_shapes(128, 192)


def test_relu_models_lack_only_the_normalisations() -> None:
    shapes = _meta(factorized_config("1", "relu")).state_dict().keys()
    wanted = [k for k in _published_shapes(128, 192) if "beta" not in k and "gamma" not in k]
    assert shapes == set(wanted)


def test_evaluation_rounds_and_repeats_exactly(model: FactorizedPrior) -> None:
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = model(x), model(x)
        medians = model.entropy_bottleneck.medians
        y_hat = torch.round(model.analyze(x) - medians) + medians
        assert y_hat.std() > 0.5
        assert torch.equal(first.x_hat, model.synthesize(y_hat))
    assert torch.equal(first.x_hat, second.x_hat)
    assert torch.equal(first.likelihoods["y"], second.likelihoods["y"])


def test_training_adds_noise(make_model: MakeModel) -> None:
    model = make_model().train()
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model(x).x_hat, model(x).x_hat)


def test_every_parameter_but_the_quantiles_learns_from_a_picture(make_model: MakeModel) -> None:
    model = make_model().train()
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    x_hat, likelihoods = model(x)
    torch.autograd.backward(bits(likelihoods) + (x_hat - x).square().sum())
    idle = {k for k, v in model.named_parameters() if v.grad is None or not v.grad.any()}
    assert idle == {"entropy_bottleneck.quantiles"}


def test_bits_count_the_information_of_all_latents() -> None:
    likelihoods = {"y": torch.full((1, 2, 3, 4), 0.25), "z": torch.full((1, 1, 1, 5), 0.5)}
    assert float(bits(likelihoods)) == 24 * 2 + 5


@pytest.mark.parametrize(
    "options, named",
    [
        ({"N": 0}, "N is 0"),
        ({"N": -8}, "N is -8"),
        ({"M": 4097}, "M is 4097"),
        ({"N": 8.5}, "N is 8.5"),
        ({"N": "8"}, "N is '8'"),
        ({"encoder_activation": "selu"}, "encoder_activation is 'selu'"),
        ({"decoder_activation": ""}, "decoder_activation is ''"),
        ({"encoder_gain": EncoderGain()}, "encoder_gain is for gdnish, .* is 'gdn'"),
        ({"decoder_gain": DecoderGain()}, "decoder_gain is for gdnish, .* is 'gdn'"),
    ],
)
def test_configs_that_cannot_work_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FactorizedConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"N": "8"},
        {"K": 8},
        {"M": None},
        {"encoder_activation": "gdnish", "encoder_gain": {"k": 3}},
        {"decoder_activation": "gdnish", "decoder_gain": {"gmin": 9}},
        {"decoder_gain": None},
    ],
)
def test_dictionaries_that_are_no_config_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="bmshj2018-factorized"):
        FactorizedPrior.from_dict(options)


@pytest.mark.parametrize("size", ["0", "9", "", "Lite"])
def test_unknown_sizes_are_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="expected one of lite, 1, 2"):
        factorized_config(size)


def test_a_config_survives_its_dictionary() -> None:
    config = FactorizedConfig(N=8, M=12, encoder_activation="relu", decoder_activation="igdn1")
    assert FactorizedPrior.from_dict(config.to_dict()).config == config


def test_a_config_with_gain_blocks_survives_its_dictionary() -> None:
    config = FactorizedConfig(
        N=8,
        M=12,
        encoder_activation="gdnish",
        decoder_activation="gdnish",
        encoder_gain=EncoderGain(t=3, eca=True),
        decoder_gain=DecoderGain(gmax=2),
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert FactorizedPrior.from_dict(values).config == config
    # Options that nobody told are the defaults, and said so from then on.
    plain = FactorizedConfig(N=8, M=12, decoder_activation="gdnish")
    assert plain.to_dict()["decoder_gain"] == DecoderGain().to_dict()


@pytest.mark.parametrize("act", ["gdn", "relu", "igdn1"])
def test_configs_without_gain_blocks_are_what_they_were_before_there_were_any(
    act: Activation,
) -> None:
    """Bundles' fingerprints cover the config: another entry would orphan every file."""
    assert factorized_config("lite", act).to_dict() == {
        "N": 64,
        "M": 96,
        "encoder_activation": act,
        "decoder_activation": act,
    }


@pytest.mark.parametrize("size", [(1, 1), (17, 40)])
def test_models_with_gain_blocks_take_any_picture_and_learn_everywhere(
    make_model: MakeModel, size: tuple[int, int]
) -> None:
    model = make_model("gdnish", "gdnish").train()
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    x_hat, likelihoods = model(x)
    assert x_hat.shape == x.shape
    torch.autograd.backward(bits(likelihoods) + (x_hat - x).square().sum())
    idle = {k for k, v in model.named_parameters() if v.grad is None or not v.grad.any()}
    assert idle == {"entropy_bottleneck.quantiles"} or size == (1, 1)


def _meta(config: FactorizedConfig) -> FactorizedPrior:
    with torch.device("meta"):
        return FactorizedPrior(config)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _published_shapes(n: int, m: int) -> dict[str, tuple[int, ...]]:
    """Return the keys of CompressAI 1.2.8's `FactorizedPrior(n, m)` and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for side, convs in (
        ("g_a", ((n, 3), (n, n), (n, n), (m, n))),
        ("g_s", ((m, n), (n, n), (n, n), (n, 3))),
    ):
        for layer, pair in zip((0, 2, 4, 6), convs, strict=True):
            shapes[f"{side}.{layer}.weight"] = (*pair, 5, 5)
            shapes[f"{side}.{layer}.bias"] = (pair[side == "g_s"],)
        for layer in (1, 3, 5):
            shapes |= {f"{side}.{layer}.beta": (n,), f"{side}.{layer}.gamma": (n, n)}
            for reparam in ("beta_reparam", "gamma_reparam"):
                shapes[f"{side}.{layer}.{reparam}.pedestal"] = (1,)
                shapes[f"{side}.{layer}.{reparam}.lower_bound.bound"] = (1,)
    bottleneck: dict[str, tuple[int, ...]] = {
        "quantiles": (m, 1, 3),
        "target": (3,),
        "likelihood_lower_bound.bound": (1,),
        **dict.fromkeys(("_offset", "_quantized_cdf", "_cdf_length"), (0,)),
        **dict(zip([f"matrices.{i}" for i in range(5)], _matrices(m), strict=True)),
        **{f"biases.{i}": (m, 3, 1) for i in range(4)},
        "biases.4": (m, 1, 1),
        **{f"factors.{i}": (m, 3, 1) for i in range(4)},
    }
    return shapes | {f"entropy_bottleneck.{name}": shape for name, shape in bottleneck.items()}


def _matrices(m: int) -> list[tuple[int, ...]]:
    return [(m, 3, 1), (m, 3, 3), (m, 3, 3), (m, 3, 3), (m, 1, 3)]
