"""Processes beside the main one: how they start, and that none outlives it."""

import os
import signal
import sys
import threading
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext


def worker_context(module: str) -> BaseContext:
    """Return how to start workers whose work is in `module`.

    Never by a plain fork: a lock that another thread holds at that moment, such as one of torch's,
    would stay locked in the worker for ever. A server that has imported `module` forks them
    instead, so that only the first one costs time.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def begin_worker(number: int = 0) -> None:
    """Set up a worker process: Ctrl-C is for its parent, and so is the parent's end for it.

    Args:
        number: of the worker, as torch gives it; not used.
    """
    del number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end: one that was killed cannot tell its workers to stop."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
