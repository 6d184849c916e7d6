"""Runs numbered trials in processes of their own, which may crash, hang, or ask for any memory."""

import ctypes
import multiprocessing
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from tests.hostile.judging import DIED, FAULTS, HANG, Allowed, Verdict

BATCH = 500
# Of wall time, beyond what a trial may take of the CPU: the machine may be busy with other work.
PATIENCE = 20.0
ENDED = "ended its process"


class Trials(Protocol):
    """What a worker does: numbered trials, each of some kind."""

    def allowed(self, number: int) -> Allowed:
        """Return what a trial may take."""
        ...

    def run(self, number: int) -> tuple[str, Verdict]:
        """Return a trial's kind and what became of it."""
        ...


@dataclass(frozen=True)
class Fault:
    """A trial that should not have ended so."""

    number: int
    kind: str
    outcome: str
    detail: str


@dataclass
class Tally:
    """What became of all trials.

    Attributes:
        counts: by kind and outcome.
        slowest: CPU seconds of the slowest trial.
        peak: bytes of the largest worker.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0

    @property
    def ended_a_process(self) -> bool:
        """Whether a trial ended the process that ran it."""
        return any(kind == ENDED for kind, _ in self.counts)

    @property
    def total(self) -> int:
        """How many trials there were."""
        return sum(self.counts.values())

    def note(self, number: int, kind: str, verdict: Verdict) -> None:
        """Count a trial."""
        self.counts[kind, verdict.outcome] += 1
        self.slowest = max(self.slowest, verdict.seconds)
        if verdict.outcome in FAULTS:
            self.faults.append(Fault(number, kind, verdict.outcome, verdict.detail))

    def add(self, other: "Tally") -> None:
        """Count another's trials as well."""
        self.counts.update(other.counts)
        self.faults += other.faults
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Let this process take at most `extra` bytes of address space more; then MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, hard))


def _work(make: Callable[[], Trials], orders: Connection, now: Any, patience: float) -> None:
    """Run batches until there are none; `now` tells the parent which trial and till when."""
    trials = make()
    while (order := orders.recv()) is not None:
        tally = Tally()
        for number in order:
            allowed = trials.allowed(number)
            now[1] = time.monotonic() + 4 * allowed.seconds + patience
            now[0] = number
            with memory_limit(allowed.memory):
                kind, verdict = trials.run(number)
            tally.note(number, kind, verdict)
        now[1] = float("inf")
        tally.peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        orders.send(tally)


class Worker:
    """A process and the numbers that it has been given."""

    def __init__(self, make: Callable[[], Trials]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        # Unlocked: a process that is killed while it holds a lock would keep it for ever.
        self._now = context.RawArray(ctypes.c_double, [-1.0, float("inf")])
        self._process = context.Process(
            target=_work, args=(make, other, self._now, PATIENCE), daemon=True
        )
        self._process.start()
        other.close()
        self._late = False
        self.numbers: list[int] = []

    def give(self, numbers: list[int]) -> None:
        """Hand out a batch; an empty one ends the process."""
        self.numbers = numbers
        self._now[0] = -1.0
        self.connection.send(numbers or None)

    def take(self) -> tuple[Tally, list[int]]:
        """Return what came of the batch, and what of it is still to do, for another process.

        Raises:
            RuntimeError: the process ended before its first trial.
        """
        try:
            return self.connection.recv(), []
        except (EOFError, ConnectionError):
            self._process.join()
        number, code = int(self._now[0]), self._process.exitcode or 0
        if number < 0:
            raise RuntimeError(f"a worker ended before its first trial (exit code {code})")
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        tally = Tally()
        verdict = Verdict(HANG, "killed") if self._late else Verdict(DIED, ended)
        tally.note(number, ENDED, verdict)
        return tally, [other for other in self.numbers if other != number]

    def kill_if_late(self) -> None:
        """End the process if its trial takes too long."""
        if time.monotonic() > self._now[1]:
            self._late = True
            self.kill()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def run_trials(
    make: Callable[[], Trials],
    numbers: Sequence[int],
    *,
    processes: int = 2,
    deadline: float = float("inf"),
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Run trials in processes; one that ends its process is counted, and the others go on.

    Args:
        make: called in each process.
        numbers: of the trials.
        processes: how many at a time.
        deadline: by `time.monotonic`; no batch begins after it.
        progress: called with the tally so far.

    Raises:
        RuntimeError: a process ended before its first trial.
    """
    tally = Tally()
    left = deque(list(numbers[i : i + BATCH]) for i in range(0, len(numbers), BATCH))
    workers: list[Worker] = []
    try:
        while left or workers:
            if left and len(workers) < processes and time.monotonic() < deadline:
                workers.append(Worker(make))
                workers[-1].give(left.popleft())
                continue
            if not workers:
                break
            for worker in _ready(workers):
                found, undone = worker.take()
                tally.add(found)
                progress(tally)
                if undone:
                    left.appendleft(undone)
                if found.ended_a_process:
                    workers.remove(worker)
                elif left and time.monotonic() < deadline:
                    worker.give(left.popleft())
                else:
                    worker.give([])
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.kill()
    return tally


def _ready(workers: Sequence[Worker]) -> list[Worker]:
    """Return workers that have something to say, if only that they were killed for being late."""
    while not (ready := wait([worker.connection for worker in workers], timeout=0.25)):
        for worker in workers:
            worker.kill_if_late()
    return [worker for worker in workers if worker.connection in ready]
