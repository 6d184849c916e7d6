"""Peak memory of `lic compress` and `lic decompress` with HPCM Base, on pictures of several tiles.

    python -m tests.codec.hpcm_memory [--large] [--size WIDTHxHEIGHT ...]

Minutes, hence no test of its own: `make memory-hpcm` runs it. Weights are those of the reference
run. Every command is a process of its own; its peak is what the system says when it ends. The exit
code is 1 where one takes more than --limit, or a picture does not come back in its size.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZES = ((2048, 1536), (4096, 3072))
LARGE = (8192, 6144)
LIMIT_MB = 2500
# What ru_maxrss counts in: kilobytes, on macOS bytes.
UNIT = 1 if sys.platform == "darwin" else 1024


class Spent(NamedTuple):
    """A process: its peak memory in MB, and seconds of wall time."""

    peak: float
    seconds: float


def _run(*command: object) -> Spent:
    """Run Python with arguments.

    Raises:
        SystemExit: it failed.
    """
    since = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return Spent(usage.ru_maxrss * UNIT / 1e6, time.perf_counter() - since)


def _lic(*arguments: object) -> Spent:
    return _run("-c", "from lic.cli.app import main; main()", *arguments)


def _write_picture(path: Path, width: int, height: int) -> None:
    """Write waves with noise on them; row by row, for a child's peak starts with its parent's."""
    rng = np.random.default_rng(0)
    columns, channels = np.arange(width)[:, None], np.arange(3)
    pixels = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        wave = np.sin(row / 37 + channels) + np.cos(columns / 23) + np.sin(row * columns / 9000)
        pixels[row] = np.clip(128 + 35 * wave + rng.normal(0, 8, (width, 3)), 0, 255)
    Image.fromarray(pixels).save(path, compress_level=1)


def _measure(folder: Path, bundle: Path, width: int, height: int) -> float:
    """Code one picture there and back; returns the higher peak in MB."""
    source = folder / f"{width}x{height}.png"
    coded, decoded = source.with_suffix(".lic"), folder / "decoded.png"
    _write_picture(source, width, height)
    peaks = []
    for name, arguments in (
        ("compress", ("compress", source, "-o", coded)),
        ("decompress", ("decompress", coded, "-o", decoded, "-f")),
    ):
        spent = _lic(*arguments, "-m", bundle, "--max-pixels", 0, "--quiet")
        peaks.append(spent.peak)
        sys.stdout.write(
            f"{width}x{height} {name:10} {spent.peak:6.0f} MB {spent.seconds:7.1f} s\n"
        )
        sys.stdout.flush()
    with Image.open(decoded) as image:
        if image.size != (width, height):
            raise SystemExit(f"{width}x{height} came back as {image.size}")
    return max(peaks)


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each command; raise SystemExit above the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.codec.hpcm_memory")
    parser.add_argument("--large", action="store_true", help="8192x6144, too")
    parser.add_argument(
        "--size", type=_size, action="append", metavar="WIDTHxHEIGHT", help="instead of all others"
    )
    parser.add_argument("--limit", type=int, default=LIMIT_MB, help="MB that a process may take")
    options = parser.parse_args(arguments)
    sizes = options.size or [*SIZES, *([LARGE] if options.large else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, bundle = folder / "base.pth.tar", folder / "base"
        # In processes of their own, as torch must never be in this one's memory.
        _run("-m", "tests.golden.hpcm_reference", "base", weights)
        _lic("models", "import", weights, "--arch", "hpcm-base", "--lmbda", 0.013, "-o", bundle)
        highest = max(_measure(folder, bundle, *size) for size in sizes)
    if highest > options.limit:
        raise SystemExit(f"{highest:.0f} MB are more than {options.limit} MB")


if __name__ == "__main__":
    main()
