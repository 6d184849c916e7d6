import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lic.codec import tiling
from lic.codec.benchmark import evaluate, split
from lic.codec.benchmark.classic import Classic, jpeg_curve, nearest_size, rate_at
from lic.codec.benchmark.datasets import find_pictures, read_plain
from lic.codec.benchmark.evaluate import Row, summarise
from lic.codec.bundle import Bundle
from lic.codec.container import LicFile
from lic.codec.errors import ConfigError, ImageError, LimitError, NumericsError
from lic.codec.image_io import Picture, orient
from lic.codec.metrics import psnr
from lic.codec.models import HPCM, bits, hpcm_config
from lic.codec.pipeline import Codec
from lic.codec.results import Decoded
from lic.codec.tiling import places, to_network

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
    with pytest.raises(ImageError, match=r"gone: cannot be read \(No such file"):
        find_pictures(tmp_path / "gone")


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
    bundle.manifest = replace(bundle.manifest, files={})
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
    jpeg, webp = Classic(key="jpeg"), Classic(key="webp")
    for side, expected in ((16383, True), (16384, False)):
        for shape in ((1, side, 3), (side, 1, 3)):
            pixels = np.zeros(shape, np.uint8)
            assert webp.fits(pixels) is expected
            assert jpeg.fits(pixels)
    assert not jpeg.fits(np.zeros((1, 65501, 1), np.uint8))
    with pytest.raises(LimitError, match=r"WebP holds at most 16383 pixels a side; .* 16384 x 1"):
        webp.code(np.zeros((1, 16384, 3), np.uint8), "50")


@pytest.mark.parametrize("key", ["jpeg", "webp"])
def test_the_largest_side_that_fits_can_be_coded(key: str) -> None:
    codec = Classic(key=key)
    pixels = np.zeros((1, codec.format.largest_side, 3), np.uint8)
    assert codec.decode(codec.code(pixels, "50")).shape == pixels.shape


@pytest.mark.parametrize("key", ["jpeg", "webp"])
def test_the_nearest_size_is_the_nearest(photo: Pixels, key: str) -> None:
    codec = Classic(key=key)
    sizes = {q: len(codec.code(photo, str(q))) for q in range(0, 101, 10)}
    point = nearest_size(photo, codec, sizes[30])
    assert abs(point.size - sizes[30]) <= min(abs(s - sizes[30]) for s in sizes.values()) + 8
    with Image.open(io.BytesIO(codec.code(photo, str(point.quality)))) as image:
        assert image.format == point.codec == key.upper()
    assert point.psnr == psnr(photo, point.pixels)


def test_a_curve_is_read_between_its_points_only(photo: Pixels) -> None:
    curve = [(0.25, 30.0), (1.0, 40.0)]
    # Half way in PSNR is the geometric mean of the rates.
    assert rate_at(curve, 35.0) == pytest.approx(0.5)
    assert rate_at(curve, 29.9) is None
    assert rate_at(curve, 40.1) is None
    found = jpeg_curve([photo[:32, :32]])
    assert len(found) == len(Classic(key="jpeg").settings)
    assert found[0][0] < found[-1][0] and found[0][1] < found[-1][1]


def test_there_is_no_curve_where_jpeg_cannot_hold_a_picture(photo: Pixels) -> None:
    curve = jpeg_curve([photo, np.zeros((1, 65501, 1), np.uint8)])
    assert curve == []
    assert rate_at(curve, 30.0) is None


