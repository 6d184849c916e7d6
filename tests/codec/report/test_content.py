"""What a report compares with what, and what it refuses."""

from dataclasses import replace

import pytest

from lic.codec.benchmark.anchors import published_beside
from lic.codec.benchmark.quality import METRICS, points_of
from lic.codec.benchmark.report.content import Content, curve_of, gather
from lic.codec.benchmark.report.deltas import deltas
from lic.codec.benchmark.schema import Curve, Dataset, Point
from lic.codec.errors import ConfigError
from tests.codec.report.made import curve, rd_results, speed_results, speed_run

PSNR = METRICS[0]


def nothing(_: Dataset) -> tuple[Curve, ...]:
    return ()


def gathered(*chosen: str) -> Content:
    theirs = [curve("VVC VTM", 0.5, kind="published"), curve("JPEG", 1.2, kind="published")]
    ours = [curve("JPEG"), curve("new", 0.7, kind="lic")]
    return gather({"rd.json": rd_results(*ours)}, lambda _: theirs, chosen or None)


def test_lic_comes_first_and_published_curves_last_under_names_of_their_own() -> None:
    (section,) = gathered().sections
    assert [c.system for c in section.curves] == ["new", "JPEG", "VVC VTM", "JPEG (published)"]
    assert section.anchors == ("JPEG", "VVC VTM")
    assert [c.system for c in section.shown] == ["new", "JPEG", "VVC VTM"]
    assert [m.key for m in section.metrics] == ["psnr", "psnr_y", "ms_ssim_db"]


def test_chosen_anchors_are_those_and_unknown_ones_are_named() -> None:
    assert gathered("JPEG (published)", "new").sections[0].anchors == ("JPEG (published)", "new")
    with pytest.raises(ConfigError, match=r"--anchor HM: neither measured nor published.*VVC VTM"):
        gathered("HM")


def test_files_of_the_same_pictures_share_a_section() -> None:
    first, second = curve("JPEG"), curve("JPEG", 1.1)
    content = gather(
        {
            "a.json": rd_results(first),
            "b.json": rd_results(first, second),
            "c.json": rd_results(first, pictures=("b.png", "c.png")),
            "speed.json": speed_results(speed_run("JPEG", 5)),
        },
        nothing,
    )
    assert [s.label for s in content.sections] == ["Kodak, 1 picture", "Kodak, 2 pictures"]
    assert [c.system for c in content.sections[0].curves] == ["JPEG", "JPEG (b)"]
    assert [source.kind for source in content.sources] == ["rd", "rd", "rd", "speed"]
    assert [number for number, _ in content.runs] == [3]


def test_a_timing_belongs_to_the_curve_of_its_model_and_engine() -> None:
    onnx, torch = (
        replace(
            curve(f"new ({backend})", kind="lic"),
            details={"backend": backend, "fingerprints": {"2": "abc"}},
        )
        for backend in ("onnx", "torch")
    )
    ours = [onnx, torch, curve("JPEG"), curve("other", kind="lic")]
    theirs = [curve("new", kind="published"), curve("WebP", kind="published")]
    (section,) = gather({"rd.json": rd_results(*ours)}, lambda _: theirs).sections
    run = speed_run("new", 5)

    def found(**changes: str) -> str | None:
        curve = curve_of(section, replace(run, **changes))  # type: ignore[arg-type]
        return curve.system if curve else None

    assert found(backend="torch") == "new (torch)" and found() == "new (onnx)"
    assert found(backend="torch", fingerprint="abc", system="renamed") == "new (torch)"
    assert found(fingerprint="def") is None
    # A rate point that was not measured still is a model of this name.
    assert found(fingerprint="def", setting="9") == "new (onnx)"
    assert found(system="JPEG", backend="Pillow") == "JPEG"
    assert found(system="WebP", backend="Pillow") is None


def test_imported_curves_join_the_known_set_of_their_name() -> None:
    imported = rd_results(curve("paper", kind="published"), name="kodak", known=False, pictures=())
    content = gather({"i.json": imported, "rd.json": rd_results(curve("JPEG"))}, nothing)
    (section,) = content.sections
    assert section.dataset.known and section.anchors == ("JPEG", "paper")
    assert [c.system for c in section.shown] == ["JPEG", "paper"]
    (alone,) = gather({"i.json": imported}, nothing).sections
    assert [metric.key for metric in alone.metrics] == ["psnr", "ms_ssim_db"]


def test_delta_rates_say_how_much_of_the_narrower_curve_they_speak_for() -> None:
    (section,) = gathered().sections
    found = {(d.system, d.anchor): d for d in deltas(section, PSNR)}
    assert ("JPEG", "JPEG") not in found
    assert found["new", "JPEG"].percent == pytest.approx(-30)
    assert found["new", "VVC VTM"].percent == pytest.approx(40)
    assert found["new", "JPEG"].overlap == 1
    assert (found["new", "JPEG"].low, found["new", "JPEG"].high) == (27, 33)


def test_delta_rates_are_refused_with_a_reason() -> None:
    short = curve("short", kind="lic", rates=(0.1, 0.2, 0.4))
    without = Curve(system="without", kind="classic", points=(Point(setting="1"),))
    section = gather({"a": rd_results(curve("JPEG"), short, without)}, nothing, ["JPEG"]).sections[
        0
    ]
    found = {d.system: d for d in deltas(section, PSNR)}
    assert found["short"].percent is None and "3 points; expected 4" in found["short"].refusal
    assert found["without"].refusal == "without has no PSNR"


def test_ms_ssim_in_decibels_is_that_of_the_mean() -> None:
    (point, rate, decibels), *_ = points_of(curve("JPEG"), METRICS[2])
    assert (point.setting, rate) == ("1", 0.1)
    assert decibels == pytest.approx(10.9691, abs=1e-4)
    assert METRICS[2].of({"ms_ssim": 1.0}) is None


def test_published_curves_are_for_whole_known_sets() -> None:
    known = rd_results(curve("JPEG")).dataset
    found = {curve.system: curve for curve in published_beside(known)}
    assert found["VVC VTM"].kind == "published" and found["VVC VTM"].source
    assert published_beside(rd_results(known=False).dataset) == ()
    assert published_beside(rd_results(name="Other").dataset) == ()
