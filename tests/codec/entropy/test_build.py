import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "codec/lic/codec/entropy/_rans.c"


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_compiler_there_is_one_line_and_no_module(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    problem = hook.compile_kernel(SOURCE, tmp_path / "_rans.so")
    assert problem == "no C compiler was found"
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_named(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = shutil.which("false")
    if not false:
        pytest.skip("no command that fails")
    monkeypatch.setenv("CC", false)
    assert hook.compile_kernel(SOURCE, tmp_path / "_rans.so") == f"{false} failed"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="the flags are those of gcc and clang")
def test_the_kernel_compiles_without_a_warning(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if not compiler or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("no C compiler, or no Python headers")
    monkeypatch.setenv("CC", f"{compiler} -Wall -Wextra -Wconversion -Werror -Wno-sign-conversion")
    module = tmp_path / "_rans.abi3.so"
    assert hook.compile_kernel(SOURCE, module) == ""
    assert module.stat().st_size > 0


def test_the_hook_marks_the_wheel_only_when_there_is_a_module(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class App:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def display_warning(self, line: str) -> None:
            self.lines.append(line)

    folder = tmp_path / hook.FOLDER
    folder.mkdir(parents=True)
    (folder / "_rans.c").write_text("int main(void) { return 0; }\n")
    build_data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    app = App()
    made = hook.KernelBuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app)
    monkeypatch.setenv("CC", "/nowhere/cc")
    made.initialize("standard", build_data)
    assert build_data == {"artifacts": [], "pure_python": True}
    assert len(app.lines) == 1

    monkeypatch.setattr(hook, "compile_kernel", lambda *_: "")
    made.initialize("standard", build_data)
    assert build_data["pure_python"] is False
    assert build_data["tag"].startswith("cp311-abi3-")
    (artifact,) = build_data["artifacts"]
    assert artifact.startswith("codec/lic/codec/entropy/_rans.")
