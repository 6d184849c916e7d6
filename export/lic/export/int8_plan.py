"""How a float graph becomes a QDQ graph: which layers, on which grids.

Activations in uint8, one grid for a tensor; weights in int8, one scale for an output channel.

Shapes: K C output and input channels.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lic.codec.errors import ExportError
from lic.export.calibration import Ranges
from lic.export.qdq import (
    BIAS_LEVEL,
    WEIGHT_LEVEL,
    IntegerLayer,
    Levels,
    Wiring,
    channel_axis,
    write_qdq,
)


def levels_of(low: float, high: float) -> Levels:
    """Return the grid that holds a range, and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    # A tensor that is always zero, as behind dead channels.
    scale = max((high - low) / 255, 2.0**-23)
    if not math.isfinite(scale):
        raise ExportError(f"an activation reaches from {low} to {high}; expected finite values")
    return Levels(scale=scale, zero_point=min(255, round(-low / scale)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a graph is to become int8.

    Attributes:
        graph: float, prepared by `prepare`.
        layers: names of the convolutions that become int8.
        fixed: grids of tensors that are known.
        ranges: of the other tensors.
        biases: (K,) by convolution, corrected.
        left: tensors that stay in float though a layer's output.
    """

    graph: onnx.ModelProto
    layers: tuple[str, ...]
    fixed: Mapping[str, Levels]
    ranges: Ranges = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    left: Collection[str] = ()

    def tensors(self) -> list[str]:
        """Return the tensors that need a range, in order."""
        wiring = Wiring(self.graph)
        found: dict[str, None] = {}
        for node in (wiring.convolutions()[name] for name in self.layers):
            for tensor in (wiring.root(node.input[0]), wiring.site(node)):
                if tensor not in self.fixed and tensor not in self.left:
                    found[tensor] = None
        return list(found)

    def write(self) -> onnx.ModelProto:
        """Return the QDQ graph."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        wiring = Wiring(graph)
        for name, node in wiring.convolutions().items():
            if name in self.biases:
                store_bias(wiring, node, self.biases[name])
        grids = {**{name: levels_of(*ends) for name, ends in self.ranges.items()}, **self.fixed}
        layers = {}
        for name in self.layers:
            node = wiring.convolutions()[name]
            layers[name] = integer_layer(
                wiring.value(node.input[1]),
                channel_axis(node),
                bias_of(wiring, node),
                grids[wiring.root(node.input[0])],
                grids.get(wiring.site(node)),
            )
        return write_qdq(graph, layers)


def integer_layer(
    weight: NDArray[np.float32],
    axis: int,
    bias: NDArray[np.float32],
    entering: Levels,
    leaving: Levels | None,
) -> IntegerLayer:
    """Return the integers of a convolution whose weight counts output channels along `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others)
    if not (np.isfinite(largest).all() and np.isfinite(bias).all()):
        raise ExportError("a weight or bias is NaN or infinite; the model is at fault")
    # A channel of tiny weights still has a bias to hold.
    least = np.abs(bias) / (BIAS_LEVEL * entering.scale)
    scale = np.maximum(np.maximum(largest / WEIGHT_LEVEL, least), 2.0**-40).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight / scale.reshape(shape)).clip(-WEIGHT_LEVEL, WEIGHT_LEVEL)
    return IntegerLayer(
        weight=steps.astype(np.int8), weight_scale=scale, bias=bias, input=entering, output=leaving
    )


def bias_of(wiring: Wiring, node: onnx.NodeProto) -> NDArray[np.float32]:
    """Return the bias (K,) of a convolution, zeros where it has none."""
    if len(node.input) > 2:
        return wiring.value(node.input[2]).astype(np.float32)
    channels = wiring.value(node.input[1]).shape[channel_axis(node)]
    return np.zeros(channels, np.float32)


def store_bias(wiring: Wiring, node: onnx.NodeProto, bias: NDArray[np.float32]) -> None:
    """Give a convolution a bias (K,)."""
    if len(node.input) > 2:
        wiring.initializers[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
        return
    name = node.input[1].removesuffix(".weight") + ".bias"
    # The exporter drops biases that are all zero.
    wiring.graph.initializer.append(numpy_helper.from_array(bias, name))
    wiring.initializers[name] = wiring.graph.initializer[-1]
    node.input.append(name)
