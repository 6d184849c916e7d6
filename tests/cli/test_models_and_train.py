"""lic models and lic train: what is refused is refused before the work, with a sentence."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lic.cli.train import _new_model
from lic.codec.bundle import MANIFEST, Bundle
from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedPrior
from lic.trainers import checkpoints
from lic.trainers.loop import METRICS

Lic = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one photo, large enough for crops of 32."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open("samples/kodim23.png") as image:
        image.crop((100, 100, 164, 164)).save(folder / "a.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: FactorizedPrior) -> Path:
    """A finished run's checkpoint; lambda 0.02."""
    path = tmp_path / "run" / checkpoints.NAME
    state: dict[str, Any] = {entry: {} for entry in checkpoints.ENTRIES}
    state |= {
        "step": 7,
        "train_config": {"lmbda": 0.02},
        "model_config": tiny_model.config.to_dict(),
        "averaged": tiny_model.state_dict(),
    }
    checkpoints.save(path, state)
    return path


def small_run(folder: Path, photos: Path, *more: object) -> list[object]:
    """Return the command line of a run of four steps with a checkpoint after each second."""
    return [
        "train", "bmshj2018", photos, "-o", folder, "--size", "lite", "--start", "random",
        "--steps", 4, "--batch", 1, "--crop", 32, "--checkpoint-every", 2, "--optimizer", "adam",
        "--device", "cpu", *more,
    ]  # fmt: skip


def test_names_with_brackets_and_long_paths_are_shown_whole(
    lic: Lic, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "b[1]" / ("long" * 20)
    shutil.copytree(tiny_bundle, copied)
    manifest = replace(Bundle.open(copied).manifest, name="m[old]")
    (copied / MANIFEST).write_bytes(manifest.to_bytes())
    monkeypatch.setenv("LIC_BUNDLES", str(tmp_path / "b[1]"))
    done = lic("models", "list")
    assert done.code == 0 and "m[old]" in done.out
    assert str(copied) in "".join(done.out.split())


def test_a_bundle_that_cannot_be_read_is_listed_as_skipped(
    lic: Lic, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken", "good"):
        shutil.copytree(tiny_bundle, tmp_path / "shelf" / name)
    broken = tmp_path / "shelf" / "broken"
    (broken / MANIFEST).write_bytes(b"{}")
    monkeypatch.setenv("LIC_BUNDLES", str(tmp_path / "shelf"))
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    for options in ((), ("--json",)):
        done = lic("models", "list", *options)
        assert done.code == 0 and "tiny-relu" in done.out
        assert done.err.startswith(f"skipped: {broken} (not a bundle's manifest")
        assert done.err.count("\n") == 1


def test_an_import_takes_lambda_from_the_checkpoint(
    lic: Lic, checkpoint: Path, no_export: dict[str, Any]
) -> None:
    for more in ([], ["--lmbda", 0.02]):
        assert lic("models", "import", checkpoint, *more, "--source", "https://a.org").code == 0
        description = no_export["description"]
        assert (description.lmbda, description.source) == (0.02, "https://a.org")


def test_a_lambda_that_contradicts_the_checkpoint_is_refused(
    lic: Lic, checkpoint: Path, no_export: dict[str, Any]
) -> None:
    done = lic("models", "import", checkpoint, "--lmbda", 0.013)
    assert done.code == 2 and "0.013" in done.err and "0.02" in done.err
    assert no_export == {}
    for value in ("nan", "0", "-1"):
        assert lic("models", "import", checkpoint, "--lmbda", value).code == 2


def test_a_bundle_imported_again_keeps_its_lambda(
    lic: Lic, tiny_bundle: Path, no_export: dict[str, Any]
) -> None:
    assert lic("models", "import", tiny_bundle).code == 0
    assert no_export["description"].lmbda == 0.013
    assert lic("models", "import", tiny_bundle, "--lmbda", 0.02).code == 2


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "a\\b", "C:a", "..", ".hidden", "a\nb", "a\x1b[31m", "a" * 101]
)
def test_a_name_that_is_no_name_is_refused(
    lic: Lic, checkpoint: Path, no_export: dict[str, Any], name: str
) -> None:
    done = lic("models", "import", checkpoint, "--name", name)
    assert done.code == 2 and "--name" in done.err
    assert no_export == {}


