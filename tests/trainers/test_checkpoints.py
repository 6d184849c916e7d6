import json
import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from lic.codec.errors import OutputError, TrainingError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.trainers import checkpoints, files
from lic.trainers.checkpoints import CheckpointManager, find_checkpoint, load_model
from lic.trainers.config import CheckpointConfig, TrainConfig

NAME = "step-00000007.pt"


def state(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {key: {} for key in checkpoints.ENTRIES}
    return {**values, "step": 7, "model": {"w": torch.arange(3.0)}, **changes}


def run_state(kind: type[FactorizedPrior] | type[ScaleHyperprior], **changes: Any) -> Any:
    """Return a run's state whose averages differ from its weights."""
    torch.manual_seed(3)
    sizes = {"N": 4, "M": 6, "encoder_activation": "relu", "decoder_activation": "relu"}
    model = (
        FactorizedPrior(FactorizedConfig(**sizes))  # type: ignore[arg-type]
        if kind is FactorizedPrior
        else ScaleHyperprior(HyperpriorConfig(**sizes))  # type: ignore[arg-type]
    )
    return state(
        config=TrainConfig().to_dict(),
        architecture=model.name,
        model_config=model.config.to_dict(),
        model=model.state_dict(),
        ema={name: value.detach() + 1 for name, value in model.named_parameters()},
        **changes,
    )


def manager(folder: Path, last: int = 3, best: int = 2, metric: str = "val_loss") -> Any:
    config = CheckpointConfig(keep_last=last, keep_best=best, best_metric=metric)
    notes: list[str] = []
    made = CheckpointManager(folder, config, notes.append)
    made.notes = notes  # type: ignore[attr-defined]
    return made


def steps(folder: Path) -> list[int]:
    found = sorted((folder / files.CHECKPOINTS).glob("step-*.pt"))
    return [int(path.stem[5:]) for path in found]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_a_checkpoint_comes_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / NAME
    checkpoints.save(path, state())
    checkpoints.save(path, state(step=8))
    found = checkpoints.load(path)
    assert found["step"] == 8
    assert torch.equal(found["model"]["w"], torch.arange(3.0))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / NAME
    checkpoints.save(path, state())
    before = path.read_bytes()

    def fail(*arguments: Any) -> None:
        if failing == "save":
            arguments[1].write(b"half of it")
        raise OSError(28, "No space left on device")

    owner: Any = {"save": torch, "fsync": os, "replace": Path}[failing]
    monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, state(step=8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / files.CHECKPOINTS / NAME, tmp_path / "trace"
    content = state(objective=Malice(trace))
    path.parent.mkdir()
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({**content, "model": {}}))
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint") as caught:
        checkpoints.load(path)
    # Least of all with torch's advice to load it all the same.
    assert "weights_only" not in str(caught.value)
    ours = manager(tmp_path)
    assert ours.latest() is None
    assert ours.best() is None
    assert not trace.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    checkpoints.save(path, state(model={"w": torch.ones(5000)}))
    data = path.read_bytes()
    weights = data.index(torch.ones(100).numpy().tobytes())
    flipped = data[:weights] + bytes([data[weights] ^ 1]) + data[weights + 1 :]
    zeroed = data[:weights] + bytes(4096) + data[weights + 4096 :]
    for damaged in (b"", b"text", data[:100], data[: len(data) // 2], data[:-1], flipped, zeroed):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=rf"{NAME}: cannot be read"):
            checkpoints.load(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such checkpoint"):
        checkpoints.load(tmp_path / NAME)


@pytest.mark.parametrize("content", [torch.zeros(2), [], {"g_a.0.weight": torch.zeros(2)}])
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / NAME
    torch.save(content, path)
    for read in (checkpoints.load, load_model):
        with pytest.raises(TrainingError, match="not a training checkpoint of lic"):
            read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config": {"N": 8, "M": 6}},
        {"model_config": {"N": 0}},
        {"model_config": {"N": 4096, "M": 4096}},
        {"model_config": {"channels": 4}},
        {"model_config": []},
        {"architecture": "vgg"},
        {"architecture": "bmshj2018-hyperprior"},
        {"model": {"g_a.0.weight": 3}},
        {"config": []},
    ],
)
def test_weights_that_do_not_fit_what_they_say_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / NAME
    checkpoints.save(path, {**run_state(FactorizedPrior), **changes})
    with pytest.raises(TrainingError, match=rf"{NAME}: not a training checkpoint of lic"):
        load_model(path)


def test_every_metric_that_can_rank_has_a_direction() -> None:
    (choices,) = (f.metadata["choices"] for f in fields(CheckpointConfig) if f.metadata["choices"])
    assert set(choices) == set(checkpoints.RISES)


SCORES = (1.0, 0.8, 0.9, 0.7, 0.75, 0.6, 0.65, 0.5)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("metric", "scores"),
    [("val_loss", SCORES), ("val_psnr", [30 - score for score in SCORES])],
)
def test_the_newest_and_the_best_of_all_stay(
    tmp_path: Path, restarts: bool, metric: str, scores: Sequence[float]
) -> None:
    ours = manager(tmp_path, metric=metric)
    for step, score in enumerate(scores):
        ours = manager(tmp_path, metric=metric) if restarts else ours
        ours.write(state(), step, {metric: score})
    assert steps(tmp_path) == [5, 6, 7]
    assert ours.best().name == "step-00000007.pt"
    assert ours.latest().name == "step-00000007.pt"


def test_the_true_second_best_is_not_lost_to_a_best_that_came_first(tmp_path: Path) -> None:
    ours = manager(tmp_path, last=1, best=2)
    for step, score in enumerate((0.1, 0.5, 0.2, 0.4, 0.3)):
        ours.write(state(), step, {"val_loss": score})
    assert steps(tmp_path) == [0, 2, 4]
    assert ours.best().name == "step-00000000.pt"


def test_of_equal_checkpoints_the_newer_is_better(tmp_path: Path) -> None:
    ours = manager(tmp_path, last=1, best=1)
    for step in range(4):
        ours.write(state(), step, {"val_loss": 0.5})
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("metric", ["val_loss", "val_psnr"])
def test_a_metric_that_is_no_number_or_not_there_is_never_the_best(
    tmp_path: Path, metric: str
) -> None:
    ours = manager(tmp_path, last=1, best=1, metric=metric)
    ours.write(state(), 1, {metric: math.nan})
    assert ours.best() is None
    ours.write(state(), 2, {metric: 9.0})
    ours.write(state(), 3, {metric: math.nan})
    ours.write(state(), 4, {})
    assert ours.best().name == "step-00000002.pt"
    assert steps(tmp_path) == [2, 4]


def test_what_was_just_written_stays_even_if_later_steps_lie_there(tmp_path: Path) -> None:
    ours = manager(tmp_path, last=1, best=0)
    ours.write(state(), 100, {})
    ours.write(state(), 10, {})
    assert steps(tmp_path) == [10, 100]
    ours.remove_later(10)
    assert steps(tmp_path) == [10]


def test_other_files_are_left_alone_and_count_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / files.CHECKPOINTS
    folder.mkdir()
    foreign = ["notes.txt", "step-1.pt", "step-00000002.pt.bak", "best.pt", "step-00000003.pt.tmp"]
    for name in foreign:
        (folder / name).write_bytes(b"mine")
    damaged = folder / "step-00000004.pt"
    damaged.write_bytes(b"no longer a checkpoint")
    ours = manager(tmp_path, last=2, best=1)
    for step in (5, 6, 7, 8):
        ours.write(state(), step, {"val_loss": 1.0 / step})
    kept = {path.name for path in folder.iterdir()}
    assert kept == {*foreign, damaged.name, "step-00000007.pt", "step-00000008.pt"}


def test_what_a_killed_run_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    names: list[str] = []

    def killed(file: Any) -> None:
        names.append(Path(file.name).name)
        raise SystemExit

    with pytest.raises(SystemExit):
        files.write_whole(tmp_path / files.CHECKPOINTS / NAME, killed)
    leftover = tmp_path / files.CHECKPOINTS / names[0]
    leftover.write_bytes(b"half of it")
    manager(tmp_path).write(state(), 9, {})
    assert not leftover.exists()
    assert steps(tmp_path) == [9]


def test_a_full_disk_is_named_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = manager(tmp_path, last=1, best=0)
    ours.write(state(), 1, {})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"No space left on device.*checkpoint is kept"):
        ours.write(state(), 2, {})
    assert steps(tmp_path) == [1]


