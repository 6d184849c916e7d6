import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision

from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.trainers.checkpoints import load, load_model
from lic.trainers.config import TrainConfig
from lic.trainers.files import CHECKPOINTS
from lic.trainers.loop import Trainer
from lic.trainers.runs import last_state
from lic.trainers.stopping import Interrupted
from tests.trainers.conftest import compiler_warns
from tests.trainers.small_runs import (
    Fails,
    again,
    assert_identical,
    begin_run,
    cut_off,
    last,
    metrics,
    quiet,
    resumed,
)

BASE = TrainConfig().updated(
    {
        "steps": 12, "batch": 2, "crop": 32, "optimizer": "adam", "start": "random",
        "lr_warmup_steps": 3, "lr": 1e-3, "checkpoint_every": 6, "log_every": 1, "ema": 0.9,
        "val_share": 0.0,
    }
)  # fmt: skip


def tiny(act: Any = "relu") -> FactorizedPrior:
    torch.manual_seed(1)
    return FactorizedPrior(
        FactorizedConfig(N=8, M=12, encoder_activation=act, decoder_activation=act)
    )


def begin(
    folder: Path,
    photos: Path,
    changed: dict[str, Any] | None = None,
    *,
    model: Any = None,
    device: str = "cpu",
    command: str = "bmshj2018",
    notes: list[str] | None = None,
) -> Trainer:
    say = notes.append if notes is not None else lambda _: None
    return begin_run(
        folder, photos, BASE.updated(changed or {}), model or tiny(),
        command=command, device=device, say=say,
    )  # fmt: skip


def bare(run: Trainer) -> Any:
    """Return the model, whatever it is."""
    return run.bare


def test_training_lowers_the_loss(tmp_path: Path, photos: Path) -> None:
    reports: list[dict[str, float]] = []
    begin(tmp_path, photos, {"steps": 60, "lr": 1e-2}).run(reports.append)
    losses = [values["loss"] for values in reports]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


RESUMED: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "soap"},
    {"optimizer": "muon", "schedule": "onecycle"},
    {"optimizer": "adamw", "weight_decay": 0.01, "eb_aux": True, "ema": 0.0},
    {"optimizer": "adam", "amp": "bf16"},
    {"optimizer": "adam", "qat": True, "qat_calibration_steps": 5, "qat_freeze_step": 10},
    {"schedule": "plateau", "plateau_patience": 0, "val_share": 0.5, "val_every": 2},
    {"loss": "rd"},
]


@pytest.mark.parametrize("options", RESUMED, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, photos: Path, options: dict[str, Any]
) -> None:
    options = {**options, "steps": 16, "checkpoint_every": 8, "epochs": 0}
    if "val_share" in options:
        options["val"] = str(photos)
        copies = tmp_path / "photos"
        copies.mkdir()
        for path in photos.iterdir():
            (copies / path.name).write_bytes(path.read_bytes())
        photos = copies
    begin(tmp_path / "straight", photos, options).run(quiet)

    cut_off(begin(tmp_path / "broken", photos, options), 11)
    run = again(tmp_path / "broken", photos)
    assert run.step == 8
    run.run(quiet)

    trained = [m for m in metrics(tmp_path / "broken") if "loss" in m]
    assert [m["step"] for m in trained] == list(range(1, 17))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
    assert_identical(*(last(tmp_path / name) for name in ("broken", "straight")))


