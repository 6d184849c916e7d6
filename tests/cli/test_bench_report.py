"""lic bench report: what it writes and what it refuses."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.codec.report.made import (
    classic_curve,
    rd_results,
    speed_results,
    speed_run,
    write_picture,
)

Lic = Callable[..., Any]


@pytest.fixture
def results(tmp_path: Path, png: Path) -> Path:
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB"))
    (tmp_path / "pictures").mkdir()
    entry = write_picture(tmp_path / "pictures" / "a.png", pixels)
    found = rd_results(classic_curve("JPEG", (10, 30, 60, 90), [("a.png", pixels)]), known=False)
    found = replace(found, dataset=replace(found.dataset, pictures=(entry,)))
    (tmp_path / "rd.json").write_bytes(found.to_bytes())
    (tmp_path / "speed.json").write_bytes(speed_results(speed_run("JPEG", 5)).to_bytes())
    return tmp_path


def test_a_report_is_a_page_with_plots_and_tables(lic: Lic, results: Path) -> None:
    page = results / "deep" / "report.html"
    done = lic(
        "bench", "report", results / "rd.json", results / "speed.json", "-o", page,
        "--pictures", results / "pictures", "--view", "a",
        "--plots", results / "plots", "--tables", results / "tables",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == "" and "opens in any browser" in done.err
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "data:image/webp" in text
    assert f"lic bench report {results}/rd.json" in text
    assert {p.suffix for p in (results / "plots").iterdir()} == {".png", ".svg"}
    assert {p.suffix for p in (results / "tables").iterdir()} == {".md", ".tex", ".csv"}
    assert lic("bench", "report", results / "rd.json", "-o", page).code == 7
    assert lic("bench", "report", results / "rd.json", "-o", page, "-f").code == 0


def test_what_cannot_work_is_said_before_anything_is_written(
    lic: Lic, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = results / "report.html"
    rd, plots = results / "rd.json", results / "plots"
    (results / "other.json").write_text("{}")
    cases: tuple[tuple[list[object], int, str], ...] = (
        ([results / "none.json"], 3, "none.json: cannot be read"),
        ([results / "other.json"], 2, "other.json: is not what lic bench writes"),
        ([rd, "--view", "a"], 2, "need --pictures FOLDER"),
        ([rd, "--anchor", "VTM"], 2, "--anchor VTM: neither measured nor published"),
        ([rd, "--pictures", results], 2, "holds none of the results' pictures"),
        ([results / "speed.json", "--pictures", results], 2, "no results of lic bench rd"),
        ([rd, "--tables", rd], 7, "is a file; expected a folder"),
    )
    for arguments, code, message in cases:
        done = lic("bench", "report", *arguments, "-o", page)
        assert done.code == code and message in done.err, (arguments, done)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "lic.cli.extras.find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    done = lic("bench", "report", rd, "-o", page, "--plots", plots)
    assert done.code == 2 and "needs matplotlib" in done.err and "'.[report]'" in done.err
    assert not page.exists() and not plots.exists()
