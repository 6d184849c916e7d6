"""Graphs to check: of a bundle, or one .onnx file; as they are, or complete and of one size.

Rules read a graph as it is, whose weights may lie elsewhere. A compiler needs the weights inside
and a fixed size.

Shapes: N batch, C channels, H W pixels.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.reference import ReferenceEvaluator

from lic.codec.bundle import DECODER, ENCODER, WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ExportError, ImageError

# What a compiler is asked for unless told otherwise; deployment figures are quoted for it.
DEFAULT_SIZE = (256, 256)
# What lic calls the inputs of graphs that take no picture, and pixels for one step of them.
_STRIDES = {"symbols": 16, "y_hat": 16, "z": 64}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph.

    Attributes:
        source: the bundle's label or the file's path.
        name: of its file without the suffix, such as encoder.
        model: weights may be pointers to `weights` or to files in `folder`.
        weights: the bundle's weights file; None for a file.
        folder: where a file's weights lie.
        stride: pixels for one step of the input, 1 where that is the picture, or not lic's.
    """

    source: str
    name: str
    model: onnx.ModelProto
    weights: bytes | None = None
    folder: Path | None = None
    stride: int = 1


def of_bundle(bundle: Bundle) -> list[Graph]:
    """Return a bundle's graphs: encoder, decoder, then those that a context has between.

    Raises:
        ConfigError: the bundle has none.
        ModelMismatchError: a file of the bundle is missing or was changed.
    """
    if not bundle.has_graphs:
        raise ConfigError(
            f"{bundle.label} has no ONNX graphs (files: {', '.join(sorted(bundle.manifest.files))})"
            "; 'lic export' makes a bundle that has them"
        )
    weights = bundle.read(WEIGHTS)
    files = [name for name in sorted(bundle.manifest.files) if name.endswith(".onnx")]
    graphs = []
    for name in dict.fromkeys((ENCODER, DECODER, *files)):
        model = _parse(bundle.read(name), name)
        graphs.append(
            Graph(
                source=bundle.label,
                name=name.removesuffix(".onnx"),
                model=model,
                weights=weights,
                stride=_stride(model),
            )
        )
    return graphs


def of_file(path: Path) -> Graph:
    """Return the graph of an .onnx file; its weights are read when a compiler wants them.

    Raises:
        ImageError: the file cannot be read.
        ExportError: it is no ONNX model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    model = _parse(data, str(path))
    return Graph(
        source=str(path), name=path.stem, model=model, folder=path.parent, stride=_stride(model)
    )


def _stride(model: onnx.ModelProto) -> int:
    """Return how many pixels one step of a graph's only input stands for."""
    names = input_names(model)
    return _STRIDES.get(names[0], 1) if model.producer_name == "lic" and len(names) == 1 else 1


def input_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of a graph's inputs that are no weights."""
    given = {i.name for i in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in given]


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        model = onnx.ModelProto()
    # Some other files happen to parse, as a model without a graph.
    if not model.graph.node or not model.opset_import:
        raise ExportError(
            f"{name}: is not an ONNX model ({len(data)} bytes without a graph); expected an .onnx "
            "file, or the name or path of a bundle"
        )
    return model


def complete(graph: Graph, size: tuple[int, int] = DEFAULT_SIZE) -> onnx.ModelProto:
    """Return a graph for a picture of one size (H, W), weights inside, constants computed.

    Raises:
        ExportError: weights are missing, or the graph is not valid at this size.
    """
    model = copy.deepcopy(graph.model)
    _embed(model, graph)
    _fix_size(model, tuple(max(1, side // graph.stride) for side in size))
    shaped = with_shapes(model, strict=True)
    _fold(shaped)
    return shaped


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


def _embed(model: onnx.ModelProto, graph: Graph) -> None:
    """Put weights that lie elsewhere into the graph."""
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        if graph.weights is not None:
            where = {entry.key: entry.value for entry in tensor.external_data}
            begin = int(where["offset"])
            tensor.raw_data = graph.weights[begin : begin + int(where["length"])]
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
        else:
            try:
                load_external_data_for_tensor(tensor, str(graph.folder))
            except (OSError, ValueError, onnx.checker.ValidationError) as error:
                raise ExportError(
                    f"{graph.source}: weights of {tensor.name} are missing ({error}); keep them "
                    "beside the graph"
                ) from None
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT


def _fix_size(model: onnx.ModelProto, size: tuple[int, ...]) -> None:
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
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _fold(model: onnx.ModelProto) -> None:
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
        if node.op_type == "Shape" and inputs[0] in known:
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
