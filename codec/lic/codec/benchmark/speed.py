"""Times of systems on this machine, each measured in a process of its own.

Only so are threads, memory and the cold start those of the configuration, and a library that
crashes or hangs costs one row. Pictures go in and come out as PPM: what PNG takes to pack and
unpack is often more than the codec, and none of its own.

Shapes: H W pixels, C channels.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.benchmark.datasets import read_plain
from lic.codec.benchmark.schema import SpeedResults, SpeedRun
from lic.codec.benchmark.speed_task import SYNTHETIC, Task, check_measurable
from lic.codec.errors import ImageError, LicError
from lic.codec.image_io import Picture, write_picture
from lic.codec.workers import ended

WORKER = "lic.codec.benchmark.speed_worker"
Pixels = NDArray[np.uint8]
# Of a fit through fewer sizes, the exponent says nothing.
LEAST_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture to measure with; it is read when its turn comes, and forgotten.

    Attributes:
        name: of the file.
        height, width: px that are coded, 0 where the file cannot be read.
        path: None makes a picture up.
        fault: why it cannot be read.
    """

    name: str = SYNTHETIC
    height: int
    width: int
    path: Path | None = None
    fault: str = ""

    def pixels(self) -> Pixels:
        """Return pixels (H, W, C).

        Raises:
            ImageError: the file cannot be read.
        """
        if self.fault:
            raise ImageError(self.fault)
        whole = read_plain(self.path).pixels if self.path else None
        return pixels_of(whole, self.height, self.width)


def measure(
    tasks: Iterable[tuple[Task, Source]],
    *,
    limit: float = 600.0,
    previous: SpeedResults | None = None,
    worker: Sequence[str] = (sys.executable, "-P", "-m", WORKER),
) -> Iterator[SpeedRun]:
    """Yield the row of every task, in order; what fails is a row that says why.

    Args:
        tasks: and what each codes.
        limit: seconds that one process may take.
        previous: results of the same machine, whose rows without an error are not measured again.
        worker: the command of the process.
    """
    for task, picture in tasks:
        known = [row for row in previous.runs if task.is_of(row)] if previous else []
        kept = next((row for row in known if row.error is None), None)
        if kept:
            yield kept
            continue
        try:
            check_measurable(task.device)
            pixels = picture.pixels()
        except (LicError, OSError, MemoryError) as error:
            yield task.row(str(error) or type(error).__name__)
            continue
        with tempfile.TemporaryDirectory(prefix="lic-speed-") as folder:
            source = Path(folder) / "source.ppm"
            write_picture(Picture(pixels=pixels), source)
            yield _in_a_process(task, source, limit, worker)


def _in_a_process(task: Task, source: Path, limit: float, worker: Sequence[str]) -> SpeedRun:
    """Return the row that a process measures; it is gone when this returns or raises."""
    result, log = source.with_name("result.json"), source.with_name("log")
    order = {"task": asdict(task), "source": str(source), "result": str(result)}
    with log.open("wb") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            process.communicate(json.dumps({**order, "began": began}).encode(), timeout=limit)
        except subprocess.TimeoutExpired:
            return task.row(f"gave no result within {limit:g} s and was ended; see --limit")
        finally:
            process.kill()
            process.wait()
    try:
        return _row(json.loads(result.read_bytes()))
    except (OSError, ValueError):
        return task.row(_death(process.returncode, log.read_text(errors="replace")))


def _row(values: dict[str, Any]) -> SpeedRun:
    """Return a row of the worker's JSON, which is checked as a file's is."""
    frame = {
        "format": "lic-bench", "version": 1, "kind": "speed", "command": "",
        "machine": {"cpu": "", "cores": 1, "memory": None, "system": ""}, "runs": [values],
    }  # fmt: skip
    (row,) = SpeedResults.from_bytes(json.dumps(frame).encode(), "the process's row").runs
    return row


def _death(code: int, log: str) -> str:
    """Return why a process ended without a result: its signal or code, and its last words."""
    if code < 0:
        return f"its process {ended(code)}"
    last = log.strip().splitlines()[-1:] or ["it said nothing"]
    return f"its process {ended(code)} and no result: {last[0][:300]}"


