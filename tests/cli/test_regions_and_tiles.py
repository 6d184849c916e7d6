"""lic on large pictures: tiles by themselves, regions, and pipes."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.container import parse, serialize
from tests.cli.conftest import Lic


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPM of 4.6 megapixels."""
    path = tmp_path_factory.mktemp("large") / "large.ppm"
    with Image.open("samples/kodim23.png") as image:
        image.convert("RGB").resize((2600, 1800)).save(path)
    return path


def pixels(data: bytes | Path) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(image)


def test_large_pictures_there_and_back(lic: Lic, large: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "a.lic", tmp_path / "a.png"
    assert lic("compress", large, "-o", file).code == 0
    told = json.loads(lic("info", "--json", file).out)
    assert (told["tiles"], told["tile_size"]) == (6, "1024x1024")
    done = lic("decompress", file, "-o", back, "--json")
    values = json.loads(done.out)
    assert (values["width"], values["height"]) == (2600, 1800)
    assert values["bytes"] == back.stat().st_size
    assert {"entropy", "transform", "convert"} <= values["milliseconds"].keys()
    shown = pixels(back)
    assert np.abs(shown.astype(int) - pixels(large)).mean() < 6
    part = tmp_path / "part.ppm"
    assert lic("decompress", file, "-o", part, "--region", "1000,1010,600,100").code == 0
    np.testing.assert_array_equal(pixels(part), shown[1010:1110, 1000:1600])
    assert lic("verify", file).code == 0


def test_large_pictures_through_pipes(large: Path) -> None:
    """A PPM goes out part by part, and in."""
    lic = [sys.executable, "-m", "lic.cli"]
    coded = subprocess.run(
        [*lic, "compress", "-", "-o", "-"], input=large.read_bytes(), capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    shown = {
        form: pixels(
            subprocess.run(
                [*lic, "decompress", "-", "-o", "-", "--format", form], input=coded,
                capture_output=True, check=True,
            ).stdout
        )
        for form in ("ppm", "png")
    }  # fmt: skip
    np.testing.assert_array_equal(shown["ppm"], shown["png"])
    assert shown["ppm"].shape == (1800, 2600, 3)


def test_no_half_picture_is_left(lic: Lic, large: Path, tmp_path: Path) -> None:
    """The last tile turns out to be wrong when most of the picture is done."""
    file, back = tmp_path / "a.lic", tmp_path / "a.ppm"
    assert lic("compress", large, "-o", file).code == 0
    found = parse(file.read_bytes())
    tiles = (*found.tiles[:-1], replace(found.tiles[-1], symbols_crc=1))
    file.write_bytes(serialize(replace(found, tiles=tiles)))
    back.write_bytes(b"older")
    done = lic("decompress", file, "-o", back, "-f")
    assert done.code == 5 and "tile 5 (row 1, column 2)" in done.err
    assert back.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lic", "a.ppm"]
    assert lic("verify", file).code == 5
    # Who wants nothing of that tile gets a picture.
    assert lic("decompress", file, "-o", back, "-f", "--region", "0,0,900,900").code == 0


def test_a_region_keeps_metadata_and_is_upright(lic: Lic, tmp_path: Path) -> None:
    source, file = tmp_path / "a.png", tmp_path / "a.lic"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("samples/kodim23.png") as image:
        image.crop((0, 0, 300, 200)).save(source, exif=exif, icc_profile=b"profile")
    assert lic("compress", source).code == 0
    assert lic("decompress", file, "-o", tmp_path / "whole.png").code == 0
    done = lic("decompress", file, "-o", tmp_path / "b.png", "--region", "20,30,100,250", "--json")
    values = json.loads(done.out)
    assert (values["width"], values["height"]) == (100, 250)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == b"profile"
        assert image.getexif().get(0x0112, 1) == 1
        whole = pixels(tmp_path / "whole.png")
        assert whole.shape == (300, 200, 3)
        np.testing.assert_array_equal(np.asarray(image), whole[30:280, 20:120])
    # With the tag the same region is stored as it lay in the file.
    done = lic(
        "decompress", file, "-o", tmp_path / "c.png", "--region", "20,30,100,250",
        "--keep-orientation",
    )  # fmt: skip
    assert done.code == 0
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (250, 100) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize("region", ["1,2,3", "a,b,c,d", "", "1,2,3,4,5", "1.5,2,3,4"])
def test_regions_that_are_none(lic: Lic, png: Path, region: str) -> None:
    assert lic("compress", png).code == 0
    done = lic("decompress", png.with_suffix(".lic"), "-o", "x.png", "--region", region)
    assert done.code == 2 and "expected four whole numbers" in done.err


def test_a_region_beyond_the_picture(lic: Lic, png: Path, tmp_path: Path) -> None:
    assert lic("compress", png).code == 0
    done = lic(
        "decompress", png.with_suffix(".lic"), "-o", tmp_path / "x.png", "--region", "0,0,999,1"
    )
    assert done.code == 2 and "is not within the picture of" in done.err
    assert not (tmp_path / "x.png").exists()
