"""The oracle: tests of lic's models against CompressAI, where that is installed.

`run.sh` installs it in an environment of its own and sets LIC_ORACLE=1, so that there a missing
CompressAI is a failure. Elsewhere these tests are not collected: CompressAI pins numpy < 2, pulls
in a torch of its own and has no wheels for many platforms, hence it is none of lic's dependencies.
"""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

collect_ignore_glob: list[str] = []


def _absent(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("a stand-in: the real package is not part of the oracle")


class _Absent:
    __init__ = _absent


def _unchanged(*_: Any, **__: Any) -> Callable[[type], type]:
    return lambda decorated: decorated


# CompressAI imports these for data sets and point clouds, which its image models do without.
_STAND_INS: dict[str, dict[str, Any]] = {
    "pandas": {},
    "requests": {},
    "torchvision": {},
    "torchvision.transforms": {},
    "torch_geometric": {},
    "torch_geometric.data": {"Data": _Absent},
    "torch_geometric.data.datapipes": {"functional_transform": _unchanged},
    "torch_geometric.transforms": {"BaseTransform": _Absent, "Center": _Absent},
}


def _import_compressai() -> None:
    for name, content in _STAND_INS.items():
        module = types.ModuleType(name)
        module.__dict__.update(content, __path__=[])
        sys.modules[name] = module
        package, _, leaf = name.rpartition(".")
        if package:
            setattr(sys.modules[package], leaf, module)
    importlib.import_module("compressai")
    # Others that look for these packages must not find them.
    for name in _STAND_INS:
        del sys.modules[name]


if importlib.util.find_spec("compressai") is not None:
    _import_compressai()
elif os.environ.get("LIC_ORACLE") == "1":
    raise pytest.UsageError(
        "CompressAI is not installed in the oracle's environment: remove .oracle and run "
        "tests/oracle/run.sh again"
    )
else:
    collect_ignore_glob.append("test_*.py")
