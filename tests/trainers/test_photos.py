import shutil
from pathlib import Path
from typing import Any

import pytest

from lic.codec.errors import ImageError, TrainingError
from lic.trainers.config import DataConfig
from lic.trainers.photos import find_photos, split_validation


def touch(folder: Path, *names: str) -> Path:
    """Make files of these names; whether they hold pictures is looked at later."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def split(folder: Path, **options: Any) -> tuple[list[str], list[str]]:
    training, validation = split_validation(folder, find_photos(folder), DataConfig(**options))
    assert not set(training) & set(validation)
    return names(training), names(validation)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            ImageError, match=r"(no such folder|is a file|holds no pictures); expected a folder"
        ):
            find_photos(folder)


def test_photos_come_in_order_from_all_folders_below(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("z.png", "deep/b.PNG", "deep/er/a.Jpeg", "deep/c.txt", "deep/d.avif"):
        shutil.copy(photos / "a.png", tmp_path / name)
    found = [p.relative_to(tmp_path).as_posix() for p in find_photos(tmp_path)]
    assert found == ["deep/b.PNG", "deep/d.avif", "deep/er/a.Jpeg", "z.png"]


def test_hidden_files_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path, "._a.png", ".b.png", "a.png")
    assert names(find_photos(tmp_path)) == ["a.png"]


def test_prefixes_choose_by_name(photos: Path) -> None:
    assert names(find_photos(photos, ["d", "a"])) == ["a.png", "d.png"]
    with pytest.raises(ImageError, match="holds no pictures whose name starts with x, y"):
        find_photos(photos, ["x", "y"])


def test_folders_that_link_to_themselves_are_walked_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "in/b.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert names(find_photos(tmp_path)) == ["a.png", "b.png", "self.png"]


def test_coco_is_trained_on_one_part_and_validated_on_the_other(tmp_path: Path) -> None:
    touch(tmp_path, "train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg", "test2017/d.jpg")
    assert split(tmp_path) == (["a.jpg", "b.jpg"], ["c.jpg"])
    assert split(tmp_path / "train2017") == (["a.jpg", "b.jpg"], ["c.jpg"])


def test_the_validation_part_is_found_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "train2017/a.jpg", "val2017/c.jpg")
    monkeypatch.chdir(tmp_path / "train2017")
    assert split(Path()) == (["a.jpg"], ["c.jpg"])


def test_crops_below_are_not_taken_for_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg", "b/crops/lic-crops.json", "b/crops/train/a-0-0.png")
    assert names(find_photos(tmp_path)) == ["a.jpg", "c.jpg"]


def test_prepared_folders_are_split_as_they_were_made(tmp_path: Path) -> None:
    touch(tmp_path, "lic-crops.json", "train/a.png", "train/b.png", "val/c.png")
    assert split(tmp_path) == (["a.png", "b.png"], ["c.png"])
    assert split(tmp_path / "train") == (["a.png", "b.png"], ["c.png"])


def test_folders_that_happen_to_be_called_train_and_val_are_plain(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "val/b.jpg")
    assert split(tmp_path, val_share=0) == (["a.jpg", "b.jpg"], [])


def test_a_named_folder_is_validated_on(tmp_path: Path) -> None:
    touch(tmp_path, "here/a.jpg", "there/x.png", "coco/train2017/y.jpg", "coco/val2017/z.jpg")
    assert split(tmp_path / "here", val=str(tmp_path / "there")) == (["a.jpg"], ["x.png"])
    assert split(tmp_path / "here", val=str(tmp_path / "coco")) == (["a.jpg"], ["z.jpg"])
    with pytest.raises(ImageError, match=r"--val .*none: no such folder"):
        split(tmp_path / "here", val=str(tmp_path / "none"))


def test_a_named_folder_inside_is_left_out_of_training(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "val/b.jpg", "c.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "val", target_is_directory=True)
    for val in ("val", "link"):
        assert split(tmp_path, val=str(tmp_path / val)) == (["a.jpg", "c.jpg"], ["b.jpg"])
    with pytest.raises(TrainingError, match="all 3 photos are for validation"):
        split(tmp_path, val=str(tmp_path))


def test_a_share_is_held_out_and_stays_held_out_when_photos_are_added(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i:03}.jpg" for i in range(300)))
    training, held = split(tmp_path, val_share=0.1, val_count=300)
    assert 15 <= len(held) <= 50 and len(training) + len(held) == 300
    touch(tmp_path, *(f"more/{i:03}.jpg" for i in range(300, 600)))
    assert {n for n in split(tmp_path, val_share=0.1, val_count=600)[1] if n < "300"} == set(held)
    # In which folder it lies is no matter.
    moved = touch(tmp_path / "moved", *(f"else/{i:03}.jpg" for i in range(300)))
    assert split(moved, val_share=0.1, val_count=300)[1] == held


def test_all_that_is_held_out_stays_out_of_training(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i:03}.jpg" for i in range(300)))
    training, held = split(tmp_path, val_share=0.1, val_count=300)
    few_training, few = split(tmp_path, val_share=0.1, val_count=5)
    assert few_training == training
    assert len(few) == 5 and set(few) <= set(held) and few == sorted(few)


def test_few_photos_hold_one_out_and_very_few_none(tmp_path: Path) -> None:
    ten = touch(tmp_path / "ten", *(f"{i}.jpg" for i in range(10)))
    assert [len(part) for part in split(ten, val_share=0.001)] == [9, 1]
    nine = touch(tmp_path / "nine", *(f"{i}.jpg" for i in range(9)))
    assert [len(part) for part in split(nine, val_share=0.001)] == [9, 0]
    assert [len(part) for part in split(ten, val_share=0)] == [10, 0]
    one = touch(tmp_path / "one", "lonely.jpg")
    assert split(one, val_share=0.5) == (["lonely.jpg"], [])


def test_crops_of_one_photo_stay_together(tmp_path: Path) -> None:
    crops = [f"p{i}-{i:010x}-{k}.png" for i in range(100) for k in range(3)]
    touch(tmp_path, "lic-crops.json", *(f"train/{name}" for name in crops))
    training, held = split(tmp_path, val_share=0.2, val_count=300)
    assert held and training
    assert not {n.rsplit("-", 1)[0] for n in held} & {n.rsplit("-", 1)[0] for n in training}


def test_validation_pictures_need_not_match_the_prefix(tmp_path: Path) -> None:
    touch(tmp_path, "train2017/a1.jpg", "train2017/b1.jpg", "val2017/c.jpg")
    photos = find_photos(tmp_path, ["a"])
    training, validation = split_validation(tmp_path, photos, DataConfig(prefix=("a",)))
    assert (names(training), names(validation)) == (["a1.jpg"], ["c.jpg"])
