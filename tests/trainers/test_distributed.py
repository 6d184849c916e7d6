"""Two processes see what one with twice the batch sees, and do what it does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lic.trainers.checkpoints import find_checkpoint, load
from lic.trainers.config import DataConfig, TrainConfig
from lic.trainers.data import TrainingData
from lic.trainers.models import new_model
from lic.trainers.runs import Place, open_fabric, start
from lic.trainers.trackers import METRICS
from tests.trainers.processes import environment

OPTIONS = (
    "--device", "cpu", "--size", "lite", "--crop", "32", "--optimizer", "adam", "--log-every", "1",
    "--val-share", "0", "--quiet",
)  # fmt: skip


def train(photos: Path, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "lic.cli", "train", "bmshj2018", str(photos)]
    done = subprocess.run(
        [*command, "-o", str(folder), *OPTIONS, *options],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def alone(photos: Path, folder: Path) -> None:
    config = TrainConfig().updated(
        {
            "size": "lite", "crop": 32, "optimizer": "adam", "log_every": 1, "val_share": 0.0,
            "batch": 4, "steps": 6,
        }
    )  # fmt: skip
    place = Place(images=photos, folder=folder, device="cpu")
    fabric = open_fabric(config, place)
    start(new_model(config), config, place, fabric, lambda _: None, fresh=True).run(lambda _: None)


def test_two_processes_do_what_one_with_twice_the_batch_does(tmp_path: Path, photos: Path) -> None:
    alone(photos, tmp_path / "one")
    train(photos, tmp_path / "two", "--batch", "2", "--steps", "6", "--devices", "2")
    one, two = (load(find_checkpoint(tmp_path / name)) for name in ("one", "two"))
    # Adam gives even a gradient that is nothing but rounding a step, so not value by value.
    a, b = (torch.cat([v.flatten().float() for v in s["model"].values()]) for s in (one, two))
    assert float((a - b).norm()) <= 1e-5 * float(a.norm())
    rows = [
        [json.loads(line) for line in (tmp_path / name / METRICS).read_text().splitlines()]
        for name in ("one", "two")
    ]
    for single, pair in zip(*rows, strict=True):
        for name in ("loss", "bpp", "mse", "grad_norm"):
            assert pair[name] == pytest.approx(single[name], rel=2e-3), name


FAILING = """
import os
from lic.cli.app import main
from lic.codec.errors import OutputError
from lic.trainers.loop import Trainer

def look(trainer, **_):
    if trainer.step == 2 and os.environ.get("LOCAL_RANK", "0") == "0":
        raise OutputError("metrics: the disk is full")

Trainer._look = look
main()
"""


def test_when_one_process_fails_the_other_ends_and_blames_nobody(
    tmp_path: Path, photos: Path
) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    command = [sys.executable, str(script), "train", "bmshj2018", str(photos)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "run"), *OPTIONS, "--batch", "1", "--devices", "2"],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 7
    assert "the disk is full" in done.stderr
    assert "another process of this run has ended" in done.stderr
    assert "bug in lic" not in done.stderr


def test_unreadable_files_that_only_the_other_process_met_are_listed(
    tmp_path: Path, photos: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "e.png").write_bytes(b"no picture")
    # Of two processes with one crop a step, the second takes what comes second and fourth.
    seed = next(s for s in range(99) if _order(s).index(4) in (1, 3))
    command = [sys.executable, "-m", "lic.cli", "train", "bmshj2018", str(folder)]
    loud = [option for option in OPTIONS if option != "--quiet"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "run"), *loud, "--batch", "1", "--devices", "2",
         "--steps", "2", "--start", "random", "--seed", str(seed)],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"left out {folder / 'e.png'}: ") == 1


def _order(seed: int) -> list[int]:
    data = TrainingData([Path(name) for name in "abcde"], DataConfig(), seed)
    return list(map(int, data._order(0)))
