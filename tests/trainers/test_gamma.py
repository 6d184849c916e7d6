import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lic.codec.errors import ConfigError
from lic.trainers.gamma import GammaSchedule, build_gamma
from lic.trainers.objective_options import GammaConfig

TWO = ("fixed", "linear", "cosine", "step", "adaptive", "hpcm", "hpcm_step", "adaptive_snr")
SCALES = ("fixed", "linear", "cosine", "adaptive", "hierarchical")
BOTH = [*((name, False) for name in TWO), *((name, True) for name in SCALES)]


def two(name: str, **options: Any) -> GammaSchedule:
    return build_gamma(GammaConfig(gamma_schedule=name, **options), per_scale=False)


def scales(name: str, **options: Any) -> GammaSchedule:
    return build_gamma(GammaConfig(gamma_schedule=name, **options), per_scale=True)


def value(schedule: GammaSchedule, epoch: float, epochs: float = 3000) -> float:
    (gamma,) = schedule.at(epoch, epochs)
    return gamma


def validate(schedule: GammaSchedule, losses: Sequence[float]) -> None:
    for loss in losses:
        schedule.observe_validation(loss, (loss, loss, loss))


def alternating(count: int, variation: float) -> list[float]:
    """Losses of an even number whose standard deviation is `variation` times their mean."""
    return [2 * (1 + (-1) ** n * variation) for n in range(count)]


# Worked out by hand from the formulas; rounded, they are the values of the specification's table.
COS = {
    150: 0.001 + 0.0025 * (1 + math.cos(math.pi / 20)),
    300: 0.001 + 0.0025 * (1 + math.cos(math.pi / 10)),
    999: 0.001 + 0.0025 * (1 + math.cos(0.333 * math.pi)),
    1000: 0.001 + 0.0025 * 1.5,
    1150: 0.001 + 0.0025 * (1 + math.cos(math.pi * 23 / 60)),
    2000: 0.001 + 0.0025 * 0.5,
    2500: 0.001 + 0.0025 * (1 - math.sqrt(0.75)),
}
TABLE = [
    # epoch, linear, cosine, step, hpcm
    (0, 0.006, 0.006, 0.006, 0.006),
    (150, 0.00575, COS[150], 0.006, 0.0066),
    (300, 0.0055, COS[300], 0.006, 0.0072),
    (999, 0.004335, COS[999], 0.006, 0.0072 - 0.0042 * 699 / 1700),
    (1000, 0.013 / 3, COS[1000], 0.003, 0.0072 - 0.0042 * 700 / 1700),
    (1150, 0.01225 / 3, COS[1150], 0.003, 0.0051),
    (1500, 0.0035, 0.0035, 0.003, 0.0072 - 0.0042 * 1200 / 1700),
    (2000, 0.008 / 3, COS[2000], 0.0015, 0.003),
    (2500, 0.0055 / 3, COS[2500], 0.0015, 0.002),
    (3000, 0.001, 0.001, 0.0015, 0.001),
]
ROUNDED = [
    (0, 0.006000, 0.006000, 0.006000, 0.006000),
    (150, 0.005750, 0.005969, 0.006000, 0.006600),
    (300, 0.005500, 0.005878, 0.006000, 0.007200),
    (999, 0.004335, 0.004752, 0.006000, 0.005473),
    (1000, 0.004333, 0.004750, 0.003000, 0.005471),
    (1150, 0.004083, 0.004396, 0.003000, 0.005100),
    (1500, 0.003500, 0.003500, 0.003000, 0.004235),
    (2000, 0.002667, 0.002250, 0.001500, 0.003000),
    (2500, 0.001833, 0.001335, 0.001500, 0.002000),
    (3000, 0.001000, 0.001000, 0.001500, 0.001000),
]


@pytest.mark.parametrize(("table", "tolerance"), [(TABLE, 1e-9), (ROUNDED, 5.01e-7)])
@pytest.mark.parametrize("epochs", [3000, 60])
def test_two_task_values_are_those_of_the_specification(
    table: list[tuple[float, ...]], tolerance: float, epochs: int
) -> None:
    for epoch, *wanted in table:
        found = [
            value(two(name), epoch * epochs / 3000, epochs)
            for name in ("linear", "cosine", "step", "hpcm")
        ]
        assert found == pytest.approx(wanted, abs=tolerance, rel=0), epoch


