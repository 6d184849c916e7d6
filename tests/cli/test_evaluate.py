"""lic eval and lic demo: what they print, write, refuse, and end with."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.container import parse
from lic.codec.errors import NumericsError
from lic.codec.image_io import orient
from lic.codec.pipeline import Codec

Lic = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path, png: Path) -> Path:
    """A folder of two small photos, and what macOS leaves beside one of them."""
    folder = tmp_path / "cat[a]"
    folder.mkdir()
    for name in ("a.png", "b[b].png"):
        (folder / name).write_bytes(png.read_bytes())
    (folder / "._a.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def evaluation(pictures: Path, tiny_bundle: Path) -> list[object]:
    return ["eval", pictures, "-m", tiny_bundle, "--repeats", 1, "--backend", "onnx"]


def planted(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Let the first decodings fail as on a device with other arithmetic."""
    real, left = Codec.decompress, [failures]

    def decompress(codec: Codec, file: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise NumericsError("planted")
        return real(codec, file)

    monkeypatch.setattr(Codec, "decompress", decompress)


def test_eval_takes_its_model_in_front_of_the_folder(
    lic: Lic, pictures: Path, tiny_bundle: Path
) -> None:
    done = lic("eval", tiny_bundle, pictures, "--repeats", 1, "--backend", "onnx")
    assert done.code == 0 and "tiny-relu q1" in done.out
    for wrong in ([tiny_bundle, tiny_bundle, pictures], [tiny_bundle, pictures, "-m", "x"]):
        done = lic("eval", *wrong)
        assert done.code == 2 and "at most one model and one folder" in done.err


def test_eval_measures_a_checkpoint_by_real_files(
    lic: Lic, pictures: Path, tiny_model: Any, tmp_path: Path
) -> None:
    import torch

    weights = tmp_path / "weights.pth"
    torch.save(tiny_model.state_dict(), weights)
    options = ("--repeats", 1, "--backend", "onnx", "--json")
    done = lic("eval", weights, pictures, *options)
    assert done.code == 0
    row = json.loads(done.out)
    assert row["pictures"] == row["same_symbols"] == 2
    assert row["bpp"] > row["estimated_bpp"] > 0
    assert lic("eval", weights, pictures, "-q", 2).code == 2


def test_eval_prints_a_table_and_writes_every_number(
    lic: Lic, evaluation: list[object], tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "er" / "eval.json"
    done = lic(*evaluation, "-o", target)
    assert done.code == 0
    assert "tiny-relu q1" in done.out and "2/2" in done.out
    (result,) = json.loads(target.read_text())
    assert [row["picture"] for row in result["rows"]] == ["a.png", "b[b].png"]
    excess = round(result["worst_bytes_over_half_percent"])
    assert f"{excess} of 80" in done.out and "excess" in done.out
    assert "█" not in done.err and "━" not in done.err


def test_eval_keeps_what_is_there_unless_forced(
    lic: Lic, evaluation: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "eval.json"
    target.write_text("precious")
    with monkeypatch.context() as patch:
        # Refused before any work.
        patch.setattr(Codec, "compress", None)
        done = lic(*evaluation, "-o", target)
    assert done.code == 7 and "eval.json" in done.err and done.out == ""
    assert target.read_text() == "precious"
    assert lic(*evaluation, "-o", target, "-f").code == 0
    assert json.loads(target.read_text())[0]["pictures"] == 2


def test_what_cannot_be_written_is_known_before_it_starts(
    lic: Lic, evaluation: list[object], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = lic(*evaluation, "-o", tmp_path / "file" / "eval.json")
    assert done.code == 7 and "cannot be written" in done.err
    assert done.out == ""


def test_other_symbols_are_counted_and_end_in_their_exit_code(
    lic: Lic, evaluation: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, 1)
    done = lic(*evaluation, "-o", tmp_path / "eval.json")
    assert done.code == 5
    assert "1/2" in done.out
    assert "tiny-relu q1, a.png: onnx's file on onnx: planted" in done.err
    assert "1 of 2 codings" in done.err
    (result,) = json.loads((tmp_path / "eval.json").read_text())
    assert [row["same_symbols"] for row in result["rows"]] == [False, True]
    planted(monkeypatch, 2)
    done = lic(*evaluation, "--json")
    assert done.code == 5
    values = json.loads(done.out)
    assert (values["same_symbols"], values["psnr"], values["saving"]) == (0, None, None)


def test_eval_shows_a_bar_on_a_terminal_and_results_stay_clean(
    lic: Lic, evaluation: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("lic.cli.measuring.sys", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    done = lic(*evaluation, "--json")
    assert done.code == 0
    assert "2/2" in done.err and "tiny-relu q1" in done.err
    assert json.loads(done.out)["pictures"] == 2


def test_demo_can_be_repeated_when_forced(
    lic: Lic, png: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    out = tmp_path / "demo"
    demo = ["demo", png, "-o", out, "-m", tiny_bundle]
    assert lic(*demo).code == 0
    assert {p.name for p in out.iterdir()} == {"photo.lic", "photo-side-by-side.png"}
    for name in ("photo.lic", "photo-side-by-side.png"):
        kept, other = out / name, [p for p in out.iterdir() if p.name != name]
        other[0].unlink()
        kept.write_bytes(b"precious")
        done = lic(*demo)
        assert done.code == 7 and name in done.err
        assert kept.read_bytes() == b"precious"
        assert lic(*demo, "-f").code == 0
        assert kept.read_bytes() != b"precious"


def test_demo_shows_a_turned_photo_upright_and_counts_no_metadata(
    lic: Lic, png: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(png) as image:
        pixels = np.asarray(image)
        image.save(tmp_path / "cat[a].png", exif=exif, icc_profile=b"profile" * 200)
    done = lic("demo", tmp_path / "cat[a].png", "-o", tmp_path / "demo", "-m", tiny_bundle)
    assert done.code == 0 and "cat[a].png" in done.out
    with Image.open(tmp_path / "demo" / "cat[a]-side-by-side.png") as sheet:
        assert sheet.width == 2 * 32
        np.testing.assert_array_equal(np.asarray(sheet.crop((0, 0, 32, 48))), orient(pixels, 6))
    data = (tmp_path / "demo" / "cat[a].lic").read_bytes()
    file = parse(data)
    assert (file.icc, file.exif, file.header.orientation) == (None, None, 1)
    assert f"{len(data):,}" in done.out


def test_demo_leaves_out_what_webp_cannot_hold(lic: Lic, tmp_path: Path, tiny_bundle: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16384, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "long.png")
    done = lic("demo", tmp_path / "long.png", "-o", tmp_path / "demo", "-m", tiny_bundle)
    assert done.code == 0
    assert "WEBP left out: it holds at most 16383 pixels a side" in done.err
    assert "JPEG quality" in done.out and "WEBP quality" not in done.out
