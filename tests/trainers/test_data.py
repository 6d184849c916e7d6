import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lic.codec.errors import TrainingError
from lic.codec.image_io import Picture, read_picture
from lic.trainers.data import RandomCrops, find_photos


def crops(
    folder: Path, *, crop: int = 16, batch: int = 4, seed: int = 3, cache: int = 2**31
) -> RandomCrops:
    return RandomCrops(find_photos(folder), crop=crop, batch=batch, seed=seed, cache_bytes=cache)


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Four good photos among files that cannot be used."""
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    good = (photos / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("not looked at")
    Image.new("RGB", (15, 200)).save(folder / "small.png")
    return folder


def test_a_batch_depends_on_the_step_and_the_seed_alone(photos: Path) -> None:
    first = crops(photos)
    expected = {step: first.batch(step) for step in range(6)}
    again = crops(photos)
    for step in reversed(range(6)):
        assert torch.equal(again.batch(step), expected[step])
    different = [*expected.values(), crops(photos, seed=4).batch(0), first.batch(0, rank=1)]
    assert len({batch.numpy().tobytes() for batch in different}) == 8


def test_a_batch_is_rgb_in_zero_to_one(photos: Path) -> None:
    batch = crops(photos, crop=32, batch=3).batch(0)
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert 0 <= float(batch.min()) < float(batch.max()) <= 1


def test_a_crop_is_a_window_of_a_photo_mirrored_half_the_time(photos: Path) -> None:
    with Image.open(photos / "a.png") as image:
        pixels = np.asarray(image)
    only = RandomCrops([photos / "a.png"], crop=16, batch=200, seed=0)
    found = (only.batch(0) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16, 3))[:, :, 0]
    plain = {w.tobytes() for row in windows for w in row}
    mirrored = {np.ascontiguousarray(w[:, ::-1]).tobytes() for row in windows for w in row}
    kinds = [(c.tobytes() in plain, c.tobytes() in mirrored) for c in found]
    assert all(a != b for a, b in kinds)
    assert 70 <= sum(b for _, b in kinds) <= 130


def test_every_place_of_a_photo_can_be_drawn(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.arange(18, dtype=np.uint8)[None, :, None], (16, 18, 3))
    Image.fromarray(np.ascontiguousarray(columns)).save(tmp_path / "ramp.png")
    batch = crops(tmp_path, batch=100).batch(0)
    lefts = (batch[:, 0, 0].amin(dim=1) * 255).round().int()
    assert set(lefts.tolist()) == {0, 1, 2}


def test_unusable_files_are_skipped_and_listed(mixed: Path) -> None:
    source = crops(mixed)
    for step in range(40):
        source.batch(step)
    assert {p.name for p in source.unreadable} == {
        "cut.png", "empty.jpg", "text.png", "folder.png", "small.png"
    }  # fmt: skip
    assert source.unreadable[mixed / "small.png"] == "15x200 is under the crop size"
    assert all(source.unreadable.values())
    # The report puts the path before the reason.
    assert not any(str(mixed) in reason for reason in source.unreadable.values())


def test_unusable_files_make_no_difference_between_runs(mixed: Path) -> None:
    warm, cold = crops(mixed), crops(mixed)
    for step in range(20):
        warm.batch(step)
    assert torch.equal(warm.batch(20), cold.batch(20))


def test_only_unusable_files_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(TrainingError, match=r"16x16 crop.*2 of 2 are unreadable or too small"):
        crops(tmp_path).batch(0)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TrainingError, match="found no pictures; expected a folder"):
            find_photos(folder)


def test_photos_come_in_order_from_all_folders_below(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("z.png", "deep/b.PNG", "deep/er/a.Jpeg", "deep/c.txt", "deep/d.avif"):
        shutil.copy(photos / "a.png", tmp_path / name)
    found = [p.relative_to(tmp_path).as_posix() for p in find_photos(tmp_path)]
    assert found == ["deep/b.PNG", "deep/d.avif", "deep/er/a.Jpeg", "z.png"]


def test_hidden_files_are_no_photos(photos: Path, tmp_path: Path) -> None:
    for name in ("._a.png", ".b.png", "a.png"):
        shutil.copy(photos / "a.png", tmp_path / name)
    assert [p.name for p in find_photos(tmp_path)] == ["a.png"]


def test_sixteen_bits_are_scaled_and_gray_fills_three_channels(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    source = crops(tmp_path, crop=32, batch=1)
    found = (source.batch(0) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    expected = np.rint(levels / 257).astype(np.uint8)
    assert any(
        np.array_equal(found, np.repeat(side[..., None], 3, axis=2))
        for side in (expected, expected[:, ::-1])
    )
    assert source._cached == 32 * 32


def test_a_photo_is_decoded_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lic.trainers import data

    read: list[Path] = []

    def counted(path: Path) -> Picture:
        read.append(path)
        return read_picture(path)

    monkeypatch.setattr(data, "read_picture", counted)
    source = crops(photos)
    for step in range(10):
        source.batch(step)
    assert sorted(p.name for p in read) == ["a.png", "b.png", "c.png", "d.png"]


def test_prefixes_choose_by_name(photos: Path) -> None:
    assert [p.name for p in find_photos(photos, ["d", "a"])] == ["a.png", "d.png"]
    with pytest.raises(TrainingError, match="no pictures whose name starts with x, y"):
        find_photos(photos, ["x", "y"])


def test_a_small_cache_evicts_and_changes_nothing(photos: Path) -> None:
    size = 64 * 64 * 3
    large, small, none = (crops(photos, cache=n) for n in (2**31, 2 * size, 0))
    for step in range(12):
        expected = large.batch(step)
        for other, photos_held in ((small, 2), (none, 1)):
            assert torch.equal(other.batch(step), expected)
            assert len(other._cache) <= photos_held
            assert other._cached == len(other._cache) * size
    assert len(large._cache) == 4


def test_wider_crops_are_taken_where_photos_are_large_enough(photos: Path) -> None:
    source = crops(photos, cache=7)
    assert source.wider(crop=64, batch=5).batch(0).shape == (5, 3, 64, 64)
    assert source.wider(crop=65, batch=5).batch(0).shape == (5, 3, 16, 16)
    assert source.wider(crop=64, batch=5)._cache_bytes == 7
