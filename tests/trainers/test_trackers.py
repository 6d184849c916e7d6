import csv
import json
import math
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.errors import ConfigError, OutputError
from lic.trainers import trackers
from lic.trainers.config import WatchConfig
from lic.trainers.trackers import (
    CURVES,
    EVENTS,
    METRICS,
    TABLE,
    Tracker,
    build_trackers,
    read_metrics,
)

OPTIONS: dict[str, Any] = {"run": {"steps": 20}, "init": ""}
PLAIN = WatchConfig()


def log(made: list[Tracker], step: int, **values: float) -> None:
    for tracker in made:
        tracker.log(step, {"step": float(step), **values})


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_table_says_what_the_lines_say(folder: Path) -> None:
    merged: dict[float, dict[str, float]] = {}
    for row in read_metrics(folder / METRICS):
        known = {name: value for name, value in row.items() if value is not None}
        merged.setdefault(known["step"], {}).update(known)
    found = [{k: float(v) for k, v in row.items() if v} for row in table(folder)]
    assert found == list(merged.values())


def test_every_metric_is_on_the_disk_at_once_as_lines_and_as_a_table(tmp_path: Path) -> None:
    made = build_trackers(tmp_path / "run", PLAIN, OPTIONS)
    for step in (1, 2, 3):
        log(made, step, loss=1 / step, lr=1e-4)
        assert len(read_metrics(tmp_path / "run" / METRICS)) == step
        assert_table_says_what_the_lines_say(tmp_path / "run")
    first = json.loads((tmp_path / "run" / METRICS).read_text().splitlines()[0])
    assert first == {"step": 1, "loss": 1.0, "lr": 1e-4}


def test_new_columns_widen_the_table_and_a_step_has_one_row(tmp_path: Path) -> None:
    made = build_trackers(tmp_path, PLAIN, OPTIONS)
    log(made, 1, loss=3.0)
    log(made, 2, loss=2.0)
    log(made, 2, val_loss=2.5, val_psnr=30.0)
    log(made, 3, loss=1.0)
    log(made, 3, val_loss=1.5, val_psnr=31.0)
    assert_table_says_what_the_lines_say(tmp_path)
    log(made, 4, grad_norm=7.0)
    assert_table_says_what_the_lines_say(tmp_path)
    assert list(table(tmp_path)[0]) == ["step", "loss", "val_loss", "val_psnr", "grad_norm"]
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3", "4"]
    assert table(tmp_path)[1] == {
        "step": "2", "loss": "2.0", "val_loss": "2.5", "val_psnr": "30.0", "grad_norm": ""
    }  # fmt: skip


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    made = build_trackers(tmp_path, PLAIN, OPTIONS)
    log(made, 1, loss=math.nan, val_psnr=math.inf, bpp=0.5)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    row = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "val_psnr": None, "bpp": 0.5}
    assert_table_says_what_the_lines_say(tmp_path)


@pytest.mark.parametrize("end", ['{"step": 1', '{"step": 5, "loss": 0.2}', "\x00" * 9, "[5]\n"])
def test_a_resumed_run_forgets_later_steps_and_what_a_crash_cut_off(
    tmp_path: Path, end: str
) -> None:
    made = build_trackers(tmp_path, PLAIN, OPTIONS)
    for step in range(1, 6):
        log(made, step, loss=1 / step)
        log(made, step, val_loss=2 / step)
    with (tmp_path / METRICS).open("a") as file:
        file.write(end)
    resumed = build_trackers(tmp_path, PLAIN, OPTIONS, resume_step=3)
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3"]
    log(resumed, 4, loss=0.25)
    assert [row["step"] for row in read_metrics(tmp_path / METRICS)] == [1, 1, 2, 2, 3, 3, 4]
    assert_table_says_what_the_lines_say(tmp_path)


def test_a_last_line_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}')
    log(build_trackers(tmp_path, PLAIN, OPTIONS, resume_step=2), 3, loss=0.3)
    assert [row["loss"] for row in read_metrics(tmp_path / METRICS)] == [1.0, 0.5, 0.3]


def test_a_run_that_starts_anew_forgets_everything(tmp_path: Path) -> None:
    log(build_trackers(tmp_path, PLAIN, OPTIONS), 1, loss=1.0)
    build_trackers(tmp_path, PLAIN, OPTIONS)
    assert read_metrics(tmp_path / METRICS) == []
    assert table(tmp_path) == []


def test_curves_are_drawn_with_a_validation_and_at_the_end(tmp_path: Path) -> None:
    made = build_trackers(tmp_path, PLAIN, OPTIONS)
    log(made, 1, loss=1.0)
    assert not (tmp_path / CURVES).exists()
    log(made, 1, val_loss=1.0)
    with Image.open(tmp_path / CURVES) as image:
        image.load()
    before = (tmp_path / CURVES).read_bytes()
    log(made, 2, loss=2.0)
    for _ in range(2):
        for tracker in made:
            tracker.close()
    assert (tmp_path / CURVES).read_bytes() != before


