import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lic.codec.errors import TrainingError
from lic.trainers import checkpoints


def state(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {key: {} for key in checkpoints.ENTRIES}
    return {**values, "step": 7, "model": {"w": torch.arange(3.0)}, **changes}


def test_a_checkpoint_comes_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / checkpoints.NAME
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
    path = tmp_path / checkpoints.NAME
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
    path, trace = tmp_path / checkpoints.NAME, tmp_path / "trace"
    content = state(objective=Malice(trace))
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({**content, "model": {}}))
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint") as caught:
        checkpoints.load(path)
    # Least of all with torch's advice to load it all the same.
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.NAME
    checkpoints.save(path, state())
    data = path.read_bytes()
    for damaged in (b"", b"text", data[:100], data[: len(data) // 2], data[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be read"):
            checkpoints.load(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such checkpoint"):
        checkpoints.load(tmp_path / checkpoints.NAME)


@pytest.mark.parametrize("content", [torch.zeros(2), [], {"g_a.0.weight": torch.zeros(2)}])
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / checkpoints.NAME
    torch.save(content, path)
    for read in (checkpoints.load, checkpoints.load_model):
        with pytest.raises(TrainingError, match="not a training checkpoint of lic"):
            read(path)


@pytest.mark.parametrize("config", [{"N": 4, "M": 4}, {"N": 0}, {"channels": 4}])
def test_weights_that_do_not_fit_their_config_are_refused(
    tmp_path: Path, config: dict[str, int]
) -> None:
    path = tmp_path / checkpoints.NAME
    checkpoints.save(path, state(model_config=config))
    with pytest.raises(TrainingError, match="not a training checkpoint of lic"):
        checkpoints.load_model(path)
