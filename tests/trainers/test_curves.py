import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from lic.trainers.curves import TRAINING, VALIDATION, Curve, draw_curves, extent, smoothed, ticks


def rows(count: int, **names: float) -> list[dict[str, float | None]]:
    return [{"step": step, **{n: v / step for n, v in names.items()}} for step in range(1, count)]


def has(image: Image.Image, colour: str) -> bool:
    wanted = np.array(ImageColor.getrgb(colour))
    return bool((np.abs(np.asarray(image).astype(int) - wanted).max(axis=2) < 8).any())


def test_there_is_a_panel_for_each_thing_that_was_told() -> None:
    one = draw_curves(rows(9, loss=1.0))
    two = draw_curves(rows(9, loss=1.0, bpp=1.0))
    # PSNR comes of the error where it is not told.
    three = draw_curves(rows(9, loss=1.0, bpp=1.0, mse=1.0))
    assert two.size == (2 * one.width, one.height)
    assert three.size == (2 * one.width, 2 * one.height)


def test_training_and_validation_are_told_apart() -> None:
    training = draw_curves(rows(9, loss=1.0))
    both = draw_curves(rows(9, loss=1.0, val_loss=1.2))
    assert has(training, TRAINING)
    assert not has(training, VALIDATION)
    assert has(both, TRAINING)
    assert has(both, VALIDATION)


@pytest.mark.parametrize(
    "odd",
    [
        [],
        [{"step": 5}],
        [{"step": 1, "loss": 3.0}],
        [{"step": 0, "val_loss": 0.0}, {"step": 1, "loss": None}],
        [{"step": step, "loss": 2.0, "mse": 0.0} for step in range(1, 200)],
        [{"step": step, "val_psnr": -1e30 * step, "mse": math.nan} for step in range(1, 4)],
        [{"step": 2, "mse": 1e-30}, {"step": 1, "mse": None}],
    ],
)
def test_odd_metrics_are_drawn_all_the_same(odd: list[Any]) -> None:
    assert draw_curves(odd).mode == "RGB"


def test_ticks_are_round_inside_and_not_too_many() -> None:
    assert ticks(0, 20_000) == [0, 5000, 10000, 15000, 20000]
    assert ticks(28.3, 31.9) == [29, 30, 31]
    for low, high in [(0, 1), (0.95, 0.971), (-3, 2.5), (0, 3_000_000), (1e-9, 2e-9)]:
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert all(low <= tick <= high for tick in found)


def test_a_plunge_at_the_start_does_not_hide_what_follows() -> None:
    values = np.concatenate([[5000.0, 900.0], np.linspace(2, 1, 400)])
    low, high = extent(values)
    assert low < 1
    assert 2 < high < 3
    # Of a few values all are shown.
    assert extent(values[:5])[1] > 5000


def test_smoothing_keeps_the_mean_and_bounds_the_number() -> None:
    curve = Curve(np.arange(1000.0), np.random.default_rng(1).normal(size=1000))
    short = smoothed(curve, 100)
    assert len(short.steps) == 100
    assert float(short.values.mean()) == pytest.approx(float(curve.values.mean()))
    assert smoothed(short, 100) is short
