"""The fuzzer of the kernel finds nothing in it, and finds the faults that are put into it."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNEL = HERE.parents[1] / "codec/lic/codec/entropy/_rans.c"
FLAGS = ["-g", "-O1", "-std=c11", "-fno-sanitize-recover=all", "-DSTANDALONE"]
SANITIZE = "-fsanitize=address,undefined"
# Each takes one check out of the kernel.
PLANTED = {
    "words may be read beyond their end": (
        "            if (words.end - words.next < 2)\n                return OUT_OF_WORDS;\n",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "an escape has several spellings": (
        "|| (byte == 0 && shift > 7) ",
        "not so: same(&streams, &again)",
    ),
}


def compiled(kernel: Path, target: Path) -> Path:
    compiler = next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    include = Path(sysconfig.get_paths()["include"])
    if not compiler or not (include / "Python.h").exists():
        pytest.skip("no C compiler, or no Python headers")
    definition = f'-DKERNEL="{kernel}"'
    include_ours = f"-I{KERNEL.parent}"
    command = [
        compiler,
        *FLAGS,
        SANITIZE,
        definition,
        f"-I{include}",
        include_ours,
        str(HERE / "fuzz_rans.c"),
    ]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    if done.returncode and "san" in done.stderr:
        pytest.skip(f"{compiler} has no sanitizers")
    assert done.returncode == 0, done.stderr
    return target


def test_a_second_of_it_finds_nothing(tmp_path: Path) -> None:
    program = compiled(KERNEL, tmp_path / "fuzz")
    done = subprocess.run([program, "1"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    inputs, _, end = done.stdout.partition(" ")
    assert int(inputs) > 1000 and end == "inputs, nothing wrong\n"


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_the_kernel_is_found(tmp_path: Path, fault: str) -> None:
    check, said = PLANTED[fault]
    source = KERNEL.read_text()
    assert source.count(check) == 1
    planted = tmp_path / "planted.c"
    planted.write_text(source.replace(check, ""))
    program = compiled(planted, tmp_path / "fuzz")
    done = subprocess.run([program, "20"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert said in done.stderr
