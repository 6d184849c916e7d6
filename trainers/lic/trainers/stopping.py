"""How runs end before their time: asked to, or because another process did."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from torch import distributed

from lic.codec.errors import TrainingError


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has stopped, after a checkpoint."""


@contextlib.contextmanager
def peers_told_apart() -> Iterator[None]:
    """Tell the end of another process, which has said why itself, from mistakes of this one.

    Raises:
        TrainingError: in place of what torch's communication raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
            raise
        raise TrainingError(
            "another process of this run has ended, and said why where its messages go; the last "
            "checkpoint is kept, and --resume goes on from there"
        ) from error


@contextlib.contextmanager
def stopped_by_signals(stop: threading.Event, *, wanted: bool) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `stop`; the second acts as ever.

    Not with several processes, which would stop at different steps and wait for each other.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number, old in before.items():
        # What a parent made ignored stays so: nohup and background jobs count on it.
        if old is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
