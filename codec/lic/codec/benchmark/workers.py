"""Work in several processes, where a process that dies costs its own piece of work alone.

The standard library's pools do not say which piece a dead process had, and lose the others with it.
Here each process has one piece at a time, and whoever dies is replaced.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")
# Forked processes would share the threads' locks of whatever library was loaded before.
_PROCESSES = multiprocessing.get_context("spawn")


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
    work: Callable[[T], R], pieces: Sequence[T], count: int
) -> Generator[tuple[int, R | Died]]:
    """Yield the number of every piece and what `work` made of it, as they get done.

    Args:
        work: a function that other processes can import; it should not raise.
        pieces: of work; they can be pickled.
        count: processes; 0 does the work in this one.

    Raises:
        RuntimeError: `work` raised, or processes cannot start here.
    """
    if count == 0:
        yield from ((number, work(piece)) for number, piece in enumerate(pieces))
        return
    pool = _Pool(work)
    todo = iter(enumerate(pieces))
    try:
        for number, piece in _first(todo, min(count, len(pieces))):
            pool.start(number, piece)
        while pool.busy:
            number, result = pool.next()
            for new_number, piece in _first(todo, 1):
                pool.start(new_number, piece)
            yield number, result
    finally:
        pool.stop()


def _first(items: Any, count: int) -> list[Any]:
    return [item for _, item in zip(range(count), items, strict=False)]


class _Pool:
    """Processes, each with at most one piece of work."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._all: list[SpawnProcess] = []
        self._idle: list[tuple[SpawnProcess, Connection]] = []
        self.busy: dict[Connection, tuple[SpawnProcess, int]] = {}

    def start(self, number: int, piece: Any) -> None:
        """Give a piece of work to a process, a new one if need be."""
        process, connection = self._idle.pop() if self._idle else self._new()
        if not process.is_alive():
            connection.close()
            process, connection = self._new()
        self.busy[connection] = process, number
        # One that died meanwhile is noticed where its result would be read.
        with contextlib.suppress(OSError):
            connection.send(piece)

    def next(self) -> tuple[int, Any]:
        """Wait for a piece of work to be done, or for the process that has it to die."""
        connection = cast(Connection, wait(list(self.busy))[0])
        process, number = self.busy.pop(connection)
        try:
            error, result = connection.recv()
        except (EOFError, OSError):
            process.join()
            connection.close()
            return number, Died(process.exitcode)
        if error:
            raise RuntimeError(f"a process failed: {error}")
        self._idle.append((process, connection))
        return number, result

    def stop(self) -> None:
        """End all processes, whatever they are at."""
        started = [process for process in self._all if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()

    def _new(self) -> tuple[SpawnProcess, Connection]:
        here, there = _PROCESSES.Pipe()
        process = _PROCESSES.Process(target=_serve, args=(there, self._work), daemon=True)
        # Known before it starts: Ctrl-C may come at any moment from then on.
        self._all.append(process)
        with _deaf_to_interrupts():
            process.start()
        # The only other end must be the process's, or its death would not be heard.
        there.close()
        try:
            here.recv()
        except (EOFError, OSError):
            process.join()
            raise RuntimeError(
                f"a process could not start ({Died(process.exitcode).reason}); -j needs a program "
                "whose main module can be imported"
            ) from None
        return process, here


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
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send("ready")
        while True:
            piece = connection.recv()
            try:
                answer: tuple[str, Any] = "", work(piece)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}", None
            connection.send(answer)
