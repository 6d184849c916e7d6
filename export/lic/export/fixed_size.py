"""Graphs of any size -> graphs of one, as compilers of devices want them."""

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from lic.codec.errors import ExportError


def fixed_size(
    model: onnx.ModelProto, size: tuple[int, int], *, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a graph whose free dimensions are fixed, with all constants and shapes computed.

    Args:
        model: with its weights inside; stays as it is.
        size: H and W of four-dimensional inputs; other free dimensions become 1.
        kept: operators that stay though their inputs are constant.

    Raises:
        ExportError: the graph is not valid at this size.
    """
    made = copy.deepcopy(model)
    _fix_size(made, size)
    made = with_shapes(made, strict=True)
    _fold(made, kept)
    # Shapes become known behind what was computed.
    _forget_shapes(made)
    return with_shapes(made, strict=True)


def with_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """Return a graph with the shapes of everything that ONNX can infer.

    Raises:
        ExportError: `strict`, and the graph is not valid.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    except Exception as error:  # The inference raises what its C++ raises.
        if not strict:
            return model
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"the graph is not valid at this size: {first}") from None


def _fix_size(model: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Give free dimensions of inputs a value: 1, but the last two those of `size`."""
    given = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        if value.name in given:
            continue
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value"):
                from_end = len(dims) - axis
                dim.dim_value = size[-from_end] if from_end <= 2 and len(dims) == 4 else 1
    # Shapes said for the free size would contradict those of the fixed one.
    _forget_shapes(model)


def _forget_shapes(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _fold(model: onnx.ModelProto, kept_operators: Collection[str]) -> None:
    """Compute nodes whose inputs are all constant, and those that ask for a known shape."""
    graph = model.graph
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
    }
    values: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    kept: list[onnx.NodeProto] = []
    fresh: set[str] = set()
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type in kept_operators:
            kept.append(node)
        elif node.op_type == "Shape" and inputs[0] in known:
            # The evaluator wants a value to tell the shape of.
            values[inputs[0]] = np.broadcast_to(np.float32(0), known[inputs[0]])
            computed = _evaluate(model, node, values)
            del values[inputs[0]]
            values.update(computed)
            fresh.update(computed)
        elif node.op_type == "Constant" or (inputs and all(name in values for name in inputs)):
            computed = _evaluate(model, node, values)
            values.update(computed)
            fresh.update(computed)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    initializers = [
        numpy_helper.from_array(np.asarray(values[name]), name)
        if name in fresh
        else next(i for i in graph.initializer if i.name == name)
        for name in sorted(used & values.keys())
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)


def _evaluate(
    model: onnx.ModelProto, node: onnx.NodeProto, values: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    names = [name for name in node.input if name]
    # The evaluator reads types from the values it is given, so none are said here.
    empty = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [empty(n, onnx.helper.np_dtype_to_tensor_dtype(values[n].dtype), None) for n in names],
        [empty(n, TensorProto.UNDEFINED, None) for n in node.output],
    )
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    found = ReferenceEvaluator(single).run(None, {n: values[n] for n in names})
    return dict(zip(node.output, found, strict=True))
