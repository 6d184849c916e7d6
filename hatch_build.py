"""Compiles the entropy coder's C kernel into a stable-ABI module next to its source.

Hatchling runs this for wheels and for `pip install -e`. Without a C compiler the package stays pure
Python and uses `_rans_py.py`: the same bytes, slower.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("codec/lic/codec/entropy")


class KernelBuildHook(BuildHookInterface[Any]):
    """Builds `_rans` and marks the wheel as `cp311-abi3-<platform>`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and on success add the module to what is built."""
        root = Path(self.root)
        module = root / FOLDER / ("_rans.pyd" if os.name == "nt" else "_rans.abi3.so")
        # A module left from an earlier build must not pass for this one's.
        module.unlink(missing_ok=True)
        problem = compile_kernel(root / FOLDER / "_rans.c", module)
        if problem:
            self.app.display_warning(f"lic: no C kernel ({problem}); the Python coder serves")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{_platform()}"
        build_data["artifacts"].append(str(FOLDER / module.name).replace(os.sep, "/"))


def compile_kernel(source: Path, module: Path) -> str:
    """Compile `source` into `module`; return what went wrong, or nothing."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a free-threaded Python has no stable ABI"
    # Under another name until it is whole: someone may be importing the old one.
    fresh = module.with_name(f"{module.name}.{os.getpid()}")
    for command in _commands(source, fresh):
        try:
            done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"{command[0]} failed" + (f": {lines[-1]}" if lines else "")
    for leftover in source.parent.glob("_rans.obj"):
        leftover.unlink()
    if not fresh.exists():
        return "no C compiler was found"
    fresh.replace(module)
    return ""


def _commands(source: Path, module: Path) -> list[list[str]]:
    """Return the compiler's command lines, none if there is no compiler."""
    include = sysconfig.get_paths()["include"]
    chosen = os.environ.get("CC")
    if os.name == "nt" and not chosen:
        libraries = Path(sys.base_prefix) / "libs"
        cl = ["cl", "/nologo", "/O2", "/LD", f"/I{include}", str(source)]
        link = ["/link", f"/LIBPATH:{libraries}", f"/OUT:{module}", "/NOIMPLIB"]
        return [cl + link] if shutil.which("cl") else []
    candidates = [chosen] if chosen else [sysconfig.get_config_var("CC"), "cc", "gcc", "clang"]
    for candidate in filter(None, candidates):
        compiler = shlex.split(candidate)
        if shutil.which(compiler[0]):
            flags = ["-O3", "-std=c11", "-fPIC", "-fvisibility=hidden", f"-I{include}"]
            return [[*compiler, *flags, *_linking(), str(source), "-o", str(module)]]
    return []


def _linking() -> list[str]:
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup", *_mac_architectures()]
    return ["-shared"]


def _mac_architectures() -> list[str]:
    flags = shlex.split(os.environ.get("ARCHFLAGS", ""))
    return flags if "-arch" in flags else []


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
