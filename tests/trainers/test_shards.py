import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from lic.codec.errors import ConfigError, ImageError, TrainingError
from lic.trainers import ranges
from lic.trainers.config import DataConfig
from lic.trainers.data import TrainingData, find_pictures
from lic.trainers.shard_writer import index_shards, write_shards
from lic.trainers.shards import INDEX, Member, Shard, read_index, write_index
from lic.trainers.tar_headers import scan


def crops(place: Path, *, seed: int = 3, **options: Any) -> TrainingData:
    config = DataConfig(**{"crop": 16, "batch": 4, "val_share": 0.0, **options})
    return TrainingData(find_pictures(place, config, lambda _: None)[0], config, seed)


def assert_same(some: TrainingData, others: TrainingData, steps: int = 6) -> None:
    for step in range(steps):
        assert torch.equal(some.batch(step), others.batch(step))


def png(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    rng = np.random.default_rng(seed)
    output = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(output, "PNG")
    return output.getvalue()


def write_tar(
    path: Path, members: dict[str, bytes], mode: str = "w", kind: int = tarfile.GNU_FORMAT
) -> Path:
    with tarfile.open(path, mode, format=kind) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Nine photos in three folders, in an order that is not that of their plain names."""
    folder = tmp_path / "many"
    for seed in range(9):
        path = folder / f"{seed % 3}" / f"{9 - seed} ü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return folder


@pytest.fixture
def shards(many: Path, tmp_path: Path) -> Path:
    """Three shards of the nine."""
    folder = tmp_path / "shards"
    assert write_shards(many, folder, shard_bytes=15_000).shards == 3
    return folder


class Server:
    """A web server of a folder's files, which can be told to misbehave.

    Attributes:
        url: of the folder.
        asked: path and range of every request.
        failing: how many requests to come are answered with 503.
        parts: whether it sends parts of files.
        broken: answers a range with 503 for ever.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing = 0
        self.parts = True
        self.broken: Callable[[int], bool] = lambda _: False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                wanted = self.headers.get("Range", "")
                server.asked.append((self.path, wanted))
                first, last = map(int, wanted[6:].split("-")) if wanted else (0, -1)
                if server.failing or server.broken(first):
                    server.failing -= bool(server.failing)
                    self.send_error(503)
                    return
                path = folder / unquote(self.path).lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                if wanted and server.parts:
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                    data = data[first : last + 1]
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    server = Server(shards)
    yield server
    server.stop()


@pytest.fixture
def remote(server: Server, shards: Path, tmp_path: Path) -> Path:
    """An index whose shards are on the server."""
    path = tmp_path / "remote.json"
    write_index(path, server.url, read_index(shards / INDEX)[1])
    return path


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WAITS", (0.01, 0.02, 0.03))


def test_an_index_says_what_shards_hold(many: Path, shards: Path) -> None:
    base, found = read_index(shards / INDEX)
    assert base == ""
    listed = []
    for shard in found:
        data = (shards / shard.name).read_bytes()
        assert len(data) == shard.length <= 15_000
        names = shard.names.decode().split("\0")[:-1]
        for name, offset, size in zip(names, shard.offsets, shard.sizes, strict=True):
            assert data[offset : offset + size] == (many / name).read_bytes()
            listed.append(name)
        with tarfile.open(shards / shard.name) as tar:
            assert tar.getnames() == names
    assert listed == sorted(p.relative_to(many).as_posix() for p in many.rglob("*.png"))
    # What others write and read rests on these names.
    values = json.loads((shards / INDEX).read_text())
    assert list(values) == ["format", "version", "complete", "base", "shards"]
    assert (values["format"], values["version"]) == ("lic shards", 1)
    assert list(values["shards"][0]) == ["name", "bytes", "names", "offsets", "sizes"]


def test_shards_give_the_crops_that_their_folder_gives(many: Path, shards: Path) -> None:
    files = crops(many)
    index_shards([str(p) for p in sorted(shards.glob("*.tar"))], shards.parent / "other.json")
    no_index = shutil.copytree(shards, shards.parent / "no index")
    (no_index / INDEX).unlink()
    for place in (shards, shards / INDEX, shards.parent / "other.json", no_index):
        data = crops(place)
        assert (len(data), data.digest) == (9, files.digest)
        assert_same(data, files)
        assert_same(crops(place, cache_mib=0, seed=4), crops(many, seed=4), steps=2)
        assert torch.equal(
            data.wider(crop=32, batch=5).batch(1), files.wider(crop=32, batch=5).batch(1)
        )


def test_workers_and_a_resumed_run_get_the_same_from_shards_anywhere(
    many: Path, shards: Path, remote: Path
) -> None:
    files = crops(many)
    expected = [files.batch(step, rank=1, world=2) for step in range(3, 9)]
    for place in (shards, remote):
        for workers in (0, 2):
            data = crops(place, workers=workers)
            data.batch(0)
            found = [batch for batch, _ in data.loader(3, 9, rank=1, world=2)]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_sent_to_workers_is_no_open_file(shards: Path) -> None:
    data = crops(shards)
    data.batch(0)
    assert ranges._open
    copy = pickle.loads(pickle.dumps(data._with()))
    assert_same(copy, data, steps=2)
    # Each photo of no use is told to the main process.
    assert len(pickle.dumps({copy._photos[3]: "why"})) < 500


def test_few_files_stay_open(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MOST_OPEN", 2)
    data = crops(shards, cache_mib=0, batch=9)
    assert_same(data, crops(shards, batch=9), steps=3)
    assert len(ranges._open) == 2
    assert not any(handle.closed for handle in ranges._open.values())


def test_only_the_bytes_of_the_photo_that_is_wanted_are_asked_for(
    server: Server, remote: Path
) -> None:
    data = crops(remote, batch=9)
    assert len(server.asked) == 1
    server.asked.clear()
    data.batch(0)
    photos = [data._photos[i] for i in range(9)]
    assert all(isinstance(photo, Member) for photo in photos)
    expected = [
        (
            photo.place.removeprefix(server.url),
            f"bytes={photo.offset}-{photo.offset + photo.size - 1}",
        )
        for photo in photos
        if isinstance(photo, Member)
    ]
    assert sorted(server.asked) == sorted(expected)


def test_a_server_that_fails_for_a_while_is_asked_again(
    server: Server, remote: Path, many: Path
) -> None:
    server.failing = 2
    data = crops(remote)
    server.failing = 2
    assert_same(data, crops(many))
    assert data.unreadable == {}


def test_a_photo_that_cannot_be_fetched_is_left_out_and_listed(
    server: Server, remote: Path
) -> None:
    data = crops(remote)
    lost = data._photos[4]
    assert isinstance(lost, Member)
    server.broken = lambda first: first == lost.offset
    same_offset = {p for p in data._photos if isinstance(p, Member) and p.offset == lost.offset}
    for step in range(3):
        data.batch(step)
    assert set(data.unreadable) == same_offset
    assert "no answer in 4 tries (503" in data.unreadable[lost]
    assert str(lost) == f"{server.url}/photos-00001.tar!{lost.path}"


def test_a_server_that_is_down_is_an_error_at_once(server: Server, remote: Path) -> None:
    server.stop()
    with pytest.raises(TrainingError, match=r"photos-00000.tar: no answer in 4 tries.*network"):
        crops(remote)


def test_a_server_that_goes_down_ends_the_run(server: Server, remote: Path) -> None:
    data = crops(remote, cache_mib=0)
    data.batch(0)
    server.broken = lambda _: True
    with pytest.raises(TrainingError, match=r"3 photos in a row.*503.*--resume"):
        data.batch(1)
    # And reaches the user from a worker as well.
    data = TrainingData(data._photos, data.config, 0)
    with pytest.raises(TrainingError, match="3 photos in a row"):
        next(data.loader(0, 1))


def test_shards_gone_from_a_server_end_the_run_before_all_were_asked_for(
    server: Server, shards: Path, tmp_path: Path
) -> None:
    (found,) = read_index(shards / INDEX)[1][:1]
    numbers = np.arange(80)
    names = "".join(f"{i}.png\0" for i in numbers).encode()
    shard = Shard(found.name, found.length, names, 512 + numbers, numbers + 100)
    write_index(tmp_path / "80.json", server.url, [shard])
    data = crops(tmp_path / "80.json")
    (shards / found.name).unlink()
    with pytest.raises(TrainingError, match=r"50 photos in a row.*404"):
        data.batch(0)


def test_a_server_that_sends_no_parts_is_refused(server: Server, remote: Path) -> None:
    server.parts = False
    with pytest.raises(
        TrainingError, match=r"photos-00000.tar: .*expected a server that answers range"
    ):
        crops(remote)


def test_a_shard_that_is_not_on_the_server_is_named(
    server: Server, remote: Path, shards: Path
) -> None:
    (shards / "photos-00000.tar").unlink()
    with pytest.raises(TrainingError, match=r"photos-00000.tar: cannot be read \(404.*remote.json"):
        crops(remote)
    assert len(server.asked) == 1


def test_shards_on_a_server_are_indexed_there(server: Server, shards: Path, many: Path) -> None:
    names = [f"photos-{i:05}.tar" for i in range(3)]
    (shards / "a b%.tar").write_bytes((shards / names[0]).read_bytes())
    target = shards.parent / "new.json"
    urls = [f"{server.url}/{name}" for name in ["a%20b%25.tar", *names[1:]]]
    assert index_shards(urls, target).photos == 9
    # Of each the size, then all of it at once.
    assert [wanted[:8] for _, wanted in server.asked] == ["", "bytes=0-"] * 3
    base, found = read_index(target)
    assert (base, [shard.name for shard in found]) == (server.url, ["a b%.tar", *names[1:]])
    assert all(a.holds(b) for a, b in zip(found, read_index(shards / INDEX)[1], strict=True))
    assert_same(crops(target), crops(many), steps=2)


def test_any_kind_of_url_can_be_a_base(shards: Path, many: Path, tmp_path: Path) -> None:
    write_index(tmp_path / "i.json", f"file://{shards}", read_index(shards / INDEX)[1])
    assert_same(crops(tmp_path / "i.json"), crops(many), steps=2)
    write_index(tmp_path / "i.json", "nonsense://x", read_index(shards / INDEX)[1])
    with pytest.raises(ConfigError, match=r"nonsense://x/photos-00000.tar: .*expected http"):
        crops(tmp_path / "i.json")


def test_a_base_can_be_a_folder(shards: Path, many: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    for base in ("../shards", str(shards)):
        write_index(tmp_path / "index" / "i.json", base, read_index(shards / INDEX)[1])
        assert_same(crops(tmp_path / "index" / "i.json"), crops(many), steps=1)


def test_shards_here_need_no_fsspec_and_no_torch(shards: Path) -> None:
    script = f"""
import sys
sys.modules["fsspec"] = sys.modules["torch"] = None
from pathlib import Path
from lic.trainers.config import DataConfig
from lic.trainers.photos import find_pictures
photos, _ = find_pictures(Path({str(shards)!r}), DataConfig(), print)
assert len(photos) == 9 and photos[8].read()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_what_installs_it(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"fsspec.*pip install '.\[shards\]'"):
        crops(remote)


def test_broken_photos_are_told_of_as_files_are(many: Path, tmp_path: Path) -> None:
    (many / "cut.png").write_bytes(png(1)[:500])
    (many / "empty.jpg").write_bytes(b"")
    (many / "text.png").write_text("no picture")
    (many / "small.png").write_bytes(png(1, (15, 90)))
    write_shards(many, tmp_path / "out", shard_bytes=10_000)
    files, data = crops(many), crops(tmp_path / "out")
    assert_same(data, files)
    expected = {path.name: why for path, why in files.unreadable.items()}
    assert {photo.name: why for photo, why in data.unreadable.items()} == expected
    assert len(expected) == 4
    first = next(iter(data.unreadable))
    assert isinstance(first, Member) and str(first) == f"{first.place}!{first.path}"


def test_an_error_names_the_shard_and_the_photo(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a/small.png": png(1, (8, 8))})
    with pytest.raises(TrainingError, match=r"1 of 1 .*x.tar!a/small.png: 8x8 is under"):
        crops(tmp_path).batch(0)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_of_others_are_read(tmp_path: Path, kind: int) -> None:
    deep = "f" * 90 + "/" + "n" * 90 + "/"
    names = ["000/000001.jpg", "000/000002.seg.png", f"{deep}3.PNG", "./4.webp"]
    names += ["ü.png"] if kind != tarfile.USTAR_FORMAT else []
    beside = {
        "000/000001.json": b"{}",
        "000/000001.txt": b"a cat",
        "000/._5.png": b"x",
        "cls": b"7",
    }
    photos = {name: png(seed) for seed, name in enumerate(names)}
    path = write_tar(tmp_path / "x.tar", {**beside, **photos}, kind=kind)
    with tarfile.open(path, "a", format=kind) as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = (
            tarfile.SYMTYPE,
            deep * 3 if kind != tarfile.USTAR_FORMAT else "x",
        )
        tar.addfile(link)
        # Of two with one name, what unpacks the archive leaves the second.
        info = tarfile.TarInfo("./4.webp")
        info.size = len(photos[names[0]])
        tar.addfile(info, io.BytesIO(photos[names[0]]))
    photos["./4.webp"] = photos[names[0]]
    data = crops(tmp_path)
    assert {p.path: p.read() for p in data._photos if isinstance(p, Member)} == photos
    assert data.batch(0).shape == (4, 3, 16, 16)


def test_archives_put_behind_one_another_are_read_as_one(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{i}", {f"{i}.png": png(i)}).read_bytes() for i in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts) + b"anything")
    assert [photo.name for photo in crops(tmp_path)._photos] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.tar"])
def test_compressed_archives_are_refused(tmp_path: Path, name: str) -> None:
    mode = f"w:{name.rpartition('.')[2].replace('tgz', 'gz').replace('tar', 'gz')}"
    path = write_tar(tmp_path / name, {"a.png": png(0)}, mode)
    write_tar(tmp_path / "b.tar", {"b.png": png(0)})
    for place in (tmp_path, path):
        with pytest.raises(TrainingError, match=rf"{name}: is compressed \(.*unpack"):
            crops(place)


def test_a_folder_of_pictures_stays_one_with_an_archive_beside(many: Path, shards: Path) -> None:
    shutil.copy(shards / "photos-00000.tar", many / "photos.tar")
    assert all(isinstance(photo, Path) for photo in crops(many)._photos)
    assert len(crops(many / "photos.tar")) < 9
    shutil.copytree(shards, many, dirs_exist_ok=True)
    assert not any(isinstance(photo, Path) for photo in crops(many)._photos)


def test_nothing_is_held_out_of_shards_and_a_note_says_so(shards: Path, photos: Path) -> None:
    notes: list[str] = []
    training, held = find_pictures(shards, DataConfig(val_share=0.5), notes.append)
    assert (len(training), held) == (9, [])
    assert len(notes) == 1 and "--val" in notes[0]
    config = DataConfig(val=str(photos), val_count=3)
    training, held = find_pictures(shards, config, notes.append)
    assert (len(training), len(held), len(notes)) == (9, 3, 1)
    assert all(path.parent == photos for path in held)
    (shards / INDEX).unlink()
    find_pictures(shards, config, notes.append)
    assert "3 shards without an index" in notes[1]


def test_prefixes_choose_by_the_name_without_folders(shards: Path, many: Path) -> None:
    some = crops(shards, prefix=("8", "3"))
    assert [photo.name for photo in some._photos] == ["3 ü.png", "8 ü.png"]
    assert_same(some, crops(many, prefix=("8", "3")), steps=2)
    with pytest.raises(ImageError, match="no pictures whose name starts with x, y"):
        crops(shards, prefix=("x", "y"))


def test_prepared_crops_can_lie_in_shards(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar", {"0.png": b"bad", **{f"{i}.png": png(i, (32, 16)) for i in (1, 2)}}
    )
    assert crops(tmp_path, prepared=True).batch(0).shape == (4, 3, 16, 32)
    write_tar(tmp_path / "y.tar", {"3.png": png(3, (32, 32))})
    with pytest.raises(TrainingError, match=r"32x32.*those of 32x16"):
        crops(tmp_path, prepared=True).batch(0)
    for path, size in ((tmp_path / "odd.tar", (40, 32)), (tmp_path / "bad.tar", None)):
        write_tar(path, {"0.png": png(0, size) if size else b"bad"})
        with pytest.raises(
            TrainingError, match=r"odd.tar!0.png: is 40x32|bad.tar: none of 1 crops"
        ):
            crops(path, prepared=True)


def test_a_shard_that_was_cut_off_is_an_error(shards: Path) -> None:
    path = shards / "photos-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-600])
    expected = rf"00001.tar: found {len(data) - 600} bytes; expected {len(data)}.*copy it again"
    with pytest.raises(TrainingError, match=expected):
        crops(shards)
    (shards / INDEX).unlink()
    # Only its end is missing.
    assert len(crops(shards)) == 9
    for left in (data[:9_000], data[:-1200], data[:700]):
        path.write_bytes(left)
        with pytest.raises(TrainingError, match=r"00001.tar: is cut off: found"):
            crops(shards)


def test_a_shard_that_is_cut_off_under_way_costs_its_photos_only(shards: Path) -> None:
    data = crops(shards, batch=9)
    with (shards / "photos-00001.tar").open("r+b") as file:
        file.truncate(600)
    data.batch(0)
    assert len(data.unreadable) == 3
    assert all("cut off or replaced" in why for why in data.unreadable.values())


def test_a_shard_that_is_missing_is_named(shards: Path) -> None:
    (shards / "photos-00002.tar").unlink()
    with pytest.raises(TrainingError, match=r"photos-00002.tar: cannot be read.*lic-shards.json"):
        crops(shards)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"text, and quite a lot of it " * 100)
    with pytest.raises(TrainingError, match=r"x.tar: is damaged, or no tar archive: at byte 0"):
        crops(tmp_path)
    good = write_tar(path, {"a.png": png(0), "b.png": png(1)}).read_bytes()
    second = 512 + len(png(0)) // 512 * 512 + 512
    path.write_bytes(good[:second] + b"\1" * 9 + good[second + 9 :])
    with pytest.raises(TrainingError, match=rf"is damaged.*at byte {second} bad checksum"):
        crops(tmp_path)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("c.png")
        # Names of pictures are kept with such a byte between them.
        info.pax_headers = {"path": "c\0d.png"}
        tar.addfile(info)
    with pytest.raises(TrainingError, match=r"is damaged.*a description that cannot be read"):
        crops(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="shards hold no pictures"):
        crops(tmp_path)


def test_damage_anywhere_in_an_archive_is_an_error_or_a_loss(tmp_path: Path) -> None:
    """Never a crash, a hang, or a picture that lies outside of the archive."""
    members = {f"{'long' * 40}/{i} ü.png": b"x" * 300 for i in range(3)}
    rng = np.random.default_rng(0)
    told = 0
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = bytearray(write_tar(tmp_path / "good", members, kind=kind).read_bytes()[:9_000])
        for trial in range(200):
            bad = bytearray(data)
            # Every second time with the sum of the header made right again.
            place = int(rng.integers(0, 9_000))
            bad[place] = int(rng.choice([0, 32, 48, 55, 57, 61, 127, 128, 255]))
            first = place // 512 * 512
            if trial % 2:
                bad[first + 148 : first + 156] = b" " * 8
                total = sum(bad[first : first + 512])
                bad[first + 148 : first + 156] = f"{total:06o}\0 ".encode()
            (tmp_path / "bad.tar").write_bytes(bad)
            try:
                size, found = scan(str(tmp_path / "bad.tar"))
            except TrainingError as error:
                told += "bad.tar: " in str(error)
                continue
            assert all(start + length <= size for start, length in found.values())
            assert not any("\0" in name for name in found)
    assert 100 < told < 390


def damaged(values: dict[str, Any], **changes: Any) -> bytes:
    """Return an index as JSON with some values of it, or of its first shard, changed."""
    shard = {
        **values["shards"][0],
        **{k: v for k, v in changes.items() if k in values["shards"][0]},
    }
    top = {key: value for key, value in changes.items() if key in values}
    return json.dumps({**values, "shards": [shard, *values["shards"][1:]], **top}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "lic crops"}, "no format 'lic shards'"),
        ({"version": 2}, "is of version 2, and this lic reads 1"),
        ({"complete": False}, "not complete; run the same 'lic data shards' again"),
        ({"complete": "yes"}, "no base, shards and complete"),
        ({"base": None}, "no base, shards and complete"),
        ({"shards": {}}, "no base, shards and complete"),
        ({"shards": []}, "holds no shards"),
        ({"shards": [{"name": "x.tar"}]}, "a shard without"),
        ({"name": "photos-00001.tar"}, "names a shard twice"),
        ({"name": "../x.tar"}, "no path below the base"),
        ({"name": "/etc/x.tar"}, "no path below the base"),
        ({"name": 3}, "no path below the base"),
        ({"bytes": 2**60}, "is of 1152921504606846976 bytes"),
        ({"bytes": 4096.0}, r"is of 4096.0 bytes"),
        ({"bytes": 12000}, r"is of 12000 bytes, and 0/9 ü.png ends at"),
        ({"names": ["a.png", "b.png", "a.png"]}, "names a picture twice"),
        ({"names": ["a.png", "b.png", 3]}, "no list of texts"),
        ({"names": ["a.png", "b.png", ""]}, "without a proper name"),
        ({"names": ["a.png", "b.png", "c\0.png"]}, "without a proper name"),
        ({"names": ["a.png", "b.png", "\ud800.png"]}, "surrogates not allowed"),
        ({"names": ["a.png"]}, "no list of 1 whole numbers"),
        ({"offsets": [512, 1024, 1.5]}, "offsets that are no list of 3 whole numbers"),
        ({"offsets": [512, 1024, 2**70]}, "offsets that are no list"),
        ({"offsets": [512, 1024, 2**63 - 1]}, "ends at"),
        ({"offsets": [0, 1024, 2048]}, "sizes or at offsets that cannot be"),
        ({"sizes": [3, -1, 3]}, "sizes or at offsets that cannot be"),
        ({"sizes": [3, 2**40, 3]}, "sizes or at offsets that cannot be"),
        ({"sizes": [[3], [3], [3]]}, "sizes that are no list"),
        ({"sizes": None}, "sizes that are no list"),
    ],
)
def test_an_index_that_cannot_be_is_refused(
    shards: Path, changes: dict[str, Any], message: str
) -> None:
    path = shards / INDEX
    path.write_bytes(damaged(json.loads(path.read_bytes()), **changes))
    with pytest.raises(TrainingError, match=rf"lic-shards.json: .*{message}"):
        crops(shards)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 9_999])
def test_what_is_no_index_is_refused(shards: Path, data: bytes) -> None:
    (shards / INDEX).write_bytes(data)
    with pytest.raises(TrainingError, match=r"lic-shards.json: .*expected an index of shards"):
        crops(shards)


def test_names_that_are_no_text_come_through(tmp_path: Path) -> None:
    name = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    write_tar(tmp_path / "x.tar", {name: png(0)})
    index_shards([str(tmp_path / "x.tar")], tmp_path / INDEX)
    (photo,) = crops(tmp_path)._photos
    assert photo.name == name


def test_a_large_index_takes_little_time_and_memory(tmp_path: Path) -> None:
    count, each = 200_000, 10_000
    sizes = np.full(each, 100_000)
    offsets = 512 + np.arange(each) * 100_352
    shards = []
    for first in range(0, count, each):
        names = "".join(f"train2017/{first + i:012}.jpg\0" for i in range(each)).encode()
        shards.append(Shard(f"{first}.tar", each * 100_352 + 1024, names, offsets, sizes))
    write_index(tmp_path / "large.json", "", shards)
    text = (tmp_path / "large.json").stat().st_size
    before = time.process_time()
    read_index(tmp_path / "large.json")
    assert time.process_time() - before < 1.5
    tracemalloc.start()
    found = read_index(tmp_path / "large.json")[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, found)) == count
    # The text twice, as bytes and as letters, what is kept, and one shard as objects.
    assert peak < 2 * text + count * 50 + each * 250
