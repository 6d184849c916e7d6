import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lic.codec.bundle import MANIFEST, Bundle
from lic.codec.container import Model
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.library import (
    VARIABLE,
    all_bundles,
    family,
    for_fingerprint,
    search_path,
    select,
    unreadable_bundles,
    user_folder,
)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that alone, besides the embedded bundles, is searched."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "home"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shelf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


@pytest.fixture
def stocked(shelf: Path, tiny_bundle: Path, tiny_bundle_2: Path) -> Path:
    shutil.copytree(tiny_bundle, shelf / "tiny-relu" / "1")
    shutil.copytree(tiny_bundle_2, shelf / "tiny-relu" / "2")
    return shelf


def names() -> list[str]:
    return [b.label for b in all_bundles() if b.manifest.name.startswith("tiny")]


def test_the_search_goes_from_the_variable_to_the_user_to_the_embedded(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(shelf), "", str(shelf / "b")]))
    first, second, user, embedded = search_path()
    assert (first, second, user) == (shelf, shelf / "b", user_folder())
    assert embedded.parts[-3:] == ("lic", "codec", "bundles")


@pytest.mark.skipif(os.name == "nt", reason="the variable is of other systems")
def test_an_empty_data_home_means_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert user_folder() == Path.home() / ".local" / "share" / "lic" / "bundles"


def test_bundles_are_found_in_a_folder_and_one_below(
    shelf: Path, tiny_bundle: Path, tiny_bundle_2: Path
) -> None:
    shutil.copytree(tiny_bundle, shelf / "loose")
    shutil.copytree(tiny_bundle_2, shelf / "family" / "any-name")
    shutil.copytree(tiny_bundle_2, shelf / "too" / "deep" / "down")
    assert names() == ["tiny-relu q1", "tiny-relu q2"]


def test_a_bundle_that_comes_or_goes_is_noticed(shelf: Path, tiny_bundle: Path) -> None:
    assert names() == []
    shutil.copytree(tiny_bundle, shelf / "new")
    assert names() == ["tiny-relu q1"]
    shutil.rmtree(shelf / "new")
    assert names() == []


def test_an_unfinished_bundle_is_not_found(shelf: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, shelf / ".name.x81" / "name")
    assert names() == []


def test_the_first_folder_on_the_path_wins(
    stocked: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "front" / "1")
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path / "front"), str(stocked)]))
    paths = [b.path for b in all_bundles() if b.manifest.name == "tiny-relu"]
    assert paths == [tmp_path / "front" / "1", stocked / "tiny-relu" / "2"]


@pytest.mark.usefixtures("stocked")
def test_select_by_name_rate_and_path(tiny_bundle: Path) -> None:
    assert select("tiny-relu", 1).label == "tiny-relu q1"
    assert select("tiny-relu", 2).label == "tiny-relu q2"
    assert select(str(tiny_bundle)).path == tiny_bundle
    assert select("shelf/tiny-relu", 2).label == "tiny-relu q2"


def test_without_a_rate_the_middle_one_is_taken(stocked: Path) -> None:
    assert select("tiny-relu").manifest.rate_point == 2
    shutil.rmtree(stocked / "tiny-relu" / "2")
    assert select("tiny-relu").manifest.rate_point == 1


@pytest.mark.usefixtures("stocked")
def test_a_family_comes_in_order_of_rate() -> None:
    assert [b.manifest.rate_point for b in family("tiny-relu")] == [1, 2]
    assert [b.manifest.rate_point for b in family("tiny-relu", [2])] == [2]


@pytest.mark.usefixtures("stocked")
def test_a_missing_rate_point_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no rate point 7; it has 1, 2"):
        select("tiny-relu", 7)


@pytest.mark.usefixtures("stocked")
def test_a_missing_model_is_named_with_those_there_are() -> None:
    with pytest.raises(ModelMismatchError, match=r"'tiny-gdn'.*installed: .*tiny-relu"):
        select("tiny-gdn")


