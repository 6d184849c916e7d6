"""The most memory that this process has held."""

import re
import sys
from pathlib import Path


def peak_memory(status: Path = Path("/proc/self/status")) -> int | None:
    """Return the process's peak resident memory in bytes, None where the system does not tell.

    Linux hands a child's peak down from its parent in `getrusage`, so its other source is taken.
    """
    if sys.platform == "linux":
        try:
            found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        except OSError:
            found = None
        return int(found[1]) * 1024 if found else None
    if sys.platform == "win32":
        return _of_windows()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _of_windows() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    told = kernel.K32GetProcessMemoryInfo(
        wintypes.HANDLE(kernel.GetCurrentProcess()), ctypes.byref(counters), counters.size
    )
    return int(counters.peak) if told else None