@pytest.mark.parametrize("name", ["m", "m[old] 2", "Bildmodell-groß", "a" * 100])
def test_any_other_name_is_taken(
    lic: Lic, checkpoint: Path, no_export: dict[str, Any], name: str
) -> None:
    assert lic("models", "import", checkpoint, "--name", name).code == 0
    assert no_export["description"].name == name


def test_a_run_ends_in_a_checkpoint_and_a_bundle(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    run = tmp_path / "deep" / "run"
    more = ("--dtype", "float32", "-q", 3, "--lmbda", 0.01)
    assert lic(*small_run(run, photos, *more)).code == 0
    assert checkpoints.load(run / checkpoints.NAME)["step"] == 4
    assert (no_export["target"], no_export["dtype"]) == (run / "bundle", "float32")
    description = no_export["description"]
    assert (description.rate_point, description.lmbda) == (3, 0.01)
    assert description.name == "bmshj2018-factorized-relu-lite"
    again = lic(*small_run(run, photos, *more))
    assert again.code == 7 and "--resume" in again.err
    assert lic(*small_run(run, photos, *more, "--resume")).code == 0


def test_an_unknown_precision_is_refused_before_training(
    lic: Lic, photos: Path, tmp_path: Path
) -> None:
    done = lic(*small_run(tmp_path / "run", photos, "--dtype", "fp16"))
    assert done.code == 2 and "--dtype is 'fp16'; expected float32 or float16" in done.err
    assert not (tmp_path / "run").exists()


def test_options_that_contradict_init_are_refused(tiny_bundle: Path) -> None:
    for size, act, option in (("lite", None, "--size lite"), (None, "gdn", "--act is gdn")):
        with pytest.raises(ConfigError, match=option) as caught:
            _new_model(size, act, tiny_bundle)
        assert str(tiny_bundle) in str(caught.value)
    assert _new_model(None, "relu", tiny_bundle).config.N == 8
    assert _new_model(None, None, tiny_bundle).config.encoder_activation == "relu"


def test_without_init_a_model_is_small_and_relu() -> None:
    config = _new_model(None, None, None).config
    assert (config.N, config.M, config.decoder_activation) == (64, 96, "relu")
    assert _new_model("lite", "gdn", None).config.decoder_activation == "gdn"


def test_act_says_what_the_normalisations_of_a_foreign_checkpoint_are(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pth"
    torch.save(_new_model("lite", "gdn", None).state_dict(), foreign)
    for act in ("gdn", "igdn1"):
        assert _new_model(None, act, foreign).config.decoder_activation == act
    with pytest.raises(ConfigError, match="--act is relu"):
        _new_model(None, "relu", foreign)


def test_a_folder_that_cannot_be_written_ends_before_the_first_step(
    lic: Lic, photos: Path, tmp_path: Path, stepping_down: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.trainers.loop import Trainer

    monkeypatch.setattr(Trainer, "run", None)
    (tmp_path / "file").touch()
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with stepping_down():
        results = [
            lic(*small_run(folder, photos))
            for folder in (locked, locked / "run", tmp_path / "file", tmp_path / "file" / "run")
        ]
    for done in results:
        assert done.code == 7 and "cannot be written" in done.err
    assert list(locked.iterdir()) == []


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let the system refuse to write files on beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full", [checkpoints.NAME, METRICS])
def test_a_full_disk_ends_in_a_sentence_and_keeps_the_checkpoint(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    from lic.trainers.loop import Trainer

    run = tmp_path / "run"
    real = Trainer._train_step
    disk: list[Any] = []

    def train_step(trainer: Trainer) -> dict[str, float]:
        # From the third step on; the checkpoint of the second is written.
        if trainer.step == 2:
            disk.append(files_end_at(10_000 if full == checkpoints.NAME else 10))
            disk[0].__enter__()
        return real(trainer)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    try:
        done = lic(*small_run(run, photos))
    finally:
        disk[0].__exit__(None, None, None)
    assert done.code == 7
    assert f"{run / full}: cannot be written (File too large)" in done.err
    assert "the last checkpoint is kept" in done.err
    assert checkpoints.load(run / checkpoints.NAME)["step"] == 2
    left = {path.name for path in run.iterdir()}
    assert checkpoints.NAME in left and left <= {checkpoints.NAME, METRICS}


def test_a_missing_package_is_named_with_what_installs_it(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.cli import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else name)
    done = lic(*small_run(tmp_path / "run", photos))
    assert done.code == 2 and "pip install '.[train]'" in done.err
    done = lic("models", "import", tmp_path / "any.pth")
    assert done.code == 2 and "pip install '.[export]'" in done.err
