import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
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


def test_a_folder_that_may_not_be_entered_is_named(
    lic: Lic, source: Path, tmp_path: Path, stepping_down: SteppingDown
) -> None:
    closed = tmp_path / "closed"
    source.rename(closed)
    closed.chmod(0)
    free = tmp_path / "free"
    free.mkdir()
    free.chmod(0o777)
    with stepping_down():
        results = [
            lic("data", "prepare", closed, free / "a", *SIZE),
            lic("data", "shards", closed, free / "b"),
        ]
    closed.chmod(0o755)
    for done in results:
        assert done.code == 3 and f"{closed}: cannot be read (permission denied)" in done.err


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


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Eight photos in two folders, of a third of a megabyte each."""
    folder = tmp_path / "noise"
    for i in range(8):
        path = folder / f"{i % 2}" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((400, 300), 50 + i).convert("RGB").save(path)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_photos_as_they_are(lic: Lic, noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lic("data", "shards", noise, out, "--shard-mib", 1)
    assert done.code == 0 and done.out == ""
    assert "8 photos in 4 shards (4 new)" in done.err
    photos = {p.relative_to(noise).as_posix(): p.read_bytes() for p in noise.rglob("*.bmp")}
    found = {}
    for path in sorted(out.glob("*.tar")):
        assert path.stat().st_size <= 2**20
        with tarfile.open(path) as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
                file = tar.extractfile(info)
                assert file is not None
                found[info.name] = file.read()
    assert list(found.items()) == sorted(photos.items())
    # Neither the clock nor the place makes a difference.
    other = tmp_path / "elsewhere"
    shutil.copytree(noise, other, copy_function=shutil.copyfile)
    as_json = lic("data", "shards", other, tmp_path / "again", "--shard-mib", 1, "--json")
    values = json.loads(as_json.out)
    assert (values["photos"], values["shards"], values["made"]) == (8, 4, 4)
    assert values["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    assert contents(tmp_path / "again") == contents(out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "(0 new)" in lic("data", "shards", noise, out, "--shard-mib", 1).err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_photo_larger_than_a_shard_has_one_of_its_own(lic: Lic, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a", 10), ("b", 700), ("c", 10), ("d", 10)):
        Image.new("RGB", (size, size)).save(tmp_path / "in" / f"{name}.bmp")
    assert lic("data", "shards", tmp_path / "in", tmp_path / "out", "--shard-mib", 1).code == 0
    index = json.loads((tmp_path / "out" / "lic-shards.json").read_text())
    names = [shard["names"] for shard in index["shards"]]
    assert names == [["a.bmp"], ["b.bmp"], ["c.bmp", "d.bmp"]]


def test_shards_of_other_photos_are_kept_unless_forced(
    lic: Lic, noise: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("data", "shards", noise, out, "--shard-mib", 1)
    assert lic(*run).code == 0
    before = contents(out)
    for change in (["--prefix", "3"], ["--shard-mib", 2]):
        done = lic(*run, *change)
        assert done.code == 7 and "--force" in done.err and contents(out) == before
    fewer = lic(*run, "--prefix", "1", "--prefix", "3", "--force")
    assert fewer.code == 0 and "2 photos in 1 shards (1 new)" in fewer.err
    assert sorted(contents(out)) == ["lic-shards.json", "photos-00000.tar"]
    # Shards that fit stay; the rest is written anew.
    (noise / "1" / "9.bmp").write_bytes((noise / "1" / "7.bmp").read_bytes())
    assert "9 photos in 5 shards (5 new)" in lic(*run, "--force").err
    (out / "photos-00002.tar").write_bytes(b"damaged")
    assert lic(*run).code == 7
    assert "9 photos in 5 shards (1 new)" in lic(*run, "--force").err


def test_what_lies_in_a_folder_is_not_touched(lic: Lic, noise: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "photos-00000.tar", "x.tar"):
        out = tmp_path / name.replace(".", "")
        out.mkdir()
        (out / name).write_text("mine")
        done = lic("data", "shards", noise, out, "--force")
        assert done.code == 7 and f"holds other files, such as {name}" in done.err
        assert contents(out) == {name: b"mine"}
    assert lic("data", "shards", noise, noise, "--force").code == 7
    assert lic("data", "shards", tmp_path / "none", tmp_path / "new").code == 3
    assert not (tmp_path / "new").exists()


def test_photos_that_cannot_be_read_are_named(
    lic: Lic, noise: Path, tmp_path: Path, stepping_down: SteppingDown
) -> None:
    (noise / "0" / "0.bmp").chmod(0)
    (noise / "1" / "folder.png").mkdir()
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    with stepping_down():
        done = lic("data", "shards", noise, tmp_path / "out", "--json")
    values = json.loads(done.out)
    assert done.code == 0 and values["photos"] == 7
    assert set(values["skipped"]) == {str(noise / "0/0.bmp"), str(noise / "1/folder.png")}
    assert f"left out {noise / '0/0.bmp'}: Permission denied" in done.err
    assert f"left out {noise / '1/folder.png'}: no file" in done.err


def test_photos_that_change_under_way_end_it(
    lic: Lic, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.trainers import shard_writer

    real = shard_writer._open

    def changed(*arguments: Any, **options: Any) -> Any:
        (noise / "1" / "1.bmp").write_bytes(b"changed")
        return real(*arguments, **options)

    monkeypatch.setattr(shard_writer, "_open", changed)
    done = lic("data", "shards", noise, tmp_path / "out", "--shard-mib", 1)
    assert done.code == 9 and "1.bmp: found 7 bytes; expected 360054" in done.err
    assert "4 of 8 photos done; the same command goes on from there" in done.err
    train = lic("train", "bmshj2018", tmp_path / "out", "-o", tmp_path / "run", "--device", "cpu")
    assert train.code == 9 and "its shards are not complete; run the same" in train.err


def test_a_full_disk_leaves_what_is_finished(lic: Lic, noise: Path, tmp_path: Path) -> None:
    (noise / "1" / "3.bmp").rename(noise / "1" / "3.jpg")
    Image.effect_noise((1200, 300), 50).convert("RGB").save(noise / "1" / "3.bmp")
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        done = lic("data", "shards", noise, out, "--shard-mib", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 7
    assert "photos-00003.tar: cannot be written (File too large); finished shards stay" in done.err
    assert "5 of 9 photos done" in done.err
    names = ["lic-shards.json", *(f"photos-{i:05}.tar" for i in range(3))]
    assert sorted(contents(out)) == names
    assert "9 photos in 6 shards (3 new)" in lic("data", "shards", noise, out, "--shard-mib", 1).err
    assert lic("data", "shards", noise, tmp_path / "whole", "--shard-mib", 1).code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_run_goes_on(lic: Lic, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    pixels = Image.effect_noise((1000, 900), 50)
    for i in range(60):
        pixels.save(source / f"{i:02}.bmp")
    start = (sys.executable, "-c", "from lic.cli.app import main; main()")
    run = subprocess.Popen([*start, "data", "shards", source, out, "--shard-mib", "1"])
    while run.poll() is None and len(list(out.glob("*.tar"))) < 3:
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 3 <= len(finished) < 60
    # What it was writing then.
    (out / "photos-00059.tar.0123456789abcdef.tmp").write_bytes(b"half")
    done = lic("data", "shards", source, out, "--shard-mib", 1)
    assert f"60 photos in 60 shards ({60 - len(finished)} new)" in done.err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert lic("data", "shards", source, tmp_path / "whole", "--shard-mib", 1).code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_an_index_of_shards_is_written_wherever_they_lie(
    lic: Lic, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "out"
    assert lic("data", "shards", noise, out, "--shard-mib", 1).code == 0
    made = json.loads((out / "lic-shards.json").read_text())
    tars = sorted(out.glob("*.tar"))
    monkeypatch.chdir(tmp_path)
    options = {
        "lic-shards.json": ([], "deep/out"),
        "there/lic-shards.json": (["-o", "there/lic-shards.json"], str(out)),
        "deep/out/2.json": (["-o", "deep/out/2.json"], ""),
        "s3.json": (["-o", "s3.json", "--base", "s3://bucket/set"], "s3://bucket/set"),
    }
    for name, (more, base) in options.items():
        relative = [path.relative_to(tmp_path) for path in tars]
        done = lic("data", "index", *relative, *more, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["photos"] == 8
        assert json.loads((tmp_path / name).read_text()) == {**made, "base": base}
    again = lic("data", "index", *tars)
    assert again.code == 7 and "--force" in again.err
    assert lic("data", "index", *tars, "--force").code == 0


def test_codes_of_what_cannot_be_indexed(lic: Lic, noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert lic("data", "shards", noise, out).code == 0
    tar = out / "photos-00000.tar"
    to = ("-o", tmp_path / "i.json")
    for places, code, words in (
        ([tar, tar], 2, "named twice"),
        ([tar, "https://host/x.tar"], 2, "both paths and URLs"),
        (["https://host/x.tar", "https://other/x.tar"], 2, "below one folder or URL"),
        (["https://host/x.tar?signature=1"], 2, "without any of : ? #"),
        ([noise / "0" / "0.bmp"], 9, "0.bmp: is damaged, or no tar archive"),
        ([tmp_path / "none.tar"], 9, "none.tar: cannot be read (No such file or directory)"),
    ):
        done = lic("data", "index", *places, *to)
        assert (done.code, words in done.err) == (code, True), done.err
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    done = lic("data", "index", tmp_path / "none.tar", *to)
    assert done.code == 3 and "no pictures in 1 shards" in done.err
    assert not (tmp_path / "i.json").exists()


def test_a_run_on_shards_is_that_on_their_photos(
    lic: Lic, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    import torch

    from lic.trainers.checkpoints import find_checkpoint, load

    photos, shards = tmp_path / "photos", tmp_path / "shards"
    photos.mkdir()
    with Image.open("samples/kodim23.png") as image:
        for i in range(4):
            image.crop((100 * i, 100, 100 * i + 64, 164)).save(photos / f"{i}.png")
    assert lic("data", "shards", photos, shards).code == 0
    small = (
        "--start", "random", "--steps", 4, "--batch", 2, "--crop", 32, "--checkpoint-every", 2,
        "--optimizer", "adam", "--device", "cpu", "--log-every", 1,
    )  # fmt: skip
    weights = []
    for place, more in ((photos, ["--val-share", 0]), (shards, [])):
        run = tmp_path / f"run of {place.name}"
        done = lic("train", "bmshj2018", place, "-o", run, *small, *more)
        assert done.code == 0, done.err
        weights.append(load(find_checkpoint(run))["model"])
    assert done.err.count("none is held out to validate on") == 1
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert no_export["model"] is not None
