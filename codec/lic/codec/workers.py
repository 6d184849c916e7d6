"""Work in several processes, where a process that dies costs its own piece of work alone.

The standard library's pools do not say which piece a dead process had, and lose the others with it.
Here it is known which process has which piece, and whoever dies is replaced.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")
# Forked processes would share the threads' locks of whatever library was loaded before.
_PROCESSES = multiprocessing.get_context("spawn")
_FALSE_STARTS = 10


def ended(exit_code: int | None) -> str:
    """Return how a process ended, in words, from its exit code; below 0 that is a signal."""
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-exit_code).name
            told = " (often: out of memory)" if name == "SIGKILL" else ""
            return f"was ended by {name}{told}"
    return f"ended with exit code {exit_code}"


@dataclass(frozen=True)
class Died:
    """What came of a piece of work whose process ended over it."""

    exit_code: int | None

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        return f"its process {ended(self.exit_code)}"


def spread(
    work: Callable[[T], R], pieces: Iterable[T], count: int, *, ahead: int = 1
) -> Generator[tuple[int, R | Died]]:
    """Yield the number of every piece and what `work` made of it, as they get done.

    Args:
        work: a function that other processes can import; it should not raise. Each process has a
            copy of its own.
        pieces: of work; they can be pickled, and are taken as they are needed.
        count: processes; 0 does the work in this one.
        ahead: pieces that a process has at a time, so that it need not wait for the next one. Of
            one that dies only the first is lost, others do the rest. More than one is for pieces
            of few bytes.

    Raises:
        RuntimeError: `work` raised, or processes cannot start here.
    """
    if count == 0:
        yield from ((number, work(piece)) for number, piece in enumerate(pieces))
        return
    pool = _Pool(work, count, ahead)
    todo = enumerate(pieces)
    try:
        pool.feed(todo)
        while pool.busy:
            found = pool.next()
            pool.feed(todo)
            if found:
                yield found
    finally:
        pool.stop()


@dataclass(eq=False)
class _Worker:
    """A process, and the pieces that it was given."""

    process: SpawnProcess
    connection: Connection
    pieces: deque[tuple[int, Any]] = field(default_factory=deque)
    ready: bool = False

    def give(self, number: int, piece: Any) -> None:
        self.pieces.append((number, piece))
        # One that died meanwhile is noticed where its result would be read.
        with contextlib.suppress(OSError):
            self.connection.send(piece)

    def end(self) -> Died:
        """Wait for the end of a process that is gone already."""
        self.process.join()
        self.connection.close()
        return Died(self.process.exitcode)


class _Pool:
    """Processes, each with a few pieces of work."""

    def __init__(self, work: Callable[[Any], Any], count: int, ahead: int) -> None:
        self._work, self._count, self._ahead = work, count, ahead
        self._started: list[SpawnProcess] = []
        self._workers: list[_Worker] = []
        self._returned: deque[tuple[int, Any]] = deque()
        # How many processes in a row may be killed before they are at work.
        self._false_starts_left = _FALSE_STARTS

    @property
    def busy(self) -> list[_Worker]:
        """The processes that have something to do."""
        return [worker for worker in self._workers if worker.pieces]

    def feed(self, todo: Iterator[tuple[int, Any]]) -> None:
        """Give every process as many pieces as it may have, one each first."""
        for depth in range(1, self._ahead + 1):
            while free := self._free(depth):
                numbered = self._returned.popleft() if self._returned else next(todo, None)
                if numbered is None:
                    return
                (free if isinstance(free, _Worker) else self._new()).give(*numbered)

    def _free(self, depth: int) -> _Worker | bool:
        """Return a process with fewer pieces than `depth`, or whether there may be one more."""
        for worker in list(self._workers):
            if not worker.pieces and not worker.process.is_alive():
                worker.end()
                self._workers.remove(worker)
            elif len(worker.pieces) < depth:
                return worker
        return len(self._workers) < self._count

    def next(self) -> tuple[int, Any] | None:
        """Wait for a piece of work to be done, or for the process that has it to die.

        Returns None where there is nothing to tell.
        """
        by_connection = {worker.connection: worker for worker in self.busy}
        worker = by_connection[cast(Connection, wait(list(by_connection))[0])]
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if not worker.ready:
            worker.ready = True
            self._false_starts_left = _FALSE_STARTS
            return None
        number, _ = worker.pieces.popleft()
        error, result = answer
        if error:
            raise RuntimeError(f"a process failed: {error}")
        return number, result

    def _bury(self, worker: _Worker) -> tuple[int, Died] | None:
        died = worker.end()
        self._workers.remove(worker)
        if worker.ready:
            (number, _), *rest = worker.pieces
            self._returned.extend(rest)
            return number, died
        # One that ends by itself always will.
        if not self._false_starts_left or (died.exit_code or 0) >= 0:
            raise RuntimeError(
                f"a process could not start ({died.reason}); -j needs a program whose main module "
                "can be imported"
            )
        self._false_starts_left -= 1
        self._returned.extend(worker.pieces)
        return None

    def stop(self) -> None:
        """End all processes, whatever they are at."""
        started = [process for process in self._started if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()

    def _new(self) -> _Worker:
        here, there = _PROCESSES.Pipe()
        process = _PROCESSES.Process(target=_serve, args=(there, self._work), daemon=True)
        # Known before it starts: Ctrl-C may come at any moment from then on.
        self._started = [p for p in self._started if p.pid is None or p.is_alive()] + [process]
        with _deaf_to_interrupts():
            process.start()
        # The only other end must be the process's, or its death would not be heard.
        there.close()
        worker = _Worker(process, here)
        self._workers.append(worker)
        return worker


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C from their first moment; the first one ends them.

    Every process of a terminal gets it, and those that were about to start would each say so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Do one piece of work after the other until nobody asks any more."""
    # Once more, for processes that a thread started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send("ready")
        while True:
            piece = connection.recv()
            try:
                answer: tuple[str, Any] = "", work(piece)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}", None
            connection.send(answer)


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone: nobody would hear of what it does."""
    parent = multiprocessing.parent_process()
    assert parent, "this is no process of a pool"
    parent.join()
    os._exit(1)