HIERARCHICAL = [
    (0, 0.00800, 0.00480, 0.00240),
    (150, 0.00880, 0.00480, 0.00240),
    (300, 0.00960, 0.00480, 0.00240),
    (900, 0.00840, 0.00570, 0.00320),
    (1500, 0.00720, 0.00660, 0.00400),
    (2000, 0.00640, 0.00570, 0.00420),
    (2500, 0.00560, 0.00480, 0.00440),
    (2750, 0.00480, 0.00390, 0.00480),
    (3000, 0.00400, 0.00300, 0.00520),
]
MIDDLE = 0.5 + 0.25 * (1 + math.sqrt(0.5))


@pytest.mark.parametrize("epochs", [3000, 120])
def test_per_scale_values_are_those_of_the_specification(epochs: int) -> None:
    def check(name: str, epoch: float, *wanted: float) -> None:
        found = scales(name).at(epoch * epochs / 3000, epochs)
        assert found == pytest.approx(wanted, abs=1e-9, rel=0), (name, epoch)

    for row in HIERARCHICAL:
        check("hierarchical", *row)
    check("linear", 750, 0.0070, 0.00525, 0.0035)
    check("cosine", 750, 0.008 * MIDDLE, 0.006 * MIDDLE, 0.004 * MIDDLE)
    assert scales("cosine").at(750, 3000) == pytest.approx((0.007414, 0.005561, 0.003707), abs=5e-7)
    for epoch in (0, 1234, 3000):
        check("fixed", epoch, 0.008, 0.006, 0.004)
    for name in ("linear", "cosine"):
        check(name, 0, 0.008, 0.006, 0.004)
        check(name, 3000, 0.004, 0.003, 0.002)


def test_hpcm_step_halves_at_its_milestones_down_to_its_floor() -> None:
    wanted = {0: 6, 100: 6, 499: 6, 500: 3, 1499: 3, 1500: 1.5, 2749: 1.5, 2750: 0.75, 3000: 0.75}
    assert {e: value(two("hpcm_step"), e) for e in wanted} == pytest.approx(
        {e: 0.001 * gamma for e, gamma in wanted.items()}, abs=1e-9
    )
    low = two("hpcm_step", gamma_initial=0.0018)
    assert [value(low, e) for e in (0, 500, 1500, 2750)] == pytest.approx(
        [0.0018, 0.0009, 0.0005, 0.0005], abs=1e-9
    )


def test_fixed_is_what_was_asked_for() -> None:
    assert {two("fixed", gamma=0.007).at(e, 10) for e in (0, 5, 10, 99)} == {(0.007,)}
    chosen = scales("fixed", scale_gammas="0.1,0.2,0.3")
    assert {chosen.at(e, 10) for e in (0, 5, 99)} == {(0.1, 0.2, 0.3)}


def test_the_options_decide_where_schedules_start_and_end() -> None:
    ends = {"gamma_initial": 0.02, "gamma_final": 0.005}
    for name in ("linear", "cosine", "hpcm", "adaptive", "adaptive_snr"):
        assert value(two(name, **ends), 0) == pytest.approx(0.02)
        assert value(two(name, **ends), 3000) == pytest.approx(0.005)
    cut = two("step", gamma_milestones="300,600,2999", gamma_factor=0.1, **ends)
    assert [value(cut, e) for e in (299, 300)] == pytest.approx([0.02, 0.005])
    deep = two("step", gamma_milestones="300,600", gamma_factor=0.7, **ends)
    assert value(deep, 900) == pytest.approx(0.02 * 0.49)
    options = {"scale_gammas": "0.9,0.6,0.3", "scale_gammas_final": "0.1,0.2,0.3"}
    for name in ("linear", "cosine"):
        assert scales(name, **options).at(0, 5) == pytest.approx((0.9, 0.6, 0.3))
        assert scales(name, **options).at(5, 5) == pytest.approx((0.1, 0.2, 0.3))


@pytest.mark.parametrize(("name", "per_scale"), BOTH)
def test_values_hold_after_the_end(name: str, per_scale: bool) -> None:
    schedule = build_gamma(GammaConfig(gamma_schedule=name), per_scale=per_scale)
    assert schedule.at(41, 40) == schedule.at(4000, 40) == schedule.at(40, 40)
    assert len(schedule.at(0, 40)) == (3 if per_scale else 1)


