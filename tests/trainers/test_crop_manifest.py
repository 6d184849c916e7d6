import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lic.codec.errors import OutputError, TrainingError
from lic.trainers.config import DataConfig
from lic.trainers.crop_manifest import JOURNAL, read_manifest
from lic.trainers.data import TrainingData, find_photos
from lic.trainers.prepare import PrepareConfig, prepare
from tests.trainers.crops import SMALL, crops_of, files, five_photos, picture
from tests.trainers.processes import family, wait_for_the_end


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return five_photos(tmp_path / "source")


def test_a_second_run_makes_what_is_missing_only(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out, SMALL)
    expected = files(out)
    kept = {path: path.stat().st_mtime_ns for path in crops_of(out)}
    gone, cut = crops_of(out)[:2]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:10])
    assert prepare(source, out, SMALL).made == 2
    assert files(out) == expected
    again = {path: path.stat().st_mtime_ns for path in crops_of(out)}
    assert {path for path in kept if kept[path] != again[path]} == {gone, cut}
    assert prepare(source, out, SMALL).made == 0


def test_photos_that_came_or_changed_since_are_taken_up(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    several = replace(SMALL, per_photo=2)
    whole = (source / "b.png").read_bytes()
    (source / "b.png").write_bytes(whole[:100])
    assert prepare(source, out, several).skipped.keys() == {source / "b.png"}
    (source / "b.png").write_bytes(whole)
    picture(7).save(source / "new.png")
    picture(8, 32, 16).save(source / "a.png")
    assert prepare(source, out, several).made == 2 + 2 + 1
    prepare(source, tmp_path / "fresh", several)
    assert files(out) == files(tmp_path / "fresh")


def test_other_settings_are_refused_by_name_and_nothing_is_lost(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(source, out, SMALL)
    expected = files(out)
    for changed, message in (
        (replace(SMALL, height=32), "--height 16, not 32"),
        (replace(SMALL, seed=5), "--seed 0, not 5"),
        (replace(SMALL, prefix=("a",)), r"--prefix \[\], not \['a'\]"),
    ):
        with pytest.raises(OutputError, match=message):
            prepare(source, out, changed)
    (tmp_path / "other").mkdir()
    picture(0).save(tmp_path / "other" / "a.png")
    with pytest.raises(OutputError, match=r"photos in .*source, not .*other.*--force"):
        prepare(tmp_path / "other", out, SMALL)
    assert files(out) == expected


def test_force_removes_what_was_made_and_nothing_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out, replace(SMALL, per_photo=3))
    (out / "train" / "mine.png").write_bytes(b"mine")
    (out / "notes.txt").write_bytes(b"mine")
    assert prepare(source, out, replace(SMALL, seed=5), force=True).made == 5
    prepare(source, tmp_path / "fresh", replace(SMALL, seed=5))
    mine = {"train/mine.png": b"mine", "notes.txt": b"mine"}
    assert files(out) == {**files(tmp_path / "fresh"), **mine}
    # The same settings, too, are started over where that is asked for.
    assert prepare(source, out, replace(SMALL, seed=5), force=True).made == 5


@pytest.mark.parametrize(
    "name", ["../mine.png", "train/../../mine.png", "train/mine.png", "/x.png"]
)
def test_force_believes_no_manifest_that_names_other_files(
    source: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    prepare(source, out, SMALL)
    path = out / "lic-crops.json"
    values = json.loads(path.read_text())
    values["photos"][0]["crops"][0]["file"] = name
    path.write_text(json.dumps(values))
    with pytest.raises(OutputError, match="is damaged"):
        prepare(source, out, SMALL, force=True)
    assert len(crops_of(out)) == 5


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"format": "lic crops", "version": 2}', "\udcff"]
)
def test_damaged_manifests_are_errors(source: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "lic-crops.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OutputError, match=r"lic-crops.json: (is damaged|cannot be read)"):
        prepare(source, out, SMALL)


def test_a_full_disk_ends_the_run_and_keeps_what_was_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    rename = Path.replace
    count = 0

    def fails(path: Path, target: Path) -> Path:
        nonlocal count
        count += target.parent.name == "train"
        if count == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError, match=r"train/.*cannot be written \(No space left on device\)"):
        prepare(source, out, SMALL)
    assert len(crops_of(out)) == len(list((out / "train").iterdir())) == 3
    with pytest.raises(TrainingError, match="not complete"):
        TrainingData(find_photos(out), DataConfig(prepared=True), 0)
    monkeypatch.undo()
    assert prepare(source, out, SMALL).made == 2


def test_what_a_killed_run_was_writing_is_cleared_away_and_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "lic-crops.json.0123456789abcdef.tmp").touch()
    prepare(source, out, SMALL)
    expected = files(out)
    (out / "train" / f"{crops_of(out)[0].name}.0123456789abcdef.tmp").touch()
    prepare(source, out, SMALL)
    assert files(out) == expected
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "own.tmp").touch()
    with pytest.raises(OutputError, match="holds files but no"):
        prepare(source, strange, SMALL)
    assert (strange / "own.tmp").exists()


def test_a_journal_line_that_was_cut_off_costs_one_photo(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out, SMALL)
    expected = files(out)
    head, *lines = (out / "lic-crops.json").read_text().split('"photos": [\n')
    entries = [line.rstrip(",") for line in lines[0].splitlines()[:-2]]
    (out / "lic-crops.json").write_text(
        head.replace('"complete": true', '"complete": false') + '"photos": []}'
    )
    (out / JOURNAL).write_text("\n".join([*entries[:4], entries[4][:50]]))
    assert prepare(source, out, SMALL).made == 1
    assert files(out) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(50):
        picture(i, 240, 230).save(source / f"{i:03}.png", compress_level=0)
    config = PrepareConfig(width=224, height=224)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from lic.trainers.prepare import PrepareConfig, prepare\n"
        "if __name__ == '__main__':\n"
        "    prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(), jobs=2)\n"
    )
    run = subprocess.Popen([sys.executable, script, source, out])
    journal = out / JOURNAL
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 6:
            break
        time.sleep(0.002)
    processes = family(run.pid)
    run.kill()
    run.wait()
    assert len(processes) >= 3
    # Their own parent could not end them; from here on nothing is written.
    assert wait_for_the_end(processes)
    before = {path: path.stat().st_mtime_ns for path in crops_of(out) if path.suffix == ".png"}
    assert 6 <= len(before) < 50
    recorded = journal.read_text().splitlines()
    done = {out / json.loads(line)["crops"][0]["file"] for line in recorded[1:-1]}
    for path in before:
        with Image.open(path) as image:
            image.load()
    result = prepare(source, out, config)
    assert result.made == 50 - len([line for line in recorded if line.endswith("}")])
    assert all(path.stat().st_mtime_ns == before[path] for path in done)
    prepare(source, tmp_path / "fresh", config)
    assert files(out) == files(tmp_path / "fresh")
    manifest = read_manifest(out)
    assert manifest is not None and manifest.complete
