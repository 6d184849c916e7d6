"""make folder-run: photos a second in one run over a folder, against one file after the other.

Many small photos are cut from a few large ones, and compressed by the command, in one process on one
thread and as it does by itself, in turns, because machines are rarely left alone. CPU time is of
all processes; memory is sampled over all of them.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from tests.trainers.processes import environment, family

LIC = (sys.executable, "-m", "lic.cli", "compress")
ARMS = {"-j 1": ("-j", "1", "--threads", "1"), "automatic": ()}
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """One run: how long it took, and what all its processes held at which time."""

    seconds: float
    cpu: float
    memory: list[tuple[float, int]]


def cut(photos: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Write crops of 128x128 to 256x256 pixels, a thousand to a folder."""
    rng = random.Random(seed)
    sources = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    made = 0
    while made < count:
        with Image.open(rng.choice(sources)) as opened:
            image = opened.convert("RGB")
        for _ in range(16 if min(image.size) >= 256 else 0):
            width, height = rng.randint(128, 256), rng.randint(128, 256)
            left = rng.randint(0, image.width - width)
            top = rng.randint(0, image.height - height)
            place = folder / f"{made // 1000:03}" / f"{made:06}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.crop((left, top, left + width, top + height)).save(place)
            made += 1
            if made == count:
                return


def measure(folder: Path, out: Path, options: tuple[str, ...], every: float) -> Run:
    """Run the command once, and look at its memory now and then."""
    shutil.rmtree(out, ignore_errors=True)
    before, start = os.times(), time.monotonic()
    process = subprocess.Popen(
        (*LIC, str(folder), "-o", str(out), *options, "--quiet"), env=environment()
    )
    memory = []
    while process.poll() is None:
        memory.append((time.monotonic() - start, resident([process.pid, *family(process.pid)])))
        time.sleep(every)
    after = os.times()
    if process.returncode:
        raise SystemExit(f"lic ended with exit code {process.returncode}")
    used = after.children_user + after.children_system
    return Run(
        time.monotonic() - start,
        used - before.children_user - before.children_system,
        memory,
    )


def resident(pids: list[int]) -> int:
    """Return the bytes that processes hold, shared ones in equal parts."""
    found = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return found * 1024


def slope(memory: list[tuple[float, int]], files: int) -> tuple[float, float, float]:
    """Return MiB a thousand files over the second half of a run, and the middle's and end's MiB."""
    times, sizes = np.array(memory).T
    late = times >= times[-1] / 2
    line = np.polyfit(times[late] / times[-1] * files / 1000, sizes[late] / MIB, 1)
    tenth = max(len(sizes) // 10, 1)
    middle = len(sizes) // 2
    ends = median(sizes[middle : middle + tenth]), median(sizes[-2 * tenth : -tenth])
    return float(line[0]), ends[0] / MIB, ends[1] / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--count", type=int, default=10_000, help="files of the long run")
    parser.add_argument("--turn", type=int, default=1000, help="files of each turn")
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        crops, few, out = Path(place, "in"), Path(place, "few"), Path(place, "out")
        cut(options.photos, crops, options.count)
        cut(options.photos, few, options.turn, seed=1)
        rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(options.turns):
            for arm, arguments in ARMS.items():
                run = measure(few, out, arguments, every=0.5)
                rates[arm].append(options.turn / run.seconds)
                sys.stdout.write(
                    f"{arm}: {options.turn / run.seconds:.1f} photos/s, "
                    f"{run.cpu / options.turn * 1000:.1f} ms of CPU time a photo\n"
                )
                sys.stdout.flush()
        ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
        for arm, found in rates.items():
            sys.stdout.write(f"{arm}: median {median(found):.1f} photos/s\n")
        sys.stdout.write(
            f"ratio of medians {median(rates['automatic']) / median(rates['-j 1']):.2f}, of turns "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}\n"
        )
        run = measure(crops, out, ARMS["automatic"], every=1)
        found = sum(1 for _ in out.rglob("*.lic"))
        growth, middle, end = slope(run.memory, options.count)
        sys.stdout.write(
            f"one run: {found} of {options.count} files in {run.seconds:.0f} s, "
            f"{options.count / run.seconds:.1f} photos/s, {run.cpu:.0f} s of CPU time\n"
            f"memory of all processes: {middle:.0f} MiB half way, {end:.0f} MiB at the end, "
            f"{growth:+.2f} MiB a thousand files, at most "
            f"{max(size for _, size in run.memory) / MIB:.0f} MiB\n"
        )


if __name__ == "__main__":
    main()
