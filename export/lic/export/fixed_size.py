"""Graphs of any size -> graphs of one, as most compilers of devices want them."""

import onnx
from onnxscript import ir
from onnxscript.optimizer import fold_constants, remove_unused_nodes

from lic.codec.errors import ExportError

# What is computed from constants within a QDQ graph are weights, which are to stay integers.
_KEPT = ("QuantizeLinear", "DequantizeLinear")


def fixed_size(graph: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """Return a graph whose only input (1, C, H, W) has one size, with nothing computed from shapes.

    Args:
        graph: self-contained; stays as it is.
        size: H and W of the input.

    Raises:
        ExportError: the graph cannot have this size.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    (entry,) = made.graph.input
    dims = entry.type.tensor_type.shape.dim
    for dim, length in zip(dims, (1, dims[1].dim_value, *size), strict=True):
        dim.dim_value = length
    try:
        model = ir.serde.deserialize_model(_inferred(made))
        # Shapes become known behind what was folded; a second turn finds them.
        while fold_constants(
            model, should_fold=lambda node: False if node.op_type in _KEPT else None
        ).modified:
            remove_unused_nodes(model)
        made = _inferred(ir.serde.serialize_model(model))
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph does not take {size[0]} x {size[1]} ({error})") from None
    return made


def _inferred(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Infer all shapes anew."""
    del graph.graph.value_info[:]
    for output in graph.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(graph, data_prop=True)
