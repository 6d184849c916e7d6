"""HPCM on the one loop: what a step does, what it skips, and two processes."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models import HPCM, bits
from lic.trainers import stepper
from lic.trainers.balanced import Balanced
from lic.trainers.checkpoints import find_checkpoint, load, load_model
from lic.trainers.config import TrainConfig
from lic.trainers.data import TrainingData, find_photos
from lic.trainers.loop import Trainer
from lic.trainers.losses import Terms
from lic.trainers.models import new_model
from lic.trainers.trackers import TABLE
from lic.trainers.validation import validate
from tests.trainers.conftest import compiler_warns
from tests.trainers.hpcm_runs import BASE, OBJECTIVES, begin, identical, run, weights
from tests.trainers.processes import environment
from tests.trainers.small_runs import (
    MINI,
    TIMES,
    Fails,
    assert_identical,
    begin_run,
    last,
    metrics,
    mini,
    with_broken_gradient,
)


def plain_losses(model: HPCM, folder: Path, step: int) -> tuple[Tensor, Tensor]:
    """Return rate and lambda 255^2 MSE of a step's crops and noise, written out."""
    data = TrainingData(find_photos(folder), BASE.data, seed=BASE.run.seed)
    x = data.batch(step).float().div_(255).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(hash((BASE.run.seed, step)) & 0x7FFFFFFF)
    output = model(x)
    mse = torch.nn.functional.mse_loss(output.x_hat, x)
    return bits(output.likelihoods) / (2 * 128 * 128), BASE.loss.lmbda * 255**2 * mse


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_standard_training_is_the_published_loop(tmp_path: Path, large: Path, clip: float) -> None:
    """Three epochs against a loop written out, bit for bit."""
    trained = run(begin(tmp_path, large, max_grad_norm=clip))
    model = mini().train()
    kernels = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1]
    # As the trainer's optimiser has them: a norm is a sum, whose order can be seen.
    learning = [*kernels, *(p for p in model.parameters() if all(p is not k for k in kernels))]
    optimizer = torch.optim.Adam(learning, lr=BASE.optimizer.lr)
    for step in range(6):
        loss = sum(plain_losses(model, large, step), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            torch.nn.utils.clip_grad_norm_(learning, clip)
        optimizer.step()
    assert identical(weights(trained), model.state_dict())
    assert not identical(weights(trained), mini().state_dict())


def test_what_is_switched_off_has_no_say(tmp_path: Path, large: Path) -> None:
    run(begin(tmp_path / "plain", large))
    options = {
        "balanced_solver": "qp", "w_lr": 0.5, "min_losses": "-9", "update_every": 2,
        "tasks": "exact7", "renormalise": True, "scale_weights": "1,2,3", "gamma": 0.5,
        "gamma_schedule": "hierarchical", "scale_gammas": "1,2,3", "tau_init": 0.2,
        "tau_final": 0.5, "truncation_epochs": 9.0, "truncation_continuous": True,
        "truncation_target": "original", "delta": 5.0, "inter_scale_form": "literal",
        "align_lr": 0.5,
    }  # fmt: skip
    run(begin(tmp_path / "other", large, **options))
    states = [last(tmp_path / name) for name in ("plain", "other")]
    assert states[0].pop("config") != states[1].pop("config")
    assert_identical(*states)


@pytest.mark.parametrize("objective", ["balanced", "hierarchical"])
def test_task_weights_are_out_of_reach_of_the_models_optimiser(
    tmp_path: Path, large: Path, objective: str
) -> None:
    """Neither groups nor clip know them, and the model's backward pass leaves them alone."""
    norms, once = [], {"steps": 1, "update_every": 2, "max_grad_norm": 0.1}
    for value in (0.0, 1e9):
        folder = tmp_path / str(value)
        trainer = begin(folder, large, objective=objective, **once)
        assert isinstance(trainer.stepper.objective, Balanced)
        logits = trainer.stepper.objective.weights.logits
        stray = logits.grad = torch.full_like(logits, value)
        run(trainer)
        assert logits.grad is stray and torch.equal(stray, torch.full_like(stray, value))
        norms.append(metrics(folder)[0]["grad_norm"])
        (named,) = trainer.stepper.optimizers
        moved = [p for group in named.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in moved} == {id(p) for p in trainer.bare.parameters()}
    assert norms[0] == norms[1] > 0.1


def test_a_step_weighed_by_gradients_makes_no_task_worse(tmp_path: Path, large: Path) -> None:
    trainer = run(begin(tmp_path, large, **OBJECTIVES["qp"], steps=1, max_grad_norm=0.0))
    model = mini().train()
    parameters = list(model.parameters())
    slopes = []
    for loss in plain_losses(model, large, 0):
        parts = torch.autograd.grad(
            torch.log(loss + 1), parameters, retain_graph=True, materialize_grads=True
        )
        slopes.append(torch.cat([part.flatten() for part in parts]).double())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.bare.parameters()]
    direction = torch.cat([grad.flatten() for grad in grads]).double()
    (rr, rd), (_, dd) = torch.stack(slopes) @ torch.stack(slopes).T
    share = (dd - rd) / (rr + dd - 2 * rd)
    assert 0 < float(share) < 1
    shortest = share * slopes[0] + (1 - share) * slopes[1]
    assert float(torch.cosine_similarity(direction, shortest, dim=0)) > 1 - 1e-6
    assert min(float(direction @ slope) for slope in slopes) > 0