def test_a_checkpoint_that_cannot_be_deleted_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    ours = manager(tmp_path, last=1, best=0)
    ours.write(state(), 1, {})
    monkeypatch.setattr(Path, "unlink", fail)
    ours.write(state(), 2, {})
    assert steps(tmp_path) == [1, 2]
    assert "step-00000001.pt: cannot be deleted (Permission denied)" in ours.notes[0]


def test_damage_to_the_newest_gives_the_one_before_and_a_note(tmp_path: Path) -> None:
    ours = manager(tmp_path)
    for step in (1, 2, 3):
        ours.write(state(), step, {"val_loss": 1.0 / step})
    damage(tmp_path / files.CHECKPOINTS / "step-00000003.pt")
    restarted = manager(tmp_path)
    assert restarted.latest().name == "step-00000002.pt"
    assert restarted.best().name == "step-00000002.pt"
    assert "passed over" in restarted.notes[0]
    assert "step-00000003.pt" in restarted.notes[0]


def test_a_run_without_checkpoints_has_neither_last_nor_best(tmp_path: Path) -> None:
    ours = manager(tmp_path / "none")
    assert ours.latest() is None
    assert ours.best() is None
    ours.remove_later(0)
    with pytest.raises(TrainingError, match="holds no readable checkpoint; expected a training"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", [FactorizedPrior, ScaleHyperprior])
def test_a_run_gives_its_averaged_model_and_its_provenance(
    tmp_path: Path, kind: type[FactorizedPrior] | type[ScaleHyperprior]
) -> None:
    content = run_state(kind, facts={"replaced": ["g_a.1"]})
    manager(tmp_path).write(content, 20, {})
    for source in (tmp_path, tmp_path / files.CHECKPOINTS, find_checkpoint(tmp_path)):
        model, provenance = load_model(source)
        assert type(model) is kind
        assert not model.training
        assert all(torch.equal(p, content["ema"][name]) for name, p in model.named_parameters())
        assert provenance == {**TrainConfig().to_dict(), "lmbda": 0.013, "steps_done": 20}
        json.dumps(provenance, allow_nan=False)


def test_without_averages_the_weights_themselves_are_shipped(tmp_path: Path) -> None:
    content = run_state(FactorizedPrior)
    manager(tmp_path).write({**content, "ema": {}}, 20, {})
    model, _ = load_model(tmp_path)
    assert torch.equal(model.state_dict()["g_a.0.weight"], content["model"]["g_a.0.weight"])


def test_the_best_model_of_a_run_is_ranked_by_the_metric_of_that_run(tmp_path: Path) -> None:
    config = TrainConfig(checkpoint=CheckpointConfig(best_metric="val_psnr")).to_dict()
    ours = manager(tmp_path, metric="val_psnr")
    for step, psnr in ((1, 29.0), (2, 31.0), (3, 30.0)):
        content = {**run_state(FactorizedPrior), "config": config}
        ours.write(content, step, {"val_psnr": psnr, "val_loss": psnr})
    assert load_model(tmp_path)[1]["steps_done"] == 3
    assert load_model(tmp_path, best=True)[1]["steps_done"] == 2


@pytest.mark.parametrize("config", [{}, [], {"checkpoint": {"best_metric": "beauty"}}])
def test_the_best_of_a_run_that_names_no_metric_is_refused(tmp_path: Path, config: Any) -> None:
    manager(tmp_path).write({**run_state(FactorizedPrior), "config": config}, 1, {"loss": 1.0})
    with pytest.raises(TrainingError, match="not a training checkpoint of lic"):
        load_model(tmp_path, best=True)


def test_a_run_that_never_validated_has_no_best_model(tmp_path: Path) -> None:
    manager(tmp_path).write(run_state(FactorizedPrior), 1, {"loss": 1.0})
    with pytest.raises(TrainingError, match="no checkpoint has val_loss"):
        load_model(tmp_path, best=True)
