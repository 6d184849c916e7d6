"""Where the time of coding goes: milliseconds per stage, measured where the work is done.

Stages lie within each other, and each counts only its own time, so that together they are the
time that was measured. An engine that cannot tell copying or rounding from its networks has
no such stage.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Stages:
    """Milliseconds of wall time per stage, in the order in which they began."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=list, repr=False)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, without that of stages inside of it."""
        self.milliseconds.setdefault(name, 0.0)
        self._within.append(0.0)
        token = _measuring.set(self)
        start = _now()
        try:
            yield
        finally:
            spent = (_now() - start) * 1000
            _measuring.reset(token)
            self.milliseconds[name] += spent - self._within.pop()
            if self._within:
                self._within[-1] += spent

    def add(self, milliseconds: dict[str, float]) -> None:
        """Add the stages of another measurement."""
        for name, spent in milliseconds.items():
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent


_measuring: ContextVar[Stages | None] = ContextVar("_measuring", default=None)
_wait: ContextVar[Callable[[], object] | None] = ContextVar("_wait", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time of the block to a stage of whatever this thread is coding, if it is measured.

    For what lies below the pipeline and is handed no `Stages`.
    """
    stages = _measuring.get()
    if stages is None:
        yield
        return
    with stages.measure(name):
        yield


@contextmanager
def synchronised(wait: Callable[[], object]) -> Iterator[None]:
    """Wait for a device whenever a stage begins or ends: what it still does is that stage's.

    For measurements only, as nothing overlaps any more.
    """
    token = _wait.set(wait)
    try:
        yield
    finally:
        _wait.reset(token)


def _now() -> float:
    if wait := _wait.get():
        wait()
    return time.perf_counter()
