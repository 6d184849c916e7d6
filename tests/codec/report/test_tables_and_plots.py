"""Tables and plots for papers say what the page says."""

import csv
import io
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from lic.codec.benchmark.report.content import Content, gather
from lic.codec.benchmark.report.tables import make_tables, table_files
from lic.codec.benchmark.schema import Results, SpeedRun
from tests.codec.report.made import NASTY, curve, rd_results, speed_results, speed_run


def content(name: str = "new", *, side: int = 512) -> Content:
    ours = [curve("JPEG", pictures=("a.png",)), curve(name, 0.7, kind="lic", pictures=("a.png",))]
    runs = [speed_run(name, 50), speed_run(name, 50, side=side), speed_run("JPEG", 5)]
    failed = SpeedRun(system=name, setting="2", backend="onnx", device="cuda", error="no GPU here")
    theirs = [curve("VVC VTM", 0.5, kind="published")]
    files: dict[str, Results] = {
        "rd.json": rd_results(*ours),
        "speed.json": speed_results(*runs, failed),
    }
    return gather(files, lambda _: theirs)


def test_tables_hold_the_numbers() -> None:
    tables = {table.name: table for table in make_tables(content())}
    assert sorted(tables) == [
        "kodak-bd-rate-ms-ssim", "kodak-bd-rate-psnr", "kodak-bd-rate-psnr-y", "kodak-pictures",
        "kodak-points", "speed",
    ]  # fmt: skip
    assert tables["kodak-bd-rate-psnr"].rows[0] == ("new", "-30.0", "+40.0")
    assert tables["kodak-bd-rate-psnr-y"].rows[0] == ("new", "-30.0", "refused")
    assert "VVC VTM has no PSNR Y" in tables["kodak-bd-rate-psnr-y"].note
    assert tables["kodak-points"].rows[0][:5] == ("new", "measured", "1", 0.1 * 0.7, 27.0)
    assert tables["kodak-points"].rows[-1][:3] == ("VVC VTM", "published", "")
    speed = tables["speed"].rows
    assert speed[0][8] == 50 and speed[-1][-1] == "no GPU here" and speed[-1][8] is None


def test_all_forms_survive_names_that_mean_something_to_them() -> None:
    files = table_files(content(NASTY))
    markdown = files["kodak-points.md"].decode().splitlines()
    columns = {line.replace("\\|", "").count("|") for line in markdown if line}
    assert len(columns) == 1
    assert "<img" not in files["kodak-points.md"].decode().replace(r"\<", "")
    latex = files["kodak-points.tex"].decode()
    assert r"\&|\_\$\%.png" in latex and latex.count(r"\\") == 1 + 12
    rows = list(csv.reader(io.StringIO(files["kodak-points.csv"].decode())))
    assert rows[1][0] == NASTY and float(rows[1][3]) == 0.1 * 0.7


def test_plots_are_pictures_and_the_same_each_time() -> None:
    from lic.codec.benchmark.report.plots import plot_files

    files = plot_files(content(NASTY, side=256))
    assert {
        "kodak-psnr.png", "kodak-psnr.svg", "kodak-ms-ssim.png", "stages-512x512.svg",
        "stages-256x256.png", "growth.png", "speed-and-bd-rate-512x512.png",
    } <= files.keys()  # fmt: skip
    with Image.open(io.BytesIO(files["kodak-psnr.png"])) as image:
        assert image.size == (1440, 960)
    for name, data in files.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(data)
    section = content(NASTY).sections[0]
    again = plot_files(Content(sections=(section,), runs=(), sources=()))
    assert again["kodak-psnr.svg"] == files["kodak-psnr.svg"]


def test_lines_of_growth_are_of_one_engine_and_one_picture() -> None:
    from lic.codec.benchmark.report.speed_plots import speed_figures

    runs = [
        replace(speed_run("new", 50, side=side), threads=threads, picture=picture)
        for side in (256, 512)
        for threads in (1, 2)
        for picture in ("a.png", "b.png")
    ]
    one = speed_run("other", 50)
    figures = dict(speed_figures(gather({"s": speed_results(*runs, one)}, lambda _: ())))
    lines = figures["growth"].axes[0].lines
    assert sorted({str(line.get_label()) for line in lines}) == [
        f"new 2, onnx CPU {threads} thr., {picture}, {way}"
        for threads in (1, 2)
        for picture in ("a.png", "b.png")
        for way in ("decode", "encode")
    ]
    assert all(len(line.get_xdata()) == 2 for line in lines)  # type: ignore[arg-type]


def test_speed_is_plotted_against_the_rates_of_its_own_engine() -> None:
    from lic.codec.benchmark.report.speed_plots import speed_figures

    engines = [curve(f"new ({name})", 0.7, kind="lic") for name in ("onnx", "torch")]
    rd = rd_results(curve("JPEG"), *engines)
    timed = speed_results(speed_run("new", 50), speed_run("JPEG", 5), speed_run("unknown", 5))
    figures = dict(speed_figures(gather({"rd": rd, "s": timed}, lambda _: ())))
    dots = figures["speed-and-bd-rate-512x512"].axes[0].collections
    heights = [dot.get_offsets()[0][1] for dot in dots]  # type: ignore[index]
    assert heights == pytest.approx([-30, 0])


def test_speed_is_plotted_for_every_data_set_that_tells_of_it() -> None:
    from lic.codec.benchmark.report.speed_plots import speed_figures

    curves = (curve("JPEG"), curve("new", 0.7, kind="lic"))
    files: dict[str, Results] = {
        "a": rd_results(*curves, name="One", known=False, pictures=("a.png",)),
        "b": rd_results(*curves, name="Two", known=False, pictures=("b.png",)),
        "c": rd_results(curve("else"), name="Three", known=False, pictures=("c.png",)),
        "s": speed_results(speed_run("new", 50)),
    }
    names = [name for name, _ in speed_figures(gather(files, lambda _: ()))]
    assert names == [
        "stages-512x512", "speed-and-bd-rate-one-512x512", "speed-and-bd-rate-two-512x512"
    ]  # fmt: skip


def test_results_of_speed_alone_are_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from lic.codec.benchmark.report.page import page_data
    from lic.codec.benchmark.report.plots import plot_files

    alone = gather({"speed.json": speed_results(speed_run("new", 5))}, lambda _: ())
    assert page_data(alone, [], "")["title"] == "Speed"
    assert sorted(plot_files(alone)) == ["stages-512x512.png", "stages-512x512.svg"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError):
        plot_files(alone)
