"""lic bench speed: what it prints, writes, refuses, and ends with."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lic.cli.bench_speed_tables import print_tables
from lic.codec.benchmark import speed as library
from lic.codec.benchmark.schema import DirectionTimes, Machine, SpeedResults, SpeedRun, Times
from lic.codec.benchmark.speed_task import Task
from lic.codec.bundle import Bundle
from lic.codec.library import family

Lic = Callable[..., Any]
QUICK = ("--runs", 1, "--warmup", 0, "--size", "48x64")


def finished(task: Task) -> SpeedRun:
    """Return a row with made numbers."""
    times = Times(median=12.3456, p90=123.4, p95=1234.5, p99=12345.6)
    stages = ("read", "convert", "pad", "transform", "copy", "quantise", "context", "entropy")
    both = DirectionTimes(
        wall=times, cpu=times, stages=dict.fromkeys([*stages, "container", "write"], times),
        mpx_per_s=0.25, energy=1.5,
    )  # fmt: skip
    return replace(
        task.row(), encode=both, decode=both, bytes=123_456, cold_start=1234.5,
        peak_memory=2**31, provider="CPUExecutionProvider", parameters=68_000_000,
        kmac_per_pixel={"encode": 812.34, "decode": 765.43},
    )  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Have rows made up rather than measured; returns the tasks, in order."""
    asked: list[Task] = []

    def measure(tasks: Any, **_: Any) -> Iterator[SpeedRun]:
        for task, source in tasks:
            assert source.pixels().shape[:2] == (task.height, task.width)
            asked.append(task)
            yield finished(task)

    monkeypatch.setattr(library, "measure", measure)
    return asked


