"""lic's factorized-prior model and CompressAI's are the same function, and code as densely.

Shapes: M latent channels, h w latent rows and columns, L entries of the longest cdf.
"""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior as OracleGDN
from compressai.models.google import FactorizedPriorReLU as OracleReLU
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.entropy import Reader, Writer
from lic.codec.models import FactorizedPrior, bits, factorized_config
from lic.codec.models.adapters import factorized_from_state_dict
from lic.codec.models.blocks import Activation
from lic.codec.models.likelihood import EntropyBottleneck

ORACLES = {"gdn": OracleGDN, "relu": OracleReLU}
TOLERANCE = 1e-5


class Pair(NamedTuple):
    """A CompressAI model with random parameters and lic's model made from its state dict."""

    oracle: Any
    mine: FactorizedPrior


@pytest.fixture(scope="module", params=["gdn", "relu"])
def activation(request: pytest.FixtureRequest) -> Activation:
    kind: Activation = request.param
    return kind


@pytest.fixture(scope="module", params=["lite", "1", "8"])
def pair(request: pytest.FixtureRequest, activation: Activation) -> Pair:
    config = factorized_config(request.param)
    oracle = ORACLES[activation](config.N, config.M).eval()
    _randomise(oracle.state_dict())
    return Pair(oracle, factorized_from_state_dict(oracle.state_dict()))


def test_their_state_dict_gives_the_same_model(pair: Pair, activation: Activation) -> None:
    assert pair.mine.config.encoder_activation == pair.mine.config.decoder_activation == activation
    _assert_same_outputs(pair.oracle, pair.mine)


def test_their_state_dict_with_tables_gives_the_same_model(pair: Pair) -> None:
    oracle = copy.deepcopy(pair.oracle)
    assert oracle.update(force=True)
    mine = factorized_from_state_dict(oracle.state_dict())
    assert mine.entropy_bottleneck.quantiles.equal(pair.mine.entropy_bottleneck.quantiles)
    _assert_same_outputs(oracle, mine)


@pytest.mark.parametrize("size", ["lite", "1", "8"])
def test_our_state_dict_loads_into_their_class(size: str, activation: Activation) -> None:
    mine = FactorizedPrior(factorized_config(size, activation)).eval()
    _randomise(mine.state_dict())
    oracle = ORACLES[activation].from_state_dict(mine.state_dict()).eval()
    assert oracle.update()
    _assert_same_outputs(oracle, mine)


def test_training_steps_have_the_same_noise_and_gradients(activation: Activation) -> None:
    # In double precision: in single, CompressAI's difference of two sigmoids next to 1 loses the
    # likelihoods of one tail, and lic's does not.
    oracle = ORACLES[activation](16, 24).double()
    _randomise(oracle.state_dict())
    mine = factorized_from_state_dict(oracle.state_dict()).double().train()
    # The adapter gives single precision: both start from the same parameters again.
    oracle.load_state_dict(mine.state_dict())
    gradients, wanted = _gradients(mine), _gradients(oracle)
    assert gradients.keys() == wanted.keys() > {"g_a.0.weight", "entropy_bottleneck.matrices.0"}
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).abs().max() <= 1e-6 * wanted[name].abs().max(), name


def test_tables_by_their_construction_are_theirs(pair: Pair) -> None:
    pair.oracle.update(force=True)
    theirs = pair.oracle.entropy_bottleneck
    cdf, lengths, offsets = _their_tables(pair.mine.entropy_bottleneck)
    np.testing.assert_array_equal(cdf, theirs._quantized_cdf.numpy())
    np.testing.assert_array_equal(lengths, theirs._cdf_length.numpy())
    np.testing.assert_array_equal(offsets, theirs._offset.numpy())


def test_solved_quantiles_are_where_their_aux_loss_leads(pair: Pair) -> None:
    mine, theirs = copy.deepcopy(pair.mine), copy.deepcopy(pair.oracle.entropy_bottleneck)
    mine.entropy_bottleneck.solve_quantiles()
    quantiles = mine.entropy_bottleneck.quantiles
    with torch.no_grad():
        logits = theirs._logits_cumulative(quantiles, stop_gradient=True)
        theirs._update_quantiles()
        # Single precision cannot place a quantile better than to half its last bit.
        assert (logits - theirs.target).abs().max() < 1e-4
        distance = (theirs.quantiles - quantiles).abs()
    assert (distance <= 1e-3 + 1e-4 * quantiles.abs()).all()


