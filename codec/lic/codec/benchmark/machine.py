"""Where a measurement was taken: processor, memory, system and the versions of what computes."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lic.codec.benchmark.schema import Machine

# Distributions that code, compute or measure; one name for each of ONNX Runtime's builds.
LIBRARIES = (
    "lic",
    "numpy",
    "pillow",
    "pillow-jxl-plugin",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "openvino",
    "torch",
    "lpips",
)
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def machine(accelerators: Sequence[str] = ()) -> Machine:
    """Return the description of this machine.

    Args:
        accelerators: names of GPUs and NPUs that were used; processors are found here.
    """
    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        memory=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
        accelerators=tuple(accelerators),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed, without importing."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name as the system tells it, "unknown" where it does not."""
    ways: dict[str, Callable[[], str]] = {
        "linux": lambda: cpu_of_proc(_text(_PROC / "cpuinfo")),
        "darwin": lambda: _said("sysctl", "-n", "machdep.cpu.brand_string"),
        "win32": _cpu_of_registry,
    }
    tell = ways.get(sys.platform, str)
    return tell() or platform.processor() or platform.machine() or "unknown"


def cpu_of_proc(text: str) -> str:
    """Return the processor's name from what /proc/cpuinfo says; "" where it has none.

    x86 has "model name"; ARM boards have "Hardware" or "Model", and otherwise only numbers of the
    implementer and the part.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    for key in ("model name", "Hardware", "Model", "cpu model"):
        if name := values.get(key, ""):
            return " ".join(name.split())
    if "CPU part" in values:
        return f"ARM implementer {values.get('CPU implementer', '?')} part {values['CPU part']}"
    return ""


def memory_bytes() -> int | None:
    """Return the memory that this process may use, None where the system does not tell.

    In a container that is its limit, where it has one.
    """
    if sys.platform == "linux":
        return memory_of_linux(_PROC, _CGROUP)
    if sys.platform == "darwin":
        said = _said("sysctl", "-n", "hw.memsize")
        return int(said) if said.isdecimal() else None
    if sys.platform == "win32":
        return _memory_of_windows()
    return None


def memory_of_linux(proc: Path, cgroup: Path) -> int | None:
    """Return the least of what /proc/meminfo and the control group's limit say."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    sizes = [int(found[1]) * 1024] if found else []
    # Version 2 of control groups, then version 1, which writes a huge number for "no limit".
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _text(cgroup / name).strip()
        if limit.isdecimal():
            sizes.append(int(limit))
    return min(sizes, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _said(*command: str) -> str:
    """Return what a program of the system prints; "" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu_of_registry() -> str:
    if sys.platform != "win32":
        return ""
    import winreg

    key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return str(winreg.QueryValueEx(opened, "ProcessorNameString")[0]).strip()
    except OSError:
        return ""


def _memory_of_windows() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    told = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 if told else None
