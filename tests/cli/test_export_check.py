"""lic export check: what it prints, and what it refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Lic = Callable[..., Any]


def test_a_bundle_gives_one_object_for_every_graph_and_target(lic: Lic, tiny_bundle: Path) -> None:
    done = lic(
        "export", "check", tiny_bundle, "--json", "--target", "rk3588", "--target", "openvino"
    )
    found = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [(f["graph"], f["target"]) for f in found] == [
        (graph, target) for graph in ("encoder", "decoder") for target in ("rk3588", "openvino")
    ]
    assert found[0]["totals"]["network"] == {"npu": 7, "cpu": 0, "fails": 0, "unknown": 0}
    assert found[0]["compiled"] == [] and found[0]["unasked"] == ""
    assert {"placement", "reason", "cure", "known"} <= found[0]["operators"][0].keys()


def test_the_table_names_place_reason_and_cure(lic: Lic) -> None:
    done = lic("export", "check", "bmshj2018-factorized-relu-128-192", "--target", "rk3588")
    assert done.code == 0
    assert "ConvTranspose k5 s2 output_padding 1" in done.out and "--upsample k6" in done.out
    assert "network: 7 NPU, 0 CPU" in done.out and "3 NPU, 0 CPU, 4 fails" in done.out
    assert "the size is free" in done.out


def test_an_onnx_file_is_checked_for_all_targets(lic: Lic, tiny_bundle: Path) -> None:
    from lic.export.targets.rules import TARGETS

    done = lic("export", "check", tiny_bundle / "encoder.onnx", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [f["target"] for f in found] == list(TARGETS)


def test_without_toolkits_the_reason_is_told(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIC_VELA_PYTHON", raising=False)
    done = lic("export", "check", tiny_bundle, "--target", "ethos-u55", "--compiled")
    assert done.code == 0 and "ethos-u-vela was not asked" in done.out.replace("\n", " ")


def test_a_compiler_that_fails_is_a_line_of_the_table(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lic's own Python has no such package.
    monkeypatch.setenv("LIC_RKNN_PYTHON", sys.executable)
    options = ("--target", "rk3588", "--compiled", "--size", "32x48")
    for source in (tiny_bundle, tiny_bundle / "encoder.onnx"):
        done = lic("export", "check", source, *options)
        assert done.code == 0 and "rknn-toolkit2, rk3588: fails" in done.out
    alone = tmp_path / "encoder.onnx"
    shutil.copy(tiny_bundle / "encoder.onnx", alone)
    done = lic("export", "check", alone, *options)
    assert done.code == 9 and "keep them beside the graph" in done.err
    done = lic(
        "export", "check", tiny_bundle, "--target", "rk3588", "--compiled", "--size", "32x48"
    )
    assert done.code == 0 and "rknn-toolkit2, rk3588: fails" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("MODEL", "--target", "abacus"), 2, "no target 'abacus'; expected one of generic-int8"),
        (("MODEL", "--size", "100x100"), 2, "multiples of 16"),
        (("MODEL", "--size", "256"), 2, "expected HxW"),
        (("x.onnx", "-q", "1"), 2, "leave it out"),
        (("missing.onnx",), 3, "cannot be read"),
        (("no-such-model",), 5, "no bundle 'no-such-model'"),
        (("NOT-ONNX",), 9, "not an ONNX model"),
    ],
)
def test_what_cannot_work_is_refused(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    names = {"MODEL": str(tiny_bundle), "NOT-ONNX": str(broken)}
    done = lic("export", "check", *(names.get(a, a) for a in arguments))
    assert done.code == code and message in done.err
