"""A set's name is a promise: only the very files have it, and what comes near is told apart."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lic.codec.benchmark import datasets
from lic.codec.benchmark.datasets import known_sets, open_dataset
from lic.codec.errors import ImageError

ROOT = Path(__file__).parent.parent.parent
KODIM23 = ROOT / "samples" / "kodim23.png"


def _write(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def trio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is a well-known set of three small pictures, called Trio."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(8, 6), (8, 6), (6, 8)]):
        _write(folder / f"trio{i}.png", size, i)
    pictures = open_dataset(folder).dataset.pictures
    known = {
        "Trio": {
            "pictures": 3,
            "known": [[p.name, p.sha256, p.width, p.height] for p in pictures],
        }
    }
    file = tmp_path / "known.json"
    file.write_text(json.dumps(known))
    monkeypatch.setattr(datasets, "_FILE", file)
    known_sets.cache_clear()
    monkeypatch.setattr(datasets, "known_sets", known_sets.__wrapped__)
    return folder


def test_the_shipped_checksums_are_those_of_the_sets() -> None:
    sets = {each.name: each for each in known_sets()}
    kodak = sets["Kodak"]
    assert [p.name for p in kodak.pictures] == [f"kodim{i:02}.png" for i in range(1, 25)]
    upright = [p.name[5:7] for p in kodak.pictures if (p.width, p.height) == (512, 768)]
    assert upright == ["04", "09", "10", "17", "18", "19"]
    # What public projects state for the suite: the digest of sha256sum's output.
    import hashlib

    listing = "".join(f"{p.sha256}  {p.name}\n" for p in kodak.pictures)
    assert hashlib.sha256(listing.encode()).hexdigest() == (
        "3eaa5bd52eb8c894d351cf607028f5d3d80e778fd0267eeff8c73d66539a25d5"
    )
    # Samples must never count as their sets.
    assert [name for name, each in sets.items() if len(each.pictures) == each.count] == ["Kodak"]


def test_the_whole_set_has_its_name_whatever_its_files_are_called(trio: Path) -> None:
    found = open_dataset(trio)
    assert (found.dataset.name, found.dataset.known, found.dataset.remark) == ("Trio", True, "")
    assert [p.name for p in found.paths] == ["trio0.png", "trio1.png", "trio2.png"]
    (trio / "trio0.png").rename(trio / "z.png")
    assert open_dataset(trio).dataset.name == "Trio"


def test_a_part_of_a_set_is_not_the_set(trio: Path) -> None:
    (trio / "trio0.png").unlink()
    found = open_dataset(trio).dataset
    assert (found.name, found.known) == ("pictures", False)
    assert found.remark == "holds 2 of the 3 pictures of Trio"


def test_a_set_and_more_is_not_the_set(trio: Path) -> None:
    _write(trio / "more.png", (20, 20))
    found = open_dataset(trio).dataset
    assert (found.name, found.known) == ("pictures", False)
    (trio / "more.png").write_bytes((trio / "trio0.png").read_bytes())
    assert not open_dataset(trio).dataset.known


def test_scaled_pictures_are_noticed_by_their_names(trio: Path) -> None:
    _write(trio / "trio0.png", (4, 3))
    (trio / "trio1.png").unlink()
    _write(trio / "TRIO1.bmp", (4, 3))
    found = open_dataset(trio).dataset
    assert not found.known
    assert "of another size: TRIO1.bmp with 4 x 3, trio0.png with 4 x 3" in found.remark
    assert "holds 1 of the 3" in found.remark


def test_pictures_that_were_encoded_again_are_noticed(trio: Path) -> None:
    with Image.open(trio / "trio0.png") as image:
        image.save(trio / "trio0.jpg")
    (trio / "trio0.png").unlink()
    remark = open_dataset(trio).dataset.remark
    assert "but other files (changed, or encoded again): trio0.jpg" in remark


def test_a_renamed_and_changed_set_is_noticed_by_its_sizes(trio: Path) -> None:
    for i, path in enumerate(sorted(trio.iterdir())):
        with Image.open(path) as image:
            size = image.size
        path.unlink()
        _write(trio / f"{i}.png", size, 10 + i)
    found = open_dataset(trio).dataset
    assert not found.known
    assert found.remark == "as many pictures as Trio, of the same sizes, but other files"


def test_a_folder_may_not_borrow_a_sets_name(trio: Path) -> None:
    folder = trio.rename(trio.parent / "trio")
    assert open_dataset(folder).dataset.name == "Trio"
    (folder / "trio0.png").unlink()
    assert open_dataset(folder).dataset.name == "trio (not the published set)"


def test_a_picture_of_kodak_is_not_kodak() -> None:
    found = open_dataset(KODIM23)
    assert (found.dataset.name, found.dataset.known) == ("kodim23.png", False)
    assert found.dataset.remark == "holds 1 of the 24 pictures of Kodak"
    assert found.paths == (KODIM23,)
    (picture,) = found.dataset.pictures
    assert (picture.width, picture.height) == (768, 512)


def test_sizes_are_those_of_upright_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    (picture,) = open_dataset(tmp_path).dataset.pictures
    assert (picture.width, picture.height) == (20, 30)


def test_what_cannot_be_read_is_a_picture_without_size(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", (20, 20))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "c.png").write_bytes(b"no picture")
    found = open_dataset(tmp_path).dataset
    assert [(p.width, p.height) for p in found.pictures] == [(20, 20), (0, 0), (0, 0)]
    assert found.remark == "cannot be read, and counts in no mean: b.png, c.png"
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="none of its pictures can be read"):
        open_dataset(tmp_path)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", (20, 20))
    for i in range(6):
        (tmp_path / f"b{i}.png").write_bytes(b"no picture")
    remark = open_dataset(tmp_path).dataset.remark
    assert remark.endswith("b0.png, b1.png, b2.png, b3.png and 2 more")


def test_all_known_pictures_of_a_larger_set_are_a_sample_of_it(trio: Path) -> None:
    assert open_dataset(trio).dataset.name == "Trio"
    file = trio.parent / "known.json"
    file.write_text(file.read_text().replace('"pictures": 3', '"pictures": 4'))
    found = open_dataset(trio).dataset
    assert (found.name, found.known) == ("pictures", False)
    assert "holds 3 of the 4 pictures of Trio" in found.remark
