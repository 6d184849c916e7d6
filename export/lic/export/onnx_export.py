"""Torch modules -> ONNX graphs whose weights lie in the bundle's safetensors file.

Shapes: M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.bundle import WEIGHTS, safetensors_index
from lic.codec.errors import ExportError
from lic.codec.models.blocks import GDN
from lic.codec.models.gdnish import ChannelGate, EncoderBlock, gate_gain

# The newest that torch's default exporter writes without conversion and ONNX Runtime 1.24 reads.
OPSET = 20
# What either exporter writes as asked. The default one turns 17 and below into 18, with no more
# than a line in a log.
OLDEST, NEWEST, _OLDEST_OF_DEFAULT = 13, 20, 18
# The one output that is no picture and no latent.
BITS = "bits"
SAFETENSORS_TO_ONNX = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}


_HEIGHT, _WIDTH = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)


def any_size(unit: int = 1) -> dict[int, Any]:
    """Return height and width of an input as free multiples of a unit, for `export_graph`."""
    return {2: unit * _HEIGHT, 3: unit * _WIDTH} if unit > 1 else {2: _HEIGHT, 3: _WIDTH}


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    sizes: Mapping[str, Mapping[int, Any]] | None = None,
    *,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Export a module, its normalisations folded.

    Args:
        module: what to export; tensors of its attribute `model` lose that prefix.
        inputs: for each argument in order its name and an example.
        outputs: names.
        sizes: for each input the dimensions that are free, such as `any_size`; without, the graph
            takes the examples' shapes only.
        opset: OLDEST to NEWEST; by default OPSET.

    Raises:
        ExportError: the exporter failed, or wrote another opset than asked for.
    """
    wanted = OPSET if opset is None else opset
    export = _export if wanted >= _OLDEST_OF_DEFAULT else _export_by_tracing
    with quiet(), torch.no_grad():
        try:
            graph = export(fold_normalisations(module), inputs, outputs, sizes, wanted)
        except Exception as error:  # The exporter raises whatever its passes raise.
            raise ExportError(f"torch.onnx.export failed: {error}") from error
    _name_averages(graph.graph)
    _forget_origin(graph)
    _drop_prefix(graph.graph, "model.")
    found = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if found != wanted:
        raise ExportError(f"asked for opset {wanted}, the exporter wrote {found}")
    graph.producer_name = "lic"
    return graph


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    sizes: Mapping[str, Mapping[int, Any]] | None,
    opset: int,
) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple(dict(sizes[name]) for name in inputs) if sizes else None,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise ExportError("it returned nothing")
    graph: onnx.ModelProto = program.model_proto
    return graph


