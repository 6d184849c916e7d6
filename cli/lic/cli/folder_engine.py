"""Who works off the files of a folder: threads, processes, or a Ray cluster.

Processes, one for each core and each with networks on one thread, are the fastest on CPUs: what is
no network never waits for another file's Python, and while one reads or writes another computes. A
process that dies takes one file with it. Threads share one model, which saves a device's memory.
However many files there are, each engine holds a few of them at a time.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from lic.cli.batch import CannotOpen, Job, Outcome, Task
from lic.codec.benchmark.machine import memory_bytes, usable_cores
from lic.codec.errors import ConfigError, WorkerError
from lic.codec.workers import Died, spread

ENGINES = ("auto", "processes", "threads", "ray")
# To start a process takes as long as a few photos.
FILES_PER_PROCESS = 4
# Models with a context hold this much over a tile.
MEMORY_PER_PROCESS = 2 * 2**30
# Each process has its next file while it tells of the last one.
AHEAD = 2
# Deaths before any file was done, after which the files are not to blame.
HOPELESS = 10


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who works off files.

    Args:
        engine: one of ENGINES but auto.
        workers: files at a time; 0 on Ray is as many as the cluster has cores.
        threads: of one operator in each; 0 is the backend's choice.
    """

    engine: str
    workers: int
    threads: int

    def work_off(self, jobs: Sequence[Job], task: Task) -> Generator[tuple[Job, Outcome]]:
        """Yield every job and what became of it, in the order in which they get done.

        Raises:
            WorkerError: processes end before any of them has done anything.
        """
        if self.engine == "ray":
            from lic.cli.ray_engine import on_ray

            return on_ray(jobs, task, self.workers)
        run = in_processes if self.engine == "processes" else in_threads
        return run(jobs, task, self.workers)


def choose_crew(engine: str, workers: int, *, files: int, device: str, threads: int) -> Crew:
    """Return who works off files.

    Args:
        engine: one of ENGINES.
        workers: files at a time; 0 is automatic: on CPUs as many as there are cores, but for small
            folders and where memory is short; elsewhere 1.
        files: how many there are.
        device: where networks run.
        threads: of one operator; 0 is automatic: all cores for one file at a time, else a share.

    Raises:
        ConfigError: no such engine, or it is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"--engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    if engine == "ray":
        from lic.cli.extras import require

        require("ray", "ray")
        return Crew(engine=engine, workers=workers, threads=threads or 1)
    cores = usable_cores()
    if workers == 0 and device == "cpu":
        memory = (memory_bytes() or MEMORY_PER_PROCESS) // MEMORY_PER_PROCESS
        workers = min(cores, files // FILES_PER_PROCESS, memory)
    workers = max(workers, 1)
    if engine == "auto":
        engine = "processes" if workers > 1 and device == "cpu" else "threads"
    if threads == 0 and workers > 1:
        threads = max(cores // workers, 1)
    return Crew(engine=engine, workers=workers, threads=threads)


def in_threads(jobs: Sequence[Job], task: Task, workers: int) -> Generator[tuple[Job, Outcome]]:
    """Yield every job and what became of it; threads of this process do them."""
    todo = iter(jobs)
    pending: dict[Future[Outcome], Job] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for job in _first(todo, AHEAD * workers - len(pending)):
                    pending[pool.submit(task.settle, job)] = job
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _first(items: Iterator[Job], count: int) -> Iterator[Job]:
    return (item for _, item in zip(range(count), items, strict=False))


def in_processes(jobs: Sequence[Job], task: Task, workers: int) -> Generator[tuple[Job, Outcome]]:
    """Yield every job and what became of it; a process that dies is replaced.

    The file that it was on has failed: another process would likely die over it as well.

    Raises:
        WorkerError: processes end before any of them has done anything.
    """
    deaths, hopeful = 0, False
    with closing(spread(partial(settle, task), jobs, workers, ahead=AHEAD)) as results:
        for number, outcome in results:
            job = jobs[number]
            if not isinstance(outcome, Died):
                hopeful = True
                yield job, outcome
                continue
            deaths += 1
            error = WorkerError(f"{job.name}: {outcome.reason}")
            if deaths == HOPELESS and not hopeful:
                told = f"{deaths} processes ended before one file was done; the last one: {error}"
                yield job, CannotOpen(WorkerError(told))
            yield job, error


def settle(task: Task, job: Job) -> Outcome:
    """Do a job of a task that this process has a copy of."""
    return task.settle(job)
