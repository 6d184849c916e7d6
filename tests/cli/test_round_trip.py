"""lic compress, decompress, info and verify do what their help says."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.image_io import read_picture
from lic.codec.metrics import psnr

Lic = Callable[..., Any]


BACKENDS = ("onnx", "torch")


def test_two_commands_and_the_picture_is_back(lic: Lic, png: Path) -> None:
    done = lic("compress", png)
    assert done.code == 0 and "bpp" in done.err and done.out == ""
    file = png.with_suffix(".lic")
    assert file.stat().st_size < png.stat().st_size
    back = png.with_name("back.png")
    assert lic("decompress", file, "-o", back).code == 0
    assert psnr(read_picture(png).pixels, read_picture(back).pixels) > 24


@pytest.mark.parametrize("writer", BACKENDS)
@pytest.mark.parametrize("reader", BACKENDS)
def test_what_one_backend_writes_the_other_reads(
    lic: Lic, png: Path, writer: str, reader: str
) -> None:
    file, back = png.with_suffix(".lic"), png.with_name(f"{reader}.png")
    assert lic("compress", png, "--backend", writer).code == 0
    assert lic("decompress", file, "-o", back, "--backend", reader).code == 0
    assert psnr(read_picture(png).pixels, read_picture(back).pixels) > 24


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 3), (16, 16), (33, 70)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_size_and_gray(lic: Lic, tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    source = tmp_path / "a.png"
    with Image.open("samples/kodim23.png") as image:
        image.crop((200, 150, 200 + size[0], 150 + size[1])).convert(mode).save(source)
    assert lic("compress", source).code == 0
    assert lic("decompress", tmp_path / "a.lic", "-o", tmp_path / "b.png").code == 0
    with Image.open(tmp_path / "b.png") as back:
        assert back.size == size
        assert back.mode == mode


def test_metadata_alpha_and_orientation_survive(lic: Lic, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    with Image.open("samples/kodim23.png") as photo:
        small = photo.crop((100, 100, 164, 132)).convert("RGBA")
    small.putalpha(Image.linear_gradient("L").resize(small.size))
    profile = b"profile" * 20
    source = tmp_path / "a.png"
    small.save(source, exif=exif, icc_profile=profile)
    assert lic("compress", source).code == 0
    back_json = lic("decompress", tmp_path / "a.lic", "-o", tmp_path / "b.png", "--json").out
    assert (json.loads(back_json)["width"], json.loads(back_json)["height"]) == (32, 64)
    with Image.open(tmp_path / "b.png") as back:
        assert back.size == (32, 64)
        assert back.info["icc_profile"] == profile
        assert back.getexif()[0x010F] == "maker"
        assert back.getexif().get(0x0112, 1) == 1
        alpha = np.asarray(back.getchannel("A"))
    turned = np.asarray(small.getchannel("A").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(alpha, turned)
    kept = ("decompress", tmp_path / "a.lic", "-o", tmp_path / "c.png", "--keep-orientation")
    assert lic(*kept).code == 0
    with Image.open(tmp_path / "c.png") as back:
        assert back.size == (64, 32)
        assert back.getexif()[0x0112] == 6


def test_metadata_can_be_left_out(lic: Lic, png: Path, tmp_path: Path) -> None:
    with Image.open(png) as image:
        image.save(tmp_path / "m.png", icc_profile=b"profile" * 50)
    sizes = []
    for keep in ("all", "exif,xmp", "none"):
        assert lic("compress", tmp_path / "m.png", "-f", "--metadata", keep).code == 0
        sizes.append((tmp_path / "m.lic").stat().st_size)
    assert sizes[0] >= sizes[1] + 350
    assert sizes[1] == sizes[2]
    assert lic("compress", tmp_path / "m.png", "-f", "--metadata", "gps").code == 2


def test_sixteen_bits_are_said_to_be_lost(lic: Lic, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 40 * 30, dtype=np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "deep.png")
    done = lic("compress", tmp_path / "deep.png")
    assert done.code == 0 and "16" in done.err and "note" in done.err
    assert lic("compress", tmp_path / "deep.png", "--lossless", "-f").code == 0
    info = json.loads(lic("info", "--json", tmp_path / "deep.lic").out)
    assert (info["bit_depth"], info["colour"]) == (16, "gray")


def test_lossless_keeps_every_pixel(lic: Lic, png: Path) -> None:
    assert lic("compress", png, "--lossless").code == 0
    info = json.loads(lic("info", png.with_suffix(".lic"), "--json").out)
    assert info["coder"] == "lossless"
    assert lic("decompress", png.with_suffix(".lic"), "-o", png.with_name("b.png")).code == 0
    np.testing.assert_array_equal(
        read_picture(png).pixels, read_picture(png.with_name("b.png")).pixels
    )


def test_a_drawing_is_stored_losslessly_by_itself(lic: Lic, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (10, 200, 30)).save(tmp_path / "flat.png")
    assert lic("compress", tmp_path / "flat.png").code == 0
    info = json.loads(lic("info", tmp_path / "flat.lic", "--json").out)
    assert info["coder"] == "lossless" and info["bytes"] < 400


def test_rate_points_order_size_and_quality(lic: Lic, tmp_path: Path) -> None:
    sizes, qualities = [], []
    for rate in (1, 2, 3, 4):
        done = lic("compress", "samples/kodim23.png", "-o", tmp_path / "a.lic", "-f", "-q", rate,
                   "--json", "--dry-run")  # fmt: skip
        values = json.loads(done.out)
        sizes.append(values["bytes"])
        qualities.append(values["psnr"])
    assert sizes == sorted(sizes) and qualities == sorted(qualities)
    assert not (tmp_path / "a.lic").exists()
    assert lic("compress", "samples/kodim23.png", "-q", 77, "-o", tmp_path / "b.lic").code == 2


def test_folders_are_mirrored(lic: Lic, png: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    (tree / "sub").mkdir(parents=True)
    for place in ("a.png", "sub/b.png"):
        (tree / place).write_bytes(png.read_bytes())
    (tree / "readme.txt").write_text("not a picture")
    done = lic("compress", tree, "-o", tmp_path / "out", "-j", 2, "--json")
    assert done.code == 0
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.lic")} == {
        Path("a.lic"),
        Path("sub/b.lic"),
    }
    assert {Path(json.loads(line)["input"]).name for line in done.out.splitlines()} == {
        "a.png",
        "b.png",
    }
    before = (tmp_path / "out" / "a.lic").stat().st_mtime_ns
    again = lic("compress", tree, "-o", tmp_path / "out", "--skip-existing")
    assert again.code == 0 and "skipped 2" in again.err
    assert (tmp_path / "out" / "a.lic").stat().st_mtime_ns == before
    assert lic("decompress", tmp_path / "out", "-o", tmp_path / "back").code == 0
    assert (tmp_path / "back" / "sub" / "b.png").is_file()


def test_pipes(
    png: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from lic.cli.app import run

    def piped(data: bytes, *arguments: str) -> bytes:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        sink = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink, write_through=True))
        assert run([*arguments, "-", "-o", "-"]) == 0
        return sink.getvalue()

    file = piped(png.read_bytes(), "compress", "--quiet")
    assert file.startswith(b"\x89LIC")
    picture = piped(file, "decompress", "--format", "webp", "--quiet")
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("WEBP", (48, 32))
    assert capfdbinary.readouterr().err == b""


def test_json_keys_are_stable(lic: Lic, png: Path) -> None:
    compress = json.loads(lic("compress", png, "--json").out)
    assert set(compress) == {
        "input", "output", "width", "height", "input_bytes", "bytes", "bpp", "rate_point",
        "step", "coder", "fingerprint", "milliseconds",
    }  # fmt: skip
    assert compress["bpp"] == pytest.approx(compress["bytes"] * 8 / (48 * 32), abs=1e-5)
    assert compress["bytes"] == png.with_suffix(".lic").stat().st_size
    info = json.loads(lic("info", png.with_suffix(".lic"), "--json", "-v").out)
    assert info["fingerprint"] == compress["fingerprint"]
    assert [c["type"] for c in info["chunks"]] == ["HEAD", "TILE"]
    decompress = lic("decompress", png.with_suffix(".lic"), "-o", png.with_name("b.png"), "--json")
    assert set(json.loads(decompress.out)) == {
        "input", "output", "width", "height", "bytes", "milliseconds",
    }  # fmt: skip


def test_verify_and_info_of_several(lic: Lic, png: Path, tmp_path: Path) -> None:
    file = png.with_suffix(".lic")
    assert lic("compress", png).code == 0
    assert lic("verify", file).code == 0
    assert lic("verify", "--structure", file).code == 0
    broken = tmp_path / "broken.lic"
    broken.write_bytes(file.read_bytes()[:-7])
    assert lic("verify", broken).code == 4
    done = lic("verify", file, broken)
    assert done.code == 8 and "broken.lic" in done.err
    assert lic("info", file, broken).code == 8


def test_models_list_show(lic: Lic, tiny_bundle: Path) -> None:
    listed = [json.loads(line) for line in lic("models", "list", "--json").out.splitlines()]
    assert [m["rate_point"] for m in listed if m["name"].endswith("relu-lite")] == [1, 2, 3, 4]
    shown = lic("models", "show", tiny_bundle)
    assert shown.code == 0 and "all hashes" in shown.out
    assert "bmshj2018-factorized-relu-lite" in lic("models", "list").out


def test_demo_prints_a_table_and_draws_a_picture(lic: Lic, png: Path, tmp_path: Path) -> None:
    done = lic("demo", png, "-o", tmp_path / "demo")
    assert done.code == 0
    for word in ("bytes", "bpp", "PSNR", "MS-SSIM", "JPEG quality", "WEBP quality", "transform"):
        assert word in done.out
    with Image.open(tmp_path / "demo" / "photo-side-by-side.png") as sheet:
        assert sheet.width == 2 * 48 and sheet.height > 2 * 32


def test_version(lic: Lic) -> None:
    done = lic("--version")
    assert done.code == 0 and done.out.startswith("lic 0.")


def test_what_is_decoded_must_be_a_lic_file(lic: Lic, png: Path) -> None:
    before = png.read_bytes()
    done = lic("decompress", png, "-o", png.with_name("back.png"))
    assert done.code == 4 and str(png) in done.err
    same = lic("decompress", png)
    assert same.code == 2 and "reads .lic files" in same.err
    assert png.read_bytes() == before


def test_a_dry_run_says_so_and_skipping_everything_too(lic: Lic, png: Path) -> None:
    assert "dry run" in lic("compress", png, "--dry-run").err
    assert not png.with_suffix(".lic").exists()
    assert lic("compress", png).code == 0
    assert "nothing to do" in lic("compress", png, "--skip-existing").err


def test_choosing_lossless_is_said(lic: Lic, tmp_path: Path) -> None:
    Image.new("L", (300, 200), 9).save(tmp_path / "flat.png")
    assert "stored losslessly" in lic("compress", tmp_path / "flat.png").err


def test_files_decoded_together_share_one_model(
    lic: Lic, png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec.backends import open_backend

    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(png.read_bytes())
    assert lic("compress", tmp_path / "in", "-o", tmp_path / "out").code == 0
    opened: list[Any] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return open_backend(*arguments, **options)

    monkeypatch.setattr("lic.codec.pipeline.open_backend", counted)
    threads = ("-j", 6, "--engine", "threads")
    assert lic("decompress", tmp_path / "out", "-o", tmp_path / "back", *threads).code == 0
    assert len(opened) == 1


def test_tiles_of_a_chosen_side(lic: Lic, tmp_path: Path) -> None:
    source, file = tmp_path / "a.png", tmp_path / "a.lic"
    with Image.open("samples/kodim23.png") as image:
        image.crop((100, 100, 500, 420)).save(source)
    assert lic("compress", source, "--tile", 256).code == 0
    told = json.loads(lic("info", "--json", file).out)
    assert (told["tiles"], told["tile_size"]) == (4, "256x256")
    assert lic("decompress", file, "-o", tmp_path / "b.png").code == 0
    assert psnr(read_picture(source).pixels, read_picture(tmp_path / "b.png").pixels) > 24
    done = lic("compress", source, "--tile", 250, "-f")
    assert done.code == 2 and "--tile is 250; this model takes multiples of 16" in done.err
