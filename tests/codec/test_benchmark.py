import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.benchmark import classic, evaluate
from lic.codec.benchmark.classic import fits, jpeg_curve, nearest_size, rate_at
from lic.codec.benchmark.evaluate import Row, find_pictures, read_plain, summarise
from lic.codec.bundle import Bundle
from lic.codec.container import LicFile
from lic.codec.errors import ImageError, NumericsError
from lic.codec.image_io import orient
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec, Decoded

Pixels = NDArray[np.uint8]
ROW = Row(
    picture="a.png", size=1000, bpp=0.5, estimated_bpp=0.45, psnr=30.0, ms_ssim=0.9,
    same_symbols=True, failures=(), flips=0, pixel_gap=0,
    encode={"onnx": {"transform": 1.0}}, decode={"onnx": {"transform": 2.0}},
)  # fmt: skip


def test_excess_bytes_are_those_of_the_worst_file() -> None:
    # 1000 bytes at 0.5 bpp are 16000 pixels; 0.45 bpp of them are 900 bytes, and 904.5 with the
    # half percent. 2000 bytes at 1 bpp are as many pixels; 0.99 bpp are 1980 bytes, 1989.9.
    near = replace(ROW, size=2000, bpp=1.0, estimated_bpp=0.99)
    unknown = replace(ROW, size=9999, estimated_bpp=None)
    found = summarise([near, ROW, unknown])["worst_bytes_over_half_percent"]
    assert found == pytest.approx(95.5)
    assert summarise([near])["worst_bytes_over_half_percent"] == pytest.approx(10.1)
    assert summarise([unknown])["worst_bytes_over_half_percent"] is None


def test_a_file_below_its_estimate_has_a_negative_excess() -> None:
    # 1000 bytes estimated, 1005 with the half percent.
    below = replace(ROW, size=990, bpp=0.495, estimated_bpp=0.5)
    assert summarise([below])["worst_bytes_over_half_percent"] == pytest.approx(-15)


def test_a_summary_leaves_out_what_could_not_be_decoded() -> None:
    lost = replace(ROW, psnr=None, ms_ssim=None, same_symbols=False, failures=("no",), decode={})
    found = summarise([lost, ROW])
    assert (found["psnr"], found["same_symbols"], found["pictures"]) == (30.0, 1, 2)
    assert found["decode"] == ROW.decode
    assert summarise([lost])["psnr"] is None


def test_only_visible_pictures_are_found(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "._b.png", ".c.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_pictures(tmp_path)] == ["a.JPG", "b.png"]
    assert find_pictures(tmp_path / "b.png") == [tmp_path / "b.png"]
    with pytest.raises(ImageError, match="holds no pictures"):
        find_pictures(tmp_path / "folder.png")


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("", ["onnx", "torch"]), ("torch", ["onnx"]), ("safetensors", ["onnx"])],
)
def test_torch_counts_where_it_can_read_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, missing: str, expected: list[str]
) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None if name == missing else name)
    bundle = Bundle.open(tiny_bundle)
    assert evaluate.installed_backends(bundle) == expected
    # A model without graphs has no other, and says itself what it lacks.
    bundle.manifest = replace(bundle.manifest, graphs={})
    assert evaluate.installed_backends(bundle) == ["torch"]


