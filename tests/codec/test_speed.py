"""lic bench speed: times add up, failures are rows, and nothing is told that was not measured."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lic.codec.benchmark import speed_task, speed_worker, timing
from lic.codec.benchmark.classic import Classic
from lic.codec.benchmark.energy import Counter, EnergyMeter, nvml_counters, rapl_counters
from lic.codec.benchmark.memory import peak_memory
from lic.codec.benchmark.schema import Machine, SpeedResults, SpeedRun
from lic.codec.benchmark.speed import Source, growth, measure, pixels_of, synthetic
from lic.codec.benchmark.speed_task import Task
from lic.codec.image_io import Picture, write_picture
from lic.codec.library import select

LITE = "bmshj2018-factorized-relu-lite"


SMALL = Source(height=64, width=96)


def task_of(**changes: Any) -> Task:
    """Return a task of a small picture for the default model on ONNX Runtime."""
    bundle = select(LITE, 2)
    values: dict[str, Any] = {
        "kind": "lic", "system": LITE, "setting": "2", "path": str(bundle.path), "backend": "onnx",
        "threads": 1, "height": 64, "width": 96, "runs": 2, "warmup": 1,
    }  # fmt: skip
    return Task(**values | changes)


def jpeg(**changes: Any) -> Task:
    """Return a task that takes no time."""
    values: dict[str, Any] = {
        "kind": "classic", "system": "JPEG", "path": "jpeg", "setting": "75", "backend": "Pillow",
        "precision": "", "threads": 0,
    }  # fmt: skip
    return task_of(**values | changes)


def measured(task: Task, folder: Path) -> SpeedRun:
    """Return the row of a task, measured in this process."""
    source = folder / "source.ppm"
    write_picture(Picture(pixels=synthetic(task.height, task.width)), source)
    return speed_worker.run(task, source, time.perf_counter())


# Clocks


def test_sleeping_takes_wall_time_and_no_processor() -> None:
    calls: list[int] = []

    def work() -> dict[str, float]:
        calls.append(len(calls))
        time.sleep(0.03)
        return {"sleep": 30.0}

    spent = timing.repeat(work, runs=3, warmup=2)
    assert (len(spent), len(calls)) == (3, 5)
    found = timing.summarise(spent, pixels=3000)
    assert found.wall.median >= 29.9
    assert found.cpu.median < 15
    assert found.stages["sleep"].p99 == 30.0
    assert found.mpx_per_s == pytest.approx(3 / found.wall.median, rel=1e-3)
    assert found.energy is None


def test_work_takes_processor_time() -> None:
    def work() -> dict[str, float]:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass
        return {}

    (spent,) = timing.repeat(work, runs=1, warmup=0)
    assert spent.cpu >= 29.9
    assert spent.wall >= 0.9 * spent.cpu


def test_percentiles() -> None:
    found = timing.times([float(value) for value in range(101)])
    assert (found.median, found.p90, found.p95, found.p99) == (50, 90, 95, 99)


def test_a_slow_network_shows_in_its_stage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = speed_worker.LicSubject(task_of())
    backend: Any = subject._codec.backend
    real = backend.latents

    def slow(*seen: Any) -> Any:
        time.sleep(0.05)
        return real(*seen)

    monkeypatch.setattr(backend, "latents", slow)
    source = tmp_path / "source.ppm"
    write_picture(Picture(pixels=synthetic(64, 96)), source)
    row = speed_worker.measure(subject, task_of().row(), source, time.perf_counter())
    assert row.encode and row.decode and row.cold_start
    assert row.encode.stages["transform"].median >= 49.9
    assert row.encode.wall.median >= 49.9
    assert row.encode.cpu.median < row.encode.wall.median
    assert row.cold_start >= 49.9


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_stages_add_up_to_the_wall_time(tmp_path: Path, backend: str) -> None:
    """To 3 % in the best of twelve runs: what others do in between belongs to no stage."""
    task = task_of(backend=backend, threads=1)
    subject = speed_worker.LicSubject(task)
    source, coded, decoded = (tmp_path / name for name in ("source.ppm", "coded", "decoded.ppm"))
    # Large enough that what is the same for every picture, such as opening files, counts little.
    write_picture(Picture(pixels=synthetic(512, 768)), source)
    for code, here, there in (
        (subject.encode, source, coded),
        (subject.decode, coded, decoded),
    ):
        spent = timing.repeat(lambda c=code, h=here, t=there: c(h, t), runs=12, warmup=1)  # type: ignore[misc]
        shares = [sum(run.stages.values()) / run.wall for run in spent]
        assert max(shares) > 0.97
        assert max(shares) <= 1.0


def test_stages_have_the_names_and_order_of_the_guide(tmp_path: Path) -> None:
    row = measured(task_of(backend="torch", threads=0), tmp_path)
    assert row.encode and row.decode
    network = ["transform", "copy", "entropy"]
    assert list(row.encode.stages) == ["read", "convert", "pad", *network, "container", "write"]
    assert list(row.decode.stages) == [
        *("read", "container", "entropy", "transform", "copy", "convert", "write")
    ]


def test_with_a_context_networks_and_coder_are_told_apart(
    tiny_hpcm_bundle: Path, tmp_path: Path
) -> None:
    changes = {"path": str(tiny_hpcm_bundle), "backend": "torch", "threads": 0, "runs": 1}
    row = measured(task_of(**changes), tmp_path)
    assert row.error is None and row.encode and row.decode
    assert {"transform", "copy", "quantise", "context", "entropy"} <= row.encode.stages.keys()
    assert {"transform", "copy", "context", "entropy"} <= row.decode.stages.keys()
    assert row.encode.stages["entropy"].median < row.encode.stages["context"].median
    assert set(row.kmac_per_pixel) == {"encode", "decode"}


def test_only_torch_on_cuda_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    wait = speed_worker._waiter(task_of(backend="torch", device="cuda:1").row())
    assert wait
    wait()
    assert asked == ["cuda:1"]
    for backend, device in (("torch", "cpu"), ("onnx", "cuda")):
        assert speed_worker._waiter(task_of(backend=backend, device=device).row()) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_named_and_its_memory_told(tmp_path: Path) -> None:
    changes = {"backend": "torch", "device": "cuda", "height": 1024, "width": 1024, "threads": 0}
    row = measured(task_of(**changes), tmp_path)
    assert row.error is None and row.encode and row.decode
    assert row.provider == torch.cuda.get_device_name()
    assert row.peak_device_memory and row.peak_device_memory > 2**20
    assert row.decode.stages["transform"].median > 0


# Rows


def test_a_row_says_what_ran(tmp_path: Path) -> None:
    row = measured(task_of(), tmp_path)
    assert row.error is None
    assert (row.backend, row.provider, row.fallbacks) == ("onnx", "CPUExecutionProvider", ())
    assert (row.precision, row.threads, row.height, row.width) == ("float32", 1, 64, 96)
    assert row.bytes == (tmp_path / "0.coded").stat().st_size
    assert row.kmac_per_pixel == {"encode": 9.8, "decode": 9.8}
    assert row.parameters == 732_739
    assert row.peak_memory and row.peak_memory > 2**25
    assert row.peak_device_memory is None
    assert row.encode and row.encode.wall.median <= row.encode.wall.p99


def test_pictures_at_the_same_time_are_a_batch(tmp_path: Path) -> None:
    row = measured(task_of(batch=3), tmp_path)
    assert row.error is None and row.batch == 3 and row.encode
    files = [tmp_path / f"{number}.coded" for number in range(3)]
    assert len({file.read_bytes() for file in files}) == 1
    expected = 3 * 64 * 96 / 1000 / row.encode.wall.median
    assert row.encode.mpx_per_s == pytest.approx(expected, rel=0.01)
    assert "transform" in row.encode.stages


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "tensorrt"}, "needs TensorrtExecutionProvider, which this ONNX Runtime"),
        ({"backend": "torch", "device": "xla:7"}, "device 'xla:7' is not available to torch"),
        ({"backend": "torch", "precision": "bfloat16"}, "runs in float32 only"),
        ({"path": "nowhere"}, "no bundle here"),
        ({"backend": "abacus"}, "backend is 'abacus'"),
    ],
)
def test_what_is_not_there_is_a_row(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    row = measured(task_of(**changes), tmp_path)
    assert row.error and why in row.error
    assert (row.encode, row.bytes, row.cold_start, row.parameters) == (None, None, None, None)


def test_what_cannot_be_counted_leaves_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("output_type_shape")

    monkeypatch.setattr(speed_worker.LicSubject, "count", fail)
    row = measured(task_of(), tmp_path)
    assert (row.error, row.kmac_per_pixel, row.parameters) == (None, {}, None)
    assert row.encode and row.decode


def test_too_little_memory_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("can't allocate 9 GB")

    monkeypatch.setattr(speed_worker.LicSubject, "encode", fail)
    assert measured(task_of(), tmp_path).error == "not enough memory: can't allocate 9 GB"


def test_a_provider_that_takes_nothing_is_told(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("a provider that takes no operator, which PyPI's Linux builds have")
    row = measured(task_of(device="AzureExecutionProvider"), tmp_path)
    assert (row.device, row.provider) == ("AzureExecutionProvider", "CPUExecutionProvider")
    assert len(row.fallbacks) == 2 and "operators run on CPUExecutionProvider" in row.fallbacks[0]


@pytest.mark.parametrize("partly", [False, True])
def test_what_a_session_cannot_tell_its_profile_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partly: bool
) -> None:
    """As before ONNX Runtime 1.25, with a provider that is accepted whatever it takes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    real = onnxruntime.InferenceSession
    wanted = "OpenVINOExecutionProvider"

    class Session:
        def __init__(self, model: bytes, options: Any, providers: list[str]) -> None:
            self._session = real(model, options, providers=[providers[-1]])

        def run(self, *arguments: Any) -> Any:
            return self._session.run(*arguments)

        def get_providers(self) -> list[str]:
            return [wanted, "CPUExecutionProvider"]

        def end_profiling(self) -> str:
            file = Path(self._session.end_profiling())
            if partly:
                text = file.read_text()
                file.write_text(text.replace('"CPUExecutionProvider"', f'"{wanted}"', 3))
            return str(file)

    available = [*onnxruntime.get_available_providers(), wanted]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    row = measured(task_of(device="openvino"), tmp_path)
    assert row.error is None
    assert row.provider == (f"{wanted}, CPUExecutionProvider" if partly else "CPUExecutionProvider")
    (note,) = row.fallbacks
    assert note.endswith(f"on CPUExecutionProvider in place of {wanted}")


