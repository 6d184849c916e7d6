import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lic.codec.errors import NumericsError
from lic.codec.models.likelihood import LIKELIHOOD_BOUND, TAIL_MASS, EntropyBottleneck

CHANNELS = 12
SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_integers_share_all_of_the_mass(seed: int) -> None:
    bottleneck = _random_bottleneck(seed).double()
    steps = torch.arange(-3000, 3001, dtype=torch.float64)
    with torch.no_grad():
        values = bottleneck.medians.reshape(-1, 1, 1) + steps
        mass = bottleneck.interval_probability(values)
    assert (mass >= 0).all()
    np.testing.assert_allclose(mass.sum(dim=2), 1, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_cumulative_densities_never_fall(seed: int) -> None:
    with torch.no_grad():
        values = torch.linspace(-50, 50, 2001, dtype=torch.float64).expand(CHANNELS, 1, -1)
        logits = _random_bottleneck(seed).logits_cumulative(values)
    assert (logits.diff(dim=2) > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_solved_quantiles_cut_off_the_tail_mass(seed: int) -> None:
    bottleneck = _random_bottleneck(seed)
    bottleneck.solve_quantiles()
    with torch.no_grad():
        cumulative = torch.sigmoid(bottleneck.logits_cumulative(bottleneck.quantiles.double()))
    wanted = torch.tensor([TAIL_MASS / 2, 0.5]).double().expand(CHANNELS, 1, 2)
    # Single precision places a quantile to a few parts in 10^7, and tails are steep.
    torch.testing.assert_close(cumulative[..., :2], wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(1 - cumulative[..., 2], wanted[..., 0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_solved_quantiles_leave_no_aux_loss(seed: int) -> None:
    bottleneck = _random_bottleneck(seed)
    assert bottleneck.aux_loss() > 10
    bottleneck.solve_quantiles()
    assert bottleneck.aux_loss() < 1e-3


def test_only_the_quantiles_learn_from_the_aux_loss() -> None:
    bottleneck = _random_bottleneck(0)
    torch.autograd.backward(bottleneck.aux_loss())
    learning = {k for k, v in bottleneck.named_parameters() if v.grad is not None}
    assert learning == {"quantiles"}
    assert bottleneck.quantiles.grad is not None and bottleneck.quantiles.grad.all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["matrices.1", "biases.0", "factors.2", "quantiles"])
def test_parameters_that_are_no_numbers_give_no_tables(name: str, value: float) -> None:
    bottleneck = _random_bottleneck(0)
    with torch.no_grad():
        bottleneck.get_parameter(name)[7].reshape(-1)[-1] = value
    with pytest.raises(NumericsError, match="channel 7 has NaN or infinite parameters"):
        bottleneck.tables()


@pytest.mark.parametrize(
    "name, value", [("matrices.1", math.nan), ("biases.0", math.inf), ("factors.2", math.nan)]
)
def test_parameters_that_are_no_numbers_give_no_quantiles(name: str, value: float) -> None:
    bottleneck = _random_bottleneck(0)
    with torch.no_grad():
        bottleneck.get_parameter(name)[7].fill_(value)
    with pytest.raises(NumericsError, match=r"channel 7 .*NaN parameters"):
        bottleneck.solve_quantiles()


def test_a_density_without_tails_is_refused_and_the_quantiles_stay() -> None:
    bottleneck = _random_bottleneck(0)
    before = bottleneck.quantiles.detach().clone()
    with torch.no_grad():
        bottleneck.matrices[0][3].fill_(-100)
    with pytest.raises(NumericsError, match="channel 3 has no finite tail"):
        bottleneck.solve_quantiles()
    assert torch.equal(bottleneck.quantiles, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_tables_cost_hardly_more_than_the_density(seed: int) -> None:
    bottleneck = _random_bottleneck(seed)
    bottleneck.solve_quantiles()
    tables = bottleneck.tables()
    assert (len(tables), tables.sets) == (9 * CHANNELS, 9)
    tables = tables.of_set(4)
    rows = zip(tables.quantized_cdf.astype(np.int64), tables.cdf_length, tables.offset, strict=True)
    for channel, (cdf, length, offset) in enumerate(rows):
        frequencies = np.diff(cdf[:length]) / 2**14
        symbols = torch.arange(int(length) - 2) + int(offset)
        mass = _mass(bottleneck, channel, symbols)
        assert mass.sum() > 0.999, "the table misses symbols that occur"
        excess = float((mass * np.log2(mass / frequencies[:-1])).sum())
        assert 0 <= excess + 1e-3 < 0.03


def test_wide_densities_keep_their_frequent_symbols() -> None:
    bottleneck = _random_bottleneck(0)
    bottleneck.init_scales(torch.full((CHANNELS,), 60.0))
    bottleneck.solve_quantiles()
    assert (bottleneck.quantiles[:, 0, 2] - bottleneck.quantiles[:, 0, 0] > 300).all()
    tables = bottleneck.tables().of_set(4)
    assert (tables.cdf_length == 257).all()
    assert (tables.offset < -60).all() and (tables.offset > -195).all()


def test_absurdly_wide_densities_take_no_absurd_memory() -> None:
    bottleneck = _random_bottleneck(0)
    with torch.no_grad():
        bottleneck.quantiles[2] = torch.tensor([-1e9, 0.0, 1e9])
    pmfs, _ = bottleneck.pmfs()
    assert max(map(len, pmfs)) < 10_000
    assert 10 < bottleneck.tables().of_set(4).cdf_length[2] <= 257


def test_pmfs_start_at_their_offset_and_end_with_the_rest() -> None:
    bottleneck = _random_bottleneck(1)
    bottleneck.solve_quantiles()
    for channel, (pmf, offset) in enumerate(zip(*bottleneck.pmfs(), strict=True)):
        symbols = torch.arange(len(pmf) - 1) + offset
        np.testing.assert_allclose(pmf[:-1], _mass(bottleneck, channel, symbols), rtol=1e-9)
        assert pmf.sum() == pytest.approx(1, abs=1e-12) and 0 <= pmf[-1] < 1e-8


def test_single_precision_keeps_both_tails() -> None:
    bottleneck = _random_bottleneck(2)
    bottleneck.solve_quantiles()
    low, high = (bottleneck.quantiles.detach()[:, 0, i, None, None] for i in (0, 2))
    values = low + (high - low) * torch.linspace(0, 1, 101)
    with torch.no_grad():
        single = bottleneck.interval_probability(values)
        double = bottleneck.interval_probability(values.double())
    # Far above what single precision could hold next to a sigmoid of 1.
    assert 0 < double[..., -1].max() < 1e-7
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=0)


def test_evaluation_gives_every_channel_its_own_density() -> None:
    bottleneck = _random_bottleneck(3)
    bottleneck.solve_quantiles()
    y = 3 * torch.randn(2, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y_hat, likelihoods = bottleneck(y, training=False)
        symbols = bottleneck.quantize(y)
    assert torch.equal(y_hat, bottleneck.dequantize(symbols))
    assert (y_hat - y).abs().max() <= 0.5 + 1e-6
    assert torch.equal(symbols, symbols.round()) and symbols.abs().max() > 5
    for n, channel in itertools.product(range(2), range(CHANNELS)):
        mass = _mass(bottleneck, channel, symbols[n, channel].reshape(-1).int())
        wanted = np.maximum(mass, LIKELIHOOD_BOUND)
        np.testing.assert_allclose(likelihoods[n, channel].reshape(-1), wanted, rtol=1e-3)


def test_training_adds_noise_of_one_step_and_does_not_round() -> None:
    bottleneck = _random_bottleneck(3).eval()
    y = torch.zeros(4, CHANNELS, 40, 40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise, _ = bottleneck(y, training=True)
        again, _ = bottleneck.train()(y)
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() <= 0.5
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(12**-0.5, rel=0.02)
    assert not torch.equal(noise, again)


def test_likelihoods_have_a_floor_and_still_a_gradient_there() -> None:
    bottleneck = _random_bottleneck(0).train()
    bottleneck.init_scales(torch.ones(CHANNELS))
    y = torch.full((1, CHANNELS, 1, 1), 30.0)
    _, likelihoods = bottleneck(y, training=False)
    assert (likelihoods == LIKELIHOOD_BOUND).all()
    values = torch.full((CHANNELS, 1, 1), 30.0, requires_grad=True)
    bounded = bottleneck.likelihood_lower_bound(bottleneck.interval_probability(values))
    assert torch.equal(bounded, likelihoods.reshape(bounded.shape))
    (gradient,) = torch.autograd.grad(-torch.log2(bounded).sum(), values)
    assert (gradient > 0).all(), "a latent far out does not learn to come back"


def test_initial_widths_follow_the_deviations() -> None:
    bottleneck = _random_bottleneck(0)
    widths = []
    for deviation in (0.25, 1.0, 4.0, 16.0):
        bottleneck.init_scales(torch.full((CHANNELS,), deviation))
        for factor in bottleneck.factors:
            torch.nn.init.zeros_(factor)
        bottleneck.solve_quantiles()
        widths.append((bottleneck.quantiles[:, 0, 2] - bottleneck.quantiles[:, 0, 0]).detach())
    for narrow, wide in itertools.pairwise(widths):
        torch.testing.assert_close(wide / narrow, torch.full_like(wide, 4), rtol=1e-3, atol=0)


def _random_bottleneck(seed: int) -> EntropyBottleneck:
    generator = torch.Generator().manual_seed(seed)
    bottleneck = EntropyBottleneck(CHANNELS)
    with torch.no_grad():
        for matrix in bottleneck.matrices:
            matrix.uniform_(-1.8, 0.4, generator=generator)
        for parameter in (*bottleneck.biases, *bottleneck.factors):
            parameter.uniform_(-1, 1, generator=generator)
    return bottleneck


def _mass(
    bottleneck: EntropyBottleneck, channel: int, symbols: torch.Tensor
) -> NDArray[np.float64]:
    """Return the masses of symbols (n,) by the density's definition, in double precision."""
    median = bottleneck.quantiles[channel, 0, 1].double()
    edges = torch.stack([symbols - 0.5, symbols + 0.5]).double().reshape(1, 1, -1) + median
    with torch.no_grad():
        logits = bottleneck.logits_cumulative(edges.expand(CHANNELS, 1, -1))[channel, 0]
    # Mirrored: a difference of two numbers next to 1 would lose the upper tail.
    lower, upper = logits.reshape(2, -1)
    above = torch.sigmoid(-lower) - torch.sigmoid(-upper)
    below = torch.sigmoid(upper) - torch.sigmoid(lower)
    return torch.where(lower > 0, above, below).numpy()
