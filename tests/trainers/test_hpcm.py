"""HPCM on the one loop: every objective, resumed, skipped, in two processes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models import HPCM, HPCMConfig, bits
from lic.trainers import recipes, stepper
from lic.trainers.checkpoints import find_checkpoint, load, load_model, save
from lic.trainers.config import TrainConfig
from lic.trainers.data import TrainingData, find_photos
from lic.trainers.files import CHECKPOINTS
from lic.trainers.loop import Trainer
from lic.trainers.losses import Terms
from lic.trainers.objective import RateDistortion
from lic.trainers.runs import Place, last_state, open_fabric, resume, start
from lic.trainers.trackers import METRICS, TABLE
from tests.trainers.conftest import compiler_warns, pink

# No windows and exact placement, so that 128 pixels will do.
MINI = HPCMConfig(
    widths=(8, 8, 8), blocks=(0, 0, 0), M=8, N=4, prior_s1_s2=(1, 1), prior_s3=(1, 1), heads=0,
    placement="corrected",
)  # fmt: skip
BASE = recipes.hpcm().updated(
    {
        "epochs": 0, "steps": 6, "batch": 2, "crop": 128, "lr": 1e-3, "checkpoint_every": 3,
        "log_every": 1, "val_share": 0.0,
    }
)  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "standard": {},
    "balanced": {"objective": "balanced"},
    "every second step": {"objective": "balanced", "update_every": 2},
    "fixed": {"objective": "balanced", "balanced_solver": "fixed"},
    "qp": {"objective": "balanced", "balanced_solver": "qp"},
    "hierarchical": {"objective": "hierarchical"},
    "exact7": {"objective": "hierarchical", "tasks": "exact7", "gamma_schedule": "hierarchical"},
    "fixed5": {"objective": "hierarchical", "tasks": "fixed5", "renormalise": True},
    "adaptive": {"objective": "balanced", "gamma_schedule": "adaptive_snr", "gamma_window": 2},
    "cautious": {"objective": "balanced", "optimizer": "cautious-adam", "ema": 0.9},
    "soap": {"objective": "balanced", "optimizer": "soap"},
    "curriculum": {
        "spectral_reg": True,
        "truncation_epochs": 2000.0,
        "truncation_target": "original",
    },
    "spectral": {
        "spectral_reg": True,
        "truncation_epochs": 1250.0,
        "truncation_continuous": True,
        "inter_scale_reg": True,
    },
    "literal": {"inter_scale_reg": True, "inter_scale_form": "literal", "objective": "balanced"},
    "groups": {
        "lr_scale": "context=0.5,h_a.branch.0=2",
        "freeze": "h_s,g_s",
        "unfreeze": "h_s=0.4",
        "optimizer": "soap",
    },
    "scales stop": {"scale_patience": 1, "val_share": 0.4, "checkpoint_every": 1, "keep_last": 9},
    "ms-ssim": {"loss": "ms-ssim", "lmbda": 8.0},
}


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures of 160x160."""
    folder = tmp_path_factory.mktemp("large")
    for seed in range(3):
        pixels = np.rint(pink(seed, 160) * 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def mini() -> HPCM:
    torch.manual_seed(1)
    return HPCM(MINI)


def begin(folder: Path, photos: Path, **changed: Any) -> Trainer:
    config = BASE.updated(changed)
    place = Place(images=photos, folder=folder, device="cpu")
    fabric = open_fabric(config, place)
    return start(mini(), config, place, fabric, lambda _: None, fresh=True, command="hpcm")


def again(folder: Path, photos: Path) -> Trainer:
    place = Place(images=photos, folder=folder, device="cpu")
    state = last_state(folder, {}, lambda _: None, command="hpcm")
    config = TrainConfig.from_dict(state["config"])
    return resume(state, place, open_fabric(config, place), lambda _: None)


def run(trainer: Trainer, report: Callable[[dict[str, float]], None] = lambda _: None) -> Trainer:
    trainer.run(report)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.bare.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_standard_training_is_the_published_loop(tmp_path: Path, large: Path) -> None:
    """Three epochs against a loop written out, bit for bit."""
    # A norm is a sum whose order may differ.
    trained = run(begin(tmp_path, large, max_grad_norm=0.0))
    model, config = mini().train(), BASE
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
    data = TrainingData(find_photos(large), config.data, seed=config.run.seed)
    for step in range(6):
        x = data.batch(step).float().div_(255).contiguous(memory_format=torch.channels_last)
        torch.manual_seed(hash((config.run.seed, step)) & 0x7FFFFFFF)
        output = model(x)
        loss = bits(output.likelihoods) / (2 * 128 * 128)
        loss = loss + config.loss.lmbda * 255**2 * torch.nn.functional.mse_loss(output.x_hat, x)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert identical(weights(trained), model.state_dict())
    assert not identical(weights(trained), mini().state_dict())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_is_the_run(tmp_path: Path, large: Path, name: str) -> None:
    """The checkpoint of step 3 lies in the middle of the second epoch."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run(begin(whole, large, **OBJECTIVES[name]))
    run(begin(parts, large, **OBJECTIVES[name]))
    for step in (4, 5, 6):
        (parts / CHECKPOINTS / f"step-0000000{step}.pt").unlink(missing_ok=True)
    resumed = again(parts, large)
    assert resumed.step == 3
    run(resumed)
    assert identical(weights(resumed), weights(expected))
    times = {"seconds_per_step", "images_per_second", "data_wait"}
    for one, two in zip(rows(whole), rows(parts), strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {
            k: v for k, v in two.items() if k not in times
        }
    assert all(math.isfinite(row.get("loss", 0.0)) for row in rows(whole))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "standard"])
def test_every_objective_goes_its_own_way(tmp_path: Path, large: Path, name: str) -> None:
    plain = run(begin(tmp_path / "plain", large))
    other = run(begin(tmp_path / "other", large, **OBJECTIVES[name]))
    assert not identical(weights(plain), weights(other))


def test_task_weights_that_are_lost_change_the_run(tmp_path: Path, large: Path) -> None:
    options: dict[str, Any] = {**OBJECTIVES["balanced"], "w_lr": 0.5}
    expected = run(begin(tmp_path / "whole", large, **options))
    run(begin(tmp_path / "parts", large, **options))
    (tmp_path / "parts" / CHECKPOINTS / "step-00000006.pt").unlink()
    resumed = again(tmp_path / "parts", large)
    objective: Any = resumed.stepper.objective
    with torch.no_grad():
        objective.weights.logits.zero_()
    assert not identical(weights(run(resumed)), weights(expected))


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
    for row in rows(tmp_path / "still"):
        assert row["delta/D"] == row["delta/R"] == row["logit/D"] == 0


def test_the_second_look_comes_every_so_many_steps(tmp_path: Path, large: Path) -> None:
    for every, forwards in ((1, 12), (4, 7), (7, 6)):
        trainer = begin(tmp_path / str(every), large, objective="balanced", update_every=every)
        calls: list[int] = []
        trainer.bare.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run(trainer)
        assert len(calls) == forwards


class Fails(RateDistortion):
    """Gives a loss, or a gradient, that is no number at some steps."""

    def __init__(self, steps: set[int], kind: str) -> None:
        super().__init__(0.013)
        self.steps, self.kind, self.forgotten = steps, kind, 0

    def loss(self, terms: Terms, step: int) -> Tensor:
        loss = super().loss(terms, step)
        if step not in self.steps:
            return loss
        if self.kind == "loss":
            return loss * math.nan
        return loss + torch.sqrt((terms.mse - terms.mse.detach()).abs())

    def forget(self) -> None:
        self.forgotten += 1


@pytest.mark.parametrize("kind", ["loss", "gradient"])
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
    assert rows(tmp_path)[2]["loss"] is None and rows(tmp_path)[-1]["skipped"] == 2
    state = load(find_checkpoint(tmp_path))
    assert state["skips"] == {"total": 2, "in_a_row": 0}


@pytest.mark.parametrize("name", ["standard", "balanced", "fixed", "qp", "hierarchical"])
def test_terms_that_are_no_numbers_are_skipped_whatever_weighs_them(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real: Any = vars(stepper)["terms_of"]
    calls: list[int] = []

    def broken(*arguments: Any) -> Terms:
        terms: Terms = real(*arguments)
        calls.append(1)
        if len(calls) != 3:
            return terms
        rates = terms.rates and {k: v * math.nan for k, v in terms.rates.items()}
        return terms._replace(bpp=terms.bpp * math.nan, rates=rates)

    options = {**OBJECTIVES[name], "update_every": 9, "skip_nonfinite": 2}
    trainer = begin(tmp_path, large, **options)
    monkeypatch.setattr(stepper, "terms_of", broken)
    seen: list[dict[str, Tensor]] = []
    run(trainer, lambda _: seen.append(weights(trainer)))
    assert identical(seen[2], seen[1]) and not identical(seen[3], seen[2])
    assert trainer.stepper.skips.total == 1
    strict = begin(tmp_path / "strict", large, **options | {"skip_nonfinite": 0})
    calls.clear()
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        run(strict)


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


def test_a_checkpoint_of_before_is_a_model_but_no_run(tmp_path: Path, large: Path) -> None:
    run(begin(tmp_path, large))
    path = find_checkpoint(tmp_path)
    state = load(path)
    for name in ("skips", "stopping", "inter_scale", "since_line"):
        del state[name]
    save(path, state)
    assert isinstance(load_model(path)[0], HPCM)
    with pytest.raises(TrainingError, match=r"does not fit this version of lic .*skips"):
        again(tmp_path, large)


def test_too_many_batches_of_no_use_end_the_run(tmp_path: Path, large: Path) -> None:
    trainer = begin(tmp_path, large, skip_nonfinite=2)
    trainer.stepper.objective = Fails({3, 4}, "loss")
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
    row = next(row for row in rows(tmp_path) if "val_bpp" in row)
    parts = [row[f"val_bpp_{name}"] for name in ("z", "s1", "s2", "s3")]
    assert sum(parts) == pytest.approx(row["val_bpp"], rel=1e-5)


@pytest.mark.parametrize("name", ["standard", "balanced", "qp", "hierarchical"])
def test_metrics_tell_rate_distortion_and_what_is_at_its_floor(
    tmp_path: Path, large: Path, name: str
) -> None:
    trainer = run(begin(tmp_path, large, **OBJECTIVES[name], steps=2))
    for row in rows(tmp_path):
        assert row["bpp"] + row["distortion"] == pytest.approx(row["loss"], rel=1e-6)
        assert row["distortion"] == pytest.approx(0.013 * 255**2 * row["mse"], rel=1e-6)
        assert row["floored_symbols"] >= 0 and row["grad_norm"] > 0
    x = trainer.data.batch(0).float().div_(255)
    scales = mini().train()(x).latents.scales
    share = float((scales <= 0.12).float().mean())
    assert rows(tmp_path)[0]["floored_scales"] == pytest.approx(share)
    assert 0 < share < 1
    header = (tmp_path / TABLE).read_text().splitlines()[0].split(",")
    assert set(rows(tmp_path)[0]) == set(header)


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
    row = next(row for row in rows(tmp_path / "run") if "val_loss" in row)
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
    assert any(row["delta/D"] != 0 for row in rows(tmp_path))


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
    from lic.trainers.models import new_model

    config = TrainConfig().updated({"objective": "hierarchical", "crop": 32, "val_share": 0.0})
    place = Place(images=photos, folder=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="needs the scales of hpcm"):
        start(
            new_model(config), config, place, open_fabric(config, place), lambda _: None, fresh=True
        )


SCRIPT = """
import sys
from lic.codec.models import HPCMConfig, hpcm_config
from lic.codec.models.hpcm_config import SIZES
from tests.trainers.test_hpcm import MINI
SIZES["tiny"] = MINI
from lic.cli.app import main
main()
"""


@pytest.mark.parametrize("objective", ["hierarchical", "qp"])
def test_two_processes_weigh_tasks_as_one(tmp_path: Path, large: Path, objective: str) -> None:
    script = tmp_path / "mini.py"
    script.write_text(SCRIPT)
    options = {
        "qp": ["--objective", "balanced", "--balanced-solver", "qp"],
        "hierarchical": ["--objective", "hierarchical"],
    }[objective]
    left = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {**{k: v for k, v in os.environ.items() if k not in left}, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), env.get("PYTHONPATH", "")])
    for name, batch, devices in (("one", 4, 1), ("two", 2, 2)):
        command = [
            sys.executable, str(script), "train", "hpcm", str(large), "-o", str(tmp_path / name),
            "--size", "tiny", "--placement", "corrected", "--crop", "128", "--steps", "4",
            "--device", "cpu", "--batch", str(batch), "--devices", str(devices),
            "--log-every", "1", "--val-share", "0", "--quiet", *options,
        ]  # fmt: skip
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = (load(find_checkpoint(tmp_path / name)) for name in ("one", "two"))
    a, b = (torch.cat([v.flatten().float() for v in s["model"].values()]) for s in (one, two))
    assert float((a - b).norm()) <= 1e-5 * float(a.norm())
    for single, pair in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in [n for n in single if n.split("/")[0] in ("loss", "bpp", "omega", "z")]:
            assert pair[name] == pytest.approx(single[name], rel=2e-3), name


def test_the_alignment_learns_and_stays_out_of_the_model(tmp_path: Path, large: Path) -> None:
    options = {"inter_scale_reg": True, "val_share": 0.4}
    trainer = run(begin(tmp_path / "with", large, **options))
    state = load(find_checkpoint(tmp_path / "with"))
    assert {"transforms", "align"} == state["optimizers"].keys()
    kept = list(state["inter_scale"].values())
    assert len(kept) == 2
    assert not any(torch.equal(value.flatten(1), torch.eye(8)) for value in kept)
    assert all(name in mini().state_dict() for name in state["model"])
    # Of the validation it is no part.
    from lic.trainers.validation import validate

    found = validate(trainer.bare, trainer.validation, trainer.config.loss)
    row = next(row for row in reversed(rows(tmp_path / "with")) if "val_loss" in row)
    assert row["val_loss"] == pytest.approx(found["val_loss"], rel=1e-6)
    mse = row["val_loss"] - row["val_bpp"]
    assert mse == pytest.approx(0.013 * 255**2 * 10 ** (-row["val_psnr"] / 10), rel=0.2)
