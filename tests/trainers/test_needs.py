"""Which options mean something beside which: the table is sound, true, and told."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lic.codec.errors import ConfigError
from lic.trainers import recipes
from lic.trainers.balanced import build_training_objective
from lic.trainers.config import OPTIONS, TrainConfig
from lic.trainers.gamma import PER_SCALE, TWO_TASK, build_gamma
from lic.trainers.losses import Terms
from lic.trainers.needs import check_needs, needs_of
from lic.trainers.schedules import build_schedule

HPCM = recipes.hpcm()
FAMO = {"objective": "balanced"}
NEEDY = [name for name, item in OPTIONS.items() if item.metadata["needs"]]


def means_something(name: str, config: TrainConfig) -> bool:
    try:
        check_needs([name], config)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", NEEDY)
def test_every_need_can_be_met(name: str) -> None:
    values: dict[str, Any] = {"arch": "hpcm", "size": "base"}
    init = ""
    for other, need in needs_of(name).items():
        if other == "init":
            init = "a model" if need else ""
            continue
        if isinstance(need, bool):
            kind: Any = type(OPTIONS[other].default)
            assert kind in (bool, int) or not need, f"{other} has no one value that is on"
            values[other] = kind(1) if need else kind()
        else:
            assert set(need) <= set(OPTIONS[other].metadata["choices"]), other
            values[other] = need[0]
    values["size"] = "base" if values["arch"] == "hpcm" else "lite"
    if values.get("local_fp32") == "custom":
        values["local_fp32_class"] = ("GDN",)
    assert means_something(name, replace(TrainConfig(), init=init).updated(values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("w_lr", {}, "--w-lr means nothing with --objective standard; expected --objective "
         "balanced or hierarchical. Change that, or leave --w-lr out"),
        ("contexts", {"arch": "factorized", "size": "lite"}, "--contexts means nothing with no "
         "--init; expected a --init"),
        ("update_every", {**FAMO, "balanced_solver": "qp"}, "with --balanced-solver qp; expected "
         "--balanced-solver famo"),
        ("gamma", {**FAMO, "balanced_solver": "fixed"}, "--gamma means nothing with "
         "--balanced-solver fixed"),
        ("gamma", {"objective": "hierarchical"}, "expected --objective balanced."),
        ("gamma_threshold", FAMO, "with --gamma-schedule fixed; expected --gamma-schedule "
         "adaptive."),
        ("renormalise", {}, "with --objective standard and --tasks exact5; expected --objective "
         "hierarchical and --tasks fixed5."),
        ("scale_gammas", FAMO, "expected --objective hierarchical"),
        ("tau_init", {}, "with --no-spectral-reg; expected --spectral-reg."),
        ("align_lr", {"inter_scale_reg": True, "inter_scale_form": "cos2"}, "expected "
         "--inter-scale-form rel_l2 or literal"),
        ("steps", {"epochs": 3}, "with --epochs 3; expected --epochs 0"),
        ("crop", {"prepared": True}, "with --prepared; expected --no-prepared"),
        ("val_share", {"val": "held"}, "with --val held; expected no --val"),
        ("recon_count", {}, "with --recon-every 0; expected --recon-every above 0"),
        ("weight_decay", {}, "with --optimizer adam; expected --optimizer adamw, cautious-adam, "
         "soap or muon"),
        ("eb_aux_lr", {"arch": "factorized", "size": "lite"}, "with --no-eb-aux; expected "
         "--eb-aux."),
        ("enc_t", {"arch": "factorized", "size": "lite", "act": "gdnish",
                   "replace_parts": "decoder"}, "with --replace-parts decoder"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_with_what_it_needs(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_needs([name], HPCM.updated(values))
    assert message in str(caught.value)


def test_a_model_to_go_on_from_leaves_no_start() -> None:
    check_needs(["start"], TrainConfig())
    with pytest.raises(ConfigError, match="--start means nothing with --init x; expected no --in"):
        check_needs(["start"], TrainConfig(init="x"))


def test_of_a_sweep_one_value_is_enough() -> None:
    check_needs(["w_lr"], HPCM, {"objective": ("standard", "balanced")})
    with pytest.raises(ConfigError, match="--schedule cosine or none; expected --schedule onecyc"):
        check_needs(["onecycle_pct_start"], HPCM, {"schedule": ("cosine", "none")})
    with pytest.raises(ConfigError, match="--epochs 1 to 9; expected --epochs 0"):
        check_needs(["steps"], HPCM, {"epochs": range(1, 10)})


OF_SCHEDULES = {
    "milestones": "100,200,300", "milestone_factors": "0.5,0.4,0.3", "final_lr_fraction": 0.5,
    "onecycle_pct_start": 0.6, "plateau_patience": 1, "plateau_factor": 0.1, "lr_warmup_steps": 7,
}  # fmt: skip


def rates(config: TrainConfig) -> Iterator[float]:
    schedule = build_schedule(config.optimizer, 100)
    for step in range(100):
        yield schedule.factor(step)
        schedule.update(1.0)


@pytest.mark.parametrize("name", OF_SCHEDULES)
@pytest.mark.parametrize("schedule", OPTIONS["schedule"].metadata["choices"])
def test_the_table_is_true_of_learning_rates(schedule: str, name: str) -> None:
    config = HPCM.updated({"schedule": schedule})
    changed = config.updated({name: OF_SCHEDULES[name]})
    assert (list(rates(config)) != list(rates(changed))) == means_something(name, config)


OF_GAMMA = {
    "gamma": 0.02, "gamma_initial": 0.02, "gamma_final": 0.002, "gamma_warmup": 2700.0,
    "gamma_milestones": "100,200", "gamma_factor": 0.1, "gamma_window": 20,
    "gamma_threshold": 10.0, "scale_gammas": "0.02,0.02,0.02",
    "scale_gammas_final": "0.002,0.002,0.002",
}  # fmt: skip


def gammas(config: TrainConfig) -> Iterator[tuple[float, ...]]:
    """Yield the course of a run with clear progress, and validations that become even."""
    per_scale = config.objective.objective == "hierarchical"
    schedule = build_gamma(config.gamma, per_scale=per_scale)
    for epoch in range(300):
        yield schedule.at(epoch, 300)
        loss = float(epoch > 100 or epoch % 20 == 0)
        schedule.observe_validation(loss, (loss,) * 3)
        for _ in range(30):
            schedule.observe_progress((1.0, 0.0))


@pytest.mark.parametrize("name", OF_GAMMA)
@pytest.mark.parametrize(
    ("objective", "schedule"),
    [("balanced", name) for name in TWO_TASK] + [("hierarchical", name) for name in PER_SCALE],
)
def test_the_table_is_true_of_gamma(objective: str, schedule: str, name: str) -> None:
    config = HPCM.updated({"objective": objective, "gamma_schedule": schedule})
    changed = config.updated({name: OF_GAMMA[name]})
    assert (list(gammas(config)) != list(gammas(changed))) == means_something(name, config)


OF_TASKS = {
    "w_lr": 0.1, "update_every": 2, "min_losses": "-2", "tasks": "exact7", "renormalise": True,
    "scale_weights": "1,1,1", "gamma": 0.5, "scale_gammas": "0.5,0.4,0.3",
}  # fmt: skip


def terms_at(step: int) -> Terms:
    """Return terms of which all but two errors fall from step to step."""
    parts = torch.tensor([0.1, 0.2, 0.3, 0.4]) * 0.9**step
    errors = torch.tensor([0.002, 0.001, 0.003 * 0.8**step])
    first, second, third = errors
    rates = dict(zip(("z", "s1", "s2", "s3"), parts, strict=True))
    return Terms(bpp=parts.sum(), mse=errors.sum(), rates=rates, errors=(first, second, third))


def omegas(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Yield the weights of the tasks, step by step."""
    objective = build_training_objective(
        config.loss, config.objective, config.gamma, lambda step: (step, 8)
    )
    for step in range(8):
        objective.loss(terms_at(step), step)
        found = objective.values()
        yield {key: value for key, value in found.items() if key.startswith("omega")}
        if objective.looks_again(step):
            objective.look(terms_at(step + 1), step)


@pytest.mark.parametrize("name", OF_TASKS)
@pytest.mark.parametrize("solver", ["famo", "fixed"])
@pytest.mark.parametrize(
    "values",
    [FAMO, {"objective": "hierarchical"}, {"objective": "hierarchical", "tasks": "fixed5"}],
)
def test_the_table_is_true_of_tasks(values: dict[str, str], solver: str, name: str) -> None:
    config = HPCM.updated({**values, "balanced_solver": solver})
    changed = config.updated({name: OF_TASKS[name]})
    assert (list(omegas(config)) != list(omegas(changed))) == means_something(name, config)
