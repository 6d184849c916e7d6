"""Pictures in the page are the measured ones, coded as they were measured, without further loss."""

import base64
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.benchmark.report import views
from lic.codec.benchmark.report.content import Section, gather
from lic.codec.benchmark.report.reconstruct import Reconstruction, reconstruct
from lic.codec.benchmark.report.views import View, make_views
from lic.codec.benchmark.schema import Curve
from lic.codec.decoding import decompress
from lic.codec.errors import ConfigError, ImageError, ModelMismatchError
from lic.codec.image_io import Picture
from lic.codec.library import DEFAULT_MODEL
from lic.codec.pipeline import open_codec
from tests.codec.report.made import classic_curve, rd_results, write_picture

Pixels = NDArray[np.uint8]


def shown(uri: str) -> Pixels:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def jpeg_of(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "JPEG", quality=quality, optimize=True, subsampling="4:2:0")
    with Image.open(buffer) as back:
        return np.asarray(back)


@pytest.fixture
def section(tmp_path: Path, photo: Pixels) -> Section:
    entry = write_picture(tmp_path / "a.png", photo)
    curves = [classic_curve(name, (10, 50, 90), [("a.png", photo)]) for name in ("JPEG", "WebP")]
    results = rd_results(*curves)
    results = replace(results, dataset=replace(results.dataset, pictures=(entry,)))
    return gather({"a.json": results}, lambda _: ()).sections[0]


def only(section: Section, folder: Path, rate: float | None = None) -> View:
    (view,) = make_views([section], folder, [], reconstruct, rate=rate)
    return view


def test_what_is_shown_is_what_the_codec_gives(
    section: Section, tmp_path: Path, photo: Pixels
) -> None:
    view = only(section, tmp_path)
    np.testing.assert_array_equal(shown(view.uri), photo)
    assert (view.width, view.height, view.crop) == (144, 96, None)
    jpeg, webp = view.versions
    assert (jpeg.system, jpeg.setting, jpeg.note) == ("JPEG", "50", "")
    np.testing.assert_array_equal(shown(jpeg.uri), jpeg_of(photo, 50))
    ratio = (jpeg.row.bpp or 0) / (webp.row.bpp or 1)
    assert 0.5 < ratio < 2 and webp.note == ""


def test_a_rate_may_be_asked_for(section: Section, tmp_path: Path) -> None:
    assert [v.setting for v in only(section, tmp_path, rate=50.0).versions] == ["90", "90"]


def test_a_file_that_is_not_the_measured_one_is_told(section: Section, tmp_path: Path) -> None:
    def another(curve: Curve, setting: str, picture: Picture) -> Reconstruction:
        if curve.system == "WebP":
            raise ConfigError("planted")
        return replace(reconstruct(curve, setting, picture), sha256="1" * 64)

    (view,) = make_views([section], tmp_path, ["a"], another)
    jpeg, webp = view.versions
    assert "not byte for byte" in jpeg.note and jpeg.uri
    assert webp.note == "cannot be shown: planted" and not webp.uri


def test_large_pictures_are_cropped_and_not_scaled(
    section: Section, tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "LARGEST_SIDE", 64)
    view = only(section, tmp_path)
    assert (view.width, view.height, view.crop) == (64, 64, (40, 16))
    np.testing.assert_array_equal(shown(view.uri), photo[16:80, 40:104])


def test_what_cannot_be_shown_is_refused(
    section: Section, tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--view b: the results have no such picture.*a\.png"):
        make_views([section], tmp_path, ["b"], reconstruct)
    with pytest.raises(ConfigError, match="holds none of the results' pictures"):
        make_views([section], tmp_path / "none", [], reconstruct)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read"):
        make_views([section], tmp_path / "none", ["a"], reconstruct)
    monkeypatch.setattr(views, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="name fewer"):
        make_views([section], tmp_path, [], reconstruct)
    write_picture(tmp_path / "a.png", photo[::-1])
    with pytest.raises(ConfigError, match=r"a\.png: has SHA-256 .* were measured on"):
        make_views([section], tmp_path, [], reconstruct)


def test_lic_codes_again_with_the_measured_model(photo: Pixels) -> None:
    curve = Curve(system=DEFAULT_MODEL, kind="lic", points=(), details={"backend": "onnx"})
    picture = Picture(pixels=photo)
    found = reconstruct(curve, "1", picture)
    data = open_codec(rate_point=1, backend="onnx").compress(picture).data
    assert (found.sha256, found.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    np.testing.assert_array_equal(found.pixels, decompress(data).picture.pixels)
    fingerprint = open_codec(rate_point=1).bundle.manifest.fingerprint
    named = replace(curve, system="lite (onnx)")
    known = replace(named, details={"backend": "onnx", "fingerprints": {"1": fingerprint}})
    assert reconstruct(known, "1", picture).sha256 == found.sha256
    with pytest.raises(ModelMismatchError, match=r"lite \(onnx\)"):
        reconstruct(named, "1", picture)
    with pytest.raises(ConfigError, match="PIK: found no codec"):
        reconstruct(replace(curve, system="PIK", kind="classic"), "1", Picture(pixels=photo))
