"""The measuring itself; `make check-measuring` holds it against published points of Kodak."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.benchmark.datasets import open_dataset
from lic.codec.benchmark.schema import Point
from tests.codec.check_measuring import expectations, main, measured, off

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    with Image.open(ROOT / "samples" / "kodim23.png") as image:
        for i in range(2):
            image.crop((300 * i, 100, 300 * i + 192, 276)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_published_points_are_what_is_expected() -> None:
    found = [
        (each.codec, each.quality, round(each.bpp, 4), round(each.psnr, 2))
        for each in expectations()
    ]
    assert found == [
        ("webp:method=4", "5", 0.2344, 28.33),
        ("webp:method=4", "10", 0.2963, 29.15),
        ("webp:method=4", "15", 0.3529, 29.82),
        ("jpeg:optimise=no", "5", 0.2212, 23.78),
        ("jpeg:optimise=no", "10", 0.3266, 26.58),
        ("jpeg:optimise=no", "15", 0.4231, 28.04),
        ("jpeg", "10", 0.256, 26.67),
        ("jpeg", "20", 0.449, 29.14),
    ]


def test_points_are_those_of_plain_pillow_and_numpy(crops: Path) -> None:
    """Nothing of lic computes what they are held against."""
    wanted = expectations()
    points = measured(open_dataset(crops), wanted, jobs=0)
    arguments: dict[str, dict[str, Any]] = {
        "webp:method=4": {"format": "WEBP", "method": 4},
        "jpeg:optimise=no": {"format": "JPEG", "subsampling": 2},
        "jpeg": {"format": "JPEG", "subsampling": 2, "optimize": True},
    }
    for expected, point in zip(wanted, points, strict=True):
        rates, qualities = [], []
        for path in sorted(crops.iterdir()):
            with Image.open(path) as image:
                buffer = io.BytesIO()
                image.save(buffer, quality=int(expected.quality), **arguments[expected.codec])
                pixels = np.asarray(image).astype(float)
            with Image.open(io.BytesIO(buffer.getvalue())) as decoded:
                mse = np.mean((np.asarray(decoded).astype(float) - pixels) ** 2)
            rates.append(8 * len(buffer.getvalue()) / (192 * 176))
            qualities.append(10 * np.log10(255**2 / mse))
        assert point.mean["bpp"] == pytest.approx(np.mean(rates), rel=1e-12)
        assert point.mean["psnr"] == pytest.approx(np.mean(qualities), abs=1e-6)


def test_optimised_tables_save_bytes_and_change_no_pixel(crops: Path) -> None:
    points = dict(
        zip(
            [(each.codec, each.quality) for each in expectations()],
            measured(open_dataset(crops), expectations(), jobs=0),
            strict=True,
        )
    )
    plain, optimised = points["jpeg:optimise=no", "10"], points["jpeg", "10"]
    assert plain.mean["psnr"] == optimised.mean["psnr"]
    assert (optimised.mean["bpp"] or 0) < 0.95 * (plain.mean["bpp"] or 0)


def test_what_is_off_is_told(crops: Path) -> None:
    expected = expectations()[0]
    mean: dict[str, float | None] = {"bpp": expected.bpp, "psnr": expected.psnr}
    assert off(expected, Point(setting="5", mean=mean)) == ""
    assert "bpp is off" in off(expected, Point(setting="5", mean={**mean, "bpp": 0.2337}))
    assert "PSNR is off" in off(expected, Point(setting="5", mean={**mean, "psnr": 28.30}))
    with pytest.raises(SystemExit, match="is not Kodak"):
        main([str(crops)])