def test_an_emulated_npu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (row,) = measure([(task_of(device="qnn"), SMALL)], worker=["false"])
    assert row.error and "emulated on x86_64" in row.error and row.encode is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    speed_task.check_measurable("qnn")


# Processes


def test_every_row_has_its_own_process() -> None:
    tasks = [(task, SMALL) for task in (jpeg(), task_of(), jpeg(setting="20"))]
    first, lic, small = measure(tasks)
    assert first.error is None and lic.error is None and small.error is None
    assert first.bytes and small.bytes and small.bytes < first.bytes
    # What ONNX Runtime takes is not in a process that never loads it.
    assert first.peak_memory and lic.peak_memory and small.peak_memory
    assert max(first.peak_memory, small.peak_memory) < lic.peak_memory
    assert first.cold_start and lic.cold_start and lic.encode
    assert lic.cold_start > lic.encode.wall.median


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
        ("import os; os.abort()", "was ended by SIGABRT"),
        (
            "raise SystemExit('no such library')",
            "exit code 1 and no result: no such library",
        ),
        ("pass", "ended with exit code 0 and no result: it said nothing"),
        ("import time; time.sleep(60)", "gave no result within 0.5 s and was ended"),
    ],
)
def test_a_process_that_fails_is_a_row(code: str, why: str) -> None:
    tasks = [(jpeg(), SMALL)]
    limit = 0.5 if "sleep" in code else 60
    (row,) = measure(tasks, limit=limit, worker=(sys.executable, "-S", "-c", code))
    assert row.error and why in row.error
    assert row.system == "JPEG"


