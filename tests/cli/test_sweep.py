"""lic train sweep and analyze: options, messages and exit codes, and one sweep of real runs."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lic.trainers import recipes
from lic.trainers.checkpoints import find_checkpoint, load
from lic.trainers.config import TrainConfig
from lic.trainers.studies import default_url, find_study

Lic = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of a photo to train on and one to validate on."""
    folder = tmp_path / "photos"
    with Image.open("samples/kodim23.png") as image:
        for part, left in (("train", 100), ("held", 300)):
            (folder / part).mkdir(parents=True)
            image.crop((left, 100, left + 64, 164)).save(folder / part / "a.png")
    return folder


def settings(photos: Path) -> list[object]:
    """Return the options of runs of two steps."""
    values = {
        "steps": 2, "batch": 1, "crop": 32, "optimizer": "adam", "start": "random",
        "val": photos / "held",
    }  # fmt: skip
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def command(photos: Path, study: Path, *more: object, model: str = "bmshj2018") -> list[object]:
    return [
        "train", "sweep", photos / "train", "-o", study, "--model", model, "--device", "cpu", *more
    ]  # fmt: skip


def test_a_sweep_of_real_runs_ends_in_a_report_that_trains(
    lic: Lic, photos: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    line = command(photos, study, *settings(photos), "--over", "lr=1e-4,1e-3")
    done = lic(*line)
    assert done.code == 0, done.err
    assert "2 trials finished, 0 pruned; 'lic train analyze" in done.err
    assert "trial 1: lr 0.001" in done.err
    for number, rate in enumerate((1e-4, 1e-3)):
        state = load(find_checkpoint(study / f"trial-{number:04d}"))
        assert (state["step"], state["config"]["optimizer"]["lr"]) == (2, rate)
    trials = find_study(default_url(study), "study", only=True).trials
    for trial in trials:
        own = load(find_checkpoint(study / f"trial-{trial.number:04d}"))["metrics"]
        assert trial.value == own["val_loss"]
        assert trial.user_attrs["val_psnr"] == own["val_psnr"]
    assert trials[0].value != trials[1].value
    again = lic(*line)
    assert again.code == 0 and "trial 2" not in again.err
    done = lic("train", "analyze", study)
    assert done.code == 0, done.err
    assert "Warning: ranked by val_loss" in done.err and "recommended: lr" in done.err
    assert "# Sweep study" in (study / "report" / "report.md").read_text()
    path = study / "report" / "recommended.toml"
    best = min(trials, key=lambda trial: trial.value or 0).params["lr"]
    options = TrainConfig.from_dict(tomllib.loads(path.read_text()), recipes.bmshj2018())
    assert (options.optimizer.lr, options.run.steps, options.data.crop) == (best, 2, 32)
    taken = lic(
        "train", "bmshj2018", photos / "train", "-o", tmp_path / "run", "--config", path,
        "--steps", 1, "--lr", -1,
    )  # fmt: skip
    assert taken.code == 2 and "--lr is -1" in taken.err, "the file itself was taken"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The options of the trials, which take no time."""
    from lic.cli import sweep

    configs: list[TrainConfig] = []

    def train(_: object, config: TrainConfig, __: Path, tracker: Any) -> None:
        configs.append(config)
        tracker.log(config.run.steps, {"val_loss": 1.0, "val_bpp": 0.5, "val_psnr": 30.0})

    monkeypatch.setattr(sweep._Trial, "train", train)
    return configs


def held(photos: Path) -> tuple[object, ...]:
    return ("--set", f"val={photos / 'held'}")


def test_a_preset_is_balanced_training_with_its_own_optimiser(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig]
) -> None:
    line = command(photos, tmp_path / "s", "--preset", "gamma", *held(photos), model="hpcm")
    done = lic(*line, "--over", "w_lr=0.025", "--set", "steps=10", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert [config.gamma.gamma for config in tried] == [0.001, 0.003, 0.006, 0.01]
    for config in tried:
        assert config.objective.objective == "balanced"
        assert config.optimizer.optimizer == "cautious-adam"
        assert (config.objective.w_lr, config.run.steps, config.run.epochs) == (0.025, 10, 0)
        assert config.data.crop == recipes.hpcm().data.crop


def test_a_file_may_make_it_balanced(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig]
) -> None:
    path = tmp_path / "base.toml"
    path.write_text('[objective]\nobjective = "balanced"\n')
    over = ("--over", "w_lr=0.01,0.05", "--config", path, *held(photos))
    assert lic(*command(photos, tmp_path / "s", *over, model="hpcm")).code == 0
    assert {config.optimizer.optimizer for config in tried} == {"cautious-adam"}
    tried.clear()
    over = ("--over", "objective=standard,balanced", "--set", "optimizer=adam", *held(photos))
    assert lic(*command(photos, tmp_path / "t", *over, model="hpcm")).code == 0
    assert {config.optimizer.optimizer for config in tried} == {"adam"}


def test_options_come_from_a_file_and_from_the_line(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig]
) -> None:
    path = tmp_path / "base.toml"
    path.write_text("[optimizer]\nlr = 0.5\nentropy_lr = 0.25\n")
    more = ("--config", path, "--set", "lr=0.125", "--over", "batch=1,2", *held(photos))
    done = lic(*command(photos, tmp_path / "s", *more))
    assert done.code == 0, done.err
    assert [config.data.batch for config in tried] == [1, 2]
    assert {config.optimizer.lr for config in tried} == {0.125}
    assert {config.optimizer.entropy_lr for config in tried} == {0.25}
    path.write_text('[model]\narch = "factorized"\nsize = "lite"\n')
    done = lic(*command(photos, tmp_path / "t", *more, model="hpcm"))
    assert done.code == 2 and "arch is 'factorized', and --model hpcm; change one" in done.err


def test_the_database_may_be_elsewhere(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig]
) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("one", "two"):
        more = ("--over", "lr=1e-4,1e-3", "--storage", url, "--study", name, *held(photos))
        assert lic(*command(photos, tmp_path / name, *more)).code == 0
    assert len(tried) == 4 and not (tmp_path / "one" / "study.db").exists()
    report = tmp_path / "report"
    done = lic("train", "analyze", "two", "--storage", url, "-o", report, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "# Sweep two" in (report / "report.md").read_text()
    done = lic("train", "analyze", "three", "--storage", url)
    assert done.code == 2 and "has no study called three; it has one, two" in done.err
    assert not Path("three").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--over", "gama=1"), "did you mean gamma?"),
        (("--over", "lr=1e-3..1e-4"), "is empty"),
        ((), "nothing to sweep; expected --over NAME=VALUES, or a --preset"),
        (("--preset", "delta"), "--preset is 'delta'; expected one of gamma, scale-weights"),
        (("--over", "lr=1", "--set", "lr=2"), "lr is given by --set and swept"),
        (("--over", "lr=1", "--set", "batch=0"), "--batch is 0; expected a number at least 1"),
        (("--over", "lr=1", "--device", "tpu"), "--device is 'tpu'"),
        (("--over", "lr=1", "--model", "vtm"), "--model is 'vtm'; expected one of hpcm"),
        (("--over", "act=relu,gdn", "--model", "hpcm"), "--act means nothing to --model hpcm"),
        (("--over", "train_scope=all"), "--train-scope means nothing to --model bmshj2018"),
        (("--over", "finetune_lr=1e-5,1e-4", "--model", "hpcm"), "--finetune-lr means nothing to"),
        (("--over", "lr=1", "--set", "delta=0.2"), "--delta means nothing to --model bmshj2018"),
        (("--over", "placement=upstream,corrected"), "--placement means nothing to --model bmshj"),
        (("--over", "objective=standard,balanced", "--model", "hpcm"), "by --set optimizer=adam"),
        (("--over", "loss=mse,ms-ssim", "--model", "hpcm"), "are on different scales"),
        (("--over", "lr=1", "--set", "size=base"), "--size is 'base'; expected one of lite, 1, 2"),
        (("--over", "loss=mse,rd", "--model", "hpcm"), "--loss is 'rd'; expected one of mse, ms"),
        (("--over", "lr=1", "--set", "plateau_factor=0.1"), "--plateau-factor means nothing with"),
        (("--over", "batch=1,2", "--over", "eb_aux_lr=1,2"), "--eb-aux-lr means nothing with --no"),
        (("--over", "steps=1,2", "--set", "epochs=2"), "--steps means nothing with --epochs 2"),
        (("--preset", "gamma", "--model", "hpcm", "--set", "objective=standard"), "--gamma means"),
        (("--over", "lmbda=0.01,0.02", "--sampler", "tpe"), "changes what val_loss is made of"),
        (("--over", "lr=1", "--storage", "redis://x"), "--storage is no URL of a database"),
        (("--over", "lr=1", "--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
    ],
)
def test_what_cannot_work_is_usage_and_leaves_nothing(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig],
    more: tuple[object, ...], message: str,
) -> None:  # fmt: skip
    done = lic(*command(photos, tmp_path / "s", *held(photos), *more))
    assert done.code == 2 and message in done.err, done.err
    assert not list((tmp_path / "s").glob("*")) and not tried


def test_photos_are_looked_at_before_the_study_is_made(
    lic: Lic, photos: Path, tmp_path: Path, tried: list[TrainConfig]
) -> None:
    over = ("--over", "lr=1e-4,1e-3")
    done = lic(*command(tmp_path / "none", tmp_path / "s", *over))
    assert done.code == 3 and "no such folder" in done.err
    done = lic(*command(photos, tmp_path / "s", *over))
    assert done.code == 9 and "no pictures to validate on" in done.err
    assert not (tmp_path / "s").exists() and not tried


def test_trials_that_all_fail_are_a_failure_of_training(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.trainers import runs

    def start(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(runs, "start", start)
    more = (*settings(photos), "--over", "lr=1,2,3,4")
    done = lic(*command(photos, tmp_path / "s", *more))
    assert done.code == 9
    assert "3 trials in a row failed, the last one: not enough memory for this trial" in done.err
    assert "--retry-failed" in done.err
    done = lic("train", "analyze", tmp_path / "s")
    assert done.code == 2 and "none of 3 trials has finished" in done.err


def test_ctrl_c_has_its_exit_code_and_the_same_command_goes_on(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from lic.trainers.trials import Validations

    real = Validations.log
    stops = [True]

    def log(own: Validations, step: int, values: Mapping[str, float]) -> None:
        if stops and "val_loss" in values:
            stops.pop()
            os.kill(os.getpid(), signal.SIGINT)
        real(own, step, values)

    monkeypatch.setattr(Validations, "log", log)
    longer = ("--set", "steps=4", "--set", "val_every=1")
    line = command(photos, tmp_path / "s", *settings(photos), *longer, "--over", "lr=1e-3")
    stopped = lic(*line)
    assert stopped.code == 130 and "the same command goes on" in stopped.err
    done = lic(*line)
    assert done.code == 0 and "1 trials finished" in done.err
    assert load(find_checkpoint(tmp_path / "s" / "trial-0000"))["step"] == 2
    assert load(find_checkpoint(tmp_path / "s" / "trial-0001"))["step"] == 4


def test_a_study_that_is_not_there_is_usage(lic: Lic, tmp_path: Path) -> None:
    done = lic("train", "analyze", tmp_path / "s")
    assert (
        done.code == 2 and "no such study; expected the folder of a 'lic train sweep'" in done.err
    )
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.cli import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "optuna" else name)
    for line in (command(photos, tmp_path / "s", "--over", "lr=1"), ["train", "analyze", "s"]):
        done = lic(*line)
        assert done.code == 2 and "needs optuna" in done.err
        assert "pip install '.[sweep]'" in done.err


@pytest.mark.parametrize("name", ["sweep", "analyze"])
def test_help_lists_the_options(lic: Lic, name: str) -> None:
    done = lic("train", name, "--help")
    assert done.code == 0
    words = {"sweep": ("--over", "--preset", "--set", "--retry-failed"), "analyze": ("--output",)}
    assert all(word in done.out for word in (*words[name], "--storage", "--quiet"))