@torch.inference_mode()
def test_an_estimate_is_that_of_the_files_tiles(
    tiny_hpcm_bundle: Path, tiny_hpcm: HPCM, large_photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large picture in one piece it would be of another coding, in unbounded memory."""
    monkeypatch.setattr(tiling, "TILE_PIXELS", 512 * 512)
    bundle = Bundle.open(tiny_hpcm_bundle)
    header = Codec(bundle).compress(Picture(pixels=large_photo)).header
    assert header.tile_count > 1
    seen: list[int] = []
    forward = HPCM.forward

    def watched(model: HPCM, x: torch.Tensor) -> Any:
        seen.append(x.shape[2] * x.shape[3])
        return forward(model, x)

    monkeypatch.setattr(HPCM, "forward", watched)
    estimate = evaluate._estimator(bundle, "cpu")
    assert estimate is not None
    found = estimate(large_photo, header)
    assert len(seen) == header.tile_count and max(seen) <= 512 * 512
    expected = 0.0
    for place in places(header):
        area = large_photo[place.rows.outer, place.columns.outer]
        x = torch.from_numpy(to_network(area, bundle.manifest.padding, alone=False))
        expected += float(bits(tiny_hpcm(x).likelihoods))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_picture_in_tiles_has_the_estimate_of_its_file(
    tiny_hpcm_bundle: Path, large_photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is off by as much as that of one piece: this model was not trained."""
    Image.fromarray(large_photo).save(tmp_path / "a.png")
    bundle = Bundle.open(tiny_hpcm_bundle)
    rows: list[Row] = []
    for most in (2048 * 2048, 512 * 512):
        monkeypatch.setattr(tiling, "TILE_PIXELS", most)
        rows += evaluate.evaluate(bundle, [tmp_path / "a.png"], ["torch"], repeats=1)
    estimates = [row.estimated_bpp or 0.0 for row in rows]
    assert estimates[1] / rows[1].bpp == pytest.approx(estimates[0] / rows[0].bpp, rel=0.01)
    assert estimates[1] != pytest.approx(estimates[0], rel=0.01)
    assert {"context", "entropy"} <= rows[1].decode["torch"].keys()


def test_estimates_are_computed_on_the_device(tiny_bundle: Path, picture: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(ConfigError, match="npu9"):
        evaluate._estimator(bundle, "npu9")
    # A device that only ONNX Runtime knows is none of torch's business.
    device = "CPUExecutionProvider"
    (row,) = evaluate.evaluate(bundle, [picture], ["onnx"], device=device, repeats=1)
    assert row.estimated_bpp is not None


@pytest.mark.gpu
def test_estimates_on_cuda_are_those_on_the_cpu(
    tiny_hpcm_bundle: Path, large_photo: Pixels
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    bundle = Bundle.open(tiny_hpcm_bundle)
    header = Codec(bundle).compress(Picture(pixels=large_photo)).header
    found = []
    for device in ("cpu", "cuda"):
        estimate = evaluate._estimator(bundle, device)
        assert estimate is not None
        found.append(estimate(large_photo, header))
    assert found[1] == pytest.approx(found[0], rel=0.01)


@pytest.mark.parametrize(
    ("size", "published", "total"),
    [("base", 918.56, 911.84), ("large", 1261.32, 1254.60), ("phi", 872.79, 872.79)],
)
def test_multiply_accumulates_are_those_published(
    size: str, published: float, total: float
) -> None:
    """Less the attention after the last step, which upstream computes for nobody."""
    with torch.device("meta"):
        model = HPCM(hpcm_config(size)).requires_grad_(False)
    found = split.kmac_per_pixel(model)
    assert (found["published"], found["total"]) == (published, total)
    parts = sum(value for name, value in found.items() if name not in ("published", "total"))
    assert parts == pytest.approx(total, abs=0.1)


def test_a_split_adds_up_and_leaves_no_hooks(
    tiny_hpcm_bundle: Path, large_photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    count = split.kmac_per_pixel

    def kept(model: Any) -> dict[str, float]:
        models.append(model)
        return count(model)

    monkeypatch.setattr(split, "kmac_per_pixel", kept)
    picture = Picture(pixels=np.ascontiguousarray(large_photo[:200, :300]))
    (report,) = split.measure(Bundle.open(tiny_hpcm_bundle), [picture], 1)
    assert (report.width, report.height, report.crossing) == (300, 200, None)
    for direction in (report.compress, report.decompress):
        spent = sum(direction.networks.values()) + direction.other
        assert spent == pytest.approx(direction.wall, abs=0.01)
        assert 0 < direction.entropy < direction.other
        assert direction.share == pytest.approx(100 * direction.other / direction.wall, abs=0.01)
        assert 0 < direction.share < 100
        assert direction.mpx_per_s == pytest.approx(60 / direction.wall, rel=0.01)
        assert set(direction.networks) <= set(report.kmac_per_pixel) - {"total", "published"}
    assert {"g_a", "h_a"} <= set(report.compress.networks)
    assert not {"g_a", "h_a"} & set(report.decompress.networks)
    (model,) = models
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_only_a_model_with_a_context_can_be_split(tiny_bundle: Path, photo: Pixels) -> None:
    with pytest.raises(ConfigError, match="tiny-relu q1 is no model with a context"):
        list(split.measure(Bundle.open(tiny_bundle), [Picture(pixels=photo)], 1))


@pytest.fixture
def split_arguments(tiny_hpcm_bundle: Path, tmp_path: Path, large_photo: Pixels) -> list[str]:
    """Of the command: a bundle and two pictures, which are not stored losslessly."""
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for number, path in enumerate(paths):
        Image.fromarray(large_photo[: 100 + 30 * number, :120]).save(path)
    return [str(tiny_hpcm_bundle), *map(str, paths), "--repeat", "1"]


def test_splits_are_objects_and_other_devices_are_counted(
    split_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    split.main([*split_arguments, "--json", "--precision", "bfloat16", "--decode-on", "cpu"])
    captured = capsys.readouterr()
    one, two = (json.loads(line) for line in captured.out.splitlines())
    assert (one["picture"], one["height"], two["picture"]) == ("one.png", 100, "two.png")
    assert (one["precision"], one["device"]) == ("bfloat16", "cpu")
    assert one["crossing"] == {"device": "cpu", "error": None}
    assert captured.err == "2 of 2 files of cpu decode on cpu\n"


def test_a_device_that_gets_other_symbols_is_told_and_counted(
    split_arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Codec] = []
    real = Codec.__init__

    def init(codec: Codec, *arguments: Any, **options: Any) -> None:
        real(codec, *arguments, **options)
        opened.append(codec)
        if len(opened) == 2:
            with torch.no_grad():
                codec.backend.model.get_parameter("h_s.branch.4.bias").add_(0.5)  # type: ignore[attr-defined]

    monkeypatch.setattr(Codec, "__init__", init)
    split.main([*split_arguments, "--decode-on", "cpu"])
    assert len(opened) == 2
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith(("one.png on cpu: ", "two.png on cpu: "))]
    assert len(said) == 2 and all("NumericsError: the stream is intact" in line for line in said)
    assert lines[-1] == "0 of 2 files of cpu decode on cpu"
    assert sum("Mpx/s" in line for line in lines) == 2
