"""Small runs of the training loop: begun, gone on with, and what they leave behind."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lic.codec.models import HPCM, HPCMConfig
from lic.trainers.checkpoints import find_checkpoint, load
from lic.trainers.config import TrainConfig
from lic.trainers.loop import Trainer
from lic.trainers.losses import Terms
from lic.trainers.models import Codec
from lic.trainers.objective import RateDistortion
from lic.trainers.runs import Place, last_state, open_fabric, resume, start
from lic.trainers.trackers import METRICS

# No windows and exact placement, so that 128 pixels will do.
MINI = HPCMConfig(
    widths=(8, 8, 8), blocks=(0, 0, 0), M=8, N=4, prior_s1_s2=(1, 1), prior_s3=(1, 1), heads=0,
    placement="corrected",
)  # fmt: skip
TIMES = ("seconds_per_step", "images_per_second", "data_wait")


def mini() -> HPCM:
    torch.manual_seed(1)
    return HPCM(MINI)


def begin_run(
    folder: Path,
    photos: Path,
    config: TrainConfig,
    model: Codec,
    *,
    command: str,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Trainer:
    place = Place(images=photos, folder=folder, device=device)
    return start(
        model, config, place, open_fabric(config, place), say,
        fresh=command != "relu", command=command,
    )  # fmt: skip


def again(
    folder: Path,
    photos: Path,
    given: dict[str, Any] | None = None,
    device: str = "cpu",
    *,
    command: str = "bmshj2018",
) -> Trainer:
    """Return the run of a folder where its last checkpoint left it."""
    return resumed(last_state(folder, given or {}, lambda _: None, command=command), folder, photos,
                   device)  # fmt: skip


def resumed(state: dict[str, Any], folder: Path, photos: Path, device: str = "cpu") -> Trainer:
    place = Place(images=photos, folder=folder, device=device)
    config = TrainConfig.from_dict(state["config"])
    return resume(state, place, open_fabric(config, place), lambda _: None)


def quiet(_: dict[str, float]) -> None:
    """Report nothing."""


class PowerCut(Exception):
    """What ends a run that nothing was prepared for."""


def cut_off(trainer: Trainer, step: int) -> None:
    """Train until a step is done and told of; not even its checkpoint is written."""

    def cut(values: dict[str, float]) -> None:
        if values["step"] == step:
            raise PowerCut

    with pytest.raises(PowerCut):
        trainer.run(cut)


def last(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint of a run."""
    return load(find_checkpoint(folder))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{path}/{key}")
    elif not path.endswith(("/elapsed", *TIMES)):
        yield path, value


def assert_identical(found: Any, expected: Any) -> None:
    """Compare states bit by bit, all that is in them but times."""
    a, b = dict(_leaves(found)), dict(_leaves(expected))
    assert a.keys() == b.keys()
    for path in a:
        same = torch.equal(a[path], b[path]) if isinstance(a[path], Tensor) else a[path] == b[path]
        assert same, path


class Fails(RateDistortion):
    """Gives a loss of nan or inf at some steps, or one whose gradient alone is no number."""

    def __init__(self, steps: set[int], kind: str) -> None:
        super().__init__(0.013)
        self.steps, self.kind, self.forgotten = steps, kind, 0

    def loss(self, terms: Terms, step: int) -> Tensor:
        loss = super().loss(terms, step)
        if step not in self.steps:
            return loss
        return with_broken_gradient(loss) if self.kind == "gradient" else loss * float(self.kind)

    def forget(self) -> None:
        self.forgotten += 1


def with_broken_gradient(value: Tensor) -> Tensor:
    """Return the same value with a gradient that is no number."""
    return value + torch.sqrt((value - value.detach()).abs())
