"""lic bench: what it measures by default, prints, writes, refuses, and ends with."""

import json
import multiprocessing
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.cli import bench_rd
from lic.codec.benchmark import rd as rd_module
from lic.codec.benchmark.classic import installed_formats
from lic.codec.benchmark.schema import Curve, RdResults
from lic.codec.errors import ConfigError, NumericsError
from lic.codec.pipeline import Codec
from lic.codec.workers import spread

Lic = Callable[..., Any]
QUALITIES = ("--qualities", "10,30,50,70")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process, and a cache of the test's own."""
    monkeypatch.setattr(rd_module, "spread", lambda work, pieces, _: spread(work, pieces, 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos [1]"
    folder.mkdir()
    with Image.open("samples/kodim23.png") as image:
        for i, name in enumerate(("a.png", "b.png")):
            image.crop((200 * i, 100, 200 * i + 170, 270)).save(folder / name)
    return folder


@pytest.fixture
def results(lic: Lic, pictures: Path, tmp_path: Path) -> Path:
    """Results of JPEG and WebP."""
    path = tmp_path / "results.json"
    codecs = ("--codec", "jpeg", "--codec", "webp:method=4")
    done = lic("bench", "rd", pictures, "-m", "none", *codecs, *QUALITIES, "-o", path)
    assert done.code == 0, done.err
    return path


def read(path: Path) -> RdResults:
    return RdResults.from_bytes(path.read_bytes(), str(path))


def test_by_default_the_default_model_and_all_installed_codecs(
    lic: Lic, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(_: Any, systems: Any, **options: Any) -> None:
        seen.extend([systems, options])
        raise ConfigError("enough")

    monkeypatch.setattr(rd_module, "measure", stop)
    assert lic("bench", "rd", pictures).code == 2
    systems, options = seen
    assert [s.name for s in systems if s.kind == "lic"] == ["bmshj2018-factorized-relu-lite"]
    assert systems[0].settings == ("1", "2", "3", "4")
    assert [s.key for s in systems if s.kind == "classic"] == installed_formats()
    assert options["jobs"] == 1 and options["cache"] is not None


def test_rd_prints_means_and_writes_every_number(
    lic: Lic, pictures: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "results.json"
    arguments = ("-m", tiny_bundle, "--codec", "jpeg", "--qualities", "10,90", "-o", path)
    done = lic("bench", "rd", pictures, *arguments)
    assert done.code == 0, done.err
    for word in ("photos [1], means of 2 pictures", "tiny-relu", "JPEG", "PSNR-Y dB", "MS-SSIM dB"):
        assert word in done.out
    assert "LPIPS" not in done.out and "failed" not in done.out
    found = read(path)
    assert [(c.system, c.kind) for c in found.curves] == [("tiny-relu", "lic"), ("JPEG", "classic")]
    assert [point.setting for point in found.curves[1].points] == ["10", "90"]
    assert [row.picture for row in found.curves[0].points[0].rows] == ["a.png", "b.png"]
    assert found.machine.versions["lic"]
    assert found.dataset.name == "photos [1]" and not found.dataset.known
    assert lic("bench", "rd", pictures, *arguments).code == 7
    before = path.read_bytes()
    assert lic("bench", "rd", pictures, *arguments, "-f", "-j", 2, "--no-cache").code == 0
    assert path.read_bytes() == before, "how often and in how many processes leaves no trace"
    command = shlex.split(found.command)
    assert command[:3] == ["lic", "bench", "rd"] and "-o" not in command
    assert lic(*command[1:], "-o", tmp_path / "again.json").code == 0
    assert (tmp_path / "again.json").read_bytes() == before


def test_json_has_one_object_a_point(lic: Lic, pictures: Path) -> None:
    done = lic("bench", "rd", pictures, "-m", "none", "--codec", "jpeg", *QUALITIES, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["setting"] for line in lines] == ["10", "30", "50", "70"]
    assert set(lines[0]) == {
        "system", "setting", "pictures", "failed", "bytes", "bpp", "psnr", "psnr_y", "ms_ssim",
        "ms_ssim_db", "lpips",
    }  # fmt: skip
    assert lines[0]["ms_ssim_db"] == pytest.approx(-10 * np.log10(1 - lines[0]["ms_ssim"]))


def test_what_fails_is_told_and_ends_with_8(
    lic: Lic,
    pictures: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real = Codec.decompress
    left = [1]

    def decompress(codec: Codec, *arguments: Any) -> Any:
        if left:
            left.clear()
            raise NumericsError("planted")
        return real(codec, *arguments)

    monkeypatch.setattr(Codec, "decompress", decompress)
    path = tmp_path / "results.json"
    arguments = ("-m", tiny_bundle, "--codec", "jpeg", "--qualities", "50", "-o", path)
    done = lic("bench", "rd", pictures, *arguments)
    assert done.code == 8
    assert "lic: error: tiny-relu at 1, a.png: planted" in done.err
    assert "1 of 4 failed" in done.err and "failed" in done.out
    assert read(path).curves[0].points[0].rows[0].error == "planted"
    # Only what failed is measured again.
    assert lic("bench", "rd", pictures, *arguments, "-f").code == 0
    assert read(path).curves[0].points[0].mean["psnr"]


def test_unreadable_pictures_are_noted_and_end_with_8(lic: Lic, pictures: Path) -> None:
    (pictures / "c.png").write_bytes(b"no picture")
    done = lic("bench", "rd", pictures, "-m", "none", "--codec", "jpeg", "--qualities", "50")
    assert done.code == 8
    assert "note: photos [1]: cannot be read, and counts in no mean: c.png" in done.err
    assert "means of 2 pictures" in done.out


def test_the_cache_is_where_it_was_asked_for(
    lic: Lic, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("bench", "rd", pictures, "-m", "none", "--codec", "jpeg", "--qualities", "50")
    assert lic(*arguments, "--no-cache").code == 0
    assert not (tmp_path / "user").exists()
    assert lic(*arguments, "--cache", tmp_path / "mine").code == 0
    assert len(list((tmp_path / "mine").glob("*/*.json"))) == 2
    assert lic(*arguments).code == 0
    assert len(list((tmp_path / "user" / "lic" / "bench").glob("*/*.json"))) == 2
    (tmp_path / "file").touch()
    done = lic(*arguments, "--cache", tmp_path / "file" / "x")
    assert done.code == 7 and "cannot be written" in done.err
    # This user's own may be out of reach, as in a container with a read-only root.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    done = lic(*arguments)
    assert done.code == 0 and "note: nothing is kept for a next time" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "none", "--codec", "none"], "neither a model nor a codec is left"),
        (["-m", "none", "-m", "x"], "--model is none, x; 'none' stands alone"),
        (["--codec", "none", "--qualities", "1"], "--qualities is for classic codecs"),
        (["-m", "none", "-q", "1"], "--rate, --step and --backend are for models"),
        (["-m", "none", "--backend", "onnx"], "--rate, --step and --backend are for models"),
        (["--step", "5", "--codec", "none"], "step is 5; expected 0.25 to 4"),
        (["--codec", "bpg"], "codec is 'bpg'; expected one of jpeg"),
        (["--codec", "jpeg", "--codec", "jpeg"], "--codec names jpeg 2 times"),
        (["--codec", "jpeg", "--qualities", "10,,20"], "quality is ''"),
        (["--cache", "x", "--no-cache"], "--cache contradicts --no-cache"),
        (["-q", "9"], "has no rate point 9"),
        (["--backend", "npu"], "backend is 'npu'; expected one of auto"),
        (["--device", "npu9"], "npu9"),
        (["-j", "0"], "-j"),
    ],
)
def test_what_makes_no_sense_is_refused(
    lic: Lic, pictures: Path, arguments: list[str], message: str
) -> None:
    done = lic("bench", "rd", pictures, *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert not done.out


def test_a_folder_without_pictures_and_a_missing_model_have_their_codes(
    lic: Lic, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert lic("bench", "rd", tmp_path / "empty").code == 3
    assert lic("bench", "rd", pictures, "-m", "no-such-model").code == 5


def test_lpips_that_cannot_be_loaded_is_left_out_unless_asked_for(
    lic: Lic, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec.benchmark import perceptual

    def refuse() -> None:
        raise ConfigError("LPIPS cannot be loaded (no network)")

    monkeypatch.setattr(perceptual, "lpips_version", lambda: "alex")
    monkeypatch.setattr(perceptual, "check_lpips", refuse)
    arguments = ("bench", "rd", pictures, "-m", "none", "--codec", "jpeg", "--qualities", "50")
    done = lic(*arguments)
    assert done.code == 0 and "note: LPIPS cannot be loaded (no network); left out" in done.err
    assert lic(*arguments, "--lpips").code == 2
    assert lic(*arguments, "--no-lpips").err == ""


def test_processes_measure_what_one_does(
    lic: Lic, pictures: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("-m", tiny_bundle, "--codec", "jpeg", "--qualities", "50", "--no-cache")
    assert lic("bench", "rd", pictures, *arguments, "-o", tmp_path / "one.json").code == 0
    monkeypatch.setattr(rd_module, "spread", spread)
    done = lic("bench", "rd", pictures, *arguments, "-j", 2, "-o", tmp_path / "two.json")
    assert done.code == 0, done.err
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert multiprocessing.active_children() == []


def test_names_of_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert bench_rd._accelerators("cpu") == []
    assert bench_rd._accelerators("OpenVINOExecutionProvider") == ["OpenVINOExecutionProvider"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    assert bench_rd._accelerators("cuda:0") == ["H200"]


def test_compare_tells_rates_overlaps_and_reasons(lic: Lic, results: Path) -> None:
    done = lic("bench", "compare", f"{results}:JPEG", results)
    assert done.code == 0
    assert "WebP method=4" in done.out and "%" in done.out and "overlap" in done.out
    assert done.out.count("JPEG") == 1, "against itself there is nothing to tell"
    done = lic("bench", "compare", f"{results}:jpeg", f"{results}:WebP method=4", "--json")
    (line,) = [json.loads(text) for text in done.out.splitlines()]
    assert (line["reference"], line["tested"], line["metric"]) == ("JPEG", "WebP method=4", "psnr")
    assert line["rate"]["percent"] < 0 < line["quality"]["difference"]
    assert 0 < line["rate"]["overlap"] <= 1
    for option in (["--method", "akima"], ["--method", "cubic"], ["--metric", "ms_ssim"]):
        other = lic("bench", "compare", f"{results}:jpeg", results, "--json", *option)
        found = json.loads(other.out.splitlines()[-1])
        assert found["rate"]["percent"] != line["rate"]["percent"]
        assert found["rate"]["percent"] == pytest.approx(line["rate"]["percent"], abs=25)


def test_the_same_pictures_may_lie_in_folders_of_other_names(
    lic: Lic, pictures: Path, results: Path, tmp_path: Path
) -> None:
    other = pictures.rename(tmp_path / "elsewhere")
    path = tmp_path / "other.json"
    codec = ("-m", "none", "--codec", "jpeg:subsampling=4:4:4", *QUALITIES)
    assert lic("bench", "rd", other, *codec, "-o", path).code == 0
    name = "JPEG subsampling=4:4:4"
    done = lic("bench", "compare", f"{results}:JPEG", f"{path}:{name}", "--json")
    assert done.code == 0 and json.loads(done.out)["tested"] == name, done.err


def test_several_references_are_taken_by_name(lic: Lic, results: Path) -> None:
    done = lic("bench", "compare", results, results, "--json")
    lines = [json.loads(text) for text in done.out.splitlines()]
    assert [(line["reference"], line["tested"]) for line in lines] == [
        ("JPEG", "JPEG"), ("WebP method=4", "WebP method=4"),
    ]  # fmt: skip
    assert all(abs(line["rate"]["percent"]) < 1e-9 for line in lines)


def test_published_curves_are_either_side(lic: Lic, results: Path) -> None:
    base = "published:HPCM-Base (MSE, published)"
    done = lic("bench", "compare", "--anchor", "vvc vtm", base, "--dataset", "kodak", "--json")
    line = json.loads(done.out)
    assert (line["reference"], line["tested"]) == ("VVC VTM", base.removeprefix("published:"))
    assert line["rate"]["percent"] == pytest.approx(-16.02, abs=0.01)
    back = lic("bench", "compare", base, "published:VVC VTM", "--dataset", "Kodak", "--json")
    percent = json.loads(back.out)["rate"]["percent"]
    assert (1 + percent / 100) * (1 + line["rate"]["percent"] / 100) == pytest.approx(1)
    # These pictures are not Kodak's, which has to be said to be compared, and is said again.
    done = lic("bench", "compare", "--anchor", "VVC VTM", results)
    assert done.code == 2 and "no published curves of 'photos [1]'" in done.err
    done = lic("bench", "compare", "--anchor", "VVC VTM", results, "--dataset", "Kodak")
    assert done.code == 0 and "warning: photos [1] held against published curves" in done.err
    done = lic("bench", "compare", "--anchor", "VVC VTM", base)
    assert done.code == 2 and "--dataset is missing" in done.err


def test_files_of_two_systems_do_not_overwrite_each_other(
    lic: Lic, results: Path, tmp_path: Path
) -> None:
    text = results.read_text().replace('"WebP method=4"', '"jpeg."')
    results.write_text(text)
    done = lic("bench", "export", results, "-o", tmp_path / "out", "-f")
    assert done.code == 2 and "jpeg.json is the file of two systems" in done.err
    assert not (tmp_path / "out").exists()


def test_models_of_one_name_are_told_apart_by_what_was_named(
    lic: Lic, pictures: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    models = ("-m", tiny_bundle, "-m", copy, "--backend", "onnx", "--codec", "none")
    target = tmp_path / "two.json"
    assert lic("bench", "rd", pictures, *models, "-o", target).code == 0
    found = [curve.system for curve in read(target).curves]
    assert found == [f"tiny-relu of {path}" for path in (tiny_bundle, copy)]


def test_anchors_are_listed(lic: Lic) -> None:
    done = lic("bench", "anchors", "kodak")
    assert done.code == 0 and "kodak: VVC VTM (CompressAI published results" in done.out
    lines = [json.loads(line) for line in lic("bench", "anchors", "--json").out.splitlines()]
    assert {line["dataset"] for line in lines} >= {"Kodak", "Tecnick"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{results}"], 2, "expected a reference, or --anchor, and what to test"),
        (["{results}:BPG", "{results}"], 2, "has no system 'BPG'; it has JPEG, WebP method=4"),
        (["nowhere.json", "{results}"], 3, "nowhere.json: no such file; expected FILE[:SYSTEM]"),
        (["{results}", "{results}", "--metric", "vmaf"], 2, "--metric is 'vmaf'; expected psnr"),
        (["{results}", "{results}", "--method", "x"], 2, "--method is 'x'; expected pchip"),
        (["--anchor", "BPG", "{results}", "--dataset", "kodak"], 2, "no published curve 'BPG'"),
        (["{png}", "{results}"], 2, "is not what lic bench writes"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    lic: Lic, results: Path, png: Path, arguments: list[str], code: int, message: str
) -> None:
    texts = [each.format(results=results, png=png) for each in arguments]
    done = lic("bench", "compare", *texts)
    assert done.code == code and message in done.err, done.err


def test_two_points_are_too_few_and_other_pictures_are_others(
    lic: Lic, pictures: Path, results: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.json"
    codec = ("-m", "none", "--codec", "jpeg", "-o", few, "-f")
    assert lic("bench", "rd", pictures, *codec, "--qualities", "10,50").code == 0
    done = lic("bench", "compare", f"{results}:JPEG", few)
    assert done.code == 2
    assert "nothing could be compared: JPEG: a curve has 2 points; expected 4 or more" in done.err
    (pictures / "b.png").unlink()
    assert lic("bench", "rd", pictures, *codec, *QUALITIES).code == 0
    done = lic("bench", "compare", f"{results}:JPEG", few)
    assert done.code == 2 and "1 of 2 and 1 are the same" in done.err


def test_compressais_files_go_out_and_come_back(lic: Lic, results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compressai"
    assert lic("bench", "export", results, "-o", folder).code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["jpeg.json", "webp-method-4.json"]
    assert lic("bench", "export", f"{results}:JPEG", "-o", tmp_path / "one.json").code == 0
    assert (tmp_path / "one.json").read_bytes() == (folder / "jpeg.json").read_bytes()
    assert lic("bench", "export", results, "-o", folder).code == 7
    back = tmp_path / "back.json"
    files = sorted(folder.iterdir())
    assert lic("bench", "import", *files, "-o", back).code == 2, "no file names a data set"
    done = lic("bench", "import", *files, "-o", back, "--dataset", "photos [1]")
    assert done.code == 0, done.err

    def means(curve: Curve) -> list[dict[str, float | None]]:
        names = ("bpp", "psnr", "ms_ssim")
        return [{name: point.mean[name] for name in names} for point in curve.points]

    there, here = read(results), read(back)
    assert [curve.system for curve in here.curves] == [curve.system for curve in there.curves]
    assert [means(curve) for curve in here.curves] == [means(curve) for curve in there.curves]
    done = lic("bench", "compare", f"{results}:JPEG", f"{back}:JPEG", "--json")
    assert json.loads(done.out)["rate"]["percent"] == pytest.approx(0, abs=1e-9)
    done = lic("bench", "import", files[0], files[0], "-o", back, "-f", "--dataset", "x")
    assert done.code == 2 and "is the second curve called 'JPEG'" in done.err
