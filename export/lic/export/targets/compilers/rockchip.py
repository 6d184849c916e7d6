"""Rockchip's NPU, through rknn-toolkit2, which tells about every operator and estimates cycles."""

import onnx
from onnx import version_converter

from lic.codec.errors import ExportError
from lic.export.targets.compilers.toolkit import Toolkit

# The newest that rknn-toolkit2 2.5.0 reads, and the file version that belongs to it.
OPSET, IR_VERSION = 19, 9


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in an opset that the toolkit reads.

    Raises:
        ExportError: ONNX cannot convert it.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    converted = model
    if opset > OPSET:
        try:
            converted = version_converter.convert_version(model, OPSET)
        except Exception as error:  # The converter raises what its C++ raises.
            first = str(error).strip().splitlines()[0]
            raise ExportError(f"opset {opset} cannot be converted to {OPSET}: {first}") from None
    converted.ir_version = min(converted.ir_version, IR_VERSION)
    return converted


RKNN = Toolkit(
    name="rknn",
    package="rknn-toolkit2",
    configurations={"rk3588": ("rk3588",)},
    prepare=prepare,
)
