"""Graphs to check: of a bundle, or one .onnx file; as they are, or complete and of one size.

Rules read a graph as it is, whose weights may lie elsewhere. A compiler needs the weights inside
and a fixed size.

Shapes: N batch, C channels, H W pixels.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from lic.codec.bundle import DECODER, ENCODER, WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ExportError, ImageError
from lic.export.fixed_size import fixed_size

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
    height, width = (max(1, side // graph.stride) for side in size)
    return fixed_size(model, (height, width))


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
