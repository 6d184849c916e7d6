"""The order of HPCM's latents, held against definitions that share no code with it."""

import numpy as np
import pytest
import torch

from lic.codec.models import hierarchy
from lic.codec.models.hierarchy import (
    COARSE_OF_S2,
    COARSE_OF_S3,
    STEPS,
    coarse_patterns,
    coarsen,
    fold,
    scrambled_without_s1,
    spread,
    step_patterns,
    up,
    without,
)

SIZES = [(4, 4), (4, 12), (8, 4), (16, 24)]


def _numbers(channels: int, height: int, width: int, batch: int = 2) -> torch.Tensor:
    count = batch * channels * height * width
    return torch.arange(1, count + 1, dtype=torch.float64).reshape(batch, channels, height, width)


def test_eleven_steps_over_three_scales() -> None:
    assert [step.name for step in STEPS] == ["s1"] * 2 + ["s2"] * 3 + ["s3"] * 6


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_latent_is_coded_exactly_once(height: int, width: int) -> None:
    y = _numbers(16, 4 * height, 4 * width)
    scales = (coarsen(coarsen(y, COARSE_OF_S3), COARSE_OF_S2), coarsen(y, COARSE_OF_S3), y)
    coded = [
        fold(scales[step.scale], sites) for step, sites in zip(STEPS, step_patterns(), strict=True)
    ]
    everything = torch.cat([part.flatten() for part in coded])
    assert torch.equal(everything.sort().values, y.flatten())
    shares = [
        sum(c.numel() for c, s in zip(coded, STEPS, strict=True) if s.scale == n) for n in range(3)
    ]
    assert [share / y.numel() for share in shares] == [1 / 16, 3 / 16, 12 / 16]


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_spread_undoes_fold(step: int) -> None:
    sites = step_patterns()[step]
    x = _numbers(16, 8, 12)
    kept = spread(fold(x, sites), sites)
    cells = sites.shape[-1]
    mask = sites.expand(-1, 16 // sites.shape[0], 8 // cells, -1, 12 // cells, -1)
    assert torch.equal(kept, x * mask.reshape(1, 16, 8, 12))


def test_the_checkerboard_of_s1() -> None:
    first, second = step_patterns()[:2]
    folded = fold(_numbers(4, 4, 4, batch=1), first)
    for row in range(4):
        for column in range(4):
            half = (row + column) % 2
            expected = 1 + 16 * (2 * half) + 4 * row + column
            assert folded[0, 0, row, column] == expected
    assert torch.equal(second, 1 - first)


@pytest.mark.parametrize(
    ("sites", "coarse"), list(zip(coarse_patterns(), (COARSE_OF_S2, COARSE_OF_S3), strict=True))
)
def test_up_puts_back_what_coarsen_took(
    sites: torch.Tensor, coarse: tuple[hierarchy.Site, ...]
) -> None:
    x = _numbers(16, 8, 12)
    taken = up(coarsen(x, coarse), sites)
    for group, (row, column) in enumerate(coarse):
        size = 16 // len(coarse)
        channels = slice(group * size, (group + 1) * size)
        wanted = torch.zeros_like(x[:, channels])
        wanted[..., row::2, column::2] = x[:, channels, row::2, column::2]
        assert torch.equal(taken[:, channels], wanted)
    assert torch.equal(taken + without(x, sites), x)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_scramble_is_a_selection_written_in_raster_order(height: int, width: int) -> None:
    """Upstream takes what is not at one site of each cell, and writes it where another is not."""
    x = _numbers(8, height, width)
    skipped_when_read = ((0, 0), (0, 0), (0, 1), (0, 1))
    found = scrambled_without_s1(x).numpy()
    for quarter, (read, written) in enumerate(zip(skipped_when_read, COARSE_OF_S2, strict=True)):
        source, target = np.ones((2, height, width), bool)
        source[read[0] :: 2, read[1] :: 2] = False
        target[written[0] :: 2, written[1] :: 2] = False
        for image in range(2):
            for channel in (2 * quarter, 2 * quarter + 1):
                wanted = np.zeros((height, width))
                wanted[target] = x[image, channel].numpy()[source]
                np.testing.assert_array_equal(found[image, channel], wanted)


def test_the_scramble_moves_three_quarters_of_the_channels() -> None:
    x = _numbers(8, 8, 8)
    right = without(x, coarse_patterns()[0])
    same = [(scrambled_without_s1(x)[:, c] == right[:, c]).all().item() for c in range(8)]
    assert same == [True] * 2 + [False] * 6
