import os
import shutil
from typing import Any

import numpy as np
import pytest

from lic.codec.entropy import KernelName, Tables, build_tables, rans


@pytest.fixture
def c_kernel() -> Any:
    """The compiled module. Where it could be built, its absence is a failure, not a skip."""
    if rans._c is not None:
        return rans._c
    compiler = os.environ.get("CC") or next(
        filter(shutil.which, ("cc", "gcc", "clang", "cl")), None
    )
    message = "the C kernel lic.codec.entropy._rans is not built: run `pip install -e .`"
    if os.environ.get("CI") == "true" or compiler:
        pytest.fail(message)
    pytest.skip(message + " where there is a C compiler")


@pytest.fixture(params=["c", "python"])
def kernel(request: pytest.FixtureRequest) -> KernelName:
    if request.param == "c":
        request.getfixturevalue("c_kernel")
    name: KernelName = request.param
    return name


@pytest.fixture(scope="session")
def mixed_tables() -> Tables:
    """Skewed tables of 1, 2, 8, 59, 255, 255 (of 399) and 0 symbols beside the escape."""
    rng = np.random.default_rng(0)
    pmfs = [rng.random(n) ** 4 + 1e-9 for n in (2, 3, 9, 60, 256, 400, 1)]
    return build_tables(pmfs, [0, -1, -4, -30, -128, -200, 7])
