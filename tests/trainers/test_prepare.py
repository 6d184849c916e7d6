import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.errors import ConfigError, ImageError, OutputError, TrainingError
from lic.trainers.config import DataConfig
from lic.trainers.data import TrainingData, find_photos, split_validation
from lic.trainers.prepare import PrepareConfig, Prepared, prepare
from tests.trainers.crops import SMALL, crops_of, entry_of, files, five_photos, picture
from tests.trainers.processes import family


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return five_photos(tmp_path / "source")


def test_crops_are_windows_of_their_photos_as_the_manifest_says(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert prepare(source, out, SMALL) == Prepared(photos=5, crops=5, made=5, skipped={})
    values = json.loads((out / "lic-crops.json").read_text())
    assert values["settings"]["width"] == 32 and values["complete"] is True
    for entry in values["photos"]:
        with Image.open(source / entry["photo"]) as photo:
            expected = np.asarray(photo)
        (crop,) = entry["crops"]
        left, top, right, bottom = crop["box"]
        data = (out / crop["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == crop["sha256"]
        with Image.open(out / crop["file"]) as image:
            assert image.format == "PNG" and image.size == (32, 16)
            assert np.array_equal(np.asarray(image), expected[top:bottom, left:right])
    assert len(crops_of(out)) == 5
    # Easy to type, whatever the photos are called.
    assert not any(" " in path.name for path in crops_of(out))


def test_the_number_of_processes_changes_nothing(source: Path, tmp_path: Path) -> None:
    several = replace(SMALL, per_photo=3)
    prepare(source, tmp_path / "one", several, jobs=1)
    prepare(source, tmp_path / "two", several, jobs=2)
    found = files(tmp_path / "one")
    assert found == files(tmp_path / "two")
    assert len(found) == 16


def test_seeds_choose_places(source: Path, tmp_path: Path) -> None:
    boxes = []
    for seed in range(3):
        prepare(source, tmp_path / str(seed), replace(SMALL, seed=seed))
        boxes.append(entry_of(tmp_path / str(seed), "a.png")["crops"][0]["box"])
    assert boxes[0] != boxes[1] != boxes[2] != boxes[0]


def test_crops_of_one_photo_differ_and_stop_when_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture(0, 33, 17).save(tmp_path / "in" / "four.png")
    picture(1, 32, 16).save(tmp_path / "in" / "one.png")
    prepare(tmp_path / "in", tmp_path / "out", replace(SMALL, per_photo=9))
    boxes = [crop["box"] for crop in entry_of(tmp_path / "out", "four.png")["crops"]]
    assert sorted(boxes) == [[0, 0, 32, 16], [0, 1, 32, 17], [1, 0, 33, 16], [1, 1, 33, 17]]
    assert len(entry_of(tmp_path / "out", "one.png")["crops"]) == 1


def test_coco_has_its_parts_apart(tmp_path: Path) -> None:
    coco = tmp_path / "coco"
    for part, count in (("train2017", 3), ("val2017", 2)):
        (coco / part).mkdir(parents=True)
        for i in range(count):
            picture(i).save(coco / part / f"{part[:1]}{i}.png")
    prepare(coco, tmp_path / "train", SMALL)
    assert not (tmp_path / "train" / "val").exists()
    done = prepare(coco, tmp_path / "both", SMALL, include_val=True)
    assert (done.photos, done.crops) == (5, 5)
    assert [p.name[:2] for p in sorted((tmp_path / "both" / "val").iterdir())] == ["v0", "v1"]
    # Asked for later, they are added.
    assert prepare(coco, tmp_path / "train", SMALL, include_val=True).made == 2
    assert files(tmp_path / "train") == files(tmp_path / "both")
    config = DataConfig(prepared=True, batch=3)
    training, validation = split_validation(
        tmp_path / "both", find_photos(tmp_path / "both"), config
    )
    assert TrainingData(training, config, 0).batch(0).shape == (3, 3, 16, 32)
    assert [path.name[0] for path in validation] == ["v", "v"]


def test_validation_crops_need_validation_photos(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--include-val.*holds no train2017 and val2017"):
        prepare(source, tmp_path / "out", SMALL, include_val=True)
    assert not (tmp_path / "out").exists()


def test_prefixes_choose_photos(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "out", replace(SMALL, prefix=("b", "c")))
    assert [path.name[0] for path in crops_of(tmp_path / "out")] == ["b", "c"]


def test_photos_of_no_use_are_listed_and_leave_the_others_alone(
    source: Path, tmp_path: Path
) -> None:
    good = (source / "a.png").read_bytes()
    picture(9).save(source / "whole.jpg", quality=95)
    jpeg = (source / "whole.jpg").read_bytes()
    (source / "cut.png").write_bytes(good[: len(good) // 2])
    (source / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (source / "empty.jpg").write_bytes(b"")
    (source / "folder.png").mkdir()
    (source / "loop.png").symlink_to("loop.png")
    Image.new("CMYK", (48, 48)).save(source / "cmyk.jpg")
    picture(0, 200, 15).save(source / "flat.png")
    done = prepare(source, tmp_path / "out", SMALL, jobs=2)
    assert (done.photos, done.crops) == (13, 6)
    assert {path.name for path in done.skipped} == {
        "cut.png", "cut.jpg", "empty.jpg", "folder.png", "loop.png", "cmyk.jpg", "flat.png"
    }  # fmt: skip
    assert done.skipped[source / "flat.png"] == "200x15 is smaller than a crop of 32x16"
    assert "colour profile" in done.skipped[source / "cmyk.jpg"]
    assert "truncated" in done.skipped[source / "cut.jpg"]
    assert not any(str(source) in reason for reason in done.skipped.values())
    assert entry_of(tmp_path / "out", "flat.png")["skipped"]


def test_photos_of_every_kind_give_crops_to_train_on(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rgb = picture(1)
    rgb.convert("L").save(folder / "gray.png")
    deep = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48)
    Image.fromarray(deep).save(folder / "deep.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.gif", save_all=True, append_images=[picture(2)])
    assert prepare(folder, tmp_path / "out", SMALL).skipped == {}
    config = DataConfig(prepared=True, batch=4)
    data = TrainingData(find_photos(tmp_path / "out"), config, 0)
    assert data.batch(0).shape == (4, 3, 16, 32)
    assert data.unreadable == {}


def test_photos_that_lie_on_their_side_are_turned_up(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.zeros((32, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "in" / "turned.png", exif=exif)
    prepare(tmp_path / "in", tmp_path / "out", SMALL)
    with Image.open(crops_of(tmp_path / "out")[0]) as image:
        found = np.asarray(image)
    # What is stored on top is to be seen on the right.
    assert found[:, 24:].min() == 255 and found[:, :24].max() == 0


def test_large_photos_are_shrunk_first_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in {"tall": (64, 128), "wide": (300, 64), "small": (40, 33)}.items():
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "in" / f"{name}.png")
    Image.new("L", (64, 64)).save(tmp_path / "in" / "gray.png")
    prepare(tmp_path / "in", tmp_path / "out", replace(SMALL, scale_short_side=32))
    sizes = {n: entry_of(tmp_path / "out", f"{n}.png")["size"] for n in ("tall", "wide", "small")}
    assert sizes == {"tall": [32, 64], "wide": [150, 32], "small": [39, 32]}
    with Image.open(crops_of(tmp_path / "out")[0]) as image:
        assert (image.mode, image.size) == ("L", (32, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100}, "--width is 100"),
        ({"height": 0}, "--height is 0"),
        ({"per_photo": 0}, "--per-photo is 0"),
        ({"scale_short_side": 100}, "--scale-short-side is 100; expected 0, or at least .*224"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_options_that_cannot_work_are_named(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**options)


def test_folders_that_hold_something_else_are_left_alone(source: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("important")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"holds files but no lic-crops\.json"):
            prepare(source, full, SMALL, force=force)
    assert files(full) == {"thesis.txt": b"important"}
    with pytest.raises(OutputError, match="cannot be written"):
        prepare(source, full / "thesis.txt", SMALL)


def test_crops_below_their_photos_are_not_cropped_again(source: Path) -> None:
    out = source / "crops"
    assert prepare(source, out, SMALL).crops == 5
    assert prepare(source, out, SMALL).photos == 5
    assert prepare(source, source / "other", replace(SMALL, seed=1)).photos == 5


def test_crops_do_not_go_among_or_above_their_photos(source: Path, tmp_path: Path) -> None:
    for out in (source, tmp_path, source / "sub" / ".."):
        with pytest.raises(ConfigError, match="the folder of the photos, or holds it"):
            prepare(source, out, SMALL, force=True)


def test_nothing_to_crop(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ImageError, match="holds no pictures"):
        prepare(tmp_path / "in", tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_ends_the_run_with_a_message(source: Path, tmp_path: Path) -> None:
    for i in range(20):
        picture(i).save(source / f"more{i}.png")

    def kill(done: int, total: int) -> None:
        assert 0 < done <= total == 25
        if done == 1:
            for pid in set(family(os.getpid())) - before:
                os.kill(pid, signal.SIGKILL)

    # The server of worker processes stays for later ones; make sure that it is there already.
    prepare(source, tmp_path / "first", SMALL, jobs=2)
    before = set(family(os.getpid()))
    with pytest.raises(TrainingError, match=r"crops died.*--jobs. The same command goes on"):
        prepare(source, tmp_path / "out", SMALL, jobs=2, progress=kill)
    assert prepare(source, tmp_path / "out", SMALL).crops == 25
