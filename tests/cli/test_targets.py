"""lic compress comes to a size or a quality, and tells what it reached."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lic.cli.targets import parse_size
from lic.codec.errors import ConfigError

Lic = Callable[..., Any]


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    with Image.open("samples/kodim23.png") as image:
        image.crop((192, 96, 448, 288)).save(path)
    return path


def test_a_target_is_reached_and_told(lic: Lic, photo_file: Path) -> None:
    done = lic("compress", photo_file, "--target-size", "2k", "--strict", "--json", "--threads", 1)
    values = json.loads(done.out)
    size = photo_file.with_suffix(".lic").stat().st_size
    assert 1970 <= size <= 2000
    assert values["target"] == {"kind": "size", "value": 2000, "strict": True}
    assert (values["reached"], values["bytes"]) == (size, size)
    assert values["step"] != 1 and values["trials"] >= 2
    info = json.loads(lic("info", photo_file.with_suffix(".lic"), "--json").out)
    assert info["step"] == values["step"]
    shown = lic("info", photo_file.with_suffix(".lic")).out
    assert f"step         {info['step']}" in shown
    assert lic("verify", photo_file.with_suffix(".lic")).code == 0


def test_text_tells_what_was_reached(lic: Lic, photo_file: Path) -> None:
    done = lic("compress", photo_file, "--target-psnr", "30", "-q", "3", "--threads", 1)
    assert done.code == 0 and ", step " in done.err
    assert " of 30.000 dB wanted, " in done.err and done.err.rstrip().endswith("trials")
    plain = lic("compress", photo_file, "-f", "--threads", 1)
    assert "step" not in plain.err and "wanted" not in plain.err
    assert "step" not in lic("info", photo_file.with_suffix(".lic")).out


def test_a_strict_target_that_cannot_be_met_leaves_nothing(lic: Lic, photo_file: Path) -> None:
    done = lic("compress", photo_file, "--target-psnr", "50", "--strict", "--threads", 1)
    assert done.code == 6 and "dB at the most" in done.err
    assert not photo_file.with_suffix(".lic").exists()
    done = lic("compress", photo_file, "--target-size", "100", "--threads", 1)
    assert done.code == 0 and "the target is 100 bytes, reached" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-bpp", "0.3", "--target-psnr", "30"), "found --target-bpp, --target-psnr; "),
        (("--strict",), "--strict needs a target"),
        (("--target-size", "big"), "--target-size is 'big'; expected bytes"),
        (("--target-size", "0"), "--target-size is '0'"),
        (("--target-ms-ssim", "97"), "target ms-ssim is 97; expected between 0 and 1"),
        (("--lossless", "--target-bpp", "1"), "leave out --target-bpp"),
        (("--target-bpp", "1", "--tile", "500"), "--tile is 500; this model takes multiples of 16"),
        (("--target-bpp", "1", "-q", "9"), "no rate point 9"),
    ],
)
def test_what_makes_no_sense_is_refused(
    lic: Lic, photo_file: Path, options: tuple[str, ...], message: str
) -> None:
    done = lic("compress", photo_file, *options)
    assert done.code == 2 and message in done.err
    assert not photo_file.with_suffix(".lic").exists()


def test_sizes_have_units() -> None:
    sizes = {"5000": 5000, "100k": 100_000, "1.5M": 1_500_000, "64Ki": 65536, "2 MiB": 2**21,
             "1g": 10**9, "7kB": 7000}  # fmt: skip
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "-5", "1e6", "5x", "k", "0.1", "٣"):
        with pytest.raises(ConfigError, match="expected bytes"):
            parse_size(text)