def test_a_picture_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    gone = Source(name="gone.png", height=64, width=96, path=tmp_path / "gone.png")
    broken = Source(name="a.png", height=0, width=0, fault="a.png: is no picture")
    rows = list(measure([(jpeg(), gone), (jpeg(height=0, width=0), broken)], worker=["false"]))
    assert rows[0].error and "gone.png" in rows[0].error
    assert (rows[1].error, rows[1].width) == ("a.png: is no picture", 0)


def test_results_go_on_where_they_ended() -> None:
    done, failed = replace(jpeg().row(), bytes=7), jpeg(setting="20").row("no power")
    here = Machine(cpu="", cores=1, memory=None, system="")
    previous = SpeedResults(command="", machine=here, runs=(done, failed))
    rows = list(
        measure(
            [(task, SMALL) for task in (jpeg(setting="20"), jpeg(), jpeg(runs=3))],
            previous=previous,
            worker=(sys.executable, "-S", "-c", "pass"),
        )
    )
    assert rows[1] == done
    assert all(row.error and "it said nothing" in row.error for row in (rows[0], rows[2]))


def test_new_keys_have_defaults() -> None:
    here = Machine(cpu="", cores=1, memory=None, system="")
    row = replace(jpeg().row(), energy_counters=("package-0",), peak_device_memory=5)
    results = SpeedResults(command="x", machine=here, runs=(row,))
    assert SpeedResults.from_bytes(results.to_bytes(), "here") == results
    old = json.loads(results.to_bytes())
    for name in ("energy_counters", "peak_device_memory"):
        del old["runs"][0][name]
    (read,) = SpeedResults.from_bytes(json.dumps(old).encode(), "here").runs
    assert (read.energy_counters, read.peak_device_memory) == ((), None)


