"""Energy that counters of the machine tell: RAPL for processors, NVML for GPUs; none is an answer.

Counters are the whole machine's, not a process's: they also count what others do meanwhile.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A counter of joules that only rises.

    Attributes:
        name: "package-0", "dram", or a GPU's name.
        read: returns joules.
        range: joules after which it starts at zero again, None: never.
    """

    name: str
    read: Callable[[], float]
    range: float | None = None


class EnergyMeter:
    """Adds up counters. With none of them energy is unknown."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = tuple(counters)

    @property
    def names(self) -> tuple[str, ...]:
        """What is added up."""
        return tuple(counter.name for counter in self._counters)

    def read(self) -> tuple[float, ...]:
        """Return what every counter says now, in joules."""
        return tuple(counter.read() for counter in self._counters)

    def since(self, before: Sequence[float]) -> float | None:
        """Return the joules since `read` gave `before`, None without counters.

        A counter that fell has started anew; once at most, as they take a minute or longer.
        """
        if not self._counters:
            return None
        total = 0.0
        for counter, first, last in zip(self._counters, before, self.read(), strict=True):
            around = counter.range if last < first and counter.range else 0.0
            total += max(0.0, last - first + around)
        return total


def rapl_counters(root: Path = POWERCAP) -> list[Counter]:
    """Return the counters of processor packages and their memory that may be read.

    Parts of a package (core, uncore) are in it, "psys" is more than what computes, and
    intel-rapl-mmio tells the same again. Most systems let only root read them.
    """
    counters = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            # Not a file to keep open: each reading is a new one.
            _microjoules(folder / "energy_uj")
            most = _microjoules(folder / "max_energy_range_uj")
        except (OSError, ValueError):
            continue
        if name.startswith("package") or name == "dram":
            counters.append(Counter(name=name, read=_reader(folder / "energy_uj"), range=most))
    return counters


def _reader(file: Path) -> Callable[[], float]:
    return lambda: _microjoules(file)


def _microjoules(file: Path) -> float:
    """Return a file's number in joules."""
    return int(file.read_text()) / 1e6


def nvml_counters(device: str) -> list[Counter]:
    """Return the counter of a CUDA device, where `pynvml` is installed and the GPU has one."""
    if find_spec("pynvml") is None:
        return []
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        handle = _gpu(nvml, device)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return []
    return [
        Counter(
            name=name.decode() if isinstance(name, bytes) else str(name),
            read=lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        )
    ]


def _gpu(nvml: object, device: str) -> object:
    """Return NVML's handle of "cuda" or "cuda:1", which count visible devices only."""
    index = int(device.partition(":")[2] or 0)
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    which = visible[index] if index < len(visible) and visible[index] else str(index)
    if which.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(which))  # type: ignore[attr-defined]
    return nvml.nvmlDeviceGetHandleByUUID(which)  # type: ignore[attr-defined]


def energy_meter(device: str) -> EnergyMeter:
    """Return a meter of the processors and, for a CUDA device, its GPU."""
    counters = rapl_counters() if sys.platform == "linux" else []
    if device.lower().startswith(("cuda", "tensorrt")):
        counters += nvml_counters(device)
    return EnergyMeter(counters)