@pytest.mark.parametrize("name", ["linear", "cosine", "adaptive", "adaptive_snr"])
def test_a_warm_up_holds_the_start_and_then_the_whole_way_is_gone(name: str) -> None:
    # 600 epochs of 3,000 are 20 of 100.
    schedule = two(name, gamma_warmup=600.0)
    assert [value(schedule, e, 100) for e in (0, 10, 20)] == pytest.approx([0.006] * 3, abs=1e-12)
    assert 0.0059 < value(schedule, 21, 100) < 0.006
    assert value(schedule, 60, 100) == pytest.approx(0.0035, abs=1e-9)
    assert value(schedule, 100, 100) == pytest.approx(0.001, abs=1e-9)


def test_a_warm_up_per_scale_does_so_too() -> None:
    schedule = scales("linear", gamma_warmup=600.0)
    assert schedule.at(20, 100) == schedule.at(0, 100) == (0.008, 0.006, 0.004)
    assert schedule.at(60, 100) == pytest.approx((0.006, 0.0045, 0.003), abs=1e-9)


def test_what_should_only_fall_only_falls() -> None:
    for name in ("linear", "cosine", "step", "hpcm_step"):
        schedule = two(name)
        values = [value(schedule, e) for e in range(3001)]
        assert all(a >= b for a, b in pairwise(values))
        assert values[0] > values[-1]
    for name in ("linear", "cosine"):
        schedule = scales(name)
        rows = [schedule.at(e, 3000) for e in range(3001)]
        assert all(a > b for s in range(3) for a, b in pairwise(row[s] for row in rows))


@pytest.mark.parametrize(("name", "per_scale"), [("hpcm", False), ("hierarchical", True)])
def test_lines_through_knots_do_not_jump(name: str, per_scale: bool) -> None:
    schedule = build_gamma(GammaConfig(gamma_schedule=name), per_scale=per_scale)
    rows = np.array([schedule.at(e, 3000) for e in range(3002)])
    assert (np.abs(np.diff(rows, axis=0)) / rows[:-1]).max() < 0.02


def test_a_milestone_behind_the_end_is_never_met() -> None:
    schedule = two("step", gamma_milestones="3000,3001")
    assert [value(schedule, e, 30) for e in (29.99, 30, 300)] == [0.006, 0.003, 0.003]


@pytest.mark.parametrize("epochs", [3, 7, 30, 90, 999, 3000, 12_000])
def test_a_milestone_is_met_on_its_epoch_whatever_the_length(epochs: int) -> None:
    for epoch in range(1, epochs, max(1, epochs // 50)):
        # Exactly this epoch, as a position.
        schedule = two("step", gamma_milestones=repr(epoch * 3000 / epochs))
        assert value(schedule, epoch - 1, epochs) == 0.006
        assert value(schedule, epoch, epochs) == 0.003


def test_even_validations_lower_gamma_once_the_window_is_full() -> None:
    schedule = two("adaptive")
    base = value(two("cosine"), 1000)
    validate(schedule, [1.3] * 49)
    assert value(schedule, 1000) == base
    validate(schedule, [1.3])
    assert value(schedule, 1000) == pytest.approx(0.8 * base, abs=1e-12)


def test_uneven_validations_raise_it() -> None:
    schedule = two("adaptive")
    base = value(two("cosine"), 1000)
    validate(schedule, alternating(50, 0.051))
    assert value(schedule, 1000) == pytest.approx(1.2 * base, abs=1e-12)


@pytest.mark.parametrize(
    ("variation", "factor"), [(0.0099, 0.8), (0.0101, 1.0), (0.0499, 1.0), (0.0501, 1.2)]
)
def test_the_threshold_counts_once_and_five_times(variation: float, factor: float) -> None:
    schedule = two("adaptive")
    validate(schedule, alternating(50, variation))
    assert value(schedule, 1500) == pytest.approx(0.0035 * factor, abs=1e-9)
    # Losses below zero vary as much.
    schedule = two("adaptive")
    validate(schedule, [-loss for loss in alternating(50, variation)])
    assert value(schedule, 1500) == pytest.approx(0.0035 * factor, abs=1e-9)


def test_window_and_threshold_are_options() -> None:
    schedule = two("adaptive", gamma_window=4, gamma_threshold=0.2)
    validate(schedule, alternating(4, 0.19))
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)
    validate(schedule, alternating(4, 0.21))
    assert value(schedule, 1500) == pytest.approx(0.0035, abs=1e-9)


def test_only_the_last_validations_count() -> None:
    schedule = two("adaptive", gamma_window=6)
    validate(schedule, [9.0, 0.1, 5.0, *[1.0] * 5])
    assert value(schedule, 1500) == pytest.approx(0.0042, abs=1e-9)
    validate(schedule, [1.0])
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)