def pixels_of(picture: Pixels | None, height: int, width: int) -> Pixels:
    """Return pixels (height, width, C): a picture's middle, mirrored where it is too small.

    None makes a picture up: clouds of all sizes with some grain, whose entropy is near a photo's.
    """
    if picture is None:
        return synthetic(height, width)
    sides = picture.shape[:2]
    around = [max(0, wanted - side) for wanted, side in zip((height, width), sides, strict=True)]
    before = [each // 2 for each in around]
    padding = [(first, each - first) for first, each in zip(before, around, strict=True)]
    if any(around):
        picture = np.pad(picture, [*padding, (0, 0)], mode="symmetric")
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def synthetic(height: int, width: int, seed: int = 0) -> Pixels:
    """Return a made picture (H, W, 3): the same for the same size."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    cell = 256
    while cell >= 1:
        # As in photos, the amplitude falls with the frequency.
        total += math.sqrt(cell) * _clouds(rng, height, width, cell)
        cell //= 2
    spread = float(total.std()) or 1.0
    levels: Pixels = np.clip(128 + 48 * total / spread, 0, 255).astype(np.uint8)
    return levels


def _clouds(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Return noise (H, W, 3) that changes linearly between points `cell` px apart."""
    grid = rng.standard_normal((height // cell + 2, width // cell + 2, 3), dtype=np.float32)
    grid = 0.8 * grid[..., :1] + 0.2 * grid
    (top, down), (left, across) = (_places(side, cell) for side in (height, width))
    rows = grid[top] + down[:, None, None] * (grid[top + 1] - grid[top])
    made: NDArray[np.float32] = rows[:, left] + across[None, :, None] * (
        rows[:, left + 1] - rows[:, left]
    )
    return made


def _places(side: int, cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for every px the grid point before it, and how far it is from there."""
    at = np.arange(side)
    return at // cell, ((at % cell) / np.float32(cell)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the cost of one system grows with the picture: time ~ pixels ** exponent.

    Attributes:
        row: one of its rows.
        sizes: how many were fitted.
        low, high: pixels of the smallest and the largest.
        wall, cpu: exponents by direction, "encode" and "decode".
    """

    row: SpeedRun
    sizes: int
    low: int
    high: int
    wall: dict[str, float]
    cpu: dict[str, float]


def engine_of(row: SpeedRun) -> str:
    """Return backend, what really computed, precision and threads in few words."""
    parts = [row.backend, (row.provider or row.device).replace("ExecutionProvider", "")]
    if row.precision not in ("", "float32"):
        parts.append(row.precision)
    if row.threads:
        parts.append(f"{row.threads} thr.")
    return " ".join(parts)


def size_of(row: SpeedRun) -> str:
    """Return height x width as --size takes them, and how many pictures at a time."""
    size = f"{row.height}x{row.width}"
    return f"{row.batch} x {size}" if row.batch > 1 else size


def by_size(rows: Iterable[SpeedRun]) -> list[list[SpeedRun]]:
    """Return the rows that were measured, those that differ in nothing but the size together."""
    groups: dict[tuple[object, ...], list[SpeedRun]] = {}
    for row in rows:
        if row.encode and row.decode:
            system = row.system, row.setting, row.fingerprint, row.picture, row.batch
            engine = row.backend, row.device, row.precision, row.threads
            groups.setdefault((*system, *engine), []).append(row)
    return list(groups.values())


def growth(rows: Sequence[SpeedRun]) -> list[Growth]:
    """Return fits of log(median time) over log(pixels), for what has at least three sizes."""
    found = []
    for group in by_size(rows):
        sizes = [row.width * row.height for row in group]
        if len(set(sizes)) >= LEAST_SIZES:
            found.append(
                Growth(
                    row=group[0],
                    sizes=len(set(sizes)),
                    low=min(sizes),
                    high=max(sizes),
                    wall=_exponents(group, sizes, "wall"),
                    cpu=_exponents(group, sizes, "cpu"),
                )
            )
    return found


def _exponents(rows: Sequence[SpeedRun], sizes: Sequence[int], clock: str) -> dict[str, float]:
    found = {}
    for direction in ("encode", "decode"):
        spent = [getattr(getattr(row, direction), clock).median for row in rows]
        # A clock of coarse ticks may show nothing for the smallest.
        slope = np.polyfit(np.log(sizes), np.log(np.maximum(spent, 1e-3)), 1)[0]
        found[direction] = round(float(slope), 3)
    return found


def accelerators(rows: Iterable[SpeedRun]) -> tuple[str, ...]:
    """Return what computed beside the processor; ONNX Runtime names no GPU, but its provider."""
    beside = (row for row in rows if row.device != "cpu" and not row.error)
    names = (row.provider if row.backend == "torch" else row.device for row in beside)
    return tuple(dict.fromkeys(name for name in names if name))


__all__ = [
    "SYNTHETIC",
    "Growth",
    "Source",
    "Task",
    "accelerators",
    "by_size",
    "engine_of",
    "growth",
    "measure",
    "pixels_of",
    "size_of",
    "synthetic",
]