def _export_by_tracing(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    sizes: Mapping[str, Mapping[int, Any]] | None,
    opset: int,
) -> onnx.ModelProto:
    """Export with torch's older exporter, the only one that writes older opsets as asked."""
    axes = {
        name: {axis: f"{name}_{axis}" for axis in of_input}
        for name, of_input in (sizes or {}).items()
        if of_input
    }
    if axes:
        # Of outputs nothing but the rank is known, and all are pictures or latents.
        axes |= {name: {2: f"{name}_2", 3: f"{name}_3"} for name in outputs if name != BITS}
    register = torch.onnx.register_custom_op_symbolic  # type: ignore[attr-defined]
    register("aten::erfc", _erfc, opset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
        model = onnx.load(path)
    _store_constants(model.graph)
    return model


def _store_constants(graph: onnx.GraphProto) -> None:
    """Store what this exporter makes by nodes: constants, and of equal weights all but one."""
    held = {i.name: i for i in graph.initializer}
    kept = []
    for node in graph.node:
        source = None
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            source = node.attribute[0].t
        elif node.op_type == "Identity":
            source = held.get(node.input[0])
        if source is not None:
            own = onnx.TensorProto()
            own.CopyFrom(source)
            own.name = node.output[0]
            held[own.name] = own
            graph.initializer.append(own)
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def _drop_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Take a prefix off the names of weights."""
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix(prefix)
    for node in graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = name.removeprefix(prefix)


def _erfc(graph: Any, x: Any) -> Any:
    """Say erfc in ONNX, which has no operator for it, as the default exporter does: 1 - erf."""
    one = graph.op("Constant", value_t=torch.tensor(1.0))
    return graph.op("Sub", one, graph.op("Erf", x))


class FoldedGDN(nn.Module):
    """`blocks.normalise` with folded parameters held as those of a 1x1 convolution.

    Nothing is left to compute on parameters in the graph, whose size would decide whether an
    exporter does it beforehand. That is why it is not `normalise` itself, which reshapes gamma;
    its reciprocal root would also become two operators in place of one division.
    """

    folded_beta: Tensor
    folded_gamma: Tensor

    def __init__(self, layer: GDN) -> None:
        super().__init__()
        self.inverse = layer.inverse
        self.simplified = layer.simplified
        with torch.no_grad():
            beta, gamma = layer.folded()
        # Other names than the stored parameters', whose values they are not.
        self.register_buffer("folded_beta", beta.clone())
        self.register_buffer("folded_gamma", gamma[:, :, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x (N, C, H, W)."""
        size = torch.abs(x) if self.simplified else x * x
        pool = F.conv2d(size, self.folded_gamma, self.folded_beta)
        norm = pool if self.simplified else torch.sqrt(pool)
        return x * norm if self.inverse else x / norm


class FoldedGate(nn.Module):
    """`ChannelGate` with its kernel over channels spread out to a 1x1 convolution.

    A convolution along channels would need them turned into rows, and NPUs run 1x1 ones anyhow.
    """

    folded_weight: Tensor
    folded_bias: Tensor

    def __init__(self, gate: ChannelGate, channels: int) -> None:
        super().__init__()
        weight, bias = gate.as_matrix(channels)
        self.register_buffer("folded_weight", weight)
        self.register_buffer("folded_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) with every channel times its gain."""
        means = F.adaptive_avg_pool2d(x, 1)
        return x * gate_gain(F.conv2d(means, self.folded_weight, self.folded_bias))


def fold_normalisations(module: nn.Module) -> nn.Module:
    """Return a module with GDN and channel gates folded; the module itself stays as it is."""
    if not any(isinstance(layer, GDN | EncoderBlock) for layer in module.modules()):
        return module
    copied = copy.deepcopy(module)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, GDN):
            copied.set_submodule(name, FoldedGDN(layer))
        elif isinstance(layer, EncoderBlock) and layer.gate is not None:
            channels = layer.project.out_channels
            copied.set_submodule(f"{name}.gate", FoldedGate(layer.gate, channels))
    return copied


def _name_averages(graph: onnx.GraphProto) -> None:
    """Turn means over height and width into the operator of that name, which NPUs know."""
    axes = {i.name: numpy_helper.to_array(i).tolist() for i in graph.initializer if i.dims == [2]}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2:
            continue
        keeps = all(a.i for a in node.attribute if a.name == "keepdims")
        if keeps and sorted(axis % 4 for axis in axes.get(node.input[1], [])) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes of its run: stack traces with paths of the machine it ran on."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.doc_string = ""
        del part.metadata_props[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own progress lines and deprecation warnings off the terminal."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


def share_weights(graph: onnx.ModelProto, weights: bytes) -> onnx.ModelProto:
    """Replace every initializer that the weights file holds by a pointer into that file.

    Half-precision weights are cast to float32 at the graph's start, so that they are stored once
    and every engine computes with the same numbers.

    Raises:
        ExportError: an initializer and the file's tensor of that name differ.
    """
    index = safetensors_index(weights)
    shared = onnx.ModelProto()
    shared.CopyFrom(graph)
    casts, initializers = [], []
    for initializer in shared.graph.initializer:
        if initializer.name not in index:
            initializers.append(initializer)
            continue
        dtype, shape, begin, end = index[initializer.name]
        _check_same(initializer, weights[begin:end], dtype, shape)
        half = dtype == "F16"
        name = f"{initializer.name}.half" if half else initializer.name
        pointer = TensorProto(
            name=name,
            data_type=SAFETENSORS_TO_ONNX[dtype],
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS), ("offset", begin), ("length", end - begin)):
            pointer.external_data.add(key=key, value=str(value))
        initializers.append(pointer)
        if half:
            casts.append(helper.make_node("Cast", [name], [initializer.name], to=TensorProto.FLOAT))
    nodes = [*casts, *shared.graph.node]
    del shared.graph.initializer[:], shared.graph.node[:]
    shared.graph.initializer.extend(initializers)
    shared.graph.node.extend(nodes)
    return shared


def _check_same(
    initializer: TensorProto, stored: bytes, dtype: str, shape: tuple[int, ...]
) -> None:
    kind = np.dtype("<f2" if dtype == "F16" else "<f4")
    expected = np.frombuffer(stored, kind).reshape(shape).astype(np.float32)
    if not np.array_equal(numpy_helper.to_array(initializer), expected):
        raise ExportError(f"{initializer.name}: the graph's values differ from the weights file")
