"""Graphs in half precision: half the size, for devices that compute in it.

ONNX Runtime runs them on a CPU, too, no faster than float32. What comes in and goes out stays
float32 or int32, and so does all that turns y into symbols and back.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lic.codec.errors import ExportError
from lic.export.graph_check import Agreement, Rounded, agreement_of, compare
from lic.export.qdq import Wiring

HALF_MAX = 65504.0
# What half precision may change: y near a boundary moves to the next symbol, x_hat by two levels.
FLIPS, GAP = 0.05, 2 / 255
# In true arithmetic a latent of 200 is known to an eighth, and more of them lie near a boundary.
FLIPS_OF_ARITHMETIC = 0.2
# Of encoders y may differ by more than a picture, in parts of its largest value.
GAP_OF_LATENTS = 0.05


def half_graph(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in float16 from its first convolution to its last.

    Args:
        graph: an encoder's or a decoder's, self-contained.

    Raises:
        ExportError: no convolution, or a weight that float16 cannot hold.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    nodes = list(Wiring(model).convolutions().values())
    if not nodes:
        raise ExportError("the graph has no convolution with weights of its own")
    order = list(model.graph.node)
    first, last = order.index(nodes[0]), order.index(nodes[-1])
    inside = order[first : last + 1]
    floating = _floating(model)
    given = {name for node in inside for name in node.output} & floating
    casts = list(_enter(model, inside, given, floating))
    outside = [name for node in order[last + 1 :] for name in node.input]
    left = [o.name for o in model.graph.output]
    leaving = [name for name in dict.fromkeys([*outside, *left]) if name in given]
    back = []
    for name in leaving:
        _rename(inside, name, f"{name}.half")
        back.append(
            helper.make_node(
                "Cast", [f"{name}.half"], [name], f"{name}.float", to=TensorProto.FLOAT
            )
        )
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend([*order[:first], *casts, *inside, *back, *order[last + 1 :]])
    used = {name for node in model.graph.node for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the float16 graph is not valid: {error}") from None
    return model


def _floating(model: onnx.ModelProto) -> set[str]:
    """Return the names of all float32 tensors."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    found = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {i.name for i in inferred.initializer if i.data_type == TensorProto.FLOAT}


def _enter(
    model: onnx.ModelProto, inside: list[onnx.NodeProto], given: set[str], floating: set[str]
) -> Iterator[onnx.NodeProto]:
    """Store constants as halves, and yield what casts the other tensors that come in."""
    initializers = {i.name: i for i in model.graph.initializer}
    coming = [name for node in inside for name in node.input]
    for name in dict.fromkeys(coming):
        if name not in floating or name in given:
            continue
        if name in initializers:
            value = numpy_helper.to_array(initializers[name])
            held = numpy_helper.from_array(_halves(name, value), f"{name}.half")
            model.graph.initializer.append(held)
        else:
            half = f"{name}.half"
            yield helper.make_node("Cast", [name], [half], f"{half}.cast", to=TensorProto.FLOAT16)
        _rename(inside, name, f"{name}.half")


def _halves(name: str, value: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.abs(value).max(initial=0))
    # The ends of a clip mean "no end" where they are larger.
    if value.ndim and not largest <= HALF_MAX:
        raise ExportError(f"{name}: a value of size {largest:g} does not fit float16")
    halves: NDArray[np.float16] = np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16)
    return halves


def _rename(nodes: list[onnx.NodeProto], name: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for i, found in enumerate(names):
                if found == name:
                    names[i] = new


def check_half(
    graph: onnx.ModelProto, half: onnx.ModelProto, module: nn.Module, inputs: list[NDArray[Any]]
) -> Agreement:
    """Compare a graph with its half, and its module with itself in float16 arithmetic.

    On CPUs ONNX Runtime stores float16 and computes in float32, so what the arithmetic does to
    symbols and pictures is asked of torch, which rounds every layer's output.

    Args:
        graph: what `half` was made from.
        half: see `half_graph`.
        module: that the graph was exported from.
        inputs: of the graph.

    Returns:
        How far the module in float16 is from itself in float32.

    Raises:
        ExportError: more symbols differ than FLIPS and FLIPS_OF_ARITHMETIC, or by more than one
            step; floating outputs by more than GAP, those beside symbols by more than
            GAP_OF_LATENTS; or it does not run. NaN passes nowhere.
    """
    _limit("as a graph", compare("float16", graph, half, inputs), FLIPS)
    agreement = _arithmetic(module, inputs)
    _limit("in its arithmetic", agreement, FLIPS_OF_ARITHMETIC)
    return agreement


def _limit(where: str, agreement: Agreement, flips: float) -> None:
    share = agreement.flips / max(1, agreement.symbols)
    if agreement.step > 1 or share > flips:
        raise ExportError(
            f"float16 {where}: {share:.2%} of the symbols differ, by up to {agreement.step}; "
            f"allowed one step in {flips:.0%}"
        )
    gap = GAP_OF_LATENTS if agreement.symbols else GAP
    if not agreement.error <= gap:
        raise ExportError(
            f"float16 {where}: outputs differ by {agreement.error:.4f} of their largest; allowed "
            f"{gap:.4f}"
        )


@torch.no_grad()
def _arithmetic(module: nn.Module, inputs: list[NDArray[Any]]) -> Agreement:
    halved = copy.deepcopy(module).eval().half()
    agreement = Agreement()
    for value in inputs:
        x = torch.from_numpy(value)
        whole = _results(module.eval(), x)
        half = _results(halved, x.half() if x.is_floating_point() else x)
        for expected, found in zip(whole, half, strict=True):
            agreement.add(agreement_of("float16", found, expected))
    return agreement


def _results(module: nn.Module, x: Tensor) -> list[NDArray[Any]]:
    """Return a module's outputs, then what it rounded."""
    with Rounded() as before:
        found = module(x)
    outputs = found if isinstance(found, tuple) else (found,)
    return [*(each.numpy() for each in outputs), *before.values]
