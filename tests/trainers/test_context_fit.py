"""Contexts fitted to symbols whose structure is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.entropy import Contexts, Tables, build_tables
from lic.codec.errors import ConfigError
from lic.trainers.context_data import saving
from lic.trainers.context_fit import FitOptions, fit_contexts

OPTIONS = FitOptions(steps=120, batch=512, tables=40)
CHANNELS = 10


def clouds(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Return logarithms of a scale (side, side) that change slowly."""
    coarse = rng.normal(size=(side // 4 + 2, side // 4 + 2))
    fine: NDArray[np.float64] = np.kron(coarse, np.ones((4, 4))).astype(np.float64)
    for axis in (0, 1):
        fine = (fine + np.roll(fine, 1, axis) + np.roll(fine, 2, axis) + np.roll(fine, 3, axis)) / 4
    log_scale: NDArray[np.float64] = 1.6 * fine[4 : side + 4, 4 : side + 4]
    return log_scale


def textured(seed: int, side: int = 24) -> NDArray[np.int16]:
    """Return symbols (C, h, w): where one channel is large, all are; channel 3 is smooth."""
    rng = np.random.default_rng(seed)
    scale = np.exp(clouds(rng, side))
    sizes = np.geomspace(3, 0.2, CHANNELS)[:, None, None]
    symbols = np.round(rng.laplace(size=(CHANNELS, side, side)) * sizes * scale)
    symbols[3] = np.round(25 * clouds(rng, side) + rng.normal(size=(side, side)))
    return np.clip(symbols, -3000, 3000).astype(np.int16)


def counted_tables(latents: list[NDArray[np.int16]]) -> Tables:
    """Return one table a channel, by counting."""
    pmfs, offsets = [], []
    for channel in range(CHANNELS):
        values = np.concatenate([each[channel].reshape(-1) for each in latents]).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        pmfs.append(np.append(np.bincount(values - low, minlength=high - low + 1) + 0.05, 0.05))
        offsets.append(low)
    return build_tables([pmf.astype(np.float64) for pmf in pmfs], offsets)


@pytest.fixture(scope="module")
def photos() -> list[NDArray[np.int16]]:
    return [textured(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def fitted(photos: list[NDArray[np.int16]]) -> Contexts:
    return fit_contexts(photos, OPTIONS)


def test_structure_saves_bits_on_pictures_that_were_not_seen(
    photos: list[NDArray[np.int16]], fitted: Contexts
) -> None:
    told = saving([textured(seed) for seed in range(50, 54)], counted_tables(photos), fitted)
    assert told.percent > 15


def test_a_smooth_channel_is_predicted(fitted: Contexts) -> None:
    assert fitted.order[fitted.predicted].tolist() == [3]
    assert fitted.weights.sum() == pytest.approx(64, abs=12)


def test_the_most_active_channels_come_first(fitted: Contexts) -> None:
    assert (np.diff(fitted.mean.astype(int)) <= 0).all()


def test_the_same_symbols_give_the_same_contexts(
    photos: list[NDArray[np.int16]], fitted: Contexts
) -> None:
    assert fit_contexts(photos, OPTIONS).digest() == fitted.digest()
    other = FitOptions(steps=OPTIONS.steps, batch=OPTIONS.batch, tables=OPTIONS.tables, seed=1)
    assert fit_contexts(photos, other).digest() != fitted.digest()


def test_noise_costs_hardly_more_than_with_plain_tables() -> None:
    rng = np.random.default_rng(0)
    latents = [
        np.round(rng.laplace(size=(CHANNELS, 20, 20)) * 2).astype(np.int16) for _ in range(10)
    ]
    fitted = fit_contexts(latents[:8], OPTIONS)
    assert saving(latents[8:], counted_tables(latents[:8]), fitted).percent > -1


def test_steps_are_told_and_tables_are_limited(photos: list[NDArray[np.int16]]) -> None:
    told: list[int] = []
    fitted = fit_contexts(photos[:2], FitOptions(steps=5, tables=3), told.append)
    assert told == [1, 2, 3, 4, 5]
    assert len(fitted.tables) <= 3


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels(channels: int) -> None:
    latents = [textured(0)[:channels], textured(1)[:channels]]
    fitted = fit_contexts(latents, FitOptions(steps=5))
    assert saving(latents, counted_tables([*map(_padded, latents)]), fitted).contexts > 0


def _padded(symbols: NDArray[np.int16]) -> NDArray[np.int16]:
    return np.concatenate([symbols] * CHANNELS)[:CHANNELS]


def test_dead_channels_and_tiny_pictures() -> None:
    latents = [np.zeros((CHANNELS, 1, 1), np.int16), np.zeros((CHANNELS, 2, 3), np.int16)]
    fitted = fit_contexts(latents, FitOptions(steps=3))
    assert len(fitted.predicted) == 0
    assert saving(latents, counted_tables(latents), fitted).contexts <= 40


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="no symbols"):
        fit_contexts([np.zeros((3, 0, 0), np.int16)])
    for name in ("tables", "steps", "batch"):
        arguments: dict[str, int] = {name: 0}
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            FitOptions(**arguments)
