"""A pytest plugin: all tests use the kernel that lies at LIC_KERNEL, not the installed one."""

import importlib.util
import os
import sys
from pathlib import Path

NAME = "lic.codec.entropy._rans"


def _load(path: Path) -> None:
    assert not any(name.startswith("lic.codec") for name in sys.modules)
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


# Now, before a conftest asks for it.
_load(Path(os.environ["LIC_KERNEL"]).resolve())


def pytest_report_header() -> str:
    """Say which kernel the coder took."""
    from lic.codec.entropy import rans

    assert rans._c is sys.modules[NAME]
    return f"kernel: {rans._c.__file__}"