def test_an_adaptive_gamma_stays_within_its_bounds() -> None:
    lowered = two("adaptive")
    validate(lowered, [1.0] * 50)
    assert value(lowered, 3000) == 0.001
    assert value(lowered, 2700) == 0.001 < value(two("cosine"), 2700)
    raised = two("adaptive", gamma_initial=0.006, gamma_final=0.006)
    validate(raised, alternating(50, 0.5))
    assert value(raised, 0) == pytest.approx(0.0072)
    assert all(value(raised, e) <= 0.009 for e in range(0, 3000, 100))


def test_validations_during_the_warm_up_act_after_it() -> None:
    schedule = two("adaptive", gamma_warmup=300.0)
    validate(schedule, [1.0] * 50)
    assert value(schedule, 299) == 0.006
    assert value(schedule, 300) == pytest.approx(0.0048, abs=1e-9)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_left_out(broken: float) -> None:
    schedule, per_scale = two("adaptive", gamma_window=3), scales("adaptive", gamma_window=3)
    for one in (schedule, per_scale):
        validate(one, [1.0, broken, 1.0])
    assert value(schedule, 1500) == pytest.approx(0.0035, abs=1e-9)
    assert per_scale.at(0, 1) == (0.008, 0.006, 0.004)
    for one in (schedule, per_scale):
        validate(one, [1.0, broken])
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)
    assert per_scale.at(0, 1) == pytest.approx((0.0076, 0.0057, 0.0038), abs=1e-12)


def progress(schedule: GammaSchedule, differences: Sequence[float]) -> None:
    for difference in differences:
        schedule.observe_progress((0.01 + difference, 0.01))


def differences(mean: float, error: float, count: int = 50) -> list[float]:
    """Values with this mean, and this standard error of it, estimated from them as a sample."""
    unit = np.resize([1.0, -1.0], count)
    return list(mean + unit / unit.std(ddof=1) * error * math.sqrt(count))


@pytest.mark.parametrize(
    ("mean", "factor"), [(2.02, 0.8), (1.98, 1.2), (-2.02, 0.8), (-1.98, 1.2), (0, 1.2)]
)
def test_clear_progress_lowers_gamma_and_noise_raises_it(mean: float, factor: float) -> None:
    schedule = two("adaptive_snr")
    progress(schedule, differences(mean, 1.0)[:49])
    assert value(schedule, 1500) == pytest.approx(0.0035, abs=1e-9)
    progress(schedule, differences(mean, 1.0)[49:])
    assert value(schedule, 1500) == pytest.approx(0.0035 * factor, abs=1e-9)


def test_noise_alone_seldom_looks_like_progress() -> None:
    rng = np.random.default_rng(0)
    schedule = two("adaptive_snr")
    raised = []
    for _ in range(400):
        progress(schedule, rng.normal(size=50).tolist())
        raised.append(value(schedule, 1500) > 0.0035)
    # Of a normal distribution 5 % lie beyond two standard errors.
    assert 0.91 < np.mean(raised) < 0.98


def test_every_window_of_steps_decides_anew() -> None:
    schedule = two("adaptive_snr", gamma_window=10)
    progress(schedule, [1.0] * 10)
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)
    progress(schedule, [1.0, -1.0] * 4 + [1.0])
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)
    progress(schedule, [-1.0])
    assert value(schedule, 1500) == pytest.approx(0.0042, abs=1e-9)
    # The cosine's end is the lower bound here, too.
    progress(schedule, [1.0] * 10)
    assert value(schedule, 3000) == 0.001


def test_gains_that_are_not_finite_are_left_out() -> None:
    schedule = two("adaptive_snr", gamma_window=3)
    progress(schedule, [1.0, math.nan, math.inf, 1.0, -math.inf])
    assert value(schedule, 1500) == pytest.approx(0.0035, abs=1e-9)
    progress(schedule, [1.0])
    assert value(schedule, 1500) == pytest.approx(0.0028, abs=1e-9)


def test_each_scale_follows_its_own_losses() -> None:
    schedule = scales("adaptive")
    for number, loss in enumerate(alternating(50, 0.051)):
        assert schedule.at(number, 3000) == (0.008, 0.006, 0.004)
        schedule.observe_validation(5.0, (1.0, loss, 1 + 0.02 * (-1) ** number))
    assert schedule.at(50, 3000) == pytest.approx((0.0076, 0.00612, 0.004), abs=1e-12)
    # Every further validation multiplies again: now 0.05 of the second is no longer exceeded.
    schedule.observe_validation(5.0, (1.0, 2.0, 1.0))
    assert schedule.at(51, 3000) == pytest.approx((0.00722, 0.0062424, 0.004), abs=1e-12)


