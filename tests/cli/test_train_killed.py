"""lic train after kill -9: --resume ends with the very bits of a run that was left alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lic.codec.models.hpcm_config import SIZES
from lic.trainers.files import CHECKPOINTS
from tests.trainers.processes import environment
from tests.trainers.small_runs import MINI, assert_identical, last, metrics

Lic = Callable[..., Any]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts processes anew"),
    # As in the killed processes: the order of sums may depend on it.
    pytest.mark.usefixtures("one_thread"),
]

RUNS = {
    "bmshj2018": ("bmshj2018", "--size", "lite", "--crop", "32", "--start", "random"),
    "hpcm": (
        "hpcm", "--size", "tiny", "--placement", "corrected", "--crop", "128", "--ema", "0.9",
        "--objective", "hierarchical", "--gamma-schedule", "hierarchical", "--cautious",
        "--update-every", "1",
    ),
}  # fmt: skip
# Epochs have two steps, so that the first checkpoint lies within one.
COMMON = (
    "--batch", "2", "--steps", "10", "--checkpoint-every", "3", "--log-every", "1", "--val-share",
    "0", "--device", "cpu",
)  # fmt: skip

KILLED = """
import json, os, signal, sys
import torch
import lic.trainers.runs
from lic.cli.app import run
from lic.cli.train import app
from lic.codec.models.hpcm_config import SIZES
from lic.trainers.stepper import Stepper
from tests.trainers.small_runs import MINI

SIZES["tiny"] = MINI
take, save = Stepper.take, torch.save

def take_and_die(stepper, step, x):
    values = take(stepper, step, x)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return values

def save_and_die(state, file):
    if state["step"] == 9:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)

for command in json.loads(sys.argv[1]):
    for owner, name, deadly, more in (
        (Stepper, "take", take_and_die, []), (torch, "save", save_and_die, ["--resume"])
    ):
        child = os.fork()
        if child == 0:
            setattr(owner, name, deadly)
            os._exit(run([*command, *more]))
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    with Image.open("samples/kodim23.png") as image:
        for number in range(3):
            image.crop((160 * number, 100, 160 * number + 160, 260)).save(folder / f"{number}.png")
    return folder


def command(photos: Path, folder: Path, name: str) -> list[str]:
    kind, *options = RUNS[name]
    return ["train", kind, str(photos), "-o", str(folder / name), *options, *COMMON]


@pytest.fixture(scope="module")
def killed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, each killed in its fifth step, gone on with, and killed while it saves."""
    folder = tmp_path_factory.mktemp("killed")
    commands = json.dumps([command(photos, folder, name) for name in RUNS])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, commands],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_to_the_very_same_end(
    lic: Lic,
    tmp_path: Path,
    photos: Path,
    killed: Path,
    name: str,
    no_export: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SIZES, "tiny", MINI)
    checkpoints = killed / name / CHECKPOINTS
    assert last(killed / name)["step"] == 6
    assert [path.read_bytes() for path in checkpoints.glob("*.tmp")] == [b"half of it"]
    done = lic(*command(photos, killed, name), "--resume")
    assert done.code == 0, done.err
    assert lic(*command(photos, tmp_path, name)).code == 0
    assert no_export
    assert_identical(last(killed / name), last(tmp_path / name))
    assert metrics(killed / name) == metrics(tmp_path / name)
    assert [row["step"] for row in metrics(tmp_path / name)] == list(range(1, 11))
    assert not list(checkpoints.glob("*.tmp"))
