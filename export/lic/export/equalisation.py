"""Channels of like size, without a change of what a network computes (arXiv 1906.04721, sec. 4.1).

ReLU lets positive factors through: what a convolution divides a channel of its output by, the next
one multiplies. An activation has one grid for all channels, and without this most of them would use
a few of its 256 levels. Weights have a scale for each output channel, so that the first convolution
pays nothing; the second pays with the smaller weights of the channels that grew. How far to go
between the two is the `strength`: 0 leaves all to the weights, 1 to the activation (as in
SmoothQuant, arXiv 2211.10438).

Shapes: C channels of the activation between, K output and D input channels of a convolution.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lic.export.qdq import Wiring, channel_axis

STRENGTH = 0.5
# Channels that never answer must not grow without bounds.
LEAST = 1e-4


class Pair(NamedTuple):
    """Names of two convolutions with ReLU between, and the tensor that enters the second."""

    first: str
    second: str
    tensor: str


def pairs(graph: onnx.ModelProto) -> list[Pair]:
    """Return the pairs of a graph, in order: nothing but ReLU and shuffles lies between."""
    wiring = Wiring(graph)
    nodes = wiring.convolutions()
    sites = {
        wiring.site(node): name
        for name, node in nodes.items()
        if wiring.site(node) in wiring.producer
        and wiring.producer[wiring.site(node)].op_type == "Relu"
    }
    found = []
    for name, node in nodes.items():
        tensor, root = node.input[0], wiring.root(node.input[0])
        if root in sites and _is_alone(wiring, tensor, root) and _order(wiring, tensor):
            found.append(Pair(sites[root], name, tensor))
    return found


def _is_alone(wiring: Wiring, tensor: str, root: str) -> bool:
    """Return whether nothing else takes the values between."""
    while True:
        if len(wiring.consumers[tensor]) != 1 or tensor in wiring.outputs:
            return False
        if tensor == root:
            return True
        tensor = wiring.producer[tensor].input[0]


def _order(wiring: Wiring, tensor: str) -> str:
    """Return how channels of a block lie where a shuffle is on the way: "inner" or "outer"."""
    kinds = []
    while tensor in wiring.producer and wiring.producer[tensor].op_type != "Relu":
        node = wiring.producer[tensor]
        kinds.append(node)
        tensor = node.input[0]
    if not kinds:
        return "outer"
    if [node.op_type for node in kinds] == ["DepthToSpace"]:
        mode = next((a.s for a in kinds[0].attribute if a.name == "mode"), b"DCR")
        return "outer" if mode == b"CRD" else "inner"
    # As forms.SubPixel writes it for NPUs, with the order of PixelShuffle.
    if [node.op_type for node in kinds] == ["Reshape", "Transpose", "Reshape"]:
        return "outer"
    # As forms.SubPixel writes it: the pixel of the block before the channel.
    known = ["Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]
    return "inner" if [node.op_type for node in kinds] == known else ""


def equalise(
    graph: onnx.ModelProto,
    largest: Mapping[str, NDArray[np.float32]],
    strengths: Mapping[str, float],
) -> onnx.ModelProto:
    """Return a graph that computes the same with channels of like size.

    Args:
        graph: self-contained.
        largest: (C,) largest value of each channel of the tensor of each pair.
        strengths: by tensor; pairs without one stay.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    wiring = Wiring(copied)
    nodes = wiring.convolutions()
    for pair in pairs(copied):
        if pair.tensor not in strengths:
            continue
        first, second = nodes[pair.first], nodes[pair.second]
        factor = _factors(wiring, second, largest[pair.tensor], strengths[pair.tensor])
        _scale(wiring, second.input[1], factor, 1 - channel_axis(second))
        outputs = wiring.value(first.input[1]).shape[channel_axis(first)]
        repeats = outputs // len(factor)
        inner = _order(wiring, pair.tensor) == "inner"
        spread = np.tile(factor, repeats) if inner else np.repeat(factor, repeats)
        _scale(wiring, first.input[1], 1 / spread, channel_axis(first))
        if len(first.input) > 2:
            _scale(wiring, first.input[2], 1 / spread, 0)
    return copied


def _factors(
    wiring: Wiring, second: onnx.NodeProto, largest: NDArray[np.float32], strength: float
) -> NDArray[np.float64]:
    """Return what each channel of the activation is divided by, (C,)."""
    weight = np.abs(wiring.value(second.input[1]).astype(np.float64))
    if channel_axis(second) == 1:
        weight = weight.swapaxes(0, 1)
    # (K, D): of each row, in shares of what its scale has to hold anyway.
    size = weight.max(axis=(2, 3))
    share = (size / np.maximum(size.max(axis=1, keepdims=True), 1e-30)).max(axis=0)
    values = np.maximum(largest.astype(np.float64), LEAST * max(float(largest.max()), 1e-30))
    factor = values**strength / np.maximum(share, LEAST) ** (1 - strength)
    normalised: NDArray[np.float64] = factor / np.exp(np.log(factor).mean())
    return normalised


def _scale(wiring: Wiring, name: str, factor: NDArray[np.float64], axis: int) -> None:
    value = wiring.value(name)
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    scaled = (value * factor.reshape(shape)).astype(np.float32)
    wiring.initializers[name].CopyFrom(numpy_helper.from_array(scaled, name))
