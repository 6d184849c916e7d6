"""Compiles one ONNX graph for Hexagon HTP; runs in the environment of onnxruntime-qnn.

    python qnn_worker.py REQUEST.json

The request names the graph, an array of typical inputs, a folder, precisions as `configurations`,
and the file for the answer. The library compiles for the NPU on any x86 machine; nothing is
run, so there are no times.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_qnn
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

# Snapdragon 8 Gen 2: the first whose HTP has what later ones have; fp16 wants both numbers.
DEVICE = {"htp_arch": "73", "soc_model": "43"}
ACTIVATIONS = {"a8w8": QuantType.QUInt8, "a16w8": QuantType.QUInt16}

# They mark precisions; those at the graph's ends stay on the CPU, which has the floats.
MARKS = ("QuantizeLinear", "DequantizeLinear")


class Inputs(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    """Typical inputs one after the other."""

    def __init__(self, name: str, inputs: Any) -> None:
        self.left = iter([{name: x} for x in inputs])

    def get_next(self) -> Any:
        """Return the next one by the input's name, None at the end."""
        return next(self.left, None)


def main(request_file: str) -> None:
    """Do what a request says."""
    request = json.loads(Path(request_file).read_text())
    folder, model = Path(request["folder"]), Path(request["model"])
    onnxruntime.register_execution_provider_library("QNN", onnxruntime_qnn.get_library_path())
    answer: dict[str, Any] = {
        "versions": {name: version(name) for name in ("onnxruntime-qnn", "onnxruntime")},
        "results": {},
    }
    for precision in request["configurations"]:
        path = model
        try:
            if precision in ACTIVATIONS:
                path = folder / f"{precision}.onnx"
                quantize(model, path, np.load(request["inputs"]), ACTIVATIONS[precision])
            result = compiled(path, folder / f"{precision}_ctx.onnx")
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
            result = {"error": (str(error).strip().splitlines() or [repr(error)])[0]}
        answer["results"][precision] = result
    Path(request["answer"]).write_text(json.dumps(answer))


def quantize(model: Path, target: Path, inputs: Any, activations: Any) -> None:
    """Write a graph with quantised activations and int8 weights."""
    name = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0]
    quantize_static(
        model,
        target,
        Inputs(name.name, inputs),
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        # 16-bit quantisation is no standard operator before opset 21.
        extra_options={"UseQDQContribOps": activations is QuantType.QUInt16},
    )


def compiled(path: Path, context: Path) -> dict[str, Any]:
    """Return where every operator went, and the size of what was compiled."""
    session = onnxruntime.InferenceSession(path, _options(context))
    operators = [
        {
            "operator": node.op_type,
            "name": node.name,
            "placement": "cpu" if graph.ep_name == "CPUExecutionProvider" else "npu",
            "reason": "",
        }
        for graph in session.get_provider_graph_assignment_info()
        for node in graph.get_nodes()
        if node.op_type not in MARKS
    ]
    result: dict[str, Any] = {"operators": operators, "configuration": DEVICE}
    if context.is_file():
        result["estimates"] = {"kib": {"context": round(context.stat().st_size / 1024, 1)}}
    return result


def _options(context: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for key, value in (
        ("session.record_ep_graph_assignment_info", "1"),
        ("ep.context_enable", "1"),
        ("ep.context_embed_mode", "1"),
        ("ep.context_file_path", str(context)),
    ):
        options.add_session_config_entry(key, value)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "QNN"]
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    fp16 = {"enable_htp_fp16_precision": "1"}
    options.add_provider_for_devices(devices[:1], {**backend, **DEVICE, **fp16})
    return options


if __name__ == "__main__":
    main(sys.argv[1])
