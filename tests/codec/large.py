"""Memory and time of large pictures, each step a process of its own.

    python -m tests.codec.large PHOTOS [--megapixels 1 10 100] [--format png] [--repeat 3]

makes pictures of photos side by side, compresses and decompresses them in turns on one thread, and
decodes a region of 512x512. Peak memory is that of the whole process; time is its processor time,
also that of starting, of which "slope" is free: what each megapixel above the first picture's adds.
"of all" is what the region takes of the time for the whole picture.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Of a photo in the mosaic: larger ones are cut, smaller ones are left out.
HEIGHT, WIDTH = 320, 480
REGION = 512


@dataclass(frozen=True)
class Run:
    """One process: seconds of processor and wall time, and MB at its peak."""

    cpu: float
    wall: float
    peak: float


def photos(folder: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield parts (HEIGHT, WIDTH, 3) of photos, without end."""
    for path in cycle(sorted(folder.iterdir())):
        with Image.open(path) as image:
            if image.width >= WIDTH and image.height >= HEIGHT:
                yield np.asarray(image.convert("RGB"))[:HEIGHT, :WIDTH]


def make(targets: dict[float, Path], folder: Path) -> None:
    """Write pictures of so many megapixels of a folder's photos."""
    source = photos(folder)
    for megapixels, target in targets.items():
        raw = target.with_suffix(".ppm")
        _make_raw(raw, source, megapixels)
        if target != raw:
            Image.MAX_IMAGE_PIXELS = None
            with Image.open(raw) as image:
                image.save(target)
            raw.unlink()


def _make_raw(target: Path, source: Iterator[NDArray[np.uint8]], megapixels: float) -> None:
    """Write a PPM of 3:2, a row of photos at a time."""
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    height = round(megapixels * 1e6 / width)
    with target.open("wb") as file:
        file.write(b"P6\n%d %d\n255\n" % (width, height))
        for top in range(0, height, HEIGHT):
            row = np.concatenate([next(source) for _ in range(0, width, WIDTH)], axis=1)
            file.write(np.ascontiguousarray(row[: height - top, :width]).data)


def run(*arguments: str) -> Run:
    """Run lic in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lic.cli", *arguments, "--quiet", "-f"])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    wall = time.perf_counter() - start
    return Run(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024 / 1e6)


def measure(
    pictures: dict[float, Path], folder: Path, suffix: str, repeat: int, model: Sequence[str]
) -> dict[tuple[float, str], list[Run]]:
    """Return the runs of each size and step, taken in turns."""
    engine = ("--threads", "1", "--backend", "onnx", "--max-pixels", "0")
    runs: dict[tuple[float, str], list[Run]] = {}
    for _ in range(repeat):
        for size, picture in pictures.items():
            coded, back = folder / f"{size:g}.lic", str(folder / f"back.{suffix}")
            middle = f"{REGION},{REGION // 2},{REGION},{REGION}"
            steps = {
                "compress": ("compress", str(picture), "-o", str(coded), *engine, *model),
                "decompress": ("decompress", str(coded), "-o", back, *engine),
                "region": ("decompress", str(coded), "-o", back, *engine, "--region", middle),
            }
            for step, arguments in steps.items():
                runs.setdefault((size, step), []).append(run(*arguments))
    return runs


def report(runs: dict[tuple[float, str], list[Run]]) -> None:
    """Print medians, against the smallest picture and against decoding all of it."""
    cpu = {key: median(each.cpu for each in found) for key, found in runs.items()}
    first = min(size for size, _ in runs)
    head = "Mpx   step        peak MB   CPU s   wall s   CPU s/Mpx   to the first   slope   of all"
    sys.stdout.write(head + "\n")
    for (size, step), found in runs.items():
        peak = max(each.peak for each in found)
        wall = median(each.wall for each in found)
        line = f"{size:<5g} {step:<11} {peak:7.0f} {cpu[size, step]:7.2f} {wall:8.2f}"
        if step == "region":
            line += f"{'':36}{cpu[size, step] / cpu[size, 'decompress']:9.1%}"
        else:
            each, unit = cpu[size, step] / size, cpu[first, step] / first
            line += f" {each:11.3f} {each / unit:14.2f}"
            if size > first:
                line += f" {(cpu[size, step] - cpu[first, step]) / (size - first):7.3f}"
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--format", default="png", help="of input and output: png, ppm, ...")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", default="bmshj2018-factorized-relu-lite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        found = {size: work / f"{size:g}.{options.format}" for size in options.megapixels}
        # In a process of its own: of memory that this one took its children would tell.
        making = get_context("spawn").Process(target=make, args=(found, options.photos))
        making.start()
        making.join()
        if making.exitcode:
            sys.exit(making.exitcode)
        report(measure(found, work, options.format, options.repeat, ["-m", options.model]))
