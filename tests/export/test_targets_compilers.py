"""Asking compilers in environments of their own: whatever a worker does becomes a result."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError
from lic.export.targets.compilers import TOOLKITS, arm, compile_reports, rockchip
from lic.export.targets.compilers.qualcomm import QNN
from lic.export.targets.compilers.toolkit import typical_inputs
from lic.export.targets.report import Compiled, check
from lic.export.targets.rules import load
from lic.export.targets.source import Graph, of_bundle

SIZE = (32, 32)
GOOD = {
    "versions": {"onnxruntime-qnn": "9.9"},
    "results": {
        "fp16": {
            "operators": [{"operator": "Conv", "name": "c", "placement": "npu", "reason": ""}],
            "estimates": {"cycles": 1200, "kib": {"sram": 3.5}},
        },
        "a8w8": {"error": "out of memory"},
    },
}


def fake(folder: Path, body: str) -> Path:
    """Return an executable that is called as a toolkit's Python would be."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys, time, os\n"
                    f"request = json.load(open(sys.argv[2]))\n{body}\n")  # fmt: skip
    path.chmod(0o755)
    return path


def answering(answer: Any) -> str:
    return f"open(request['answer'], 'w').write({json.dumps(answer)!r})"


def tiny() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 32, 32])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def ask(python: Path, *, time_limit: float = 60) -> dict[str, Compiled]:
    return QNN.ask(python, tiny(), ("fp16", "a8w8"), time_limit=time_limit)


def test_an_answer_becomes_one_result_for_every_configuration(tmp_path: Path) -> None:
    found = ask(fake(tmp_path, answering(GOOD)))
    assert found["fp16"].toolkit == "onnxruntime-qnn 9.9"
    assert (found["fp16"].count("npu"), found["fp16"].count("cpu")) == (1, 0)
    assert found["fp16"].estimates == {"cycles": 1200, "kib": {"sram": 3.5}}
    assert found["a8w8"].error == "out of memory"


def test_a_worker_gets_a_graph_that_it_can_open_and_not_our_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    body = (
        "error = json.dumps([os.path.getsize(request['model']) > 0, os.environ.get('PYTHONPATH'),"
        " os.path.getsize(request['inputs']) > 0])\n"
        "open(request['answer'], 'w').write(json.dumps("
        "{'versions': {'onnxruntime-qnn': '1'}, 'error': error}))"
    )
    found = ask(fake(tmp_path, body))
    assert json.loads(found["fp16"].error or "") == [True, None, True]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.stderr.write('a\\nno licence'); sys.exit(3)", "ended with 3: no licence"),
        ("os.kill(os.getpid(), 9)", "ended with -9"),
        ("pass", "left no answer"),
        ("open(request['answer'], 'w').write('I am no JSON')", "cannot be read"),
        (answering([1, 2]), "cannot be read"),
        (answering({"versions": {}}), "cannot be read"),
        (answering({**GOOD, "results": {}}), "no result"),
        (answering({**GOOD, "results": {"fp16": {"operators": [{}]}}}), "cannot be read"),
        (answering({**GOOD, "results": {"fp16": 7}}), "cannot be read"),
    ],
)
def test_a_worker_that_fails_is_a_result(tmp_path: Path, body: str, message: str) -> None:
    assert message in (ask(fake(tmp_path, body))["fp16"].error or "")


def test_a_worker_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    body = (
        "import subprocess\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\ntime.sleep(600)"
    )
    start = time.monotonic()
    found = ask(fake(tmp_path, body), time_limit=3)
    assert time.monotonic() - start < 60
    assert "was ended after 3 seconds" in (found["fp16"].error or "")
    if child.exists():
        stat = Path(f"/proc/{child.read_text()}/stat")
        # Ended; nobody may have taken note of it yet.
        assert not stat.exists() or stat.read_text().split(")")[1].split()[0] in "ZX"


def test_a_python_that_cannot_be_started_is_a_result(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("no program")
    assert "cannot be started" in (ask(path)["fp16"].error or "")


def test_where_a_toolkit_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIC_QNN_PYTHON", raising=False)
    assert QNN.find() is None and "LIC_QNN_PYTHON" in QNN.missing()
    made = tmp_path / ".npu" / "qnn" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.symlink_to(sys.executable)
    if os.name != "nt":
        assert QNN.find() == made
    monkeypatch.setenv("LIC_QNN_PYTHON", sys.executable)
    assert QNN.find() == Path(sys.executable)
    monkeypatch.setenv("LIC_QNN_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="LIC_QNN_PYTHON"):
        QNN.find()


def test_reports_get_what_their_target_s_compiler_says(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for toolkit in TOOLKITS.values():
        monkeypatch.delenv(toolkit.variable, raising=False)
    monkeypatch.setenv("LIC_QNN_PYTHON", str(fake(tmp_path, answering(GOOD))))
    encoder, _ = of_bundle(Bundle.open(tiny_bundle))
    names = ("hexagon-htp", "ethos-u55", "tensorrt")
    reports = [check(encoder, load(name)) for name in names]
    qnn, vela, none = compile_reports(encoder, reports, size=SIZE)
    assert [c.configuration for c in qnn.compiled] == ["fp16", "a8w8", "a16w8"]
    assert qnn.differs(qnn.compiled[0]) == ""
    assert qnn.differs(qnn.compiled[1]) == "the rules expect no failure"
    assert "ethos-u-vela was not asked" in vela.unasked and vela.compiled == ()
    assert "no compiler for tensorrt" in none.unasked
    fell = replace(qnn.compiled[0], operators=({"operator": "Conv", "placement": "cpu"},))
    assert qnn.differs(fell) == "on the CPU by the rules: nothing; by the compiler: 1 Conv"


def test_compilers_are_not_asked_about_graphs_of_several_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As HPCM has them between encoder and decoder; the other graphs are checked all the same."""
    monkeypatch.setenv("LIC_QNN_PYTHON", str(fake(tmp_path, answering(GOOD))))
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]))
    graph = Graph(source="s", name="g", model=model)
    (report,) = compile_reports(graph, [check(graph, load("hexagon-htp"))], size=SIZE)
    assert report.compiled == () and "it has 2 inputs" in report.unasked


def test_typical_inputs_are_pictures_or_integers() -> None:
    picture = typical_inputs(tiny())
    assert picture.shape == (4, 1, 3, 32, 32) and picture.dtype == np.float32
    assert (picture.min(), picture.max()) == (0, 1)
    model = tiny()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 12
    latents = typical_inputs(model)
    assert np.array_equal(latents, np.round(latents)) and latents.min() < 0 < latents.max()


def test_rockchip_gets_an_opset_that_it_reads() -> None:
    prepared = rockchip.prepare(tiny())
    assert prepared.opset_import[0].version == 19 and prepared.ir_version <= 9


def test_a_wrong_conversion_to_tflite_is_found(tmp_path: Path) -> None:
    inputs = typical_inputs(tiny())
    assert "left no outputs" in arm.verify(tiny(), inputs, tmp_path)
    np.save(tmp_path / "outputs.npy", inputs[0])
    assert arm.verify(tiny(), inputs, tmp_path) == ""
    np.save(tmp_path / "outputs.npy", np.roll(inputs[0], 1, -1))
    assert "differs by" in arm.verify(tiny(), inputs, tmp_path)
    np.save(tmp_path / "outputs.npy", inputs[0][..., :-1])
    assert "gives (1, 3, 32, 31)" in arm.verify(tiny(), inputs, tmp_path)
