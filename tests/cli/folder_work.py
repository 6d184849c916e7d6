"""Work for tests of folder runs, which their processes import: copies, with accidents."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from lic.cli import batch, outputs, parts
from lic.cli.console import Output
from lic.cli.folder_engine import Crew
from lic.codec.errors import ModelMismatchError


def jobs(folder: Path, names: str) -> list[batch.Job]:
    """Return jobs that copy files of one letter each; what happens is in the letter."""
    (folder / "in").mkdir()
    found = []
    for number, letter in enumerate(names):
        source = folder / "in" / f"{number:02}{letter}"
        source.write_bytes(letter.encode() * 1000)
        found.append(batch.Job(source=source, target=folder / "out" / source.name))
    return found


def copying(log: Path) -> batch.OpenWork:
    """Return what opens work that copies files, and writes down what it did."""
    return partial(_open, log)


def _open(log: Path) -> batch.Work:
    return partial(_copy, log)


def _copy(log: Path, job: batch.Job) -> batch.Done:
    assert job.source and job.target
    data = batch.read_input(job)
    first = not log.with_name(job.source.name).exists()
    match job.source.name[-1]:
        case "d":
            _die()
        case "f":
            raise ZeroDivisionError("planted")
        case "w":
            # A result half of which is written.
            job.target.parent.mkdir(exist_ok=True)
            _, file = parts.create(job.target.parent)
            file.write(data[:100])
            file.flush()
            _die()
        case "o" if first:
            # Only the first time.
            log.with_name(job.source.name).touch()
            _die()
        case "a":
            # When the result is there, and before anybody is told.
            outputs.write_output(data, job.target, force=True)
            _write_down(log, job)
            _die()
        case "z":
            log.with_name(job.source.name).touch()
            time.sleep(600)
        case "s":
            time.sleep(0.1)
        case "e":
            # Somebody else was quicker.
            job.target.parent.mkdir(exist_ok=True)
            job.target.write_bytes(b"else")
    _write_down(log, job)
    return batch.Done(data=data, values={"input": job.name}, text=job.name)


def _write_down(log: Path, job: batch.Job) -> None:
    assert job.source
    with log.open("a") as lines:
        lines.write(f"{job.source.name} {os.getpid()}\n")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def run_in_processes(folder: Path, names: str) -> None:
    """Do jobs as a command would."""
    crew = Crew(engine="processes", workers=2, threads=1)
    batch.run(jobs(folder, names), copying(folder / "log"), Output(), crew.work_off)


def dying() -> batch.Work:
    """Die before any file."""
    _die()
    raise AssertionError("alive")


def missing() -> batch.Work:
    """Find no model."""
    raise ModelMismatchError("no such model here")
