"""The files of a folder on a Ray cluster, whose machines see them under the same paths.

Every file is some worker's until that worker answers or dies, and only then another's. A worker
that died may have written its result without having said so: that is seen by the file, which was
not there before, or was another one; then it is told of, and not coded again.
"""

import contextlib
import io
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lic.cli.batch import Done, Job, Outcome, Task
from lic.codec.errors import ConfigError, OutputError, WorkerError

# Each worker has its next file while it tells of the last one.
AHEAD = 2
# Workers that may die over a file: the first one's machine may have been taken away.
ATTEMPTS = 3
# Deaths in a row before any file was done, after which the files are not to blame.
HOPELESS = 10
# Seconds that a cluster may take to give the first worker, or another one when all are gone.
PATIENCE = 300

Identity = tuple[int, int, int] | None


@dataclass(eq=False)
class _Piece:
    """A job, how often it was begun, and what lay at its target before."""

    job: Job
    before: Identity
    attempts: int = 0

    @property
    def written(self) -> bool:
        """Whether there is a result that was not there before."""
        found = _identity(self.job)
        return found is not None and found != self.before

    def done(self) -> Done:
        """Return what is known of a result whose maker died before it told of it."""
        assert self.job.target, "several jobs have files for results"
        size = self.job.target.stat().st_size
        values = {"input": self.job.name, "output": str(self.job.target), "bytes": size}
        text = f"{self.job.name} -> {self.job.target}: {size:,} bytes"
        return Done(data=b"", values=values, text=text, notes=("its worker died after writing it",))


@dataclass(eq=False)
class _Worker:
    """An actor, and the pieces that it has, in the order in which it does them."""

    actor: Any
    starting: Any
    pieces: deque[tuple[Any, _Piece]] = field(default_factory=deque)

    @property
    def awaited(self) -> Any:
        """What it will answer next; None if it was asked nothing."""
        return self.starting or (self.pieces[0][0] if self.pieces else None)


class _Hand:
    """What an actor is: a copy of the task, in the folder that paths are relative to."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder

    def begin(self) -> str:
        """Return why this cannot be done here, or nothing."""
        try:
            os.chdir(self._folder)
        except OSError as error:
            return f"{self._folder} cannot be entered on {platform.node()} ({error.strerror})"
        return ""

    def settle(self, job: Job) -> Outcome:
        return self._task.settle(job)


def on_ray(jobs: Sequence[Job], task: Task, workers: int) -> Generator[tuple[Job, Outcome]]:
    """Yield every job and what became of it; a worker that dies is replaced.

    The cluster is that of RAY_ADDRESS, or one on this machine that ends with the generator.

    Args:
        jobs: what to do.
        task: what is done with each job.
        workers: files at a time; 0 is the cluster's number of cores.

    Raises:
        ConfigError: there is no such cluster.
        WorkerError: workers end before any of them has done anything.
    """
    # lic tells nobody anything, nor may what it uses.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ours = not ray.is_initialized()
    with contextlib.ExitStack() as stack:
        stdout = stack.enter_context(contextlib.redirect_stdout(_Gate(sys.stdout)))
        if ours:
            # What was begun of a cluster has to be ended as well.
            stack.callback(ray.shutdown)
            _connect(ray, workers)
        count = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        hand = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Hand)
        crew = _Crew(ray, lambda: hand.remote(task, Path.cwd()), count, jobs)
        stack.callback(crew.stop)
        for found in crew.work_off():
            stdout.open = True
            yield found
            stdout.open = False


class _Gate(io.TextIOBase):
    """A standard output for results alone: Ray would tell there of workers that died."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._owner = stream, threading.get_ident()
        self.open = False

    def write(self, text: str) -> int:
        ours = self.open and threading.get_ident() == self._owner
        return self._stream.write(text) if ours else len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _connect(ray: Any, workers: int) -> None:
    """Join the cluster, or make one."""
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(num_cpus=workers or None, include_dashboard=False, **quiet)
    except Exception as error:  # Whatever gRPC, the system or Ray has to say.
        raise ConfigError(
            f"--engine ray: no cluster ({str(error).strip() or type(error).__name__}); start one "
            "with 'ray start --head' and set RAY_ADDRESS, or leave RAY_ADDRESS out for one on this "
            "machine"
        ) from None


