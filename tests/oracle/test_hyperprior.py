"""lic's scale hyperprior and CompressAI's are the same function, and choose the same scales.

Shapes: B batch, M latent channels, h w rows and columns of y.
"""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from compressai.models import ScaleHyperprior as Oracle
from torch import Tensor, nn

from lic.codec.models import ScaleHyperprior, bits, hyperprior_config
from lic.codec.models.adapters import detect_architecture, hyperprior_from_state_dict
from lic.codec.models.blocks import Activation
from lic.codec.models.conditional import scale_indexes

TOLERANCE = 1e-5


class Pair(NamedTuple):
    """A CompressAI model with random parameters and lic's model made from its state dict."""

    oracle: Any
    mine: ScaleHyperprior


def _oracle(n: int, m: int, activation: Activation) -> Any:
    """Return their model; they have none with ReLU, so that takes the place of each GDN."""
    model = Oracle(n, m)
    if activation == "relu":
        for transform in (model.g_a, model.g_s):
            for place in (1, 3, 5):
                transform[place] = nn.ReLU()
    return model.eval()


@pytest.fixture(scope="module", params=["gdn", "relu"])
def activation(request: pytest.FixtureRequest) -> Activation:
    kind: Activation = request.param
    return kind


@pytest.fixture(scope="module", params=["lite", "1", "8"])
def pair(request: pytest.FixtureRequest, activation: Activation) -> Pair:
    config = hyperprior_config(request.param)
    oracle = _oracle(config.N, config.M, activation)
    _randomise(oracle.state_dict())
    return Pair(oracle, hyperprior_from_state_dict(oracle.state_dict()))


def test_their_state_dict_gives_the_same_model(pair: Pair, activation: Activation) -> None:
    assert detect_architecture(pair.oracle.state_dict()) == "bmshj2018-hyperprior"
    assert pair.mine.config.encoder_activation == pair.mine.config.decoder_activation == activation
    _assert_same_outputs(pair.oracle, pair.mine)


def test_their_updated_state_dict_has_our_names_and_gives_the_same_model(pair: Pair) -> None:
    oracle = copy.deepcopy(pair.oracle)
    assert oracle.update()
    state = oracle.state_dict()
    mine = hyperprior_from_state_dict(state)
    shapes = {name: value.shape for name, value in mine.state_dict().items()}
    integer_tables = ("_offset", "_quantized_cdf", "_cdf_length")
    theirs = {
        name: torch.Size([0]) if name.endswith(integer_tables) else value.shape
        for name, value in state.items()
    }
    assert shapes == theirs
    standard = pair.mine.gaussian_conditional.scale_table
    assert torch.equal(mine.gaussian_conditional.scale_table, standard)
    _assert_same_outputs(oracle, mine)


def test_our_state_dict_loads_into_their_class(activation: Activation) -> None:
    mine = ScaleHyperprior(hyperprior_config("lite", activation)).eval()
    _randomise(mine.state_dict())
    oracle = _oracle(64, 96, activation)
    oracle.load_state_dict(mine.state_dict())
    assert oracle.update()
    _assert_same_outputs(oracle, mine)


@pytest.mark.parametrize("scales", [None, [0.2, 0.7, 1.5, 9.0]], ids=["standard", "their own"])
def test_scales_choose_the_same_tables(pair: Pair, scales: list[float] | None) -> None:
    oracle = copy.deepcopy(pair.oracle)
    assert oracle.update(scale_table=scales)
    mine = hyperprior_from_state_dict(oracle.state_dict())
    table = oracle.gaussian_conditional.scale_table
    assert torch.equal(mine.gaussian_conditional.scale_table, table)
    spread = torch.cat((torch.linspace(-1, 400, 200_001), table, torch.zeros(1)))
    indexes = scale_indexes(spread, mine.levels)
    assert torch.equal(indexes.int(), oracle.gaussian_conditional.build_indexes(spread))


