"""lic verify --self-test: green where lic works, red where engine, coder or model is off."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import self_test
from lic.codec.backends.base import FactorizedBackend
from lic.codec.bundle import EMBEDDED
from lic.codec.entropy import _contexts_py, _rans_py, context_coder, rans

Lic = Callable[..., Any]
FAMILIES = sorted(folder.name for folder in EMBEDDED.iterdir())
LITE = "bmshj2018-factorized-relu-lite"


@pytest.fixture
def lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Embedded models that a test may damage: a copy of the smaller family, all there is."""
    folder = tmp_path / "bundles"
    shutil.copytree(EMBEDDED / LITE, folder / LITE)
    monkeypatch.setattr(self_test, "EMBEDDED", folder)
    return folder


def test_every_model_on_every_engine_has_a_line(lic: Lic) -> None:
    done = lic("verify", "--self-test")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if ": ok, " in line]
    found = [re.match(r"(\S+) q(\d), (\w+) on cpu: ok, .* dB, C kernel, ", x) for x in lines]
    assert [(m[1], m[3]) for m in found if m] == [
        (family, engine) for family in FAMILIES for engine in ("onnx", "torch")
    ]
    assert lic("verify", "--self-test", "--backend", "onnx", "--quiet").err == ""


def test_neither_torch_nor_a_place_to_write_is_needed() -> None:
    code = """
import resource, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "onnx"):
            raise ModuleNotFoundError(name)
from importlib import util
real = util.find_spec
util.find_spec = lambda name, *more: None if name == "torch" else real(name, *more)
sys.meta_path.insert(0, Block())
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from lic.cli.app import run
sys.exit(run(["verify", "--self-test", "--json"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["backend"] for r in results] == ["onnx"] * len(FAMILIES)
    assert all(r["ok"] and r["psnr"] > 26 for r in results)


@pytest.mark.usefixtures("lite")
def test_an_engine_that_computes_something_else_is_found_and_hides_no_other(
    lic: Lic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels in another order, as from a converter that mistakes RGB for BGR."""
    real = FactorizedBackend.pixels

    def swapped(backend: Any, *seen: Any) -> NDArray[np.float32]:
        x_hat = real(backend, *seen)
        return x_hat[:, ::-1] if backend.name == "onnx" else x_hat

    monkeypatch.setattr(FactorizedBackend, "pixels", swapped)
    done = lic("verify", "--self-test", "--json")
    assert done.code == 5
    wrong, right = (json.loads(line) for line in done.out.splitlines())
    assert (wrong["backend"], wrong["exit_code"]) == ("onnx", 5)
    assert "expected at least 26" in wrong["error"] and wrong["error"] in done.err
    assert right["backend"] == "torch" and right["ok"]


@pytest.mark.usefixtures("lite")
def test_engines_that_disagree_are_found(lic: Lic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself gives a fine picture."""
    real = FactorizedBackend.pixels

    def brighter(backend: Any, *seen: Any) -> NDArray[np.float32]:
        return real(backend, *seen) + np.float32(0.012 * (backend.name == "torch"))

    monkeypatch.setattr(FactorizedBackend, "pixels", brighter)
    done = lic("verify", "--self-test")
    assert done.code == 5
    assert re.search(r"decodes on \w+ to pixels [34] levels away, expected at most 1", done.err)


@pytest.mark.usefixtures("lite")
def test_a_kernel_that_only_itself_can_read_is_found(
    lic: Lic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(contexts: Any, symbols: Any, *more: Any) -> None:
        _contexts_py.find_contexts(contexts, -symbols, *more)

    def decode(*arguments: Any) -> int:
        status = _contexts_py.decode_contexts(*arguments)
        group = arguments[5]
        np.negative(group, out=group)
        return status

    kernel = SimpleNamespace(
        prepare=_rans_py.prepare,
        encode=_rans_py.encode,
        prepare_contexts=_contexts_py.prepare_contexts,
        find_contexts=find,
        decode_contexts=decode,
    )
    monkeypatch.setattr(rans, "_c", kernel)
    prepared: list[Any] = [*rans._prepared.values(), *context_coder._prepared.values()]
    for known in prepared:
        known.clear()
    done = lic("verify", "--self-test", "--backend", "onnx")
    for known in prepared:
        known.clear()
    assert done.code == 5
    assert "writes other bytes than the Python coder" in done.err


def test_a_changed_byte_in_any_embedded_model_is_found(lic: Lic, lite: Path) -> None:
    """Also in a rate point that the picture is not coded with."""
    weights = lite / LITE / "1" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = lic("verify", "--self-test")
    assert done.code == 5
    assert str(weights) in done.err and "get the bundle again" in done.err


def test_missing_models_are_no_success(lic: Lic, lite: Path) -> None:
    shutil.rmtree(lite / LITE)
    done = lic("verify", "--self-test")
    assert done.code == 5 and "found no embedded models" in done.err


@pytest.mark.usefixtures("lite")
def test_failures_of_several_kinds_end_like_a_batch(
    lic: Lic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(backend: Any, *_: Any) -> NDArray[np.float32]:
        raise MemoryError if backend.name == "onnx" else ValueError("a bug")

    monkeypatch.setattr(FactorizedBackend, "pixels", broken)
    done = lic("verify", "--self-test", "--json")
    assert done.code == 8
    assert [json.loads(line)["exit_code"] for line in done.out.splitlines()] == [6, 1]


@pytest.mark.parametrize(
    "arguments", [("x.lic",), ("--structure",), ("-m", LITE), ("--backend", "tpu")]
)
def test_what_makes_no_sense_is_refused(lic: Lic, arguments: tuple[str, ...]) -> None:
    done = lic("verify", "--self-test", *arguments)
    assert done.code == 2 and "error" in done.err


def test_without_files_there_is_nothing_to_verify(lic: Lic) -> None:
    done = lic("verify")
    assert done.code == 2 and "--self-test" in done.err
