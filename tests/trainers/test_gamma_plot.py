from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from lic.codec.errors import OutputError
from lic.trainers.curves import COLOURS
from lic.trainers.gamma import build_gamma
from lic.trainers.gamma_plot import curves, plot
from lic.trainers.objective_options import GammaConfig


def test_every_schedule_has_its_curve() -> None:
    found = curves(GammaConfig(), 30, 11)
    assert {key.partition(",")[0] for key in found} == {
        *(f"two-task/{name}" for name in ("fixed", "linear", "cosine", "step", "hpcm")),
        *(f"two-task/{name}" for name in ("hpcm_step", "adaptive", "adaptive_snr")),
        *(f"per-scale/{name}" for name in ("fixed", "linear", "cosine", "adaptive")),
        "per-scale/hierarchical",
    }
    for key, rows in found.items():
        assert [row[0] for row in rows] == pytest.approx([3 * n for n in range(11)])
        assert {len(row) for row in rows} == {2 if key.startswith("two") else 4}


def test_curves_have_the_values_of_the_schedules() -> None:
    config = GammaConfig(gamma_initial=0.02, gamma_warmup=300.0)
    found = curves(config, 30, 7)
    for kind, names in (("two-task", ("fixed", "linear", "step")), ("per-scale", ("cosine",))):
        for name in names:
            chosen = GammaConfig(gamma_initial=0.02, gamma_warmup=300.0, gamma_schedule=name)
            schedule = build_gamma(chosen, per_scale=kind == "per-scale")
            wanted = [(epoch, *schedule.at(epoch, 30)) for epoch in np.linspace(0, 30, 7)]
            assert np.array(found[f"{kind}/{name}"]) == pytest.approx(np.array(wanted))


def test_adaptive_curves_show_both_ways() -> None:
    found = curves(GammaConfig(), 3000, 61)
    base = np.array(found["two-task/cosine"])[:, 1]
    for key, low, high in (
        ("adaptive", "even validations", "uneven validations"),
        ("adaptive_snr", "clear progress", "unclear progress"),
    ):
        lowered = np.array(found[f"two-task/{key}, {low}"])[:, 1]
        raised = np.array(found[f"two-task/{key}, {high}"])[:, 1]
        assert lowered[0] == raised[0] == base[0]
        assert lowered[1:] == pytest.approx(np.maximum(0.8 * base[1:], 0.001))
        assert raised[1:] == pytest.approx(1.2 * base[1:])
    evened = found["per-scale/adaptive, even validations"][-1]
    assert evened[1:] == pytest.approx((0.004, 0.003, 0.002))
    unevened = found["per-scale/adaptive, uneven validations"][-1]
    assert unevened[1:] == pytest.approx((0.012, 0.009, 0.006))


def test_validations_of_a_curve_count_from_the_end_of_the_warm_up_on() -> None:
    config = GammaConfig(gamma_warmup=2990.0)
    for points in (2, 3001):
        rows = curves(config, 3000, points)["per-scale/adaptive, even validations"]
        # From epoch 2,990 to 3,000 there are eleven.
        assert rows[-1][1] == pytest.approx(0.008 * 0.95**11)


def test_what_the_options_do_not_allow_is_left_out() -> None:
    rising = GammaConfig(gamma_initial=0.0001, gamma_final=0.001)
    found = {key for key in curves(rising, 10, 2) if key.startswith("two-task")}
    assert found == {f"two-task/{name}" for name in ("fixed", "linear", "cosine", "hpcm")}


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(np.int64)


def test_the_picture_has_a_panel_for_each_with_lines_in_it(tmp_path: Path) -> None:
    plot(tmp_path / "all.png", GammaConfig())
    found = pixels(tmp_path / "all.png")
    assert found.shape == (5 * 360, 2 * 640, 3)
    for number in range(10):
        top, left = number // 2 * 360, number % 2 * 640
        inside = found[top + 64 : top + 316, left + 80 : left + 616]
        used = [
            colour
            for colour in COLOURS[:4]
            if (np.abs(inside - ImageColor.getrgb(colour)).max(axis=2) < 40).sum() > 100
        ]
        assert len(used) == (2 if number in (2, 3) else 3), number


def test_a_line_lies_where_its_numbers_say(tmp_path: Path) -> None:
    plot(tmp_path / "x.png", GammaConfig(), epochs=10)
    found = pixels(tmp_path / "x.png")
    # Per scale, fixed: the fifth panel, from 0 to 1.08 times 0.008.
    panel = found[2 * 360 : 3 * 360, :640]
    for colour, gamma in zip(COLOURS[:3], (0.008, 0.006, 0.004), strict=True):
        near = np.abs(panel - ImageColor.getrgb(colour)).max(axis=2) < 40
        rows = np.flatnonzero(near[:, 100:600].all(axis=1))
        assert rows.mean() == pytest.approx(64 + (1 - gamma / 0.00864) * 252, abs=1.5)


def test_zeros_and_short_runs_are_drawn_all_the_same(tmp_path: Path) -> None:
    none = GammaConfig(gamma=0.0, gamma_initial=0.0, gamma_final=0.0, scale_gammas="0,0,0")
    plot(tmp_path / "zeros.png", none, epochs=0.5)
    assert pixels(tmp_path / "zeros.png").shape[1] == 1280


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none.*cannot be written"):
        plot(tmp_path / "none" / "x.png", GammaConfig())