# Pictures


def test_a_made_picture_is_the_same_every_time_and_costs_bits() -> None:
    pixels = synthetic(128, 192)
    assert pixels.shape == (128, 192, 3)
    np.testing.assert_array_equal(pixels, synthetic(128, 192))
    bits = 8 * len(Classic(key="jpeg").code(pixels, "75")) / (128 * 192)
    assert 0.5 < bits < 4


def test_a_size_is_cut_from_the_middle_or_mirrored() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(pixels_of(pixels, 2, 2), pixels[1:3, 2:4])
    wide = pixels_of(pixels, 4, 30)
    assert wide.shape == (4, 30, 3)
    np.testing.assert_array_equal(wide[:, 12:18], pixels)
    np.testing.assert_array_equal(wide[:, 18:24], pixels[:, ::-1])


# Growth


def test_an_exponent_is_fitted_through_three_sizes() -> None:
    def row(side: int, **changes: Any) -> SpeedRun:
        pixels = side * side
        spent = [
            timing.summarise([timing.Spent(wall=each, cpu=2 * each, stages={})] * 2, pixels)
            for each in (pixels / 1e3, pixels**1.5 / 1e6)
        ]
        made = task_of(height=side, width=side, **changes).row()
        return replace(made, encode=spent[0], decode=spent[1])

    rows = [row(side) for side in (256, 1024, 4096)]
    others = [row(side, threads=2) for side in (256, 512)]
    (found,) = growth([*rows, *others, task_of().row("failed")])
    assert (found.sizes, found.low, found.high) == (3, 256**2, 4096**2)
    assert found.wall == {"encode": 1.0, "decode": 1.5} == found.cpu


# Energy and memory


def domain(root: Path, folder: str, name: str, microjoules: int, most: int = 10_000_000) -> Path:
    """Make a folder as the kernel has it."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path


def test_packages_and_memory_are_added_up(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 0)
    dram = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    for folder, name in (("intel-rapl:1", "psys"), ("intel-rapl-mmio:0", "package-0")):
        domain(tmp_path, folder, name, 0)
    (tmp_path / "intel-rapl").mkdir()
    meter = EnergyMeter(rapl_counters(tmp_path))
    assert meter.names == ("package-0", "dram")
    before = meter.read()
    (package / "energy_uj").write_text("3500000\n")
    (core / "energy_uj").write_text("9000000\n")
    (dram / "energy_uj").write_text("250000\n")
    assert meter.since(before) == pytest.approx(2.75)


def test_a_counter_that_starts_anew_is_followed(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 9_900_000)
    meter = EnergyMeter(rapl_counters(tmp_path))
    before = meter.read()
    (package / "energy_uj").write_text("300000\n")
    assert meter.since(before) == pytest.approx(0.4)


def test_counters_that_may_not_be_read_are_none(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()
    meter = EnergyMeter(rapl_counters(tmp_path))
    assert meter.names == ()
    assert meter.since(meter.read()) is None
    assert rapl_counters(tmp_path / "nowhere") == []


def test_energy_is_that_of_a_run() -> None:
    joules = iter(range(0, 100, 5))
    meter = EnergyMeter([Counter(name="made", read=lambda: float(next(joules)))])
    spent = timing.repeat(lambda: {}, runs=2, warmup=1, meter=meter)
    assert timing.summarise(spent, 1).energy == 5.0


def test_a_gpus_counter_is_that_of_the_device_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def joules(handle: object) -> int:
        if handle != ("index", 3):
            raise NVMLError
        return 12_500

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: ("index", index),
        nvmlDeviceGetHandleByUUID=lambda name: ("uuid", name),
        nvmlDeviceGetTotalEnergyConsumption=joules,
        nvmlDeviceGetName=lambda _: b"GPU of a test",
    )
    energy = "lic.codec.benchmark.energy"
    monkeypatch.setattr(f"{energy}.find_spec", lambda _: object())
    monkeypatch.setattr(f"{energy}.import_module", lambda _: nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,GPU-1234")
    (counter,) = nvml_counters("cuda:1")
    assert (counter.name, counter.read()) == ("GPU of a test", 12.5)
    assert nvml_counters("cuda") == nvml_counters("cuda:2") == []


def test_peak_memory_is_the_processes_own(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n")
    if sys.platform == "linux":
        assert peak_memory(status) == 2**21
        assert peak_memory(tmp_path / "none") is None
    held = peak_memory()
    assert held is None or held > 2**24