def test_gammas_per_scale_stay_within_their_bounds() -> None:
    for variation, wanted in ((0.0, (0.004, 0.003, 0.002)), (0.5, (0.012, 0.009, 0.006))):
        schedule = scales("adaptive", gamma_window=4)
        validate(schedule, alternating(60, variation))
        assert schedule.at(60, 3000) == pytest.approx(wanted, abs=1e-15)
    chosen = scales("adaptive", gamma_window=4, scale_gammas_final="0.001,0.006,0.0035")
    validate(chosen, [1.0] * 80)
    assert chosen.at(60, 3000) == pytest.approx((0.001, 0.006, 0.0035), abs=1e-15)


def test_gammas_per_scale_hold_during_a_warm_up() -> None:
    schedule = scales("adaptive", gamma_window=4, gamma_warmup=300.0)
    for number in range(11):
        # 10 of 100 epochs are 300 of 3,000.
        assert schedule.at(number, 100) == (0.008, 0.006, 0.004)
        validate(schedule, [1.0])
    assert schedule.at(11, 100) == pytest.approx((0.0076, 0.0057, 0.0038), abs=1e-12)


def test_a_validation_without_scales_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="each scale"):
        scales("adaptive").observe_validation(1.0)


@pytest.mark.parametrize(("name", "per_scale"), BOTH)
def test_a_resumed_schedule_goes_on_exactly(name: str, per_scale: bool) -> None:
    config = GammaConfig(gamma_schedule=name, gamma_window=5, gamma_warmup=90.0)
    rng = np.random.default_rng(1)
    seen = rng.normal(1, 0.02, (24, 4)).tolist()

    def run(schedule: GammaSchedule, numbers: range) -> list[tuple[float, ...]]:
        found = []
        for number in numbers:
            loss, *parts = seen[number]
            found.append(schedule.at(number, 24))
            schedule.observe_progress((loss, 1.0))
            schedule.observe_validation(loss, parts)
        return found

    straight = run(build_gamma(config, per_scale=per_scale), range(24))
    for cut in range(24):
        first = build_gamma(config, per_scale=per_scale)
        before = run(first, range(cut))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        # What came after the state was taken does not reach into it.
        kept = first.state_dict()
        run(first, range(cut, 24))
        second = build_gamma(config, per_scale=per_scale)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        assert second.state_dict() == kept
        assert before + run(second, range(cut, 24)) == straight


@pytest.mark.parametrize(("name", "per_scale"), [("adaptive", False), ("adaptive", True)])
def test_a_state_matters(name: str, per_scale: bool) -> None:
    schedule = build_gamma(GammaConfig(gamma_schedule=name), per_scale=per_scale)
    validate(schedule, [1.0] * 50)
    fresh = build_gamma(GammaConfig(gamma_schedule=name), per_scale=per_scale)
    assert schedule.at(9, 10) != fresh.at(9, 10)


def test_schedules_of_the_other_mode_are_refused() -> None:
    for name in {*TWO} - {*SCALES}:
        with pytest.raises(ConfigError, match=rf"--gamma-schedule is {name}.*hierarchical.*fixed"):
            scales(name)
    with pytest.raises(ConfigError, match=r"is hierarchical.*balanced.*expected one of fixed"):
        two("hierarchical")


@pytest.mark.parametrize("name", ["step", "adaptive", "adaptive_snr"])
def test_a_lower_bound_above_the_start_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--gamma-initial is 0.0005 and --gamma-final 0.001"):
        two(name, gamma_initial=0.0005)
    assert value(two(name, gamma_initial=0.001), 0) == 0.001


def test_so_is_one_of_hpcm_step_and_of_a_scale() -> None:
    with pytest.raises(ConfigError, match=r"--gamma-initial is 0.0004 and its floor 0.0005"):
        two("hpcm_step", gamma_initial=0.0004)
    with pytest.raises(ConfigError, match=r"--scale-gammas of s2 is 0.006 and .* 0.007"):
        scales("adaptive", scale_gammas_final="0.001,0.007,0.001")
    # Others may rise.
    assert scales("linear", scale_gammas_final="0.001,0.007,0.001").at(5, 5)[1] == 0.007
