"""Integers into float graphs: QuantizeLinear and DequantizeLinear around convolutions.

Where the numbers come from, calibration or training, is no matter here. A pair around each
activation says on which grid of 256 levels it lies; weights are stored in int8, a scale for each
output channel, and biases in int32 on the grid of the sums of products, without which ONNX Runtime
computes in float. Engines take the pairs and a convolution between them as one integer operator.

What only moves values (transpose, reshape, shuffles) stands between pairs of the same grid, so that
it moves bytes.

Shapes: K output channels of a convolution, N batch, M latent channels, h w latent rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lic.codec.errors import ExportError

CONVOLUTIONS = ("Conv", "ConvTranspose")
MOVES = (
    "Transpose", "Reshape", "DepthToSpace", "SpaceToDepth", "Squeeze", "Unsqueeze", "Flatten",
    "Identity",
)  # fmt: skip
# Symmetric about zero: -128 would have no counterpart, and some kernels overflow on it.
WEIGHT_LEVEL = 127
# A bias has to fit int32 with room for the sums of products.
BIAS_LEVEL = 2**30


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The grid of an activation: value = scale * (integer - zero_point), integers 0 to 255.

    Raises:
        ExportError: a scale that is not a positive number, or a zero point outside the integers.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        scale = np.float32(self.scale)
        if not (np.isfinite(scale) and scale > 0 and 0 <= self.zero_point <= 255):
            raise ExportError(
                f"an activation of scale {self.scale} and zero point {self.zero_point} cannot be "
                "held in 8 bits; are there NaN or infinite values in the network?"
            )


# A picture of 8 bits, and symbols from -128 to 127: exact.
PICTURE = Levels(scale=1 / 255, zero_point=0)
SYMBOLS = Levels(scale=1.0, zero_point=128)


@dataclass(frozen=True, kw_only=True)
class IntegerLayer:
    """A convolution in integers.

    Attributes:
        weight: int8, laid out as in the graph.
        weight_scale: (K,) float32; the zero points are 0.
        bias: (K,) float32.
        input: grid of its input.
        output: grid of its output, behind the ReLU that follows it if one does; None leaves it
            in float, and ONNX Runtime then computes the convolution in float.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    input: Levels
    output: Levels | None


class Wiring:
    """Who gives and who takes the tensors of a graph."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph.graph
        self.initializers = {i.name: i for i in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.outputs = {output.name for output in self.graph.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    def convolutions(self) -> dict[str, onnx.NodeProto]:
        """Return the convolutions with a stored weight NAME.weight by NAME, in order.

        Not those that a normalisation was folded into: their squares do not fit 8 bits.

        Raises:
            ExportError: weights lie in another file.
        """
        found = {}
        for node in self.graph.node:
            if node.op_type not in CONVOLUTIONS or not node.input[1].endswith(".weight"):
                continue
            weight = self.initializers.get(node.input[1])
            if weight is None:
                continue
            if weight.data_location == TensorProto.EXTERNAL:
                raise ExportError(f"{weight.name} lies in another file; export with weights inside")
            if node.op_type == "Conv" or _attribute(node, "group", 1) == 1:
                found[node.input[1].removesuffix(".weight")] = node
        return found

    def root(self, tensor: str) -> str:
        """Return the tensor whose values this one only holds in another order."""
        while tensor in self.producer and self.producer[tensor].op_type in MOVES:
            tensor = self.producer[tensor].input[0]
        return tensor

    def site(self, node: onnx.NodeProto) -> str:
        """Return where the output of a convolution leaves the integers: behind its ReLU."""
        (output,) = node.output
        following = self.consumers.get(output, [])
        if output not in self.outputs and len(following) == 1 and _rectifies(following[0], self):
            return str(following[0].output[0])
        return str(output)

    def value(self, name: str) -> NDArray[Any]:
        """Return the values of an initializer."""
        return numpy_helper.to_array(self.initializers[name])


def _rectifies(node: onnx.NodeProto, wiring: Wiring) -> bool:
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 2 or node.input[1] not in wiring.initializers:
        return False
    return float(wiring.value(node.input[1])) == 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def channel_axis(node: onnx.NodeProto) -> int:
    """Return which dimension of a convolution's weight counts output channels."""
    return 1 if node.op_type == "ConvTranspose" else 0


def write_qdq(graph: onnx.ModelProto, layers: Mapping[str, IntegerLayer]) -> onnx.ModelProto:
    """Return a graph whose convolutions, by name, compute in these integers.

    Raises:
        ExportError: the graph has no convolution of a name, or one of another shape.
    """
    writer = _Writer(graph)
    found = writer.wiring.convolutions()
    for name, layer in layers.items():
        if name not in found:
            raise ExportError(f"the graph has no convolution {name}")
        writer.add(name, found[name], layer)
    written = writer.finish()
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the int8 graph is not valid: {error}") from None
    return written


