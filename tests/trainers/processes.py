"""Start processes, and look at them through /proc."""

import os
import time
from pathlib import Path


def environment() -> dict[str, str]:
    """Return this one for a process that imports tests, without what launchers may have left."""
    left = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name not in left}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _state(pid: int) -> list[str]:
    """Return the state, the parent's number and more; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    return _state(pid)[:1] not in ([], ["Z"])


def family(pid: int) -> list[int]:
    """Return all processes below `pid`."""
    everyone = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    parents = {p: int(state[1]) for p in everyone if (state := _state(p)) and state[0] != "Z"}
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found[1:]


def wait_for_the_end(pids: list[int], seconds: float = 20) -> bool:
    """Return whether all of them end in time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))