class _Crew:
    """Actors, each with a few pieces."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int, jobs: Iterable[Job]) -> None:
        self._ray, self._start, self._count = ray, start, count
        self._todo = (_Piece(job, _identity(job)) for job in jobs)
        self._waiting: deque[_Piece] = deque()
        self._workers: list[_Worker] = []
        self._deaths, self._hopeful = 0, False

    def work_off(self) -> Generator[tuple[Job, Outcome]]:
        """Yield every job and what became of it."""
        while True:
            self._feed()
            busy = any(worker.pieces for worker in self._workers)
            if not busy and not self._waiting:
                return
            by_answer = {worker.awaited: worker for worker in self._workers if worker.awaited}
            # Whoever has something to do may take any time, a cluster without room may not.
            answered, _ = self._ray.wait(list(by_answer), timeout=None if busy else PATIENCE)
            if not answered:
                raise WorkerError(
                    f"--engine ray: the cluster had no core for a worker in {PATIENCE} s"
                )
            yield from self._answer(by_answer[answered[0]])

    def _feed(self) -> None:
        """Give all that are there as many pieces as they may have, and have enough of them."""
        for depth in range(1, AHEAD + 1):
            for worker in self._workers:
                while not worker.starting and len(worker.pieces) < depth and self._more():
                    piece = self._waiting.popleft()
                    worker.pieces.append((worker.actor.settle.remote(piece.job), piece))
        while len(self._workers) < self._count and self._more():
            actor = self._start()
            self._workers.append(_Worker(actor, actor.begin.remote()))

    def _more(self) -> bool:
        """Return whether a piece is waiting; of those that nobody had yet, the next one is."""
        if not self._waiting:
            self._waiting.extend(islice(self._todo, 1))
        return bool(self._waiting)

    def _answer(self, worker: _Worker) -> Iterator[tuple[Job, Outcome]]:
        """Yield what a worker has to say."""
        try:
            outcome = self._ray.get(worker.awaited)
        except self._ray.exceptions.RayError as error:
            yield from self._bury(worker, " ".join(str(error).split()))
            return
        if worker.starting:
            worker.starting = None
            if outcome:
                raise ConfigError(
                    f"--engine ray: {outcome}; every machine of the cluster must see the files"
                )
            return
        self._hopeful = True
        _, piece = worker.pieces.popleft()
        # One that was out of reach may have been quicker.
        if piece.attempts and isinstance(outcome, OutputError) and piece.written:
            outcome = piece.done()
        yield piece.job, outcome

    def _bury(self, worker: _Worker, told: str) -> Iterator[tuple[Job, Outcome]]:
        """Yield what is known of a dead worker's pieces; others do the rest."""
        # It may be out of reach only, and must not go on with what others do from now on.
        self._ray.kill(worker.actor)
        self._workers.remove(worker)
        self._deaths += 1
        if self._deaths == HOPELESS and not self._hopeful:
            raise WorkerError(f"{HOPELESS} workers ended before one file was done: {told}")
        for number, (_, piece) in enumerate(worker.pieces):
            piece.attempts += number == 0
            if piece.written:
                yield piece.job, piece.done()
            elif piece.attempts == ATTEMPTS:
                error = f"{piece.job.name}: {ATTEMPTS} workers ended over it; the last one: {told}"
                yield piece.job, WorkerError(error)
            else:
                self._waiting.append(piece)

    def stop(self) -> None:
        """End all actors, whatever they are at."""
        for worker in self._workers:
            self._ray.kill(worker.actor)


def _identity(job: Job) -> Identity:
    """Return what tells the file at a job's target from another one; None if there is none."""
    if job.target is None:
        return None
    try:
        found = job.target.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
