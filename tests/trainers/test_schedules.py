import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from lic.trainers.config import OptimizerConfig
from lic.trainers.schedules import Plateau, build_schedule, onecycle, warmup_cosine


def factors(steps: int, warmup: int, final: float) -> list[float]:
    return [
        warmup_cosine(step, steps=steps, warmup=warmup, final=final) for step in range(steps + 1)
    ]


def scheduled(steps: int, **options: Any) -> list[float]:
    schedule = build_schedule(OptimizerConfig(**options), steps)
    return [schedule.factor(step) for step in range(steps)]


def test_it_rises_to_one_and_falls_to_the_final_value() -> None:
    values = factors(100, 10, 0.01)
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1
    assert all(a < b for a, b in pairwise(values[:10]))
    assert all(a > b for a, b in pairwise(values[10:]))
    assert values[100] == pytest.approx(0.01)
    assert values[55] == pytest.approx((1 + 0.01) / 2)


def test_without_warm_up_it_starts_at_one() -> None:
    assert factors(10, 0, 0.0)[0] == 1
    assert factors(10, 0, 0.0)[10] == pytest.approx(0, abs=1e-12)


def test_a_final_value_of_one_keeps_the_rate() -> None:
    assert set(factors(10, 0, 1.0)) == {1.0}


@pytest.mark.parametrize("warmup", [10, 50])
def test_a_run_as_short_as_its_warm_up_only_rises(warmup: int) -> None:
    values = factors(10, warmup, 0.1)[:10]
    assert values == pytest.approx([(i + 1) / warmup for i in range(10)])


def test_past_the_end_it_stays() -> None:
    assert warmup_cosine(500, steps=100, warmup=0, final=0.25) == pytest.approx(0.25)
    assert onecycle(500, steps=100, rise=0.3, warmup=0, final=0.25) == pytest.approx(0.25)


def test_the_default_is_the_cosine_with_its_options() -> None:
    values = scheduled(50, lr_warmup_steps=5, final_lr_fraction=0.2)
    assert values == factors(50, 5, 0.2)[:50]


def test_none_only_warms_up() -> None:
    values = scheduled(8, schedule="none", lr_warmup_steps=4)
    assert values == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert set(scheduled(8, schedule="none", lr_warmup_steps=0)) == {1.0}


@pytest.mark.parametrize(("steps", "rise", "final"), [(50, 0.3, 0.01), (7, 0.5, 0.1)])
def test_onecycle_has_the_rates_of_torch(steps: int, rise: float, final: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=steps, pct_start=rise, anneal_strategy="cos",
        cycle_momentum=False, div_factor=25, final_div_factor=1 / (25 * final),
    )  # fmt: skip
    rates = []
    for _ in range(steps):
        rates.append(reference.get_last_lr()[0])
        optimizer.step()
        if len(rates) < steps:
            reference.step()
    options = {"onecycle_pct_start": rise, "final_lr_fraction": final, "lr_warmup_steps": 0}
    ours = scheduled(steps, schedule="onecycle", **options)
    assert [0.5 * factor for factor in ours] == pytest.approx(rates)


def test_a_warm_up_multiplies_the_start_of_onecycle() -> None:
    plain = scheduled(40, schedule="onecycle", lr_warmup_steps=0)
    warm = scheduled(40, schedule="onecycle", lr_warmup_steps=4)
    assert warm[:4] == pytest.approx([plain[i] * (i + 1) / 4 for i in range(4)])
    assert warm[4:] == plain[4:]


@pytest.mark.parametrize("schedule", ["none", "cosine", "onecycle", "plateau"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_of_a_few_steps_have_rates(schedule: str, steps: int) -> None:
    values = scheduled(steps, schedule=schedule, onecycle_pct_start=0.99)
    assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("schedule", ["none", "cosine", "onecycle"])
def test_validations_leave_timed_schedules_alone(schedule: str) -> None:
    first = build_schedule(OptimizerConfig(schedule=schedule), 100)
    for metric in (1.0, 2.0, math.nan):
        first.update(metric)
    assert first.state_dict() == {}
    first.load_state_dict({})
    second = build_schedule(OptimizerConfig(schedule=schedule), 100)
    assert first.factor(70) == second.factor(70)


def plateau(*metrics: float, patience: int = 2) -> Plateau:
    schedule = Plateau(patience=patience, cut=0.5)
    for metric in metrics:
        schedule.update(metric)
    return schedule


def test_a_plateau_is_cut_once_patience_is_at_its_end() -> None:
    assert plateau(1.0, 1.0, 1.0).factor(9) == 1
    assert plateau(1.0, 1.0, 1.0, 1.0).factor(9) == 0.5
    # A cut is given its time.
    assert plateau(1.0, *[1.0] * 5).factor(9) == 0.5
    assert plateau(1.0, *[1.0] * 6).factor(9) == 0.25


def test_a_gain_starts_the_count_again() -> None:
    assert plateau(1.0, 1.1, 1.1, 0.9, 1.0, 1.0).factor(0) == 1


def test_a_gain_within_noise_is_none() -> None:
    assert plateau(1.0, 0.99995, 0.99994, 0.99993).factor(0) == 0.5


def test_metrics_below_zero_have_gains_too() -> None:
    assert plateau(-1.0, -1.1, -1.2, -1.3).factor(0) == 1
    assert plateau(-1.0, -1.0, -0.9, -1.00001).factor(0) == 0.5


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_no_gain(broken: float) -> None:
    assert plateau(1.0, broken, broken, broken).factor(0) == 0.5
    # And it does not become the best, after which nothing else could gain.
    assert plateau(broken, 1.0, 0.9, 0.8, 0.7).factor(0) == 1


def test_a_resumed_plateau_goes_on_where_it_was() -> None:
    metrics = [1.0, 0.9, 0.95, 0.93, 0.92, 0.91, 0.8, 0.8, 0.8, 0.8, 0.8]
    straight = plateau(*metrics)
    for cut in range(len(metrics)):
        resumed = plateau()
        resumed.load_state_dict(plateau(*metrics[:cut]).state_dict())
        for metric in metrics[cut:]:
            resumed.update(metric)
        assert resumed.state_dict() == straight.state_dict()
        assert resumed.factor(0) == straight.factor(0) < 1


def test_a_plateau_warms_up() -> None:
    values = scheduled(4, schedule="plateau", lr_warmup_steps=2)
    assert values == [0.5, 1, 1, 1]


def test_the_plateau_has_the_options_of_the_run() -> None:
    options = OptimizerConfig(
        schedule="plateau", plateau_patience=0, plateau_factor=0.1, lr_warmup_steps=0
    )
    schedule = build_schedule(options, 100)
    schedule.update(1.0)
    schedule.update(1.0)
    assert schedule.factor(0) == pytest.approx(0.1)
