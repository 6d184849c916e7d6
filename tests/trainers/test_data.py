import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lic.codec.errors import TrainingError
from lic.codec.image_io import Picture, read_picture
from lic.trainers.config import DataConfig
from lic.trainers.data import TrainingData, find_photos
from tests.trainers.processes import family, wait_for_the_end


def crops(folder: Path, *, seed: int = 3, **options: Any) -> TrainingData:
    config = DataConfig(**{"crop": 16, "batch": 4, **options})
    return TrainingData(find_photos(folder), config, seed)


def plain(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """Write pictures of one colour each: picture k of the dictionary is of level k."""
    folder.mkdir(exist_ok=True)
    for level, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (level, level, level)).save(folder / name)
    return folder


def levels(batch: torch.Tensor) -> list[int]:
    return [int(level) for level in batch[:, 0, 0, 0]]


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


UNUSABLE = {"cut.png", "empty.jpg", "text.png", "folder.png", "small.png"}


def test_a_batch_depends_on_the_step_and_the_seed_alone(photos: Path) -> None:
    first = crops(photos)
    expected = {step: first.batch(step) for step in range(6)}
    again = crops(photos)
    for step in reversed(range(6)):
        assert torch.equal(again.batch(step), expected[step])
    different = [*expected.values(), crops(photos, seed=4).batch(0)]
    assert len({batch.numpy().tobytes() for batch in different}) == 7


