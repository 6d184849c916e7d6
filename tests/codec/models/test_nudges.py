"""Nudges: another machine's rounding selects the same tables."""

import numpy as np
import pytest
import torch

import lic.codec.nudges
from lic.codec.models.conditional import scale_indexes, scale_table
from lic.codec.models.nudges import Nudger
from lic.codec.nudges import BLOCK, CLEARANCE, NUDGES, block_count, pmf

TABLE = scale_table(0.12, 64.0, 60)
# What machines were seen to differ by.
NOISE = 5e-6


def _scales(kind: str, count: int = 50_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    normal = torch.randn(count, generator=generator)
    return {
        # Low rates: most latents below the smallest scale, some of them negative.
        "few": 0.08 + 0.15 * normal,
        # High rates: all between 0.3 and 20.
        "many": torch.exp(1 + 0.8 * normal),
        "hyper": torch.exp(-1.5 + normal),
    }[kind]


def _noisy(scales: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE * (2 * torch.rand(scales.shape, generator=generator) - 1)
    return scales + noise * scales.clamp(min=1)


@pytest.mark.parametrize("kind", ["few", "many", "hyper"])
def test_noise_of_the_size_seen_changes_no_table(kind: str) -> None:
    nudger, scales = Nudger(TABLE), _scales(kind)
    nudges = nudger.choose(scales)
    levels = nudger.levels(scales, nudges)
    plain_flips = 0
    for seed in range(20):
        other = _noisy(scales, seed)
        assert torch.equal(nudger.levels(other, nudges), levels)
        plain_flips += int((scale_indexes(other, TABLE) != scale_indexes(scales, TABLE)).sum())
    assert plain_flips > 20, "without nudges the noise does no harm here: the test shows nothing"


def test_levels_are_those_of_nearby_scales() -> None:
    """At most one level from rounding up, never by rounding more than a level down."""
    nudger, scales = Nudger(TABLE), _scales("many")
    up = scale_indexes(scales, TABLE)
    for nudge in (0, 1, 2, NUDGES - 1):
        nudges = torch.full((block_count(len(scales)),), nudge)
        moved = nudger.levels(scales, nudges) - up
        assert set(moved.tolist()) <= {-1, 0}
        assert (moved == -1).any() and (moved == 0).any()


def test_nearest_levels_come_first() -> None:
    """In a clear block the first nudge serves: it is the cheapest to tell."""
    scales = torch.full((BLOCK + 1,), 0.01)
    nudger = Nudger(TABLE)
    assert nudger.choose(scales).tolist() == [0, 0]
    assert torch.equal(nudger.levels(scales, nudger.choose(scales)), torch.zeros(BLOCK + 1).long())
    mass = pmf()
    assert len(mass) == NUDGES + 1
    assert mass[-1] == 0
    assert (np.diff(mass) < 0).all()
    assert -np.log2(mass[0]) < 1


def test_a_block_for_which_nothing_is_clear_gets_the_clearest() -> None:
    # One scale at every 1e-5: whatever the factor, some are next to a boundary.
    scales = torch.linspace(0.12, 0.12 + 1e-5 * BLOCK, BLOCK)
    nudger = Nudger(TABLE)
    (nudge,) = nudger.choose(scales).tolist()
    clearances = [float(nudger._clearance(scales * factor).min()) for factor in nudger._factors]
    assert max(clearances) < CLEARANCE
    assert clearances[nudge] == max(clearances)


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (2, 40, 32, 48), (1, 3, 64, 64), (0,)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    nudger = Nudger(TABLE)
    nudges = nudger.choose(scales)
    assert len(nudges) == block_count(scales.numel())
    assert nudger.levels(scales, nudges).shape == shape


def test_scales_that_are_no_numbers_do_not_stop_the_choice() -> None:
    scales = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    nudger = Nudger(TABLE)
    levels = nudger.levels(scales, nudger.choose(scales))
    assert levels[:3].tolist() == [59, 59, 0]


@pytest.mark.parametrize("kind", ["few", "many", "hyper"])
def test_without_torch_it_is_the_same(kind: str) -> None:
    scales = _scales(kind)
    nudges = Nudger(TABLE).choose(scales)
    plain = lic.codec.nudges.Nudger(TABLE.numpy())
    assert plain.choose(scales.numpy()).tolist() == nudges.tolist()
    levels = plain.levels(scales.numpy(), nudges.numpy().astype(np.int16))
    assert np.array_equal(levels, Nudger(TABLE).levels(scales, nudges).numpy())
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 64.0, 1e30])
    first = torch.zeros(1, dtype=torch.int64)
    expected = Nudger(TABLE).levels(odd, first).tolist()
    assert plain.levels(odd.numpy(), np.zeros(1, np.int16)).tolist() == expected