def test_a_plain_picture_is_upright_and_holds_nothing_else(tmp_path: Path, photo: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    turned = Image.fromarray(photo).convert("RGBA")
    turned.putalpha(Image.linear_gradient("L").resize(turned.size))
    turned.save(tmp_path / "a.png", exif=exif, icc_profile=b"profile" * 20)
    plain = read_plain(tmp_path / "a.png")
    assert (plain.alpha, plain.exif, plain.icc, plain.orientation) == (None, None, None, 1)
    np.testing.assert_array_equal(plain.pixels, orient(photo, 6))


@pytest.fixture
def picture(tmp_path: Path, photo: Pixels) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(photo[:48, :64]).save(path)
    return path


def test_a_row_measures_whole_files(tiny_bundle: Path, picture: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    counted: list[int] = []
    backends = ["onnx", "torch"]
    (row,) = evaluate.evaluate(
        bundle, [picture], backends, repeats=1, progress=lambda: counted.append(1)
    )
    encoded = Codec(bundle).compress(read_plain(picture))
    assert (row.picture, row.size) == ("a.png", len(encoded.data))
    assert row.bpp == row.size * 8 / (48 * 64)
    assert row.estimated_bpp is not None and row.estimated_bpp < row.bpp
    assert row.psnr is not None and row.psnr > 15
    assert (row.same_symbols, row.failures) == (True, ())
    assert set(row.encode) == set(row.decode) == {"onnx", "torch"}
    assert counted == [1]


@pytest.mark.parametrize("failing", [("onnx",), ("onnx", "torch")])
def test_a_decoder_with_other_symbols_is_a_failure_of_that_picture(
    tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    real = Codec.decompress

    def decompress(codec: Codec, file: LicFile) -> Decoded:
        name = "torch" if "Torch" in type(codec.backend).__name__ else "onnx"
        if name in failing:
            raise NumericsError("other symbols")
        return real(codec, file)

    monkeypatch.setattr(Codec, "decompress", decompress)
    bundle = Bundle.open(tiny_bundle)
    (row,) = evaluate.evaluate(bundle, [picture], ["onnx", "torch"], repeats=1)
    assert not row.same_symbols
    assert len(row.failures) == 2 * len(failing)
    assert row.failures[0] == "onnx's file on onnx: other symbols"
    assert set(row.decode) == {"onnx", "torch"} - set(failing)
    assert (row.psnr is None) == (len(failing) == 2)


def test_webp_has_no_room_for_long_sides() -> None:
    for side, expected in ((16383, True), (16384, False)):
        for shape in ((1, side, 3), (side, 1, 3)):
            pixels = np.zeros(shape, np.uint8)
            assert fits(pixels, "WEBP") is expected
            assert fits(pixels, "JPEG")
    assert not fits(np.zeros((1, 65501, 1), np.uint8), "JPEG")


@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
def test_the_largest_side_that_fits_can_be_coded(codec: str) -> None:
    pixels = np.zeros((1, classic.MAX_SIDES[codec], 3), np.uint8)
    assert classic.decode(classic.code(pixels, codec, 50), 3).shape == pixels.shape


@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
def test_the_nearest_size_is_the_nearest(photo: Pixels, codec: str) -> None:
    sizes = {q: len(classic.code(photo, codec, q)) for q in range(0, 101, 10)}
    point = nearest_size(photo, codec, sizes[30])
    assert abs(point.size - sizes[30]) <= min(abs(s - sizes[30]) for s in sizes.values()) + 8
    with Image.open(io.BytesIO(classic.code(photo, codec, point.quality))) as image:
        assert image.format == codec
    assert point.psnr == psnr(photo, point.pixels)


def test_a_curve_is_read_between_its_points_only(photo: Pixels) -> None:
    curve = [(0.25, 30.0), (1.0, 40.0)]
    # Half way in PSNR is the geometric mean of the rates.
    assert rate_at(curve, 35.0) == pytest.approx(0.5)
    assert rate_at(curve, 29.9) is None
    assert rate_at(curve, 40.1) is None
    found = jpeg_curve([photo[:32, :32]])
    assert len(found) == len(classic.JPEG_QUALITIES)
    assert found[0][0] < found[-1][0] and found[0][1] < found[-1][1]


def test_there_is_no_curve_where_jpeg_cannot_hold_a_picture(photo: Pixels) -> None:
    curve = jpeg_curve([photo, np.zeros((1, 65501, 1), np.uint8)])
    assert curve == []
    assert rate_at(curve, 30.0) is None
