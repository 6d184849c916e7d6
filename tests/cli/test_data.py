import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Lic = Callable[..., Any]
SteppingDown = Callable[[], AbstractContextManager[None]]

SIZE = ("--width", 16, "--height", 16, "-j", 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three photos of 24x20."""
    folder = tmp_path / "source"
    folder.mkdir()
    for level in range(3):
        Image.new("RGB", (24, 20), (level, level, level)).save(folder / f"{level}.png")
    return folder


def test_crops_are_made_and_counted(lic: Lic, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lic("data", "prepare", source, out, *SIZE)
    assert done.code == 0 and done.out == ""
    assert "3 crops of 3 photos (3 new)" in done.err
    assert len(list((out / "train").iterdir())) == 3
    assert "(0 new)" in lic("data", "prepare", source, out, *SIZE).err


def test_options_reach_the_crops(lic: Lic, source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(source / "large.png")
    options = ("--per-photo", 2, "--scale-short-side", 32, "--seed", 7, "--prefix", "large")
    assert lic("data", "prepare", source, tmp_path / "out", *SIZE, *options).code == 0
    values = json.loads((tmp_path / "out" / "lic-crops.json").read_text())
    (entry,) = values["photos"]
    assert (entry["size"], len(entry["crops"])) == ([43, 32], 2)
    assert values["settings"]["seed"] == 7


def test_photos_left_out_are_named_and_are_no_failure(
    lic: Lic, source: Path, tmp_path: Path
) -> None:
    (source / "bad.jpg").write_bytes(b"bad")
    for i in range(30):
        Image.new("RGB", (8, 8)).save(source / f"small{i:02}.png")
    done = lic("data", "prepare", source, tmp_path / "out", *SIZE)
    assert done.code == 0
    assert f"left out {source / 'bad.jpg'}: not a picture" in done.err
    assert "left out 11 more" in done.err
    quiet = lic("data", "prepare", source, tmp_path / "out", *SIZE, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    as_json = lic("data", "prepare", source, tmp_path / "out", *SIZE, "--json")
    values = json.loads(as_json.out)
    assert (values["photos"], values["crops"], len(values["skipped"])) == (34, 3, 31)


def test_no_crop_at_all_is_a_failure(lic: Lic, source: Path, tmp_path: Path) -> None:
    done = lic("data", "prepare", source, tmp_path / "out", "--width", 32, "--height", 32)
    assert done.code == 8 and "24x20 is smaller than a crop of 32x32" in done.err
    (tmp_path / "empty").mkdir()
    done = lic("data", "prepare", tmp_path / "empty", tmp_path / "none")
    assert done.code == 3 and "holds no pictures" in done.err
    assert not (tmp_path / "none").exists()


def test_codes_of_what_cannot_be_done(
    lic: Lic, source: Path, tmp_path: Path, stepping_down: SteppingDown
) -> None:
    out = tmp_path / "out"
    assert lic("data", "prepare", source, out, *SIZE).code == 0
    other = lic("data", "prepare", source, out, "--width", 16, "--height", 32)
    assert other.code == 7 and "--height 16, not 32" in other.err and "--force" in other.err
    assert lic("data", "prepare", source, out, *SIZE, "--seed", 1, "--force").code == 0
    assert lic("data", "prepare", source, source, *SIZE).code == 2
    assert lic("data", "prepare", source, out, "--width", 15).code == 2
    assert lic("data", "prepare", source, tmp_path / "v", *SIZE, "--include-val").code == 2
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with stepping_down():
        done = lic("data", "prepare", source, locked / "out", *SIZE)
    assert done.code == 7 and "locked" in done.err and "Permission denied" in done.err


def test_what_ended_early_says_how_to_go_on(
    lic: Lic, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def fails(path: Path, target: Path) -> Path:
        if target.parent.name == "train" and any(target.parent.glob("*.png")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    done = lic("data", "prepare", source, tmp_path / "out", *SIZE)
    assert done.code == 7 and "No space left on device" in done.err
    assert "checkpoint" not in done.err
    assert "1 of 3 photos done; the same command goes on from there" in done.err


def test_photos_are_prepared_without_torch(source: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from lic.cli.app import run; "
        f"sys.exit(run(['data', 'prepare', {str(source)!r}, {str(tmp_path / 'out')!r}, "
        "'--width', '16', '--height', '16', '-j', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_all_processes_quietly(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(60):
        Image.new("RGB", (700, 500), (i, 0, 0)).save(source / f"{i:02}.png", compress_level=0)
    start = (sys.executable, "-c", "from lic.cli.app import main; main()")
    run = subprocess.Popen(
        [*start, "data", "prepare", source, tmp_path / "out", "-j2", "--per-photo", "40"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    crops = tmp_path / "out" / "train"
    while run.poll() is None and len(list(crops.glob("*-39.png"))) < 3:
        time.sleep(0.01)
    # As a terminal does: to the process and to all of its workers.
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert "of 60 photos done; the same command goes on from there" in err
    assert list(crops.glob(".*")) == []
