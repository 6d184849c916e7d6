import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from lic.codec.benchmark.rd_plot import evaluated, gap, main, published
from lic.codec.errors import ConfigError

POINTS = [(0.1, 27.0), (0.2, 29.0), (0.4, 31.0), (0.8, 33.0)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An evaluation of four rate points, and published points 10 % above its rates."""
    rows = [
        {"model": f"some model q{i}", "bpp": bpp, "psnr": psnr, "ms_ssim": 0.9 + i / 100}
        for i, (bpp, psnr) in enumerate(POINTS)
    ]
    evaluation, anchors = tmp_path / "eval.json", tmp_path / "anchors.json"
    evaluation.write_text(json.dumps(rows[2:] + rows[:2]))
    bpp, psnr = zip(*POINTS, strict=True)
    anchors.write_text(
        json.dumps({"old (2018)": {"bpp": [1.1 * b for b in bpp], "psnr_db": psnr}, "other": {}})
    )
    return evaluation, anchors


def test_points_of_a_model_are_a_curve(files: tuple[Path, Path]) -> None:
    path = str(files[0])
    assert evaluated([path], "psnr") == {"some model": POINTS}
    assert evaluated([path], "ms_ssim")["some model"][0] == (0.1, 0.9)
    assert evaluated([f"ReLU, a = b={path}"], "psnr") == {"ReLU, a = b": POINTS}
    odd = files[0].rename(files[0].with_name("lr=1.json"))
    assert evaluated([str(odd)], "psnr") == {"some model": POINTS}


def test_the_table_tells_gaps_and_bd_rate_and_the_plot_is_a_picture(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, anchors = files
    target = tmp_path / "deep" / "rd.png"
    main([str(evaluation), "--anchors", str(anchors), "--anchor", "old (2018)", "-o", str(target)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[2].endswith("| 0.1000 | 27.00 |  | -9.1 % (27.0 to 33.0 dB) |")
    assert lines[3].startswith("| some model | 0.2000 | 29.00 | +0.2")
    with Image.open(target) as picture:
        assert picture.size == (1080, 720)


def test_a_gap_is_measured_at_equal_rate() -> None:
    assert gap(POINTS, 0.2, 29.5) == pytest.approx(0.5)
    assert gap(POINTS, 0.2 * 2**0.5, 30.0) == pytest.approx(0.0)
    assert gap(POINTS, 0.09, 27.0) is None


def test_what_cannot_be_used_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--anchor nonsense: .*it has old \(2018\)"):
        published(files[1], ["nonsense"], "psnr")
    wrong = tmp_path / "wrong.json"
    for content in ("{", '{"a": 1}', '[{"model": "a q1"}]'):
        wrong.write_text(content)
        with pytest.raises(ConfigError, match=r"wrong.json: is not what lic eval -o writes"):
            evaluated([str(wrong)], "psnr")
    for content in ("{", "[1]", '{"a": {"bpp": [1], "psnr_db": [1, 2]}}', '{"a": 1}'):
        wrong.write_text(content)
        with pytest.raises(ConfigError, match=r"wrong.json: is not a file of published curves"):
            published(wrong, ["a"], "psnr")


def test_the_command_says_what_it_cannot_use(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluation = str(files[0])
    cases: tuple[tuple[list[str], str], ...] = (
        ([str(tmp_path / "none.json")], "none.json: is not what lic eval -o writes"),
        (
            [evaluation, "--anchors", str(tmp_path / "no.json")],
            "no.json: is not a file of published",
        ),
        (
            [evaluation, "-o", str(tmp_path / "rd.png")],
            "-o needs matplotlib, which is not installed",
        ),
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