def test_a_model_and_a_classic_codec_are_measured(
    lic: Lic, png: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "speed.json"
    options = (
        "-m",
        tiny_bundle,
        "--backend",
        "onnx",
        "--threads",
        1,
        "--codec",
        "jpeg",
        "--qualities",
        "50",
    )
    done = lic("bench", "speed", png, *options, *QUICK, "-o", target)
    assert done.code == 0
    for text in ("tiny-relu 1", "onnx CPU 1 thr.", "48x64", "JPEG 50", "transform", "Mpx/s"):
        assert text in done.out
    results = SpeedResults.from_bytes(target.read_bytes(), "here")
    tiny, jpeg = results.runs
    assert (tiny.picture, tiny.height, tiny.width) == (png.name, 48, 64)
    assert (tiny.runs, tiny.warmup, tiny.error, jpeg.error) == (1, 0, None, None)
    assert tiny.encode and tiny.encode.wall.median > 0
    assert results.machine.cpu and "numpy" in results.machine.versions
    assert "2/2 JPEG 50" in done.err


def test_rows_are_objects_with_stable_keys(lic: Lic) -> None:
    done = lic("bench", "speed", "--codec", "jpeg", *QUICK, "--json")
    assert done.code == 0
    row = json.loads(done.out)
    assert list(row)[:4] == ["system", "setting", "backend", "device"]
    assert (row["system"], row["picture"], row["energy_counters"]) == ("JPEG", "synthetic", [])
    assert row["error"] is None and list(row["encode"]["stages"]) == ["read", "codec", "write"]


def test_a_picture_that_cannot_be_read_is_a_row(lic: Lic, tmp_path: Path, png: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"none")
    done = lic("bench", "speed", tmp_path / "bad.png", png, "--codec", "jpeg", *QUICK[:4], "--json")
    assert done.code == 0
    bad, good = map(json.loads, done.out.splitlines())
    assert "bad.png" in bad["error"] and bad["width"] == 0
    assert good["error"] is None


def test_what_cannot_be_written_is_known_before_the_first_row(
    lic: Lic, made: list[Task], png: Path
) -> None:
    done = lic("bench", "speed", "--codec", "jpeg", "-o", png / "speed.json")
    assert done.code == 7 and "is no folder" in done.err
    assert made == []


def test_what_fails_is_a_row_unless_all_do(lic: Lic, tiny_bundle: Path) -> None:
    failing = ("bench", "speed", "-m", tiny_bundle, "--provider", "tensorrt", *QUICK)
    done = lic(*failing)
    assert done.code == 8
    assert "failed: 1 (tiny-relu 1, onnx tensorrt, 48x64)" in done.out
    done = lic(*failing, "--codec", "jpeg", "--json")
    assert done.code == 0
    first, second = map(json.loads, done.out.splitlines())
    assert "TensorrtExecutionProvider" in first["error"] and first["encode"] is None
    assert second["error"] is None


def test_every_combination_is_a_row(lic: Lic, made: list[Task], png: Path) -> None:
    options = ("--threads", 1, "--threads", 2, "--batch", 1, "--batch", 4, "--size", "9x7")
    devices = ("--device", "cpu", "--provider", "openvino")
    done = lic("bench", "speed", png, "-q", 1, "-q", 2, *options, *devices, "--codec", "webp")
    assert done.code == 0
    found = [(t.setting, t.backend, t.device, t.threads, t.batch) for t in made]
    engines = [("onnx", "cpu"), ("onnx", "openvino"), ("torch", "cpu")]
    assert found == [
        *(
            (rate, *engine, threads, number)
            for rate in ("1", "2")
            for engine in engines
            for threads in (1, 2)
            for number in (1, 4)
        ),
        ("80", "Pillow", "cpu", 0, 1),
        ("80", "Pillow", "cpu", 0, 4),
    ]
    assert {(task.height, task.width, task.picture) for task in made} == {(9, 7, png.name)}


def test_without_arguments_the_default_model_codes_a_made_picture(
    lic: Lic, made: list[Task]
) -> None:
    assert lic("bench", "speed", "--backend", "onnx").code == 0
    (task,) = made
    assert (task.system, task.setting) == ("bmshj2018-factorized-relu-lite", "3")
    assert (task.picture, task.height, task.width) == ("synthetic", 512, 768)
    assert (task.runs, task.warmup, task.threads, task.device) == (10, 2, 0, "cpu")


def test_models_are_named_as_for_rates(
    lic: Lic, made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lic("bench", "speed", "-m", "none", "--codec", "jpeg").code == 0
    assert [task.system for task in made] == ["JPEG"]
    made.clear()
    from lic.cli import bench_speed

    seen = []

    @contextlib.contextmanager
    def bundles_of(model: str | None, rates: list[int] | None) -> Iterator[list[Bundle]]:
        seen.append(model)
        yield family(None, rates)

    monkeypatch.setattr(bench_speed, "bundles_of", bundles_of)
    assert lic("bench", "speed", "-m", tmp_path / "run", "--backend", "onnx").code == 0
    assert seen == [str(tmp_path / "run")] and [task.setting for task in made] == ["3"]


def test_models_of_one_name_are_told_apart_as_for_rates(
    lic: Lic, made: list[Task], tiny_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    options = ("-m", tiny_bundle, "-m", copy, "--backend", "onnx")
    assert lic("bench", "speed", *options, *QUICK).code == 0
    assert [task.system for task in made] == [f"tiny-relu of {p}" for p in (tiny_bundle, copy)]


def test_a_gpu_or_a_provider_is_an_accelerator() -> None:
    task = Task(kind="lic", system="a", setting="1", backend="torch", height=8, width=8, runs=1,
                warmup=0, device="cuda")  # fmt: skip
    on_gpu = replace(task.row(), provider="H200")
    rows = (on_gpu, replace(task.row("no"), device="xpu", provider="X"))
    other = replace(on_gpu, backend="onnx", device="openvino", provider="OpenVINOExecutionProvider")
    cpu = replace(on_gpu, device="cpu", provider="CPU")
    assert library.accelerators([*rows, other, cpu]) == ("H200", "openvino")


def test_a_torch_device_that_was_asked_of_torch_alone_is_tried(lic: Lic, made: list[Task]) -> None:
    lic("bench", "speed", "--backend", "torch", "--device", "openvino")
    assert [(task.backend, task.device) for task in made] == [("torch", "openvino")]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--size", "512"), "--size is '512'; expected height x width"),
        (("--size", "0x5"), "expected 1 to"),
        (("--size", "99999x99999"), "expected 1 to 268,435,456 pixels"),
        (("--codec", "heif"), "codec is 'heif'; expected one of jpeg"),
        (("--codec", "jpeg", "--qualities", "101"), "jpeg: quality is '101'; expected 0 to 100"),
        (("--qualities", "50"), "--qualities is for classic codecs"),
        (("-m", "none"), "neither a model nor a codec is left"),
        (("-m", "none", "-m", "a", "--codec", "jpeg"), "'none' stands alone"),
        (("-m", "none", "-q", 2, "--codec", "jpeg"), "--rate and --backend are for models"),
        (("--codec", "jpeg", "--backend", "onnx"), "--rate and --backend are for models"),
        (("--backend", "auto"), "--backend is 'auto'; expected onnx or torch"),
        (("--resume",), "name it"),
    ],
)
def test_what_makes_no_sense_is_refused(lic: Lic, options: tuple[str, ...], why: str) -> None:
    done = lic("bench", "speed", *options)
    assert done.code == 2
    assert why in done.err


def test_results_are_kept_after_each_row_and_gone_on_with(
    lic: Lic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "speed.json"
    real = library.measure

    def interrupted(tasks: Any, **options: Any) -> Iterator[SpeedRun]:
        rows = real(tasks, **options)
        yield next(rows)
        raise KeyboardInterrupt

    command = ("bench", "speed", "--codec", "jpeg", "--qualities", "30,60", *QUICK, "-o", target)
    monkeypatch.setattr(library, "measure", interrupted)
    assert lic(*command).code == 130
    (first,) = SpeedResults.from_bytes(target.read_bytes(), "here").runs
    monkeypatch.setattr(library, "measure", real)
    assert lic(*command).code == 7
    assert lic(*command, "--resume").code == 0
    kept, second = SpeedResults.from_bytes(target.read_bytes(), "here").runs
    assert kept == first
    assert second.setting == "60" and second.error is None
    other = ("bench", "speed", "--codec", "jpeg", "--qualities", "90", *QUICK, "-o", target)
    assert lic(*other, "--resume").code == 0
    third, *others = SpeedResults.from_bytes(target.read_bytes(), "here").runs
    assert third.setting == "90" and others == [kept, second]


def test_results_of_another_machine_are_not_mixed_in(lic: Lic, tmp_path: Path) -> None:
    target = tmp_path / "speed.json"
    there = Machine(cpu="CPU of elsewhere", cores=1, memory=None, system="")
    target.write_bytes(SpeedResults(command="", machine=there, runs=()).to_bytes())
    done = lic("bench", "speed", "--codec", "jpeg", *QUICK, "-o", target, "--resume")
    assert done.code == 2
    assert "was measured on CPU of elsewhere" in done.err


def test_tables_fit_into_100_columns() -> None:
    name = "bmshj2018-factorized-relu-128-192"
    tasks = [
        Task(
            kind="lic", system=name, setting="3", backend="torch", precision="bfloat16",
            threads=16, height=side, width=side, batch=16, runs=1, warmup=0,
        )
        for side in (256, 1024, 4096)
    ]  # fmt: skip
    failed = [replace(task.row(), error="no such library " * 20) for task in tasks]
    here = Machine(cpu="A processor with a long name " * 2, cores=64, memory=None, system="Linux")
    runs = (*map(finished, tasks), *failed)
    results = SpeedResults(command="", machine=here, runs=runs)
    written = StringIO()
    print_tables(results, Console(file=written, width=100, highlight=False))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    for whole in ("16 x 4096x4096", "812.3 + 765.4", "68.00 M", "12345.6", "2147", "123,456"):
        assert whole in text
    assert text.count("no such library no such") < 20
    assert "growth" in text
    assert "…" not in text


def test_pictures_are_named_where_there_are_several() -> None:
    task = Task(
        kind="classic", system="JPEG", setting="80", backend="Pillow", picture="a.png", height=8,
        width=9, runs=1, warmup=0,
    )  # fmt: skip
    one, two = finished(task), finished(replace(task, picture="b.png"))
    here = Machine(cpu="CPU", cores=1, memory=None, system="Linux")

    def printed(*runs: SpeedRun) -> str:
        written = StringIO()
        results = SpeedResults(command="", machine=here, runs=runs)
        print_tables(results, Console(file=written, width=100))
        return written.getvalue()

    assert "a.png" in printed(one, two) and "b.png" in printed(one, two)
    assert "a.png" not in printed(one, one)


def test_models_of_one_name_are_not_taken_for_each_other(
    lic: Lic, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "speed.json"
    command = ("bench", "speed", "-m", tiny_bundle, "--backend", "onnx", *QUICK, "-o", target)
    assert lic(*command).code == 0
    (row,) = SpeedResults.from_bytes(target.read_bytes(), "here").runs
    assert row.fingerprint == Bundle.open(tiny_bundle).manifest.fingerprint
    another = target.read_bytes().replace(row.fingerprint.encode(), b"0" * 16)
    target.write_bytes(another)
    assert lic(*command, "--resume").code == 0
    new, old = SpeedResults.from_bytes(target.read_bytes(), "here").runs
    assert (new.fingerprint, old.fingerprint) == (row.fingerprint, "0" * 16)


def test_help_names_it(lic: Lic) -> None:
    assert "bench" in lic("--help").out
    assert "--provider" in lic("bench", "speed", "--help").out
