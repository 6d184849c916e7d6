"""Rate and distortion: what is counted, what fails, and that interruptions leave no trace."""

import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.codec.benchmark import cache as cache_module
from lic.codec.benchmark import perceptual
from lic.codec.benchmark.cache import Cache, code_digest, key_of, user_cache
from lic.codec.benchmark.classic import Classic, installed_formats, parse_classic
from lic.codec.benchmark.datasets import OpenDataset, open_dataset
from lic.codec.benchmark.rd import NUMBERS, failures, measure
from lic.codec.benchmark.schema import RdResults, Row
from lic.codec.benchmark.systems import System, lic_systems
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError, OutputError
from lic.codec.metrics import bpp, ms_ssim, psnr, psnr_y
from lic.codec.workers import Died, spread
from tests.codec.bench_systems import Odd, asleep, half

ROOT = Path(__file__).parent.parent.parent
VICTIM = 77


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 170 x 200, of which b.png starts with the sample VICTIM."""
    pictures = tmp_path / "photos"
    pictures.mkdir()
    with Image.open(ROOT / "samples" / "kodim23.png") as image:
        for i, name in enumerate("abc"):
            pixels = np.asarray(image.crop((100 * i, 100, 100 * i + 170, 300))).copy()
            pixels[0, 0, 0] = VICTIM if name == "b" else i
            Image.fromarray(pixels).save(pictures / f"{name}.png")
    return pictures


@pytest.fixture
def source(folder: Path) -> OpenDataset:
    return open_dataset(folder)


def run(source: OpenDataset, *systems: System, **options: Any) -> RdResults:
    return measure(source, systems, command="lic bench rd photos", **{"jobs": 0, **options})


def test_a_row_is_a_whole_file_that_was_decoded_again(source: OpenDataset) -> None:
    system = Classic(key="webp", settings=("10", "80"))
    (curve,) = run(source, system).curves
    assert (curve.system, curve.kind, curve.details["library"][:7]) == (
        "WebP",
        "classic",
        "libwebp",
    )
    assert [point.setting for point in curve.points] == ["10", "80"]
    for point in curve.points:
        for row, path in zip(point.rows, source.paths, strict=True):
            pixels = np.asarray(Image.open(path))
            data = system.code(pixels, point.setting)
            decoded = system.decode(data)
            assert row == Row(
                picture=path.name,
                bytes=len(data),
                bpp=bpp(len(data), 170, 200),
                psnr=psnr(pixels, decoded),
                psnr_y=psnr_y(pixels, decoded),
                ms_ssim=ms_ssim(pixels, decoded),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        for name in NUMBERS:
            values = [getattr(row, name) for row in point.rows]
            expected = None if None in values else pytest.approx(np.mean(values))
            assert point.mean[name] == expected


def test_bundles_are_measured_on_their_backends(source: OpenDataset, tiny_bundle: Path) -> None:
    systems = lic_systems([[Bundle.open(tiny_bundle)]], ["onnx", "torch"])
    results = run(source, *systems)
    assert RdResults.from_bytes(results.to_bytes(), "a.json") == results
    assert [curve.system for curve in results.curves] == ["tiny-relu (onnx)", "tiny-relu (torch)"]
    assert {curve.details["backend"] for curve in results.curves} == {"onnx", "torch"}
    assert not failures(results)
    sizes = [[row.bytes for row in curve.points[0].rows] for curve in results.curves]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_small_pictures_have_no_ms_ssim_and_equal_ones_no_psnr(tmp_path: Path) -> None:
    Image.new("RGB", (160, 200), "white").save(tmp_path / "white.png")
    (point,) = run(open_dataset(tmp_path), Classic(key="jpeg", settings=("90",))).curves[0].points
    (row,) = point.rows
    assert (row.psnr, row.psnr_y, row.ms_ssim, row.lpips, row.error) == (None,) * 5
    assert row.bytes and point.mean["bpp"] == row.bpp and point.mean["psnr"] is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lic", "other symbols"),
        ("memory", "not enough memory"),
        ("bug", "KeyError: 'x'"),
        ("smaller", r"shapes \(200, 170, 3\) and \(199, 170, 3\) cannot be compared"),
    ],
)
def test_what_fails_is_a_row_that_says_why(source: OpenDataset, how: str, message: str) -> None:
    results = run(source, Odd(how=how, victim=VICTIM), Classic(key="jpeg", settings=("10",)))
    odd, jpeg = results.curves
    bad = [row for point in odd.points for row in point.rows if row.error]
    assert len(bad) == (6 if how == "smaller" else 2) == len(failures(results))
    for row in bad:
        assert row == Row(picture=row.picture, error=row.error)
    assert failures(results)[0].startswith(f"odd at 10, {bad[0].picture}: ")
    assert not set(NUMBERS) - set(odd.points[0].mean)
    # A mean of the other two would be of other pictures than the others' means.
    assert set(odd.points[0].mean.values()) == {None}
    assert jpeg.points[0].mean["psnr"]
    assert re.search(message, failures(results)[0])


def test_unreadable_pictures_fail_everywhere_and_count_in_no_mean(folder: Path) -> None:
    whole = run(open_dataset(folder), Classic(key="jpeg", settings=("10",)))
    (folder / "bad.png").write_bytes(b"no picture")
    results = run(open_dataset(folder), Classic(key="jpeg", settings=("10",)))
    (point,) = results.curves[0].points
    assert [bool(row.error) for row in point.rows] == [False, False, True, False]
    assert failures(results)[0].startswith("JPEG at 10, bad.png: not a picture")
    assert point.mean == whole.curves[0].points[0].mean
    assert "counts in no mean: bad.png" in results.dataset.remark


def test_a_picture_that_changes_meanwhile_is_noticed(source: OpenDataset) -> None:
    Image.new("RGB", (170, 200)).save(source.paths[0])
    source.paths[1].unlink()
    found = failures(run(source, Classic(key="jpeg", settings=("10",))))
    assert len(found) == 2
    assert "a.png: was changed while it was measured" in found[0]
    assert "b.png: cannot be read (No such file" in found[1]


def test_what_cannot_run_is_said_before_anything_runs(source: OpenDataset, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ConfigError, match="odd cannot run here"):
        run(source, Odd(name="fine", log=log), Odd(how="cannot open"))
    assert not log.exists()
    with pytest.raises(ConfigError, match="JPEG is named 2 times"):
        run(source, Classic(key="jpeg"), parse_classic("jpeg"))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "its process was ended by SIGKILL"),
        ("exit", "its process ended with exit code 3"),
        ("os exit", "its process ended with exit code 5"),
    ],
)
def test_a_process_that_dies_costs_its_own_row(
    source: OpenDataset, tmp_path: Path, how: str, reason: str
) -> None:
    cache = Cache(tmp_path / "cache")
    results = run(source, Odd(how=how, victim=VICTIM), jobs=2, cache=cache)
    for point in results.curves[0].points:
        assert [bool(row.error) for row in point.rows] == [False, True, False]
        assert reason in str(point.rows[1].error)
    # It is tried again.
    assert not failures(run(source, Odd(), jobs=0, cache=cache))


def test_work_is_spread_and_whoever_waits_hears_of_deaths_and_bugs() -> None:
    assert dict(spread(half, [2, 4, 6], 0)) == {0: 1.0, 1: 2.0, 2: 3.0}
    found = dict(spread(half, [2, 13, 4, 13, 6, 8], 2))
    assert found == {0: 1.0, 1: Died(1), 2: 2.0, 3: Died(1), 4: 3.0, 5: 4.0}
    assert dict(spread(half, [], 2)) == {}
    with pytest.raises(RuntimeError, match="a process failed: ZeroDivisionError"):
        dict(spread(half, [0], 1))
    assert Died(-9).reason == "its process was ended by SIGKILL (often: out of memory)"


@pytest.mark.parametrize("delay", [0.1, 0.4, 4.0])
def test_processes_end_with_whoever_asked(delay: float) -> None:
    """Whether they are starting or at work."""
    start = time.monotonic()
    with closing(spread(asleep, [1, 2], 2)) as work:
        stopper = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        stopper.start()
        with pytest.raises(KeyboardInterrupt):
            next(work)
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 60


def test_the_number_of_processes_changes_no_byte(source: OpenDataset) -> None:
    systems = (Classic(key="jpeg", settings=("10", "50")), Classic(key="webp", settings=("10",)))
    found = {run(source, *systems, jobs=jobs).to_bytes() for jobs in (0, 1, 3)}
    assert len(found) == 1


@pytest.mark.parametrize("key", installed_formats())
def test_every_codec_works_in_other_processes(source: OpenDataset, key: str) -> None:
    system = Classic(key=key)
    middle = Classic(key=key, settings=(system.settings[5],))
    assert not failures(run(source, middle, jobs=1))


def test_what_was_measured_is_not_measured_again(source: OpenDataset, tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = Cache(tmp_path / "cache")
    first = run(source, Odd(log=log), cache=cache)
    assert len(log.read_text().splitlines()) == 6
    steps: list[tuple[int, int]] = []
    again = run(source, Odd(log=log), cache=cache, progress=lambda *step: steps.append(step))
    assert again.to_bytes() == first.to_bytes()
    assert steps == [(6, 6)]
    # Under another name a picture is still the same.
    source.paths[0].rename(source.paths[0].with_name("z.png"))
    other = run(open_dataset(source.paths[0].parent), Odd(log=log), cache=cache)
    assert other.curves[0].points[0].rows[-1].picture == "z.png"
    renamed = open_dataset(source.paths[0].parent)
    run(renamed, Odd(log=log, settings=("10", "20")), cache=cache)
    assert len(log.read_text().splitlines()) == 9
    # A system that cannot run now is no obstacle where nothing has to run.
    assert not failures(run(renamed, Odd(how="cannot open"), cache=cache))


def _damages(data: bytes) -> Sequence[bytes]:
    values = json.loads(data)
    changed = {**values, "row": {**values["row"], "psnr": 99.0}}
    foreign = {**values, "key": "0" * 64}
    return [
        b"",
        data[:40],
        data.replace(b"psnr", b"psnx"),
        b"[" * 100_000,
        b"\xff\x00",
        b"[]",
        json.dumps(changed).encode(),
        json.dumps(foreign).encode(),
    ]


def test_damaged_entries_are_measured_again(source: OpenDataset, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    log = tmp_path / "log"
    first = run(source, Odd(settings=("10",)), cache=cache).to_bytes()
    entry = sorted(cache.folder.glob("*/*.json"))[0]
    whole = entry.read_bytes()
    for damage in _damages(whole):
        entry.write_bytes(damage)
        log.write_text("")
        assert run(source, Odd(settings=("10",), log=log), cache=cache).to_bytes() == first
        assert len(log.read_text().splitlines()) == 1, damage[:60]
        assert entry.read_bytes() == whole
    assert not list(cache.folder.rglob(".*"))


def test_keys_tell_apart_what_decides_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of({"picture": "a"}), key_of({"picture": "b"})}
    monkeypatch.setattr(cache_module, "_version", lambda name: "9" if name == "numpy" else "1")
    keys.add(key_of({"picture": "a"}))
    monkeypatch.setattr(cache_module, "code_digest", lambda: "other code")
    keys.add(key_of({"picture": "a"}))
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)
    assert len(code_digest()) == 64


def test_where_rows_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "lic" / "bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "lic" / "bench"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    with pytest.raises(ConfigError, match="no home folder for measurements; name one with --cache"):
        user_cache()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache")


SCRIPT = """
import sys
from pathlib import Path
from lic.codec.benchmark.cache import Cache
from lic.codec.benchmark.datasets import open_dataset
from lic.codec.benchmark.rd import measure
from tests.codec.bench_systems import Odd
folder, cache, output, jobs, delay = sys.argv[1:]
if __name__ == "__main__":
    system = Odd(settings=("10", "30", "50", "70"), delay=float(delay))
    results = measure(open_dataset(Path(folder)), [system], command="lic bench rd photos",
                      jobs=int(jobs), cache=Cache(Path(cache)))
    Path(output).write_bytes(results.to_bytes())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_resumed_is_the_same_as_never_interrupted(
    folder: Path, tmp_path: Path, how: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def start(cache: str, output: str, jobs: int, delay: float) -> subprocess.Popen[bytes]:
        arguments = [folder, tmp_path / cache, tmp_path / output, jobs, delay]
        return subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env=environment, stderr=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip

    assert start("whole", "whole.json", 2, 0).wait(120) == 0
    interrupted = start("parts", "parts.json", 2, 0.3)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "parts").glob("*/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    interrupted.send_signal(how)
    assert interrupted.wait(60) != 0
    assert not (tmp_path / "parts.json").exists()
    assert 3 <= len(list((tmp_path / "parts").glob("*/*.json"))) < 12
    assert start("parts", "parts.json", 1, 0).wait(120) == 0
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def _fake_lpips(monkeypatch: pytest.MonkeyPatch, network: Any) -> None:
    perceptual._network.cache_clear()
    monkeypatch.setattr(perceptual, "find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=network))


def test_lpips_is_measured_where_it_is_installed(
    source: OpenDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Network:
        def __init__(self, **options: object) -> None:
            assert options["net"] == "alex"

        def eval(self) -> "Network":
            return self

        def __call__(self, a: Any, b: Any) -> Any:
            assert a.shape == (1, 3, 200, 170) and -1 <= a.min() < a.max() <= 1
            return (a - b).abs().mean()

    _fake_lpips(monkeypatch, Network)
    system = Classic(key="jpeg", settings=("10",))
    cache = Cache(tmp_path / "cache")
    without = run(source, system, cache=cache)
    (point,) = run(source, system, with_lpips=True, cache=cache).curves[0].points
    assert all(row.lpips and 0 < row.lpips < 1 for row in point.rows)
    assert math.isclose(point.mean["lpips"] or 0, np.mean([row.lpips for row in point.rows]))
    assert without.curves[0].points[0].mean["lpips"] is None
    small = np.zeros((40, 400, 3), np.uint8)
    assert perceptual.lpips(small, small) is None
    perceptual._network.cache_clear()


def test_lpips_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(**_: object) -> None:
        raise OSError("no route to host")

    _fake_lpips(monkeypatch, network)
    assert perceptual.lpips_version() == "alex"
    with pytest.raises(ConfigError, match=r"LPIPS cannot be loaded \(OSError: no route to host\)"):
        perceptual.check_lpips()
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    assert perceptual.lpips_version() is None
    with pytest.raises(ConfigError, match="pip install lpips"):
        perceptual.check_lpips()
