"""Torch modules -> ONNX graphs whose weights lie in the bundle's safetensors file.

Shapes: M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.bundle import WEIGHTS, safetensors_index
from lic.codec.errors import ExportError
from lic.codec.models.blocks import GDN
from lic.codec.models.gdnish import ChannelGate, EncoderBlock, gate_gain

# The newest that torch's default exporter writes without conversion and ONNX Runtime 1.24 reads.
OPSET = 20
SAFETENSORS_TO_ONNX = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}


def export_graph(
    module: nn.Module,
    example: Tensor,
    *,
    input_name: str,
    output_name: str,
    stride: int | None = None,
) -> onnx.ModelProto:
    """Export a module of one 4-D input with free height and width, its normalisations folded.

    Height and width are multiples of `stride`: by default 16 for pictures, which are floating
    point, and 1 for symbols.

    Raises:
        ExportError: the exporter failed, or wrote another opset than OPSET.
    """
    height, width = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
    # The encoder's input is a multiple of the stride; saying so keeps its shapes symbolic.
    stride = stride or (16 if example.is_floating_point() else 1)
    shapes = {2: stride * height, 3: stride * width} if stride > 1 else {2: height, 3: width}
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                fold_normalisations(module),
                (example,),
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # The exporter raises whatever its passes raise.
            raise ExportError(f"torch.onnx.export failed: {error}") from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    graph: onnx.ModelProto = program.model_proto
    _name_averages(graph.graph)
    _forget_origin(graph)
    found = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if found != OPSET:
        raise ExportError(f"asked for opset {OPSET}, the exporter wrote {found}")
    return graph


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
    """Return a copy of a module with GDN and channel gates folded; the module stays as it is."""
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


def check_graph(
    name: str, graph: onnx.ModelProto, weights: bytes, module: nn.Module, examples: list[Tensor]
) -> None:
    """Compare a graph in ONNX Runtime with the module it came from, on inputs of several sizes.

    Floating outputs may differ by 1e-4; integer outputs, which are rounded, by one step in one
    value, or in one of a thousand where that is more. NaN passes nowhere.

    Raises:
        ExportError: the graph is invalid, does not run, or differs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    try:
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
        raise ExportError(f"{name}: ONNX Runtime cannot load the graph: {error}") from None
    for example in examples:
        with torch.no_grad():
            expected = module(example).numpy()
        (found,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        _compare(name, found, expected)


def _compare(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ExportError(
            f"{name}: gives {found.dtype} {found.shape}, torch {expected.dtype} {expected.shape}"
        )
    gap = np.abs(found.astype(np.float64) - expected)
    if found.dtype.kind == "f":
        if not gap.max() <= 1e-4:
            raise ExportError(f"{name}: differs from torch by {gap.max():.2e}; allowed 1e-4")
    elif gap.max() > 1 or np.count_nonzero(gap) > max(1, found.size / 1000):
        raise ExportError(
            f"{name}: {np.count_nonzero(gap)} of {found.size} symbols differ from torch, by up to "
            f"{gap.max():.0f}; allowed one step in one of a thousand"
        )