class _Writer:
    def __init__(self, graph: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(graph)
        self.wiring = Wiring(self.model)
        # Nodes to stand behind the producer of a tensor; "" stands for the graph's start.
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._done: dict[tuple[str, Levels], str] = {}
        # Of tensors on a grid, the grid and behind whose producer they stand.
        self._held: dict[str, tuple[Levels, str]] = {}
        self._replaced: set[str] = set()

    def add(self, name: str, node: onnx.NodeProto, layer: IntegerLayer) -> None:
        weight = self.wiring.value(node.input[1])
        axis = channel_axis(node)
        if weight.shape != layer.weight.shape or len(layer.weight_scale) != weight.shape[axis]:
            raise ExportError(
                f"{name}: integers of shape {layer.weight.shape} for weights of {weight.shape}"
            )
        root = self.wiring.root(node.input[0])
        if root != node.input[0]:
            self._quantise_all(root, layer.input)
        node.input[0] = self._pair(node.input[0], layer.input)
        if layer.output is not None:
            self._quantise_all(self.wiring.site(node), layer.output)
        scale = layer.weight_scale.astype(np.float32)
        node.input[1] = self._constant(node.input[1], layer.weight, scale, axis)
        steps = np.float32(layer.input.scale) * scale
        bias = np.rint(layer.bias.astype(np.float64) / steps)
        # `integer_layer` sees to it, up to the rounding of its scale; training does not.
        if not np.abs(bias).max(initial=0) <= BIAS_LEVEL * (1 + 1e-5):
            raise ExportError(
                f"{name}: a bias of {np.abs(layer.bias).max():g} does not fit into 31 bits at its "
                "scale; train longer, or with another range"
            )
        bias = np.clip(bias, -BIAS_LEVEL, BIAS_LEVEL).astype(np.int32)
        del node.input[2:]
        node.input.append(self._constant(f"{name}.bias", bias, steps, 0))

    def finish(self) -> onnx.ModelProto:
        graph = self.model.graph
        nodes = list(self._after.pop("", []))
        for node in graph.node:
            nodes.append(node)
            for output in node.output:
                nodes += self._after.pop(output, [])
        assert not self._after, "every tensor has a producer"
        kept = [i for i in graph.initializer if i.name not in self._replaced]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        return self.model

    def _quantise_all(self, tensor: str, levels: Levels) -> None:
        """Put a tensor on a grid for all that take it."""
        consumers = self.wiring.consumers.get(tensor, [])
        # Its own pair takes the tensor itself.
        taking = [node for node in consumers if tensor in node.input]
        held = self._pair(tensor, levels)
        for node in taking:
            for i, name in enumerate(node.input):
                # A shape is none of the values.
                if name == tensor and node.op_type != "Shape":
                    node.input[i] = held

    def _pair(self, tensor: str, levels: Levels) -> str:
        """Return the tensor on a grid."""
        on, place = self._held.get(tensor, (None, tensor))
        if on == levels:
            return tensor
        if (tensor, levels) not in self._done:
            base = f"{tensor}.{len(self._done)}"
            self._initializer(f"{base}.scale", np.array(levels.scale, np.float32))
            self._initializer(f"{base}.zero_point", np.array(levels.zero_point, np.uint8))
            grid = [f"{base}.scale", f"{base}.zero_point"]
            level, held = f"{base}.levels", f"{base}.held"
            place = place if place in self.wiring.producer else ""
            self._after.setdefault(place, []).extend(
                [
                    helper.make_node("QuantizeLinear", [tensor, *grid], [level], name=level),
                    helper.make_node("DequantizeLinear", [level, *grid], [held], name=held),
                ]
            )
            self._done[tensor, levels] = held
            self._held[held] = levels, place
        return self._done[tensor, levels]

    def _constant(
        self, name: str, integers: NDArray[Any], scale: NDArray[np.float32], axis: int
    ) -> str:
        """Store integers with a scale for each channel; returns the tensor of their values."""
        self._replaced.add(name)
        parts = {
            "integers": integers,
            "scale": scale,
            "zero_point": np.zeros(len(scale), integers.dtype),
        }
        for part, value in parts.items():
            self._initializer(f"{name}.{part}", value)
        inputs = [f"{name}.{part}" for part in parts]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}.values"], axis=axis)
        node.name = f"{name}.values"
        self._after.setdefault("", []).append(node)
        return f"{name}.values"

    def _initializer(self, name: str, value: NDArray[Any]) -> None:
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