def test_a_folder_called_like_a_model_does_not_hide_it(stocked: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-relu").mkdir()
    assert select("tiny-relu", 1).path == stocked / "tiny-relu" / "1"


def test_a_folder_of_two_families_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "1")
    renamed = Bundle.open(tiny_bundle).manifest.to_bytes()
    values = renamed.replace(b'"tiny-relu"', b'"tiny-other"')
    shutil.copytree(tiny_bundle, tmp_path / "2")
    _rewrite_manifest(tmp_path / "2", values)
    with pytest.raises(ConfigError, match="several models: tiny-other, tiny-relu"):
        family(str(tmp_path))


def _rewrite_manifest(bundle: Path, data: bytes) -> None:
    import json

    from lic.codec.manifest import Manifest

    values = json.loads(data)
    del values["sha256"], values["format"]
    (bundle / MANIFEST).write_bytes(Manifest(**values).to_bytes())


def test_a_broken_bundle_hides_no_other(stocked: Path) -> None:
    (stocked / "a.zip").write_bytes(b"not a zip")
    shutil.copytree(stocked / "tiny-relu" / "1", stocked / "b")
    (stocked / "b" / MANIFEST).write_bytes(b"{}")
    assert names() == ["tiny-relu q1", "tiny-relu q2"]
    with pytest.raises(ModelMismatchError, match=r"manifest\.json"):
        select(str(stocked / "b"))


def test_broken_bundles_are_told_where_nothing_is_found(stocked: Path) -> None:
    assert unreadable_bundles() == []
    changed = stocked / "tiny-relu" / "2"
    manifest = (changed / MANIFEST).read_bytes()
    (changed / MANIFEST).write_bytes(manifest.replace(b'"lmbda": 0.013', b'"lmbda": 0.014'))
    (told,) = unreadable_bundles()
    assert told.startswith(f"{changed} (was changed after the bundle was made")
    with pytest.raises(ModelMismatchError) as caught:
        for_fingerprint(b"\xab" * 8)
    assert str(caught.value).endswith(f"; skipped: {told}")
    with pytest.raises(ModelMismatchError) as caught:
        select("other")
    assert str(caught.value).endswith(f"; skipped: {told}")
    assert for_fingerprint(select("tiny-relu", 1).fingerprint).label == "tiny-relu q1"
    # A folder of nothing else says so too.
    (changed.parent / "1" / MANIFEST).write_bytes(b"{}")
    with pytest.raises(ModelMismatchError, match=r"skipped: .*1 \(not a bundle's manifest.*, .*2"):
        select(str(changed.parent))


@pytest.mark.usefixtures("stocked")
def test_a_files_fingerprint_finds_its_bundle(tiny_bundle_2: Path) -> None:
    wanted = Bundle.open(tiny_bundle_2)
    assert for_fingerprint(wanted.fingerprint).label == "tiny-relu q2"
    assert for_fingerprint(wanted.fingerprint, model="tiny-relu").label == "tiny-relu q2"


@pytest.mark.usefixtures("stocked")
def test_an_unknown_fingerprint_is_named_with_where_to_get_it() -> None:
    hint = Model(name="paper q3", source="https://example.org/q3.zip")
    with pytest.raises(ModelMismatchError) as failure:
        for_fingerprint(b"\xab" * 8, hint)
    for part in (
        "abababababababab", "paper q3", "https://example.org/q3.zip", "shelf",
        "lic models import", "-m PATH", VARIABLE,
    ):  # fmt: skip
        assert part in str(failure.value)


def test_another_model_than_the_files_is_refused(tiny_bundle: Path, tiny_bundle_2: Path) -> None:
    wanted = Bundle.open(tiny_bundle_2)
    with pytest.raises(ModelMismatchError, match="leave out --model") as failure:
        for_fingerprint(wanted.fingerprint, model=str(tiny_bundle))
    assert wanted.manifest.fingerprint in str(failure.value)


@pytest.mark.parametrize("closed", ["shelf", "tiny-relu"])
def test_a_folder_that_may_not_be_entered_hides_no_other(
    stocked: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """Permissions as the system reports them; a test run by the administrator has all of them."""
    second = stocked.parent / "second"
    shutil.copytree(tiny_bundle, second / "1")
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(stocked), str(second)]))
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | Path) and closed in Path(path).parts[:-1]:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert names() == ["tiny-relu q1"]
    assert for_fingerprint(Bundle.open(second / "1").fingerprint).path == second / "1"