def test_a_batch_is_rgb_bytes(photos: Path) -> None:
    batch = crops(photos, crop=32, batch=3).batch(0)
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == torch.uint8
    assert int(batch.min()) < int(batch.max())
    # The layout in which convolutions want it, so that nobody has to copy.
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_see_what_one_with_a_larger_batch_sees(mixed: Path, world: int) -> None:
    several, one = crops(mixed, batch=3), crops(mixed, batch=3 * world)
    for step in range(5):
        parts = [several.batch(step, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat(parts), one.batch(step))


def test_an_epoch_shows_every_photo_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    folder = plain(tmp_path / "seven", {f"{i}.png": (16, 16) for i in range(7)})
    data = crops(folder, batch=3)
    seen = [level for step in range(7) for level in levels(data.batch(step))]
    epochs = [tuple(seen[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_steps_of_an_epoch_cover_all_photos(photos: Path) -> None:
    counts = [crops(photos, batch=batch).steps_per_epoch(2) for batch in (1, 2, 3)]
    assert counts == [2, 1, 1]
    assert crops(photos, batch=3).steps_per_epoch() == 2


def test_a_crop_is_a_window_of_a_photo_mirrored_half_the_time(photos: Path) -> None:
    with Image.open(photos / "a.png") as image:
        pixels = np.asarray(image)
    only = TrainingData([photos / "a.png"], DataConfig(crop=16, batch=200), 0)
    found = only.batch(0).permute(0, 2, 3, 1).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16, 3))[:, :, 0]
    straight = {w.tobytes() for row in windows for w in row}
    mirrored = {np.ascontiguousarray(w[:, ::-1]).tobytes() for row in windows for w in row}
    kinds = [(c.tobytes() in straight, c.tobytes() in mirrored) for c in found]
    assert all(a != b for a, b in kinds)
    assert 70 <= sum(b for _, b in kinds) <= 130


def test_every_place_of_a_photo_can_be_drawn(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.arange(18, dtype=np.uint8)[None, :, None], (16, 18, 3))
    Image.fromarray(np.ascontiguousarray(columns)).save(tmp_path / "ramp.png")
    batch = crops(tmp_path, batch=100).batch(0)
    assert set(batch[:, 0, 0].amin(dim=1).tolist()) == {0, 1, 2}


def test_unusable_files_are_skipped_and_listed(mixed: Path) -> None:
    source = crops(mixed)
    for step in range(source.steps_per_epoch()):
        source.batch(step)
    assert {p.name for p in source.unreadable} == UNUSABLE
    assert source.unreadable[mixed / "small.png"] == "15x200 is under the crop size"
    assert all(source.unreadable.values())
    # The report puts the path before the reason.
    assert not any(str(mixed) in reason for reason in source.unreadable.values())


def test_unusable_files_make_no_difference_between_runs(mixed: Path) -> None:
    warm, cold = crops(mixed), crops(mixed)
    for step in range(20):
        warm.batch(step)
    assert torch.equal(warm.batch(20), cold.batch(20))


def test_the_next_photo_of_the_order_stands_in_for_an_unusable_one(tmp_path: Path) -> None:
    sizes = {f"{i}.png": (16, 16) for i in range(5)}
    whole = levels(crops(plain(tmp_path / "whole", sizes), batch=5).batch(0))
    small = whole[2]
    plain(tmp_path / "less", {**sizes, f"{small}.png": (8, 8)})
    expected = [*whole[:2], whole[3], *whole[3:]]
    assert levels(crops(tmp_path / "less", batch=5).batch(0)) == expected


def test_only_unusable_files_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(TrainingError, match=r"16x16 crop.*2 of 2 are unreadable or too small"):
        crops(tmp_path).batch(0)


def test_sixteen_bits_are_scaled_and_gray_fills_three_channels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    source = crops(tmp_path, crop=32, batch=1)
    found = source.batch(0)[0].permute(1, 2, 0).numpy()
    expected = np.rint(ramp / 257).astype(np.uint8)
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


def test_a_small_photo_is_not_decoded_to_find_that_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.trainers import data

    def never(path: Path) -> Picture:
        raise AssertionError(path)

    plain(tmp_path, {"small.png": (8, 8)})
    monkeypatch.setattr(data, "read_picture", never)
    with pytest.raises(TrainingError, match="8x8 is under the crop size"):
        crops(tmp_path).batch(0)


def test_the_cache_keeps_to_its_size_and_changes_nothing(photos: Path, tmp_path: Path) -> None:
    for name in "abcd":
        with Image.open(photos / f"{name}.png") as image:
            image.resize((512, 400)).save(tmp_path / f"{name}.png")
    large, small, none = (crops(tmp_path, cache_mib=n) for n in (100, 1, 0))
    for step in range(2):
        expected = large.batch(step)
        for other, held in ((small, 1), (none, 0)):
            assert torch.equal(other.batch(step), expected)
            assert len(other._cache) == held
            assert other._cached == held * 512 * 400 * 3 <= other._cache_bytes
    assert len(large._cache) == 4


def test_wider_crops_are_taken_where_photos_are_large_enough(photos: Path) -> None:
    source = crops(photos, cache_mib=7)
    assert source.wider(crop=64, batch=5).batch(0).shape == (5, 3, 64, 64)
    assert source.wider(crop=80, batch=5).batch(0).shape == (5, 3, 16, 16)
    assert not torch.equal(source.wider(crop=16, batch=4).batch(0), source.batch(0))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder as 'lic data prepare' leaves it: five crops, 32 wide and 16 high."""
    folder = tmp_path / "finished"
    folder.mkdir()
    plain(folder / "train", {f"p-{i:010x}-0.png": (32, 16) for i in range(5)})
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, *, complete: bool = True) -> None:
    head = {"format": "lic crops", "version": 1, "complete": complete}
    settings = {"width": 32, "height": 16}
    text = json.dumps({**head, "settings": settings, "photos": []})
    (folder / "lic-crops.json").write_text(text)


def test_prepared_crops_are_taken_whole_and_mirrored(finished: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :7] = 255
    for path in (finished / "train").iterdir():
        Image.fromarray(pixels).save(path)
    found = crops(finished, prepared=True, batch=60).batch(0)
    assert found.shape == (60, 3, 16, 32)
    sides = [bool(torch.equal(c, torch.from_numpy(pixels).permute(2, 0, 1))) for c in found]
    mirrored = torch.from_numpy(pixels[:, ::-1].copy()).permute(2, 0, 1)
    assert [bool(torch.equal(c, mirrored)) for c in found] == [not side for side in sides]
    assert 15 < sum(sides) < 45


def test_prepared_crops_of_another_size_are_refused(finished: Path) -> None:
    Image.new("RGB", (32, 32)).save(finished / "train" / "own.png")
    with pytest.raises(TrainingError, match=r"32x32.*those of 32x16.*--prepared"):
        crops(finished, prepared=True, batch=6).batch(0)


def test_prepared_crops_that_are_damaged_are_skipped(finished: Path) -> None:
    path = next((finished / "train").iterdir())
    path.write_bytes(path.read_bytes()[:60])
    data = crops(finished, prepared=True, batch=5)
    data.batch(0)
    assert set(data.unreadable) == {path}


def test_crops_that_are_not_complete_are_refused(finished: Path) -> None:
    write_manifest(finished, complete=False)
    with pytest.raises(TrainingError, match="not complete; run the same 'lic data prepare'"):
        crops(finished, prepared=True)
    crops(finished).batch(0)


def test_crops_made_elsewhere_need_one_size_that_models_take(tmp_path: Path) -> None:
    own = plain(tmp_path / "own", {"a.png": (48, 32), "b.png": (48, 32)})
    (own / "0.png").write_bytes(b"damaged")
    assert crops(own, prepared=True).batch(0).shape == (4, 3, 32, 48)
    odd = plain(tmp_path / "odd", {"a.png": (40, 32)})
    with pytest.raises(TrainingError, match="40x32; expected sides that 16 divides"):
        crops(odd, prepared=True)


def test_wider_leaves_prepared_crops_whole(finished: Path) -> None:
    data = crops(finished, prepared=True)
    assert data.wider(crop=192, batch=3).batch(0).shape == (3, 3, 16, 32)


def test_batches_do_not_depend_on_workers(mixed: Path) -> None:
    expected = [crops(mixed).batch(step, rank=1, world=2) for step in range(3, 9)]
    for workers in (0, 2):
        data = crops(mixed, workers=workers)
        noise = torch.get_rng_state()
        items = list(data.loader(3, 9, rank=1, world=2))
        assert len(items) == 6
        assert all(torch.equal(a, b) for (a, _), b in zip(items, expected, strict=True))
        assert torch.equal(torch.get_rng_state(), noise)
        # What workers find reaches this process, once.
        told = [path.name for _, found in items for path in found]
        assert sorted(told) == sorted(UNUSABLE)
        assert {path.name for path in data.unreadable} == UNUSABLE


def test_workers_share_the_memory_for_decoded_photos(photos: Path) -> None:
    data = crops(photos, cache_mib=10)
    data.batch(0)
    half = data._with(cache_mib=data.config.cache_mib // 2)
    assert half._cache_bytes == 5 * 2**20
    # And are not sent what this process has decoded.
    assert len(pickle.dumps(half)) < 5_000 < data._cached


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_told_in_its_own_words(tmp_path: Path, workers: int) -> None:
    plain(tmp_path, {"small.png": (8, 8)})
    with pytest.raises(TrainingError, match=r"^no photo gave a 16x16 crop; 1 of 1") as found:
        next(crops(tmp_path).loader(0, 1, workers=workers))
    assert "Traceback" not in str(found.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_dies_ends_the_run_with_a_message(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    # The server of worker processes stays for later ones; make sure that it is there already.
    next(crops(photos).loader(0, 1, workers=1))
    before = set(family(os.getpid()))
    batches = crops(photos).loader(0, 10**6, workers=1)
    next(batches)
    for worker in set(family(os.getpid())) - before:
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"a process that prepares batches died.*--workers"):
        for _ in batches:
            pass


ENDLESS = """
import sys
from pathlib import Path
from lic.trainers.config import DataConfig
from lic.trainers.data import TrainingData, find_photos

if __name__ == "__main__":
    data = TrainingData(find_photos(Path(sys.argv[1])), DataConfig(crop=16, workers=2), 0)
    for _ in data.loader(0, 10**9):
        print("batch", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_run_leaves_no_workers_behind(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    run = subprocess.Popen([sys.executable, script, photos], stdout=subprocess.PIPE)
    with run:
        assert run.stdout is not None
        run.stdout.readline()
        processes = family(run.pid)
        run.kill()
    assert len(processes) >= 3
    assert wait_for_the_end(processes)
