"""Compiles one ONNX graph for Ethos-U NPUs; runs in the environment of ethos-u-vela.

    python vela_worker.py REQUEST.json

The request names the graph, an array of typical inputs, a folder, accelerators as `configurations`,
and the file for the answer.
"""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parent))
from tflite_layers import CannotConvert, Layers

_REASON = re.compile(r"operator: (\w+), ofm: '([^']*)'\s*\n\s*(?:- )?Reason: (.*)")


def main(request_file: str) -> None:
    """Do what a request says."""
    request = json.loads(Path(request_file).read_text())
    folder = Path(request["folder"])
    answer: dict[str, Any] = {
        "versions": {name: version(name) for name in ("ethos-u-vela", "tensorflow-cpu")}
    }
    try:
        content, outputs = to_tflite(onnx.load(request["model"]), np.load(request["inputs"]))
    except CannotConvert as error:
        answer["error"] = str(error)
    else:
        np.save(folder / "outputs.npy", outputs)
        path = folder / "graph.tflite"
        path.write_bytes(content)
        answer["results"] = {name: compiled(path, name) for name in request["configurations"]}
    Path(request["answer"]).write_text(json.dumps(answer))


def to_tflite(model: onnx.ModelProto, inputs: Any) -> tuple[bytes, Any]:
    """Return an int8 file, and what the float function gives for the first input, in ONNX's order.

    Args:
        model: complete, of one size.
        inputs: (K, N, C, H, W), typical ones, whose values decide the ranges of integers.
    """
    layers = Layers(model)
    samples = [tf.constant(x.transpose(0, 2, 3, 1)) for x in inputs]
    signature = [tf.TensorSpec(layers.shape, tf.float32)]
    # As it is written: rewriting Python's control flow would wrap the layers' own errors.
    traced = tf.function(layers, input_signature=signature, autograph=False)
    function = traced.get_concrete_function()

    def typical() -> Iterator[list[Any]]:
        for sample in samples:
            yield [sample]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = typical
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return converter.convert(), function(samples[0]).numpy().transpose(0, 3, 1, 2)


def compiled(path: Path, accelerator: str) -> dict[str, Any]:
    """Return what vela makes of a file: operators with their place, and estimates."""
    output = path.parent / accelerator
    vela = [str(Path(sys.executable).with_name("vela")), str(path), "--output-dir", str(output),
            "--accelerator-config", accelerator, "--verbose-performance"]  # fmt: skip
    done = subprocess.run(vela, capture_output=True, text=True, check=False)
    tables = list(output.glob("*_per-layer.csv")), list(output.glob("*_summary_*.csv"))
    if done.returncode or not all(tables):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return {"error": f"vela ended with {done.returncode}: {' '.join(last)}"}
    reasons = {name: reason for _, name, reason in _REASON.findall(done.stdout + done.stderr)}
    layers: dict[tuple[str, str], dict[str, Any]] = {}
    with tables[0][0].open(newline="") as file:
        for row in csv.DictReader(file):
            # What vela splits into several steps is one operator of the file.
            layer = layers.setdefault(
                (row["Original Operator"], row["Name"]),
                {
                    "operator": row["Original Operator"],
                    "name": row["Name"],
                    "placement": row["Target"].lower(),
                    "reason": reasons.get(row["Name"], ""),
                    "cycles": 0,
                },
            )
            layer["cycles"] += int(float(row["Op Cycles"]))
    with tables[1][0].open(newline="") as file:
        summary = next(csv.DictReader(file))
    kib = {
        area: float(summary[f"{area}_memory_used"])
        for area in ("sram", "dram", "on_chip_flash", "off_chip_flash")
    }
    return {
        "operators": list(layers.values()),
        "estimates": {
            "cycles": int(float(summary["cycles_total"])),
            "milliseconds": 1000 * float(summary["inference_time"]),
            "clock_mhz": float(summary["core_clock"]) / 1e6,
            "kib": {area: round(used, 1) for area, used in kib.items() if used},
        },
        "configuration": {
            key: summary[key]
            for key in ("accelerator_configuration", "system_config", "memory_mode")
        },
    }


if __name__ == "__main__":
    main(sys.argv[1])