@compiler_warns
@pytest.mark.parametrize(("amp", "backend"), [("off", "aot_eager"), ("bf16", "eager")])
def test_a_compiled_run_is_the_run_and_goes_on_where_it_stopped(
    tmp_path: Path, photos: Path, graphs: Callable[[str], list[Any]], amp: str, backend: str
) -> None:
    compiled = graphs(backend)
    options = {"amp": amp, "steps": 4, "checkpoint_every": 2}
    plain, other = tmp_path / "plain", tmp_path / "compiled"
    begin(plain, photos, options).run(quiet)
    assert not compiled
    begin(other, photos, {**options, "compile": True}).run(quiet)
    assert compiled
    for row, wanted in zip(metrics(other), metrics(plain), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    expected = last(other)
    assert expected["model"].keys() == last(plain)["model"].keys()
    (other / CHECKPOINTS / "step-00000004.pt").unlink()
    again(other, photos).run(quiet)
    assert_identical(last(other), expected)


@pytest.mark.parametrize("lost", ["ema", "optimizers", "qat"])
def test_what_a_checkpoint_holds_is_needed(tmp_path: Path, photos: Path, lost: str) -> None:
    """Guards the test above: a state that changed nothing would prove nothing."""
    options = {"steps": 8, "checkpoint_every": 4, "qat": True, "qat_calibration_steps": 2}
    begin(tmp_path, photos, options).run(quiet)
    expected = last(tmp_path)
    state = load(tmp_path / CHECKPOINTS / "step-00000004.pt")
    if lost == "ema":
        state["ema"] = {k: torch.zeros_like(v) for k, v in state["ema"].items()}
    elif lost == "optimizers":
        for values in state["optimizers"].values():
            values["state"] = {}
    else:
        state["qat"] = {k: v * 2 for k, v in state["qat"].items()}
    resumed(state, tmp_path, photos).run(quiet)
    with pytest.raises(AssertionError):
        assert_identical(last(tmp_path), expected)


def test_a_request_to_stop_ends_the_step_and_leaves_a_checkpoint(
    tmp_path: Path, photos: Path
) -> None:
    def ask(values: dict[str, float]) -> None:
        if values["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped after the checkpoint of step 7; --resume"):
        begin(tmp_path, photos).run(ask)
    assert signal.getsignal(signal.SIGTERM) is before
    assert last(tmp_path)["step"] == 7
    again(tmp_path, photos).run(quiet)
    assert [m["step"] for m in metrics(tmp_path)] == list(range(1, 13))


def test_a_request_to_stop_keeps_what_ranks_the_checkpoint_of_that_very_step(
    tmp_path: Path, photos: Path
) -> None:
    def ask(values: dict[str, float]) -> None:
        if values["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="step 6"):
        begin(tmp_path, photos, {"best_metric": "loss"}).run(ask)
    assert last(tmp_path)["metrics"]["loss"] == metrics(tmp_path)[-1]["loss"]


def test_a_line_of_metrics_has_the_means_since_the_last_one_after_a_stop_too(
    tmp_path: Path, photos: Path
) -> None:
    every, lines = tmp_path / "every", tmp_path / "lines"
    begin(every, photos).run(quiet)
    begin(lines, photos, {"log_every": 5, "checkpoint_every": 4}).run(quiet)
    (lines / CHECKPOINTS / "step-00000012.pt").unlink()
    again(lines, photos).run(quiet)
    rows, found = metrics(every), metrics(lines)
    assert [row["step"] for row in found] == [5, 10, 12]
    for row, part in zip(found, (rows[:5], rows[5:10], rows[10:]), strict=True):
        for name in ("loss", "bpp", "mse", "grad_norm"):
            assert row[name] == pytest.approx(sum(r[name] for r in part) / len(part), rel=1e-5)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, photos: Path, kind: str) -> None:
    run = begin(tmp_path, photos)
    run.stepper.objective = Fails({8}, kind)
    with pytest.raises(TrainingError, match=f"step 8: the loss is {kind} .bpp .* on batch 8"):
        run.run(quiet)
    assert last(tmp_path)["step"] == 6


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_takes_no_step(
    tmp_path: Path, photos: Path, max_grad_norm: float
) -> None:
    run = begin(tmp_path, photos, {"max_grad_norm": max_grad_norm})
    run.stepper.objective = Fails({11}, "gradient")
    with pytest.raises(TrainingError, match=r"step 11: the gradient's norm is (nan|inf)"):
        run.run(quiet)
    state = last(tmp_path)
    assert state["step"] == 6
    assert all(bool(v.isfinite().all()) for v in state["model"].values())


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    tmp_path: Path, photos: Path
) -> None:
    run = begin(tmp_path, photos)

    def poison(values: dict[str, float]) -> None:
        if values["step"] == 12:
            with torch.no_grad():
                next(bare(run).g_s.parameters()).fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"step 12: g_s.* is not finite"):
        run.run(poison)
    assert last(tmp_path)["step"] == 6


def test_an_outsized_layer_is_named_with_the_step_and_the_batch(
    tmp_path: Path, photos: Path
) -> None:
    run = begin(tmp_path, photos, {"overflow_check": True, "overflow_tol": 1e3})

    def grow(values: dict[str, float]) -> None:
        if values["step"] == 8:
            with torch.no_grad():
                bare(run).g_a[2].weight.mul_(1e6)

    with pytest.raises(TrainingError, match=r"step 8: g_a.2 \(Conv2d\) gave .* on batch 8"):
        run.run(grow)
    assert last(tmp_path)["step"] == 6