def test_aux_loss_and_its_gradient_are_theirs(pair: Pair) -> None:
    mine, theirs = pair.mine.entropy_bottleneck, pair.oracle.entropy_bottleneck
    loss, wanted = mine.aux_loss(), theirs.loss()
    assert loss > 1 and abs(loss - wanted) <= TOLERANCE * wanted
    gradients = torch.autograd.grad(loss, [mine.quantiles])
    others = torch.autograd.grad(wanted, [theirs.quantiles])
    torch.testing.assert_close(gradients, others, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_both_coders_come_within_half_a_percent_of_the_ideal(scale: float) -> None:
    config = replace(factorized_config("lite"), N=8)
    mine = FactorizedPrior(config)
    _randomise(mine.state_dict())
    bottleneck = mine.entropy_bottleneck
    torch.manual_seed(0)
    bottleneck.init_scales(torch.linspace(scale / 2, 2 * scale, config.M))
    bottleneck.solve_quantiles()
    symbols, ideal = _sample(bottleneck, rows=48, columns=64)

    indexes = np.broadcast_to(np.arange(config.M)[:, None, None], symbols.shape)
    writer = Writer(bottleneck.tables().of_set(0))
    writer.code(symbols, indexes)
    streams = writer.finish()
    assert np.array_equal(
        Reader(bottleneck.tables().of_set(0), streams).code(None, indexes), symbols
    )

    theirs = OracleGDN.from_state_dict(mine.state_dict()).entropy_bottleneck
    theirs.update()
    y_hat = bottleneck.dequantize(torch.from_numpy(symbols)[None].float())
    (string,) = theirs.compress(y_hat)

    for size in (sum(map(len, streams)), len(string)):
        assert 0.997 * ideal < 8 * size < 1.005 * ideal


def _assert_same_outputs(oracle: Any, mine: FactorizedPrior) -> None:
    x = _picture(2)
    with torch.no_grad():
        y = oracle.g_a(x)
        x_hat, likelihoods = _output(mine(x))
        wanted, wanted_likelihoods = _output(oracle(x))
    # Latents that all round to the median would prove nothing.
    assert y.std() > 0.5 and likelihoods.std() > 0.01 and wanted.std() > 0.05
    assert x_hat.shape == wanted.shape == x.shape
    assert (x_hat - wanted).abs().max() <= TOLERANCE
    assert (likelihoods - wanted_likelihoods).abs().max() <= TOLERANCE


def _gradients(model: Any) -> dict[str, Tensor]:
    """Return those of one training step by parameter; the quantiles have none."""
    x = _picture(1).double()
    torch.manual_seed(7)
    x_hat, likelihoods = _output(model(x))
    torch.autograd.backward(bits({"y": likelihoods}) / 100 + ((x_hat - x) ** 2).sum())
    return {k: v.grad for k, v in model.named_parameters() if v.grad is not None}


def _picture(batch: int) -> Tensor:
    return torch.rand(batch, 3, 48, 64, generator=torch.Generator().manual_seed(3))


def _output(output: Any) -> tuple[Tensor, Tensor]:
    """Return x_hat and the likelihoods of y from either project's forward pass."""
    x_hat, likelihoods = output.values() if isinstance(output, dict) else output
    return x_hat, likelihoods["y"]


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
            ranges = ((-30, -3), (-0.9, 0.9), (3, 30))
            for position, (low, high) in enumerate(ranges):
                uniform(value[:, :, position], low, high)
        elif name.endswith(".beta"):
            uniform(value, 0.5, 1.5)
        elif name.endswith(".gamma"):
            uniform(value, -0.1, 0.2)
        elif name.endswith((".weight", ".bias")):
            spread = 3 * value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            uniform(value, -spread, spread)


def _their_tables(
    bottleneck: EntropyBottleneck,
) -> tuple[NDArray[np.int32], list[int], list[int]]:
    """Return 16-bit cdfs (M, L), their lengths and offsets as CompressAI builds them."""
    quantiles = bottleneck.quantiles.detach()[:, 0]
    medians = quantiles[:, 1]
    minima = torch.ceil(medians - quantiles[:, 0]).clamp(min=0).int()
    maxima = torch.ceil(quantiles[:, 2] - medians).clamp(min=0).int()
    lengths = (minima + maxima + 1).tolist()
    values = torch.arange(max(lengths)) + (medians - minima)[:, None, None]
    with torch.no_grad():
        lower = bottleneck.logits_cumulative(values - 0.5)[:, 0]
        upper = bottleneck.logits_cumulative(values + 0.5)[:, 0]
    pmf = torch.sigmoid(upper) - torch.sigmoid(lower)
    escape = torch.sigmoid(lower[:, :1]) + torch.sigmoid(-upper[:, -1:])
    cdf = np.zeros((len(lengths), max(lengths) + 2), np.int32)
    for row, length in enumerate(lengths):
        cdf[row, : length + 2] = _their_cdf(torch.cat((pmf[row, :length], escape[row])).numpy())
    return cdf, [length + 2 for length in lengths], (-minima).tolist()


def _their_cdf(pmf: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the cdf (L + 1,) of a pmf (L,): rounded, rescaled, empty slots filled by theft."""
    total = 1 << 16
    # Half away from zero in single precision, as std::round does.
    slots = np.floor((pmf * np.float32(total)).astype(np.float64) + 0.5).astype(np.int64)
    cdf = np.concatenate([[0], np.cumsum(total * slots // slots.sum())])
    cdf[-1] = total
    for slot in range(len(pmf)):
        widths = np.diff(cdf)
        if widths[slot]:
            continue
        victim = int(np.where(widths > 1, widths, total + 1).argmin())
        if victim < slot:
            cdf[victim + 1 : slot + 1] -= 1
        else:
            cdf[slot + 1 : victim + 1] += 1
    return cdf


def _sample(
    bottleneck: EntropyBottleneck, rows: int, columns: int
) -> tuple[NDArray[np.int16], float]:
    """Return symbols (M, rows, columns) drawn from the densities, and their information in bits."""
    rng = np.random.default_rng(11)
    planes, information = [], 0.0
    for pmf, offset in zip(*bottleneck.pmfs(), strict=True):
        inside = pmf[:-1] / pmf[:-1].sum()
        slots = rng.choice(len(inside), size=(rows, columns), p=inside)
        information -= float(np.log2(pmf[slots]).sum())
        planes.append(slots + offset)
    return np.stack(planes).astype(np.int16), information
