"""make killed: folder runs ended by kill -9 at random moments, again and again.

After each kill every result is either not there or whole, byte for byte what a run that was left
alone makes of it, which decodes. What is killed is the command, one of its workers, or all of them.
The next run goes on with the rest, and at the end nothing is left but results.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lic.cli.app import run
from tests.trainers.processes import alive, environment, family, wait_for_the_end

SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"
VICTIMS = ("command", "worker", "everyone")
LIC = (sys.executable, "-m", "lic.cli")


@dataclass(kw_only=True)
class Scene:
    """A command over a folder, and what a run that was left alone made of it."""

    command: tuple[str, ...]
    out: Path
    wanted: dict[Path, bytes]
    seconds: float
    coding: float
    seen: Counter[str] = field(default_factory=Counter)


def make_photos(folder: Path, count: int) -> None:
    """Write small photos into two folders."""
    with Image.open(SAMPLE) as image:
        for number in range(count):
            place = folder / f"{number % 2}" / f"{number:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            left, top = 17 * number % 600, 11 * number % 350
            image.crop((left, top, left + 96 + number % 64, top + 128)).save(place)


def start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for a command's end; returns its exit code and what it said."""
    _, said = process.communicate()
    return process.returncode, said.decode()


def set_the_scene(arguments: tuple[str, ...], out: Path, kept: Path) -> Scene:
    """Let a command run to its end, and put what it made elsewhere."""
    command = (*LIC, *arguments, "-o", str(out), "--engine", "processes", "-j", "2")
    begin = time.monotonic()
    code, said = end(start(command))
    assert code == 0, said
    seconds = time.monotonic() - begin
    wanted = {path: path.read_bytes() for path in results(out)}
    written = [path.stat().st_mtime for path in wanted]
    out.rename(kept)
    return Scene(
        command=(*command, "--skip-existing"), out=out, wanted=wanted, seconds=seconds,
        coding=max(written) - min(written),
    )  # fmt: skip


def results(out: Path) -> Iterator[Path]:
    return (path for path in out.rglob("*") if path.is_file())


def kill_once(scene: Scene, rng: random.Random) -> bool:
    """Begin or go on with a run, kill somebody at a random moment, and look at what is there.

    Returns whether the run was not at its end before.
    """
    before = len(whole_results(scene))
    process = start(scene.command)
    # Most of a short run is its beginning: two of three are killed when results are written.
    if rng.randrange(3):
        while len(whole_results(scene)) == before and process.poll() is None:
            time.sleep(0.002)
        left = 1 - before / len(scene.wanted)
        deadline = time.monotonic() + rng.uniform(0, scene.coding * left)
    else:
        deadline = time.monotonic() + rng.uniform(0, scene.seconds)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    everyone = family(process.pid)
    workers = [pid for pid in everyone if b"spawn_main" in _command_line(pid)]
    victim = rng.choice(VICTIMS)
    if process.poll() is not None:
        victim = "nobody, it was done"
    elif victim == "everyone":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "worker" and workers:
        _kill(rng.choice(workers))
    else:
        victim = "command"
        process.kill()
    code, said = end(process)
    # Of what the command leaves behind nobody may go on to write.
    assert wait_for_the_end(everyone), [pid for pid in everyone if alive(pid)]
    if code == 0 and victim in ("command", "everyone"):
        # It was quicker than the signal.
        assert len(whole_results(scene)) == len(scene.wanted), said
        victim = "nobody, it was done"
    assert code in ((-9,) if victim in ("command", "everyone") else (0, 8)), (code, said)
    assert code != 8 or "SIGKILL" in said, said
    scene.seen[victim] += 1
    look(scene)
    if victim == "worker":
        assert not (parts := half_written(scene)), parts
    return not victim.startswith("nobody")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It was just done.
        return


def half_written(scene: Scene) -> list[Path]:
    return [path for path in results(scene.out) if path.suffix == ".part"]


def whole_results(scene: Scene) -> list[Path]:
    return [path for path in results(scene.out) if path.suffix != ".part"]


def look(scene: Scene) -> None:
    """Hold everything that is there against what ought to be."""
    scene.seen["half-written files, under other names"] += len(half_written(scene))
    for path in whole_results(scene):
        scene.seen["results looked at"] += 1
        assert path.read_bytes() == scene.wanted[path], f"{path} is not whole"


def finish(scene: Scene) -> None:
    """Let the command come to its end: then all results are there, and nothing else."""
    code, said = end(start(scene.command))
    assert code == 0, said
    found = {path: path.read_bytes() for path in results(scene.out)}
    assert found == scene.wanted, sorted(found.keys() ^ scene.wanted.keys())


def prove(folder: Path, *, count: int, photos: int, seed: int) -> Counter[str]:
    """Kill runs of both commands; returns what happened how often.

    Raises:
        AssertionError: a promise was broken.
    """
    rng = random.Random(seed)
    make_photos(folder / "in", photos)
    whole = folder / "whole"
    scenes = [set_the_scene(("compress", str(folder / "in")), folder / "out", whole)]
    for path in results(whole):
        assert run(["verify", "--quiet", str(path)]) == 0, path
    if count > 3:
        scenes.append(set_the_scene(("decompress", str(whole)), folder / "back", folder / "kept"))
    for scene in scenes:
        kills = 0
        while kills < count // len(scenes):
            kills += kill_once(scene, rng)
            if len(whole_results(scene)) == len(scene.wanted):
                finish(scene)
                shutil.rmtree(scene.out)
        finish(scene)
    return sum((scene.seen for scene in scenes), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = prove(Path(folder), count=options.count, photos=options.photos, seed=options.seed)
    for what, times in sorted(seen.items()):
        sys.stdout.write(f"{what}: {times}\n")


if __name__ == "__main__":
    main()
