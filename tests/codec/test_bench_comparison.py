"""Curves against each other, and in CompressAI's format."""

import json
import math
from dataclasses import replace

import pytest

from lic.codec.benchmark.anchors import points_of, published_curve
from lic.codec.benchmark.bd_rate import bd_quality, bd_rate
from lic.codec.benchmark.comparison import check_same_pictures, compare
from lic.codec.benchmark.interchange import export_curve, import_curve
from lic.codec.benchmark.quality import METRICS, MS_SSIM_DB
from lic.codec.benchmark.schema import Curve, Dataset, DatasetPicture, Point
from lic.codec.errors import ConfigError

PSNR = METRICS[0]
VTM = published_curve("Kodak", "VVC VTM")
BASE = published_curve("Kodak", "HPCM-Base (MSE, published)")
# The beginning of CompressAI's results/image/kodak/compressai-mbt2018_mse_cuda.json, and its keys.
MBT2018 = {
    "name": "mbt2018",
    "description": "Inference (ans)",
    "results": {
        "psnr-rgb": [28.08847023321361, 29.64549843593544, 31.362275162681673],
        "ms-ssim-rgb": [0.9206957692901293, 0.9432235956192017, 0.9627573788166046],
        "bpp": [0.1105312771267361, 0.18697102864583334, 0.28769599066840285],
        "encoding_time": [2.846319009860357, 2.7352775931358337, 2.812482347091039],
        "decoding_time": [6.023811429738998, 6.0256339112917585, 5.987678349018097],
    },
}


def test_a_comparison_is_bd_rate_and_bd_quality_of_the_means() -> None:
    points = [
        [(p.mean["bpp"] or 0.0, p.mean["psnr"] or 0.0) for p in curve.points]
        for curve in (VTM, BASE)
    ]
    found = compare(VTM, BASE, PSNR, "akima")
    assert (found.reference, found.tested, found.reason) == (VTM.system, BASE.system, "")
    assert found.rate == bd_rate(points[0], points[1], "akima")
    assert found.quality == bd_quality(points[0], points[1], "akima")


def test_ms_ssim_is_compared_in_decibels() -> None:
    point = Point(setting="1", mean={"bpp": 1.0, "ms_ssim": 0.99})
    assert MS_SSIM_DB.of(point.mean) == pytest.approx(20)
    assert MS_SSIM_DB.of({"ms_ssim": 1.0}) is None
    assert PSNR.of(point.mean) is None
    found = compare(VTM, published_curve("Kodak", "AVIF/AV1"), MS_SSIM_DB)
    assert found.rate and 5 < found.rate.low < found.rate.high < 30


def _curve(name: str, *points: tuple[float | None, float | None]) -> Curve:
    return Curve(
        system=name,
        kind="classic",
        points=tuple(
            Point(setting=str(10 * i), mean={"bpp": rate, "psnr": quality})
            for i, (rate, quality) in enumerate(points)
        ),
    )


GOOD = ((0.1, 30.0), (0.2, 32.0), (0.4, 34.0), (0.8, 36.0))


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (GOOD[:3], "odd: a curve has 3 points; expected 4 or more"),
        (((0.1, 30.0), (0.2, 29.0), *GOOD[2:]), "odd: .* does not rise .*from 30 to 29 between"),
        (
            tuple((r, q + 20) for r, q in GOOD),
            "from 30.00 to 36.00 and from 50.00 to 56.00 have no",
        ),
        (tuple((r, None) for r, _ in GOOD), "odd: a curve has 0 points"),
    ],
)
def test_what_cannot_be_told_has_a_reason(
    points: tuple[tuple[float | None, float | None], ...], reason: str
) -> None:
    import re

    found = compare(_curve("good", *GOOD), _curve("odd", *points))
    assert found.rate is None
    assert re.search(reason, found.reason), found.reason


def test_one_of_two_numbers_may_be_refused() -> None:
    """Curves one above the other have rates in common, and no quality."""
    better = _curve("better", *((rate, quality + 20) for rate, quality in GOOD))
    found = compare(_curve("good", *GOOD), better)
    assert found.rate is None and "no quality in common" in found.reason
    assert found.quality and found.quality.difference == pytest.approx(20)


def test_less_is_better_where_the_metric_says_so() -> None:
    def of(name: str, *values: float) -> Curve:
        means = [{"bpp": r, "lpips": v} for (r, _), v in zip(GOOD, values, strict=True)]
        points = (Point(setting=str(i), mean=dict(mean)) for i, mean in enumerate(means))
        return Curve(system=name, kind="classic", points=tuple(points))

    found = compare(of("a", 0.4, 0.3, 0.2, 0.1), of("b", 0.3, 0.2, 0.1, 0.05), METRICS[3])
    assert found.rate and found.rate.percent == pytest.approx(-50, abs=6)
    assert (found.rate.low, found.rate.high) == pytest.approx((0.1, 0.3))
    assert found.quality and found.quality.difference > 0