def test_their_coder_decodes_to_our_y_hat(pair: Pair) -> None:
    oracle = copy.deepcopy(pair.oracle)
    oracle.update()
    x = _picture(1)
    with torch.no_grad():
        coded = oracle.compress(x)
        x_hat = oracle.decompress(**coded)["x_hat"]
        y = pair.mine.analyze(x)
        progress = pair.mine.begin(torch.round(pair.mine.hyper_analyze(y)))
        scales, means = pair.mine.parameters_of(0, progress)
        pair.mine.accept(0, progress, torch.round(y - means) + means)
        mine = pair.mine.synthesize(pair.mine.y_hat(progress)).clamp(0, 1)
    assert scales.std() > 0.2
    assert (mine - x_hat).abs().max() <= TOLERANCE


def test_training_steps_have_the_same_noise_and_gradients(activation: Activation) -> None:
    # In double precision: in single, CompressAI's difference of two sigmoids next to 1 loses the
    # likelihoods of one tail, and lic's does not.
    oracle = _oracle(16, 24, activation).train().double()
    _randomise(oracle.state_dict())
    mine = hyperprior_from_state_dict(oracle.state_dict()).double().train()
    # The adapter gives single precision: both start from the same parameters again.
    oracle.load_state_dict(mine.state_dict())
    gradients, wanted = _gradients(mine), _gradients(oracle)
    assert gradients.keys() == wanted.keys() > {"g_a.0.weight", "h_a.0.weight", "h_s.4.bias"}
    for name, gradient in gradients.items():
        assert wanted[name].abs().max() > 0, name
        assert (gradient - wanted[name]).abs().max() <= 1e-6 * wanted[name].abs().max(), name


def _assert_same_outputs(oracle: Any, mine: ScaleHyperprior) -> None:
    x = _picture(2)
    with torch.no_grad():
        y = oracle.g_a(x)
        scales = oracle.h_s(oracle.entropy_bottleneck(oracle.h_a(y.abs()))[0])
        x_hat, likelihoods = mine(x)
        wanted = oracle(x)
    # Latents that all round to nought, or scales that all are the same, would prove nothing.
    assert y.std() > 0.5 and scales.std() > 0.2 and wanted["x_hat"].std() > 0.05
    assert x_hat.shape == wanted["x_hat"].shape == x.shape
    assert (x_hat - wanted["x_hat"]).abs().max() <= TOLERANCE
    assert likelihoods.keys() == wanted["likelihoods"].keys()
    for name, values in likelihoods.items():
        assert values.std() > 0.01
        assert (values - wanted["likelihoods"][name]).abs().max() <= TOLERANCE


def _gradients(model: Any) -> dict[str, Tensor]:
    """Return those of one training step by parameter; the quantiles have none."""
    x = _picture(1).double()
    torch.manual_seed(7)
    output = model(x)
    x_hat, likelihoods = output.values() if isinstance(output, dict) else output
    torch.autograd.backward(bits(likelihoods) / 100 + ((x_hat - x) ** 2).sum())
    return {k: v.grad for k, v in model.named_parameters() if v.grad is not None}


def _picture(batch: int) -> Tensor:
    return torch.rand(batch, 3, 64, 128, generator=torch.Generator().manual_seed(3))


def _randomise(state: dict[str, Tensor]) -> None:
    """Set every parameter in place to values far from the initial ones."""
    generator = torch.Generator().manual_seed(5)

    def uniform(value: Tensor, low: float, high: float) -> None:
        value.uniform_(low, high, generator=generator)

    for name, value in state.items():
        leaf = name.removeprefix("entropy_bottleneck.").split(".")[0]
        if leaf == "matrices":
            uniform(value, -1.8, 0.4)
        elif leaf in ("biases", "factors"):
            uniform(value, -1, 1)
        elif leaf == "quantiles":
            for position, (low, high) in enumerate(((-30, -3), (-0.9, 0.9), (3, 30))):
                uniform(value[:, :, position], low, high)
        elif name.endswith(".beta"):
            uniform(value, 0.5, 1.5)
        elif name.endswith(".gamma"):
            uniform(value, -0.1, 0.2)
        elif name.endswith((".weight", ".bias")):
            # h_a and h_s have no normalisation: wider weights spread z and the scales.
            reach = 5 if name.startswith("h_") else 3
            spread = reach * value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            uniform(value, -spread, spread)
