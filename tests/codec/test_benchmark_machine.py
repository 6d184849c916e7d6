"""What a results file says of the machine is true, and missing rather than invented."""

import os
import platform
from pathlib import Path

import pytest

from lic.codec.benchmark.machine import cpu_of_proc, machine, memory_of_linux


def test_this_machine_is_described() -> None:
    found = machine(["NPU of a test"])
    assert found.cpu
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory is None or found.memory > 2**26
    assert platform.machine() in found.system
    assert found.accelerators == ("NPU of a test",)
    assert found.versions["python"] == platform.python_version()
    assert {"numpy", "pillow", "onnxruntime"} <= found.versions.keys()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: CPU @  2.0GHz\nmodel name : b\n", "CPU @ 2.0GHz"),
        ("processor : 0\nHardware : BCM2711\n", "BCM2711"),
        ("CPU implementer : 0x41\nCPU part : 0xd0c\n", "ARM implementer 0x41 part 0xd0c"),
        ("", ""),
    ],
)
def test_processor_is_read_on_x86_and_arm(text: str, name: str) -> None:
    assert cpu_of_proc(text) == name


def test_limit_of_a_container_counts(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "group"
    proc.mkdir()
    group.mkdir()
    assert memory_of_linux(proc, group) is None
    (proc / "meminfo").write_text("MemFree: 1 kB\nMemTotal:  4096 kB\n")
    assert memory_of_linux(proc, group) == 4096 * 1024
    (group / "memory.max").write_text("max\n")
    assert memory_of_linux(proc, group) == 4096 * 1024
    (group / "memory.max").write_text("1048576\n")
    assert memory_of_linux(proc, group) == 1048576


def test_a_system_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "plan9")
    found = machine()
    assert found.memory is None
    assert found.cpu