def _count(module: Any, *_: Any) -> None:
    module.calls.add_(1)


def test_a_second_look_takes_no_random_number_and_changes_nothing(
    tmp_path: Path, large: Path
) -> None:
    """Without a step to speak of it finds the very losses again: no progress, no new weights."""
    states = []
    for solver in ("famo", "fixed"):
        trainer = begin(tmp_path / solver, large, objective="balanced", balanced_solver=solver)
        trainer.bare.register_buffer("calls", torch.zeros(()))
        trainer.bare.register_forward_hook(_count)
        run(trainer)
        states.append((torch.get_rng_state(), trainer.bare.get_buffer("calls")))
    assert torch.equal(states[0][0], states[1][0])
    assert float(states[0][1]) == float(states[1][1]) == 6
    run(begin(tmp_path / "still", large, objective="balanced", lr=1e-30, ema=0.0))
    for row in metrics(tmp_path / "still"):
        assert row["delta/D"] == row["delta/R"] == row["logit/D"] == 0


def test_the_second_look_comes_every_so_many_steps(tmp_path: Path, large: Path) -> None:
    for every, forwards in ((1, 12), (4, 7), (7, 6)):
        trainer = begin(tmp_path / str(every), large, objective="balanced", update_every=every)
        calls: list[int] = []
        trainer.bare.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run(trainer)
        assert len(calls) == forwards


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_a_batch_of_no_use_is_skipped(tmp_path: Path, large: Path, kind: str) -> None:
    trainer = begin(tmp_path, large, skip_nonfinite=2, ema=0.9)
    notes: list[str] = []
    trainer.stepper.say = notes.append
    trainer.stepper.objective = Fails({2, 4}, kind)
    seen: list[dict[str, Tensor]] = []
    run(trainer, lambda _: seen.append(weights(trainer)))
    assert identical(seen[2], seen[1]) and identical(seen[4], seen[3])
    assert not identical(seen[3], seen[2])
    assert trainer.stepper.objective.forgotten == 2
    assert [note.split(":")[0] for note in notes] == ["skipped step 2", "skipped step 4"]
    assert metrics(tmp_path)[2]["loss"] is None and metrics(tmp_path)[-1]["skipped"] == 2
    state = load(find_checkpoint(tmp_path))
    assert state["skips"] == {"total": 2, "in_a_row": 0}


