"""Tables of scales from anywhere: weights decide them, and weights come from files."""

import math

import numpy as np
import pytest
import torch

from lic.codec.entropy import build_tables
from lic.codec.errors import NumericsError
from lic.codec.models.conditional import Conditional, GaussianConditional, GeneralizedGaussian
from lic.codec.models.likelihood import TAIL_MASS, WIDEST

DENSITIES = [GaussianConditional(torch.ones(1)), GeneralizedGaussian()]


@pytest.mark.parametrize("density", DENSITIES)
def test_the_widest_scale_takes_no_more_memory_than_a_wide_one(density: Conditional) -> None:
    rows, offsets = density.pmfs(torch.tensor([1.0, 1e5, 1e8, 3e38]))
    assert [len(row) for row in rows[1:]] == [2 * WIDEST + 2] * 3
    assert offsets[1:] == [-WIDEST] * 3
    assert len(build_tables(rows, offsets)) == 4


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("scale", [1500.0, 4096.0, 20000.0])
def test_what_lies_beyond_changes_no_table(density: Conditional, scale: float) -> None:
    rows, offsets = density.pmfs(torch.tensor([scale]))
    assert offsets == [-WIDEST]
    reach = math.ceil(scale * density.tail(TAIL_MASS / 2))
    values = torch.arange(-reach, reach + 1, dtype=torch.float64)
    whole = density.mass(values, torch.full_like(values, scale)).numpy()
    everything = np.append(whole, max(1 - math.fsum(whole), 0))
    assert build_tables(rows, offsets).digest() == build_tables([everything], [-reach]).digest()


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_that_are_no_numbers_are_named(density: Conditional, scale: float) -> None:
    with pytest.raises(NumericsError, match=f"scale 2 of 3 is {scale}"):
        density.pmfs(torch.tensor([1.0, 2.0, scale]))


def test_the_tails_place_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bisection, which takes longer than a table does."""
    density = GeneralizedGaussian()
    tail, calls = density.tail, []

    def counted(mass: float) -> float:
        calls.append(mass)
        return tail(mass)

    monkeypatch.setattr(density, "tail", counted)
    density.pmfs(torch.linspace(0.1, 60, 100))
    assert len(calls) == 1
