"""make folder-run: photos a second in one run over a folder, against one file after the other.

Many small photos are cut from a few large ones, and compressed by the command: on one thread of one
process, and as it does by itself, in turns, because machines are rarely left alone. CPU time is of
all processes; memory is sampled over all of them.

Where others use the cores as well, a system may share them out by session, so that two processes
get no more than one. "On free cores" tells what is left of that: how many photos the time is enough
for in which a thread ran or waited for a core, on as many cores as there are.
"""

import argparse
import contextlib
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

from lic.codec.benchmark.machine import usable_cores
from tests.trainers.processes import environment, family

LIC = (sys.executable, "-m", "lic.cli", "compress")
ARMS = {"-j 1": ("-j", "1", "--threads", "1"), "automatic": ()}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: how long it took, and what all its processes held at which time."""

    files: int
    seconds: float
    cpu: float
    runnable: float
    memory: list[tuple[float, int]]

    @property
    def rate(self) -> float:
        return self.files / self.seconds

    @property
    def free_rate(self) -> float:
        """Files a second if no thread had ever waited for a core, but for those that are too many.

        A run that nothing else than the lack of cores held up would take its CPU time, divided by
        the number of threads that had something to do.
        """
        return min(self.runnable / self.seconds, usable_cores()) * self.files / self.cpu

    def __str__(self) -> str:
        return (
            f"{self.rate:.1f} photos/s, {self.cpu / self.files * 1000:.1f} ms of CPU time a photo, "
            f"{self.runnable / self.seconds:.2f} threads at work or waiting for a core, "
            f"on free cores {self.free_rate:.1f} photos/s"
        )


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


def measure(folder: Path, out: Path, options: tuple[str, ...], files: int, every: float) -> Run:
    """Run the command once, and look at its memory now and then."""
    shutil.rmtree(out, ignore_errors=True)
    before, start = os.times(), time.monotonic()
    process = subprocess.Popen(
        (*LIC, str(folder), "-o", str(out), *options, "--quiet"), env=environment()
    )
    memory, runnable = [], dict[str, float]()
    while process.poll() is None:
        pids = [process.pid, *family(process.pid)]
        memory.append((time.monotonic() - start, resident(pids)))
        runnable.update(runnable_threads(pids))
        time.sleep(every)
    after = os.times()
    if process.returncode:
        raise SystemExit(f"lic ended with exit code {process.returncode}")
    used = after.children_user + after.children_system
    return Run(
        files=files,
        seconds=time.monotonic() - start,
        cpu=used - before.children_user - before.children_system,
        runnable=sum(runnable.values()),
        memory=memory,
    )


def runnable_threads(pids: list[int]) -> dict[str, float]:
    """Return for each thread how many seconds it ran or waited for a core."""
    found = {}
    for path in [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]:
        with contextlib.suppress(OSError):
            ran, waited, _ = path.read_text().split()
            found[str(path)] = (int(ran) + int(waited)) / 1e9
    return found


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
        runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
        for _ in range(options.turns):
            for arm, arguments in ARMS.items():
                runs[arm].append(measure(few, out, arguments, options.turn, every=0.2))
                say(f"{arm}: {runs[arm][-1]}")
        for told, rates in {
            "photos/s": {arm: [run.rate for run in runs[arm]] for arm in ARMS},
            "on free cores": {arm: [run.free_rate for run in runs[arm]] for arm in ARMS},
        }.items():
            one, many = map(median, rates.values())
            say(f"{told}, medians: -j 1 {one:.1f}, automatic {many:.1f}, ratio {many / one:.2f}")
        run = measure(crops, out, ARMS["automatic"], options.count, every=1)
        found = sum(1 for _ in out.rglob("*.lic"))
        growth, middle, end = slope(run.memory, options.count)
        say(f"one run: {found} of {options.count} files in {run.seconds:.0f} s, {run}")
        say(
            f"memory of all processes: {middle:.0f} MiB half way, {end:.0f} MiB at the end, "
            f"{growth:+.2f} MiB a thousand files, at most "
            f"{max(size for _, size in run.memory) / MIB:.0f} MiB"
        )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