def test_without_validation_curves_are_drawn_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build_trackers(tmp_path, PLAIN, OPTIONS)
    monkeypatch.setattr(trackers, "SECONDS_BETWEEN_CURVES", 0.0)
    log(made, 1, loss=1.0)
    assert (tmp_path / CURVES).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written"):
        build_trackers(tmp_path / "run", PLAIN, OPTIONS)


@pytest.mark.parametrize(
    ("option", "package", "module"),
    [("tensorboard", "tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_package_that_is_missing_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"--{option} needs {package}.*pip install '\.\[watch"):
        build_trackers(tmp_path, replace(PLAIN, **{option: True}), OPTIONS)  # type: ignore[arg-type]


def test_tensorboard_has_scalars_pictures_and_options_of_a_resumed_run(tmp_path: Path) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    events_of = pytest.importorskip(name, reason="in the extra lic[watch]").EventAccumulator
    config = WatchConfig(tensorboard=True)
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        made = build_trackers(tmp_path, config, OPTIONS, resume_step=resume_step)
        for step in steps:
            log(made, step, loss=step + resume_step / 10)
        for tracker in made:
            tracker.image(steps[0], "reconstructions", np.zeros((4, 6, 3), np.uint8))
        log(made, steps[-1], val_psnr=30.0)
        for tracker in made:
            tracker.close()
    events = events_of(str(tmp_path / EVENTS)).Reload()
    assert set(events.Tags()["scalars"]) == {"training/loss", "validation/psnr"}
    assert events.Tags()["images"] == ["reconstructions"]
    assert events.Tags()["tensors"] == ["options/text_summary"]
    found = events.Scalars("training/loss")
    assert [event.step for event in found] == [1, 2, 3, 4]
    assert [event.value for event in found] == pytest.approx([1.0, 2.0, 3.2, 4.2])


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.finished = 0

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


class FakeWandB(types.ModuleType):
    """Notes how runs are opened."""

    Settings = dict
    Image = staticmethod(lambda pixels: pixels.shape)

    def __init__(self, mode: str) -> None:
        super().__init__("wandb")
        self.mode = mode
        self.opened: list[dict[str, Any]] = []
        self.run = FakeRun()

    def setup(self) -> Any:
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def init(self, **options: Any) -> FakeRun:
        self.opened.append(options)
        return self.run


def test_wandb_goes_on_with_the_same_run_and_its_own_count_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandB("online")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = WatchConfig(wandb=True, wandb_project="codecs")
    for resume_step in (0, 5, 0):
        made = build_trackers(tmp_path / "relu-3", config, OPTIONS, resume_step=resume_step)
        log(made, resume_step + 1, loss=1.0, val_psnr=30.0)
        made[-1].image(resume_step + 1, "reconstructions", np.zeros((4, 6, 3), np.uint8))
        made[-1].close()
    first, resumed, anew = fake.opened
    assert (first["name"], first["project"], first["config"]) == ("relu-3", "codecs", OPTIONS)
    assert first["resume"] == "allow"
    assert first["settings"]["disable_git"]
    assert first["id"] == resumed["id"] != anew["id"]
    assert fake.run.logged[2:4] == [
        {"training/loss": 1.0, "validation/psnr": 30.0, "step": 6},
        {"reconstructions": (4, 6, 3), "step": 6},
    ]
    assert fake.run.finished == 3


def test_a_refusal_of_wandb_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandB("online")
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def refuse(**_: Any) -> None:
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(ConfigError, match=r"No API key.*wandb login.*WANDB_MODE=offline"):
        build_trackers(tmp_path, WatchConfig(wandb=True), OPTIONS)


def test_wandb_works_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="in the extra lic[watch]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = build_trackers(tmp_path, WatchConfig(wandb=True), OPTIONS)
    log(made, 1, loss=1.0)
    made[-1].image(1, "reconstructions", np.zeros((4, 6, 3), np.uint8))
    made[-1].close()
    identity = (tmp_path / trackers.WANDB_ID).read_text().strip()
    (run,) = (tmp_path / "wandb").glob(f"offline-run-*-{identity}")
    # W&B's service ends its file a little later.
    patience = time.monotonic() + 30
    while (run / f"run-{identity}.wandb").stat().st_size < 100 and time.monotonic() < patience:
        time.sleep(0.05)
    assert b"training/loss" in (run / f"run-{identity}.wandb").read_bytes()
    assert "WARNING" not in capfd.readouterr().err
