"""The fuzzer of the kernel finds nothing in it, and finds the faults that are put into it."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "codec/lic/codec/entropy"
KERNEL, CONTEXTS = "_rans.c", "_contexts.h"
FLAGS = ["-g", "-O1", "-std=c11", "-fno-sanitize-recover=all", "-DSTANDALONE"]
SANITIZE = "-fsanitize=address,undefined"
# Without SSE2 the kernel takes the path of arm64.
PLAIN = "-U__SSE2__"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
UNLIKE = "not so: indexes[at] == table_at("
# Each takes one check out of the kernel, or puts another in its place: in which file, the path that
# meets it, what is replaced and by what, and what the fuzzer says.
PLANTED = {
    "words may be read beyond their end": (
        KERNEL,
        "",
        "            if (words.end - words.next < 2)\n                return OUT_OF_WORDS;\n",
        "",
        OVERFLOW,
    ),
    "an escape has several spellings": (
        KERNEL,
        "",
        "|| (byte == 0 && shift > 7) ",
        "",
        "not so: same(&streams, &again)",
    ),
    "a class is not clamped above": (
        CONTEXTS,
        "",
        "    total = _mm_min_epi16(total, _mm_set1_epi16(CLASSES - 1));\n",
        "",
        OVERFLOW,
    ),
    "a class is not clamped below": (
        CONTEXTS,
        PLAIN,
        ">> CLASS_SHIFT, 0, CLASSES - 1)",
        ">> CLASS_SHIFT, -9, CLASSES - 1)",
        OVERFLOW,
    ),
    "sums are not clamped": (
        CONTEXTS,
        PLAIN,
        "clamp(sums.at[k] >> SUM_SHIFT, INT16_MIN, INT16_MAX)",
        "sums.at[k] >> SUM_SHIFT",
        UNLIKE,
    ),
    "a guess is not clamped": (
        CONTEXTS,
        "",
        "(int16_t)clamp(sum >> VALUE_SHIFT, INT16_MIN, INT16_MAX)",
        "(int16_t)(sum >> VALUE_SHIFT)",
        "not so: (uint16_t)tile->coded[at] == (uint16_t)residual",
    ),
    "words may be read beyond their end within a group": (
        CONTEXTS,
        "",
        "            if (words->end - words->next < 2)\n                return OUT_OF_WORDS;\n",
        "",
        OVERFLOW,
    ),
    "a group needs one word less": (
        CONTEXTS,
        "",
        "words.end - words.next >= 2 * LANES)",
        "words.end - words.next >= 2 * LANES - 2)",
        OVERFLOW,
    ),
    "contexts may name tables that are not there": (
        CONTEXTS,
        "",
        "if (!problem && all->tables > call.tables->count)",
        "if (!problem && all->tables > 256)",
        "ERROR: AddressSanitizer",
    ),
    "symbols may have another size than their shape": (
        CONTEXTS,
        "",
        "        || count != height * width * all->channels)",
        ")",
        OVERFLOW,
    ),
}


def compiled(kernel: Path, target: Path, path: str = "") -> Path:
    compiler = next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    if not compiler:
        pytest.skip("no C compiler")
    command = [
        compiler,
        *FLAGS,
        *filter(None, [path]),
        SANITIZE,
        f'-DKERNEL="{kernel}"',
        f"-I{HERE / 'kernel'}",
        str(HERE / "fuzz_rans.c"),
    ]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    if done.returncode and "san" in done.stderr:
        pytest.skip(f"{compiler} has no sanitizers")
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize("path", ["", PLAIN], ids=["own", "plain"])
def test_a_second_of_it_finds_nothing(tmp_path: Path, path: str) -> None:
    program = compiled(SOURCES / KERNEL, tmp_path / "fuzz", path)
    done = subprocess.run([program, "1"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    inputs, _, end = done.stdout.partition(" ")
    assert int(inputs) > 1000
    assert end in [f"inputs on the path {name}, nothing wrong\n" for name in ("plain", "SSE2")]
    assert not path or "plain" in end


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_the_kernel_is_found(tmp_path: Path, fault: str) -> None:
    name, path, check, other, said = PLANTED[fault]
    for file in (KERNEL, CONTEXTS):
        source = (SOURCES / file).read_text()
        if file == name:
            assert source.count(check) == 1
            source = source.replace(check, other)
        (tmp_path / file).write_text(source)
    program = compiled(tmp_path / KERNEL, tmp_path / "fuzz", path)
    done = subprocess.run([program, "20"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert said in done.stderr
