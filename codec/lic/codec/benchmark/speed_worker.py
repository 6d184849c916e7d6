"""One configuration in a process of its own: what `lic bench speed` starts for each row.

The task comes as JSON on stdin, the row goes to the file that it names. Nothing is imported before
the first file is written that coding it does not need: that is the cold start.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lic.codec.benchmark.memory import peak_memory
from lic.codec.benchmark.schema import DirectionTimes, SpeedRun
from lic.codec.benchmark.speed_task import Task
from lic.codec.errors import LicError
from lic.codec.stages import Stages

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle

Milliseconds = dict[str, float]


class Subject(Protocol):
    """A codec from file to file; both directions return milliseconds by stage."""

    def encode(self, source: Path, target: Path) -> Milliseconds:
        """Compress a PPM file."""
        ...

    def decode(self, source: Path, target: Path) -> Milliseconds:
        """Decompress to a PPM file."""
        ...

    def describe(self, row: SpeedRun) -> SpeedRun:
        """Return the row with what is known of the engine once both directions have run."""
        ...


class LicSubject:
    """A bundle on a backend."""

    def __init__(self, task: Task) -> None:
        from lic.codec.bundle import Bundle
        from lic.codec.pipeline import Codec

        self._bundle: Bundle = Bundle.open(Path(task.path))
        self._codec = Codec(
            self._bundle,
            backend=task.backend,
            device=task.device,
            threads=task.threads,
            precision=task.precision,
        )

    def encode(self, source: Path, target: Path) -> Milliseconds:
        """Compress a PPM file."""
        from lic.codec.image_io import read_picture

        stages = Stages()
        with stages.measure("read"):
            picture = read_picture(source, max_pixels=0)
        encoded = self._codec.compress(picture)
        stages.add(encoded.stages)
        with stages.measure("write"):
            target.write_bytes(encoded.data)
        return stages.milliseconds

    def decode(self, source: Path, target: Path) -> Milliseconds:
        """Decompress to a PPM file."""
        from lic.codec.container import Limits
        from lic.codec.decoding import decompress
        from lic.codec.image_io import write_picture

        stages = Stages()
        with stages.measure("read"):
            data = source.read_bytes()
        decoded = decompress(data, find=lambda *_: self._codec, limits=Limits(max_pixels=0))
        stages.add(decoded.stages)
        with stages.measure("write"):
            write_picture(decoded.picture, target)
        return stages.milliseconds

    def describe(self, row: SpeedRun) -> SpeedRun:
        """Return the row with provider, fallbacks, precision of graphs and the device's memory."""
        backend = self._codec.backend
        precision = row.precision
        if backend.name == "onnx":
            precision = _graphs_precision(self._bundle)
        return replace(
            row,
            provider=backend.provider,
            fallbacks=tuple(backend.notes),
            precision=precision,
            peak_device_memory=_device_memory(row),
        )

    def ask_profile(self, row: SpeedRun) -> SpeedRun:
        """Return the row with the providers that a profile of ONNX Runtime names.

        A session only says which it was given, and before version 1.25 nothing of its operators.
        """
        if self._codec.backend.name != "onnx" or row.device == "cpu":
            return row
        from lic.codec.backends.ort_sessions import PROVIDERS
        from lic.codec.benchmark.complexity import operators_by_provider

        found = operators_by_provider(self._bundle, row.device, row.threads)
        wanted = PROVIDERS.get(row.device, row.device)
        others = {name: number for name, number in found.items() if name != wanted}
        told = row.fallbacks
        if others and not told:
            ran = ", ".join(f"{number} on {name}" for name, number in others.items())
            told = (f"of {sum(found.values())} operators, {ran} in place of {wanted}",)
        first = sorted(found, key=lambda name: (name != wanted, -found[name]))
        return replace(row, provider=", ".join(first) or row.provider, fallbacks=told)

    def count(self, row: SpeedRun) -> SpeedRun:
        """Return the row with what the networks are; takes memory of its own."""
        from lic.codec.benchmark.complexity import kmac_per_pixel, parameters

        return replace(
            row,
            kmac_per_pixel=kmac_per_pixel(self._bundle, self._codec.backend.name),
            parameters=parameters(self._bundle),
        )


