"""lic models: what is refused is refused before the work, with a sentence."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lic.codec.bundle import MANIFEST, Bundle
from lic.codec.models import FactorizedPrior
from lic.trainers import checkpoints, files
from lic.trainers.config import TrainConfig

Lic = Callable[..., Any]


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: FactorizedPrior) -> Path:
    """A finished run's checkpoint; lambda 0.02."""
    path = tmp_path / "run" / files.CHECKPOINTS / "step-00000007.pt"
    path.parent.mkdir(parents=True)
    state: dict[str, Any] = {entry: {} for entry in checkpoints.ENTRIES}
    state |= {
        "step": 7,
        "config": TrainConfig().updated({"lmbda": 0.02, "rate": 5}).to_dict(),
        "architecture": tiny_model.name,
        "model_config": tiny_model.config.to_dict(),
        "model": tiny_model.state_dict(),
    }
    checkpoints.save(path, state)
    return path


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
        assert description.rate_point == 5


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
