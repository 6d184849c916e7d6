"""HPCM under every objective: a run of its own, and the same one when it goes on after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lic.codec.errors import TrainingError
from lic.codec.models import HPCM
from lic.trainers.checkpoints import find_checkpoint, load, load_model, save
from lic.trainers.files import CHECKPOINTS
from tests.trainers.hpcm_runs import OBJECTIVES, begin, run
from tests.trainers.small_runs import (
    again,
    assert_identical,
    cut_off,
    last,
    metrics,
    resumed,
)

# Of the folder of a run that was not interrupted, and the random state that it left.
Whole = Callable[[str], tuple[Path, Tensor]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, large: Path) -> Whole:
    """Give the uninterrupted run of an objective, trained when it is first asked for."""
    done: dict[str, tuple[Path, Tensor]] = {}

    def find(name: str) -> tuple[Path, Tensor]:
        if name not in done:
            folder = tmp_path_factory.mktemp("whole")
            run(begin(folder, large, **OBJECTIVES[name]))
            done[name] = folder, torch.get_rng_state()
        return done[name]

    return find


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_is_the_run(tmp_path: Path, large: Path, whole: Whole, name: str) -> None:
    """All that a checkpoint holds, from a stop in the middle of an epoch to the end."""
    expected, random_state = whole(name)
    cut_off(begin(tmp_path, large, **OBJECTIVES[name]), 5)
    trainer = again(tmp_path, large, command="hpcm")
    assert trainer.step in (3, 4)
    assert trainer.step % trainer.epoch_steps == 1 or "val_share" in OBJECTIVES[name]
    run(trainer)
    assert_identical(last(tmp_path), last(expected))
    assert metrics(tmp_path) == metrics(expected)
    assert all(row.get("loss", 0.0) is not None for row in metrics(expected))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "standard"])
def test_every_objective_goes_its_own_way(whole: Whole, name: str) -> None:
    plain, other = (last(whole(one)[0])["model"] for one in ("standard", name))
    assert not all(torch.equal(value, plain[key]) for key, value in other.items())


def _without_logits(state: dict[str, Any]) -> None:
    state["objective"]["weights"]["logits"].zero_()


def _without_moments(state: dict[str, Any]) -> None:
    state["objective"]["weights"]["optimizer"]["state"] = {}


def _without_gamma(state: dict[str, Any]) -> None:
    state["objective"]["gamma"].update(seen=[], factor=1.0)


@pytest.mark.parametrize("lose", [_without_logits, _without_moments, _without_gamma])
def test_task_weights_that_are_lost_change_the_run(
    tmp_path: Path, large: Path, lose: Callable[[dict[str, Any]], None]
) -> None:
    """Guards the test above: a state that changed nothing would prove nothing."""
    run(begin(tmp_path, large, **OBJECTIVES["adaptive"]))
    expected = last(tmp_path)["model"]
    state = load(tmp_path / CHECKPOINTS / "step-00000003.pt")
    lose(state)
    found = run(resumed(state, tmp_path, large)).bare.state_dict()
    assert not all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (("skips", "stopping", "inter_scale", "since_line"), "this version of lic .*skips"),
        (("objective",), "this version of lic .*objective"),
    ],
)
def test_a_checkpoint_of_before_is_a_model_but_no_run(
    tmp_path: Path, large: Path, lost: tuple[str, ...], said: str
) -> None:
    run(begin(tmp_path, large, steps=1))
    path = find_checkpoint(tmp_path)
    state = load(path)
    for name in lost:
        del state[name]
    save(path, state)
    assert isinstance(load_model(path)[0], HPCM)
    with pytest.raises(TrainingError, match=f"does not fit {said}"):
        again(tmp_path, large, command="hpcm")


def test_task_weights_that_a_checkpoint_does_not_have_are_missed(
    tmp_path: Path, large: Path
) -> None:
    run(begin(tmp_path, large, steps=1, objective="balanced"))
    path = find_checkpoint(tmp_path)
    save(path, {**load(path), "objective": {}})
    with pytest.raises(TrainingError, match="no task weights: it is of another --objective"):
        again(tmp_path, large, command="hpcm")