@pytest.mark.parametrize(
    ("given", "named"),
    [({"lmbda": 0.02}, "--lmbda"), ({"seed": 5, "steps": 24}, "--seed, --steps")],
)
def test_a_run_goes_on_only_with_the_same_options(
    tmp_path: Path, photos: Path, given: dict[str, Any], named: str
) -> None:
    begin(tmp_path, photos, {"steps": 1}).run(quiet)
    with pytest.raises(ConfigError, match=f"other values of {named}; leave them out"):
        again(tmp_path, photos, given)


def test_what_changes_no_weight_may_change_when_a_run_goes_on(tmp_path: Path, photos: Path) -> None:
    begin(tmp_path, photos, {"steps": 2}).run(quiet)
    run = again(tmp_path, photos, {"log_every": 7, "keep_last": 5, "workers": 0, "lmbda": 0.013})
    assert run.config.watch.log_every == 7
    assert run.config.checkpoint.keep_last == 5


def test_when_validations_happen_stays_where_weights_follow_them(
    tmp_path: Path, photos: Path
) -> None:
    changed = {"steps": 1, "schedule": "plateau", "val_share": 0.4}
    pace = {"val_every": 7, "checkpoint_every": 7}
    for every, named in ((0, "--val-every, --checkpoint-every"), (1, "--val-every")):
        begin(tmp_path / str(every), photos, {**changed, "val_every": every}).run(quiet)
        with pytest.raises(ConfigError, match=f"other values of {named}; leave them out"):
            again(tmp_path / str(every), photos, pace)
    begin(tmp_path / "free", photos, {**changed, "schedule": "cosine"}).run(quiet)
    assert again(tmp_path / "free", photos, pace).config.watch.val_every == 7