def test_settings_without_a_mean_are_left_out_and_named() -> None:
    curve = _curve("odd", GOOD[0], (0.15, None), *GOOD[1:])
    found = compare(_curve("good", *GOOD), curve)
    assert found.rate and found.rate.percent == pytest.approx(0, abs=1e-9)
    assert found.left_out == ("odd at 10: no mean PSNR",)


def test_means_over_different_pictures_are_not_compared() -> None:
    pictures = tuple(
        DatasetPicture(name=name, sha256=name * 64, width=1, height=1) for name in "abc"
    )
    whole = Dataset(name="whole", known=False, pictures=pictures)
    check_same_pictures(whole, replace(whole, name="other name", pictures=pictures[::-1]))
    unreadable = replace(pictures[0], sha256="d" * 64, width=0)
    check_same_pictures(whole, replace(whole, pictures=(*pictures, unreadable)))
    with pytest.raises(ConfigError, match="'whole' and 'part': 2 of 3 and 2 are the same"):
        check_same_pictures(whole, replace(whole, name="part", pictures=pictures[1:]))
    published = Dataset(name="Kodak", known=True, pictures=())
    check_same_pictures(published, replace(whole, name="kodak"))
    with pytest.raises(ConfigError, match="different pictures"):
        check_same_pictures(published, whole)


def test_files_of_compressai_come_back_as_they_were() -> None:
    curve, unread, dataset = import_curve(json.dumps(MBT2018).encode(), "mbt2018.json")
    assert (curve.system, curve.kind, curve.source) == ("mbt2018", "published", "Inference (ans)")
    assert (unread, dataset) == (("encoding_time", "decoding_time"), "")
    again = json.loads(export_curve(curve))
    assert (again["name"], again["description"]) == ("mbt2018", "Inference (ans)")
    assert list(again) == ["name", "description", "results"]
    results = MBT2018["results"]
    assert isinstance(results, dict)
    assert again["results"] == {key: results[key] for key in ("bpp", "psnr-rgb", "ms-ssim-rgb")}
    assert import_curve(export_curve(curve), "x")[0] == curve


def test_older_keys_any_order_and_meta_are_read() -> None:
    values = {
        "name": "JPEG2000",
        "description": "",
        "meta": {"dataset": "kodak"},
        "results": {"psnr": [40, 30.0], "ms-ssim": [0.99, 0.9], "bpp": [2.4, 0.2]},
    }
    curve, unread, dataset = import_curve(json.dumps(values).encode(), "jpeg2000.json")
    assert (unread, dataset, curve.source) == ((), "kodak", "jpeg2000.json")
    assert [point.mean for point in curve.points] == [
        {"bpp": 0.2, "psnr": 30.0, "ms_ssim": 0.9},
        {"bpp": 2.4, "psnr": 40.0, "ms_ssim": 0.99},
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"", "is not a results file of CompressAI"),
        (b"[" * 100_000, "is not a results file of CompressAI"),
        (b"[]", "is not a results file of CompressAI"),
        ({"name": "a"}, "is not a results file of CompressAI .KeyError"),
        ({"name": "a", "results": {"bpp": 3}}, "is not a results file of CompressAI"),
        ({"name": "a", "results": {}}, "a.json: has nothing; expected bpp and psnr-rgb"),
        ({"name": "a", "results": {"bpp": [1]}}, "has bpp; expected bpp and psnr-rgb"),
        (
            {"name": "a", "results": {"bpp": [1], "psnr-rgb": [1, 2]}},
            "has 1 of bpp, 2 of psnr; expected as many of each",
        ),
        (
            {"name": "a", "results": {"bpp": ["1"], "psnr-rgb": [1]}},
            "bpp has '1'; expected finite numbers from 0",
        ),
        (
            {"name": "a", "results": {"bpp": [1], "psnr-rgb": [math.nan]}},
            "psnr-rgb has nan; expected finite numbers",
        ),
        (
            {"name": "a", "results": {"bpp": [1], "ms-ssim-rgb": [13.2]}},
            "ms-ssim-rgb has 13.2; expected finite numbers from 0 to 1",
        ),
    ],
)
def test_other_files_are_refused(values: object, message: str) -> None:
    data = values if isinstance(values, bytes) else json.dumps(values).encode()
    with pytest.raises(ConfigError, match=f"a.json.*{message}|{message}"):
        import_curve(data, "a.json")


def test_only_whole_columns_are_exported() -> None:
    curve = _curve("odd", GOOD[0], (0.15, None), *GOOD[1:])
    assert list(json.loads(export_curve(curve))["results"]) == ["bpp"]
    for points in ((), points_of({"bpp": [0.1]})[:0]):
        with pytest.raises(ConfigError, match="odd: has points without mean bpp"):
            export_curve(replace(curve, points=points))
    described = replace(curve, details={"library": "libjpeg 1", "options": {"a": "b"}})
    description = json.loads(export_curve(described))["description"]
    assert description == "library: libjpeg 1; options: {'a': 'b'}"