class ClassicSubject:
    """A classic codec through Pillow."""

    def __init__(self, task: Task) -> None:
        from lic.codec.benchmark.classic import parse_classic

        self._codec, self._setting = parse_classic(task.path, [task.setting]), task.setting
        self._channels = 3

    def encode(self, source: Path, target: Path) -> Milliseconds:
        """Compress a PPM file."""
        from lic.codec.image_io import read_picture

        stages = Stages()
        with stages.measure("read"):
            pixels = read_picture(source, max_pixels=0).pixels
        self._channels = pixels.shape[2]
        with stages.measure("codec"):
            data = self._codec.code(pixels, self._setting)
        with stages.measure("write"):
            target.write_bytes(data)
        return stages.milliseconds

    def decode(self, source: Path, target: Path) -> Milliseconds:
        """Decompress to a PPM file."""
        from lic.codec.image_io import Picture, write_picture

        stages = Stages()
        with stages.measure("read"):
            data = source.read_bytes()
        with stages.measure("codec"):
            pixels = self._codec.decode(data, self._channels)
        with stages.measure("write"):
            write_picture(Picture(pixels=pixels), target)
        return stages.milliseconds

    def describe(self, row: SpeedRun) -> SpeedRun:
        """Return the row with what computes."""
        return replace(row, provider="CPU", precision="")


def measure(subject: Subject, row: SpeedRun, source: Path, began: float) -> SpeedRun:
    """Return the row with its numbers.

    Args:
        subject: what is measured.
        row: what it is called.
        source: a PPM file of the row's size; results lie beside it.
        began: when the process was started, by `time.perf_counter`, which all processes share.
    """
    files = [source.with_name(f"{number}.coded") for number in range(row.batch)]
    pictures = [source.with_name(f"{number}.ppm") for number in range(row.batch)]
    subject.encode(source, files[0])
    cold = 1000 * (time.perf_counter() - began)

    from lic.codec.benchmark.energy import energy_meter
    from lic.codec.benchmark.timing import repeat, summarise

    wait, meter = _waiter(row), energy_meter(row.device)

    def direction(
        code: Callable[[Path, Path], Milliseconds], sources: list[Path], targets: list[Path]
    ) -> DirectionTimes:
        work = _batch(code, sources, targets)
        spent = repeat(work, row.runs, row.warmup, meter=meter, wait=wait)
        return summarise(spent, row.width * row.height * row.batch)

    row = replace(
        row,
        encode=direction(subject.encode, [source] * row.batch, files),
        decode=direction(subject.decode, files, pictures),
        bytes=files[0].stat().st_size,
        cold_start=round(cold, 3),
        peak_memory=peak_memory(),
        energy_counters=meter.names,
    )
    return subject.describe(row)


def _batch(
    code: Callable[[Path, Path], Milliseconds], sources: list[Path], targets: list[Path]
) -> Callable[[], Milliseconds]:
    """Return what codes all files at the same time; stages are means over them."""
    if len(sources) == 1:
        return lambda: code(sources[0], targets[0])
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    # Kept: threads are not to be started in every run.
    pool = ThreadPoolExecutor(len(sources))

    def work() -> Milliseconds:
        # Threads know nothing of the caller's context, which says how clocks are read.
        jobs = [
            pool.submit(copy_context().run, code, source, target)
            for source, target in zip(sources, targets, strict=True)
        ]
        stages = Stages()
        for job in jobs:
            stages.add({name: each / len(jobs) for name, each in job.result().items()})
        return stages.milliseconds

    return work


def _waiter(row: SpeedRun) -> Callable[[], object] | None:
    """Return what waits for the device; ONNX Runtime's calls return when they are done."""
    if row.backend != "torch" or not row.device.startswith("cuda"):
        return None
    import torch

    return lambda: torch.cuda.synchronize(row.device)


def _device_memory(row: SpeedRun) -> int | None:
    """Return the most that torch held on a CUDA device; other engines do not tell."""
    if row.backend != "torch" or not row.device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(row.device))


def _graphs_precision(bundle: "Bundle") -> str:
    """Return what a bundle's graphs compute in, as whoever made them noted."""
    entries = [bundle.manifest.graphs.get(name) for name in ("encoder", "decoder")]
    notes = [entry.get("precision") if isinstance(entry, dict) else None for entry in entries]
    return " / ".join(dict.fromkeys(str(note or "float32") for note in notes))


def _why(error: Exception) -> str:
    if isinstance(error, LicError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}".removesuffix(": ")
    return f"{type(error).__name__}: {error}"


def run(task: Task, source: Path, began: float) -> SpeedRun:
    """Return the row of a task, or one that says why it has no numbers."""
    row = task.row()
    try:
        if task.kind == "classic":
            return measure(ClassicSubject(task), row, source, began)
        subject = LicSubject(task)
        row = measure(subject, row, source, began)
        # After the peak of memory is known. What cannot be counted costs no times.
        for tell in (subject.ask_profile, subject.count):
            with contextlib.suppress(Exception):
                row = tell(row)
        return row
    # Whatever an engine raises is that engine's row.
    except Exception as error:
        return task.row(_why(error))


def main() -> None:
    """Read the order from stdin, write the row."""
    order: dict[str, Any] = json.load(sys.stdin)
    row = run(Task.of(order["task"]), Path(order["source"]), order["began"])
    Path(order["result"]).write_text(json.dumps(asdict(row)))


if __name__ == "__main__":
    main()