def test_a_run_goes_on_with_the_processes_and_photos_it_had(
    tmp_path: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    begin(tmp_path, photos, {"steps": 1}).run(quiet)
    moved = tmp_path_factory.mktemp("elsewhere")
    for path in photos.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert again(tmp_path, moved).step == 1
    (moved / "more.png").write_bytes((moved / "a.png").read_bytes())
    with pytest.raises(ConfigError, match="holds other photos than the run was started on; name"):
        again(tmp_path, moved)
    state = last_state(tmp_path, {}, lambda _: None)
    state["facts"]["processes"] = 2
    with pytest.raises(ConfigError, match="started with 2 processes, and now there are 1"):
        resumed(state, tmp_path, photos)


def test_what_follows_a_validation_needs_one(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="--schedule plateau: no pictures to validate on"):
        begin(tmp_path, photos, {"schedule": "plateau"})
    notes: list[str] = []
    begin(tmp_path, photos, {"recon_every": 1, "steps": 2}, notes=notes).run(quiet)
    assert any(note.startswith("--recon-every: no pictures") for note in notes)
    assert not (tmp_path / "reconstructions").exists()


def test_the_scale_of_gradients_changes_once_a_step(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two optimisers, the second one's gradients would be taken for larger or smaller."""
    run = begin(tmp_path, photos, {"steps": 3, "eb_aux": True})
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(run.fabric.strategy, "_precision", precision)
    seen: list[float] = []
    for named in run.stepper.optimizers:
        named.optimizer.register_step_pre_hook(lambda *_: seen.append(scaler.get_scale()))
    run.run(quiet)
    assert seen == [4.0] * 3 + [8.0] * 3 + [16.0] * 3


def test_nothing_to_resume_is_said(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="no run with a checkpoint; leave out --resume"):
        again(tmp_path, photos)


def test_the_checkpoint_gives_the_averaged_model_and_its_provenance(
    tmp_path: Path, photos: Path
) -> None:
    run = begin(tmp_path, photos)
    run.run(quiet)
    model, provenance = load_model(tmp_path)
    assert provenance == {**run.config.to_dict(), "lmbda": 0.013, "steps_done": 12}
    assert not model.training
    name = "g_a.0.weight"
    assert torch.equal(model.state_dict()[name], run.ema.shadow[name])
    assert not torch.equal(model.state_dict()[name], run.bare.state_dict()[name])


def test_without_averaging_the_weights_themselves_are_shipped(tmp_path: Path, photos: Path) -> None:
    run = begin(tmp_path, photos, {"ema": 0.0, "steps": 2})
    run.run(quiet)
    model, _ = load_model(tmp_path)
    assert_identical(dict(model.state_dict()), dict(run.bare.state_dict()))


def test_the_rate_follows_the_schedule_and_the_norm_is_logged(tmp_path: Path, photos: Path) -> None:
    begin(tmp_path, photos, {"max_grad_norm": 0.0}).run(quiet)
    found = metrics(tmp_path)
    assert [m["lr"] for m in found[:4]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert found[-1]["lr"] < 1e-4
    assert all(m["grad_norm"] > 0 for m in found)


def test_clipping_bounds_what_a_step_moves(tmp_path: Path, photos: Path) -> None:
    """Behind Adam a clip hides, so the transforms' gradients are looked at themselves."""
    run = begin(tmp_path, photos, {"steps": 1, "max_grad_norm": 0.01})
    run.run(quiet)
    transforms = (*bare(run).g_a.parameters(), *bare(run).g_s.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in transforms if p.grad is not None])
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert metrics(tmp_path)[0]["grad_norm"] > 0.02


def test_epochs_give_the_length_of_a_run(tmp_path: Path, photos: Path) -> None:
    run = begin(tmp_path, photos, {"epochs": 3})
    assert (run.epoch_steps, run.steps) == (2, 6)


def test_validation_looks_at_the_averaged_weights_and_ranks_checkpoints(
    tmp_path: Path, photos: Path
) -> None:
    options = {"val": str(photos), "prefix": ["a", "b"], "checkpoint_every": 4, "keep_last": 1}
    with pytest.raises(TrainingError, match="none is left to train on"):
        begin(tmp_path / "x", photos, options)
    other = tmp_path / "val"
    other.mkdir()
    (other / "z.png").write_bytes((photos / "d.png").read_bytes())
    run = begin(tmp_path / "run", photos, {**options, "val": str(other)})
    before = {k: v.clone() for k, v in run.bare.state_dict().items()}
    run._validate()
    assert_identical(dict(run.bare.state_dict()), before)
    run.run(quiet)
    state = last(tmp_path / "run")
    assert state["metrics"].keys() >= {"val_loss", "val_psnr", "val_ms_ssim", "val_bpp", "loss"}
    assert len(list((tmp_path / "run" / CHECKPOINTS).iterdir())) in (1, 2)


def test_validation_comes_as_often_as_asked_and_a_plateau_follows_it(
    tmp_path: Path, photos: Path
) -> None:
    other = tmp_path / "val"
    other.mkdir()
    (other / "z.png").write_bytes((photos / "d.png").read_bytes())
    options = {
        "val": str(other), "val_every": 3, "schedule": "plateau", "plateau_patience": 0,
        "plateau_factor": 0.5, "lr_warmup_steps": 0, "ema": 0.0,
    }  # fmt: skip
    run = begin(tmp_path / "run", photos, options)
    # Nothing is better than this, so that every validation is one without gain.
    run.stepper.schedule.update(-1e9)
    run.run(quiet)
    rows = metrics(tmp_path / "run")
    assert [m["step"] for m in rows if "val_loss" in m] == [3, 6, 9, 12]
    rates = [m["lr"] for m in rows if "lr" in m]
    assert rates == [1e-3] * 3 + [5e-4] * 3 + [2.5e-4] * 3 + [1.25e-4] * 3


def test_reconstructions_come_with_the_epochs(tmp_path: Path, photos: Path) -> None:
    options = {"recon_every": 2, "recon_count": 1, "epochs": 4, "val_share": 0.5}
    copies = tmp_path / "photos"
    copies.mkdir()
    for i in range(10):
        source = photos / f"{'abcd'[i % 4]}.png"
        (copies / f"{i}.png").write_bytes(source.read_bytes())
    run = begin(tmp_path / "run", copies, options)
    run.run(quiet)
    found = {path.name for path in (tmp_path / "run" / "reconstructions").iterdir()}
    assert found == {"original-00.png", "epoch-0002-00.png", "epoch-0004-00.png", "contact.png"}


def test_a_run_that_ends_within_an_epoch_keeps_the_pictures_of_the_one_before(
    tmp_path: Path, photos: Path
) -> None:
    other = tmp_path / "val"
    other.mkdir()
    (other / "z.png").write_bytes((photos / "d.png").read_bytes())
    options = {"recon_every": 1, "recon_count": 1, "batch": 1, "steps": 5, "val": str(other)}
    begin(tmp_path / "run", photos, options).run(quiet)
    found = {path.name for path in (tmp_path / "run" / "reconstructions").glob("epoch*")}
    assert found == {"epoch-0001-00.png", "epoch-0002-00.png"}


@pytest.mark.parametrize("act", ["relu", "igdn1", "gdnish"])
@pytest.mark.parametrize("hyper", [False, True])
def test_replacement_trains_and_comes_back(
    tmp_path: Path, photos: Path, act: str, hyper: bool
) -> None:
    kind: Any = ScaleHyperprior if hyper else FactorizedPrior
    config: Any = HyperpriorConfig if hyper else FactorizedConfig
    torch.manual_seed(3)
    model = kind(config(N=8, M=12))
    options = {
        "act": act, "replace_parts": "encoder", "train_scope": "replaced+hyper", "crop": 64,
        "steps": 4, "checkpoint_every": 2,
    }  # fmt: skip
    notes: list[str] = []
    run = begin(tmp_path, photos, options, model=model, command="relu", notes=notes)
    frozen = bare(run).g_s[0].weight.detach().clone()
    run.run(quiet)
    assert torch.equal(bare(run).g_s[0].weight, frozen)
    model, _ = load_model(tmp_path)
    assert (model.config.encoder_activation, model.config.decoder_activation) == (act, "gdn")
    assert again(tmp_path, photos, command="relu").step == 4
    with pytest.raises(ConfigError, match="is a run of lic train relu; resume it by that"):
        again(tmp_path, photos)
    learning = {
        n
        for n, p in again(tmp_path, photos, command="relu").bare.named_parameters()
        if p.requires_grad
    }
    assert learning == {n for n, p in run.bare.named_parameters() if p.requires_grad}


def test_a_loss_without_rate_leaves_the_entropy_model_and_says_so(
    tmp_path: Path, photos: Path
) -> None:
    notes: list[str] = []
    run = begin(tmp_path, photos, {"loss": "recon", "steps": 2}, notes=notes)
    before = {k: v.clone() for k, v in bare(run).entropy_bottleneck.state_dict().items()}
    run.run(quiet)
    assert_identical(dict(bare(run).entropy_bottleneck.state_dict()), before)
    assert any(note.startswith("no rate in the loss: entropy_bottleneck") for note in notes)


def test_crops_that_do_not_fit_the_model_are_refused(tmp_path: Path, photos: Path) -> None:
    model = ScaleHyperprior(HyperpriorConfig(N=8, M=12))
    with pytest.raises(ConfigError, match=r"crops are 32 pixels wide; expected a multiple of 64"):
        begin(tmp_path, photos, model=model)


def test_after_a_run_small_numbers_are_themselves_again(tmp_path: Path, photos: Path) -> None:
    begin(tmp_path, photos, {"steps": 1}).run(quiet)
    assert float(torch.tensor(1e-38) / 1000) > 0


GOLDEN = Path(__file__).parent.parent / "golden" / "loss_curve.json"


def test_twenty_steps_give_the_golden_curve(
    tmp_path: Path, photos: Path, request: pytest.FixtureRequest
) -> None:
    """A change of the loop, the model or the data that means to change nothing changes nothing."""
    found = {}
    for optimizer in ("adam", "soap"):
        folder = tmp_path / optimizer
        begin(folder, photos, {"steps": 20, "optimizer": optimizer, "act": "relu"}).run(quiet)
        found[optimizer] = [
            {k: m[k] for k in ("loss", "bpp", "mse", "grad_norm")} for m in metrics(folder)
        ]
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    for optimizer, rows in found.items():
        for row, wanted in zip(rows, expected[optimizer], strict=True):
            # Rounding differs between processors; over twenty steps it stays this small.
            assert row == pytest.approx(wanted, rel=2e-3), optimizer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_on_a_gpu_goes_on_where_it_stopped(tmp_path: Path, photos: Path, amp: str) -> None:
    begin(tmp_path, photos, {"amp": amp, "steps": 6}, device="cuda").run(quiet)
    run = again(tmp_path, photos, device="cuda")
    assert run.ema.shadow["g_a.0.weight"].is_cuda
    assert run.step == 6