def whole_state(trainer: Trainer) -> dict[str, Any]:
    """Return all that a step can change but the count of skipped ones."""
    state = {**trainer.stepper.state_dict(), "ema": trainer.ema.shadow}
    del state["skips"]
    return copy.deepcopy(state)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda value: value * math.nan, "loss is"), (with_broken_gradient, "gradient's norm is")],
)
@pytest.mark.parametrize("name", ["standard", "balanced", "fixed", "qp", "hierarchical"])
def test_terms_that_are_no_numbers_change_nothing_whatever_weighs_them(
    tmp_path: Path,
    large: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spoil: Callable[[Tensor], Tensor],
    said: str,
) -> None:
    real: Any = vars(stepper)["terms_of"]

    def broken(*arguments: Any) -> Terms:
        terms: Terms = real(*arguments)
        if len(seen) != 2:
            return terms
        rates = terms.rates and {k: spoil(v) for k, v in terms.rates.items()}
        return terms._replace(bpp=spoil(terms.bpp), rates=rates)

    options = {**OBJECTIVES[name], "ema": 0.9, "steps": 4}
    trainer = begin(tmp_path, large, **options, skip_nonfinite=2)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(stepper, "terms_of", broken)
    run(trainer, lambda _: seen.append(whole_state(trainer)))
    assert_identical(seen[2], seen[1])
    for key in ("model", "optimizers", "ema", *(["objective"] if name == "balanced" else [])):
        with pytest.raises(AssertionError):
            assert_identical(seen[3][key], seen[2][key])
    assert trainer.stepper.skips.total == 1
    strict = begin(tmp_path / "strict", large, **options, skip_nonfinite=0)
    seen.clear()
    with pytest.raises(TrainingError, match=f"step 2: the {said} nan"):
        run(strict, lambda _: seen.append({}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**OBJECTIVES["qp"], "amp": "bf16"}, "neither --amp nor --compile"),
        ({**OBJECTIVES["qp"], "compile": True}, "neither --amp nor --compile"),
        ({**OBJECTIVES["qp"], "inter_scale_reg": True}, "has no place beside"),
        ({"scale_patience": 2}, "--scale-patience: no pictures to validate on"),
        ({**OBJECTIVES["balanced"], "gamma_schedule": "adaptive"}, "--gamma-schedule adaptive: no"),
    ],
)
def test_options_that_cannot_work_together_are_refused(
    tmp_path: Path, large: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        begin(tmp_path, large, **options)


def test_too_many_batches_of_no_use_end_the_run(tmp_path: Path, large: Path) -> None:
    trainer = begin(tmp_path, large, skip_nonfinite=2)
    trainer.stepper.objective = Fails({3, 4}, "nan")
    with pytest.raises(TrainingError, match=r"step 4: a loss of nan .* 2 in a row"):
        run(trainer)
    assert load(find_checkpoint(tmp_path))["step"] == 3


def test_a_bound_above_a_loss_ends_the_run_with_its_checkpoint(tmp_path: Path, large: Path) -> None:
    trainer = begin(tmp_path, large, objective="balanced", min_losses="-1,-1")
    calls = []

    def raise_bound(values: dict[str, float]) -> None:
        calls.append(values["step"])
        if values["step"] == 4:
            objective: Any = trainer.stepper.objective
            objective.weights.min_losses[1] = 50.0

    with pytest.raises(TrainingError, match=r"task R is .* lower bound, 50"):
        run(trainer, raise_bound)
    assert calls[-1] == 4
    assert load(find_checkpoint(tmp_path))["step"] == 3


def test_validation_tells_the_bits_of_the_scales(tmp_path: Path, large: Path) -> None:
    run(begin(tmp_path, large, val_share=0.4, objective="hierarchical"))
    row = next(row for row in metrics(tmp_path) if "val_bpp" in row)
    parts = [row[f"val_bpp_{name}"] for name in ("z", "s1", "s2", "s3")]
    assert sum(parts) == pytest.approx(row["val_bpp"], rel=1e-5)


@pytest.mark.parametrize("name", ["standard", "balanced", "qp", "hierarchical"])
def test_metrics_tell_rate_distortion_and_what_is_at_its_floor(
    tmp_path: Path, large: Path, name: str
) -> None:
    trainer = run(begin(tmp_path, large, **OBJECTIVES[name], steps=2))
    for row in metrics(tmp_path):
        assert row["bpp"] + row["distortion"] == pytest.approx(row["loss"], rel=1e-6)
        assert row["distortion"] == pytest.approx(0.013 * 255**2 * row["mse"], rel=1e-6)
        assert row["floored_symbols"] >= 0 and row["grad_norm"] > 0
    x = trainer.data.batch(0).float().div_(255)
    scales = mini().train()(x).latents.scales
    share = float((scales <= 0.12).float().mean())
    assert metrics(tmp_path)[0]["floored_scales"] == pytest.approx(share)
    assert 0 < share < 1
    header = (tmp_path / TABLE).read_text().splitlines()[0].split(",")
    assert {*metrics(tmp_path)[0], *TIMES} == set(header)


@pytest.mark.parametrize("name", ["scale_patience", "gamma_schedule", "schedule"])
def test_a_validation_without_a_readable_picture_ends_no_run(
    tmp_path: Path, large: Path, name: str
) -> None:
    broken = tmp_path / "val"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    options: dict[str, dict[str, Any]] = {
        "scale_patience": {"scale_patience": 1},
        "gamma_schedule": {"objective": "hierarchical", "gamma_schedule": "adaptive"},
        "schedule": {"schedule": "plateau"},
    }
    options[name] |= {"val": str(broken), "checkpoint_every": 1, "steps": 2}
    assert run(begin(tmp_path / "run", large, **options[name])).step == 2
    row = next(row for row in metrics(tmp_path / "run") if "val_loss" in row)
    found = {name: value for name, value in row.items() if name.startswith("val_")}
    assert set(found) == {"val_psnr", "val_ms_ssim", "val_bpp", "val_loss"} | {
        f"val_bpp_{part}" for part in ("z", "s1", "s2", "s3")
    }
    assert set(found.values()) == {None}


def test_the_loaded_model_is_the_trained_one(tmp_path: Path, large: Path) -> None:
    trainer = run(begin(tmp_path, large))
    model, training = load_model(tmp_path)
    assert isinstance(model, HPCM) and model.config == MINI
    assert identical(dict(model.state_dict()), weights(trainer))
    assert training["lmbda"] == 0.013


def test_half_precision_keeps_losses_in_float32(tmp_path: Path, large: Path) -> None:
    trainer = begin(tmp_path, large, amp="bf16", objective="balanced", steps=2)
    seen: list[torch.dtype] = []
    objective: Any = trainer.stepper.objective
    inner = objective.tasks.of

    def spy(terms: Terms) -> Tensor:
        seen.extend((terms.bpp.dtype, terms.mse.dtype))
        result: Tensor = inner(terms)
        return result

    object.__setattr__(objective.tasks, "of", spy)
    run(trainer)
    assert set(seen) == {torch.float32} and len(seen) == 8
    assert any(row["delta/D"] != 0 for row in metrics(tmp_path))


@compiler_warns
def test_half_precision_can_be_compiled(
    tmp_path: Path, large: Path, graphs: Callable[[str], list[Any]]
) -> None:
    """The compiler sees what stays in float32: bit for bit the run without it."""
    compiled = graphs("eager")
    trained = {}
    for compile_ in (False, True):
        trainer = begin(tmp_path / str(compile_), large, amp="bf16", compile=compile_, steps=2)
        assert not compiled
        trained[compile_] = weights(run(trainer))
    assert identical(trained[True], trained[False])
    # More pieces than the few that random numbers cut the network into would be slow.
    assert 0 < len(compiled) < 10


def test_hierarchical_training_is_for_models_with_scales(tmp_path: Path, photos: Path) -> None:
    config = TrainConfig().updated({"objective": "hierarchical", "crop": 32, "val_share": 0.0})
    with pytest.raises(ConfigError, match="needs the scales of hpcm"):
        begin_run(tmp_path, photos, config, new_model(config), command="bmshj2018")


SCRIPT = """
from dataclasses import replace
from lic.codec.models.hpcm_config import SIZES
from tests.trainers.small_runs import MINI
SIZES["tiny"] = replace(MINI, placement="upstream")
from lic.cli.app import main
main()
"""

IN_PAIRS = {
    "qp": ("--objective", "balanced", "--balanced-solver", "qp"),
    "hierarchical": ("--objective", "hierarchical", "--update-every", "1"),
    "literal": ("--inter-scale-reg", "--inter-scale-form", "literal"),
}


@pytest.mark.parametrize("name", IN_PAIRS)
def test_two_processes_learn_as_one(tmp_path: Path, large: Path, name: str) -> None:
    """Weights of tasks and alignments of scales, too."""
    script, init = tmp_path / "mini.py", tmp_path / "mini.pth.tar"
    script.write_text(SCRIPT)
    model = mini()
    with torch.no_grad():
        # Several steps of the quantiser wide: latents of zeros are alike in all crops.
        model.get_parameter("g_a.branch.3.weight").mul_(40)
    torch.save({"state_dict": model.state_dict()}, init)
    for folder, batch, devices in (("one", 4, 1), ("two", 2, 2)):
        command = [
            sys.executable, str(script), "train", "hpcm", str(large), "-o", str(tmp_path / folder),
            "--init", str(init), "--size", "tiny", "--placement", "corrected", "--crop", "128",
            "--steps", "4", "--device", "cpu", "--batch", str(batch), "--devices", str(devices),
            "--log-every", "1", "--val-share", "0", "--quiet", *IN_PAIRS[name],
        ]  # fmt: skip
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
    one, two = (load(find_checkpoint(tmp_path / folder)) for folder in ("one", "two"))
    for part in ("model", "inter_scale"):
        values = ([v.flatten().float() for v in s[part].values()] for s in (one, two))
        a, b = (torch.cat([torch.zeros(1), *found]) for found in values)
        assert float((a - b).norm()) <= 1e-5 * float(a.norm()), part
    told = ("loss", "bpp", "omega", "z", "inter_scale")
    rows = list(zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True))
    for single, pair in rows:
        for value in [n for n in single if n.split("/")[0] in told]:
            assert pair[value] == pytest.approx(single[value], rel=2e-3), value
    if name == "hierarchical":
        assert rows[0][0]["z/R_s3"] != rows[-1][0]["z/R_s3"], "weights have learned nothing"


def test_the_alignment_learns_and_stays_out_of_the_model(tmp_path: Path, large: Path) -> None:
    options = {"inter_scale_reg": True, "val_share": 0.4}
    trainer = run(begin(tmp_path / "with", large, **options))
    state = load(find_checkpoint(tmp_path / "with"))
    assert {"transforms", "align"} == state["optimizers"].keys()
    kept = list(state["inter_scale"].values())
    assert len(kept) == 2
    assert not any(torch.equal(value.flatten(1), torch.eye(8)) for value in kept)
    assert load_model(tmp_path / "with")[0].state_dict().keys() == mini().state_dict().keys()
    # Of the validation it is no part.
    found = validate(trainer.bare, trainer.validation, trainer.config.loss)
    row = next(row for row in reversed(metrics(tmp_path / "with")) if "val_loss" in row)
    assert row["val_loss"] == pytest.approx(found["val_loss"], rel=1e-6)
    mse = row["val_loss"] - row["val_bpp"]
    assert mse == pytest.approx(0.013 * 255**2 * 10 ** (-row["val_psnr"] / 10), rel=0.2)
