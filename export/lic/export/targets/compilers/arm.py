"""Arm's Ethos-U, through ethos-u-vela, which compiles TFLite files and estimates their times.

TFLite comes from a conversion of lic's own (`tflite_layers`), which is compared with the graph: a
verdict on another function would be worth nothing.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from lic.export.targets.compilers.toolkit import Toolkit

# What the same function in another order of sums may differ by, relative to its largest value.
TOLERANCE = 1e-4


def verify(model: onnx.ModelProto, inputs: NDArray[np.float32], folder: Path) -> str:
    """Return in what the converted function differs from the graph, nothing where it does not."""
    try:
        found = np.load(folder / "outputs.npy")
    except (OSError, ValueError) as error:
        return f"the conversion to TFLite left no outputs ({error})"
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (expected, *_) = session.run(None, {session.get_inputs()[0].name: inputs[0]})
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
        return f"ONNX Runtime cannot run the graph to compare it with ({error})"
    if found.shape != expected.shape:
        return f"the conversion to TFLite gives {found.shape}, the graph {expected.shape}"
    gap = float(np.abs(found - expected).max() / max(1e-9, np.abs(expected).max()))
    return "" if gap <= TOLERANCE else f"the conversion to TFLite differs by {gap:.1e} of the range"


VELA = Toolkit(
    name="vela",
    package="ethos-u-vela",
    configurations={
        "ethos-u55": ("ethos-u55-256",),
        "ethos-u65": ("ethos-u65-512",),
        "ethos-u85": ("ethos-u85-1024",),
    },
    verify=verify,
)
