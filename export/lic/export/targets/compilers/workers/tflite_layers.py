"""An ONNX graph of the layers that lic's models have -> the same function in TensorFlow.

Runs in the environment of ethos-u-vela, apart from lic's own, so it imports nothing of lic.

Tensors keep channels last here. TensorFlow knows no padding of its own choice and no output
padding, so kernels get rows of zeros where that gives the same numbers, and a pad or a slice
elsewhere.

Shapes: N batch, H W pixels, C channels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
# What Reshape, Transpose, Reshape do where they shuffle pixels: (N, C, r, r, H, W) to rows first.
SHUFFLE = [0, 1, 4, 2, 5, 3]
_ONE: dict[str, Callable[[Any], Any]] = {
    "Abs": tf.abs,
    "Neg": tf.negative,
    "Reciprocal": tf.math.reciprocal,
    "Relu": tf.nn.relu,
    "Sigmoid": tf.sigmoid,
    "Sqrt": tf.sqrt,
    "Tanh": tf.tanh,
}
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "Add": tf.add,
    "Div": tf.divide,
    "Mul": tf.multiply,
    "Sub": tf.subtract,
}


class CannotConvert(Exception):
    """A layer has no counterpart here; the message names it."""


class Layers:
    """Call with (N, H, W, C) to run the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants: dict[str, Array] = {
            i.name: numpy_helper.to_array(i) for i in graph.initializer
        }
        (self.input,) = (v for v in graph.input if v.name not in self.constants)
        self.output = graph.output[0].name
        self.nodes = list(graph.node)
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The input's shape, channels last."""
        n, c, h, w = (d.dim_value for d in self.input.type.tensor_type.shape.dim)
        return n, h, w, c

    def __call__(self, x: Any) -> Any:
        """Return the graph's first output."""
        values: dict[str, Any] = {self.input.name: x}
        skipped: set[str] = set()
        for node in self.nodes:
            if node.output[0] in skipped:
                continue
            shuffle = self._shuffle(node)
            if shuffle:
                middle, last, block = shuffle
                values[last.output[0]] = _shuffled(values[node.input[0]], block)
                skipped.update((middle.output[0], last.output[0]))
            else:
                results = self._run(node, values)
                values.update(zip(node.output, results, strict=True))
        return values[self.output]

    def _shuffle(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto, int] | None:
        """Return the rest of a pixel shuffle that begins with a node, and its block's side."""
        following = self.users.get(node.output[0], [])
        if node.op_type != "Reshape" or [f.op_type for f in following] != ["Transpose"]:
            return None
        last = self.users.get(following[0].output[0], [])
        shape = self.constants[node.input[1]].tolist()
        right = list(_attributes(following[0]).get("perm", [])) == SHUFFLE and len(shape) == 6
        if not right or [f.op_type for f in last] != ["Reshape"]:
            return None
        return following[0], last[0], int(shape[2])

    def _run(self, node: onnx.NodeProto, values: Mapping[str, Any]) -> list[Any]:
        kind = node.op_type
        if kind in _TWO:
            one, two = (self._operand(name, values) for name in node.input)
            return [_TWO[kind](one, two)]
        x = values[node.input[0]]
        if kind in _ONE:
            return [_ONE[kind](x)]
        if kind == "Conv":
            return [self._convolution(node, x)]
        if kind == "ConvTranspose":
            return [self._transposed(node, x)]
        found = _attributes(node)
        if kind == "LeakyRelu":
            return [tf.nn.leaky_relu(x, found.get("alpha", 0.01))]
        if kind == "GlobalAveragePool":
            return [tf.reduce_mean(x, [1, 2], keepdims=True)]
        if kind == "DepthToSpace":
            return [tf.nn.depth_to_space(x, found["blocksize"])]
        if kind == "Clip":
            low, high = (float(self.constants[name]) for name in node.input[1:3])
            relu6 = (low, high) == (0, 6)
            return [tf.nn.relu6(x) if relu6 else tf.clip_by_value(x, low, high)]
        return self._along_channels(node, values, found.get("axis", 0))

    def _along_channels(
        self, node: onnx.NodeProto, values: Mapping[str, Any], axis: int
    ) -> list[Any]:
        if node.op_type == "Concat" and axis in (1, -3):
            return [tf.concat([values[name] for name in node.input], 3)]
        if node.op_type == "Split" and axis in (1, -3):
            sizes = len(node.output)
            if len(node.input) > 1:
                sizes = self.constants[node.input[1]].tolist()
            return list(tf.split(values[node.input[0]], sizes, 3))
        raise CannotConvert(f"{node.op_type} ({node.name}) has no counterpart in the converter")

    def _operand(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in values:
            return values[name]
        constant = self.constants[name].astype(np.float32)
        return constant.transpose(0, 2, 3, 1) if constant.ndim == 4 else constant.reshape(-1)

    def _bias(self, node: onnx.NodeProto, channels: int) -> Array:
        given = len(node.input) > 2 and node.input[2]
        bias = self.constants[node.input[2]] if given else np.zeros(channels)
        return bias.astype(np.float32)

    def _order(self, node: onnx.NodeProto, channels: int) -> Array:
        """Return the order of a convolution's outputs: that of a pixel shuffle behind it.

        ONNX has the block innermost where TensorFlow has it outermost.
        """
        own = np.arange(channels)
        users = self.users.get(node.output[0], [])
        # lic's sub-pixel forms rectify before they shuffle.
        while len(users) == 1 and users[0].op_type in ("Relu", "LeakyRelu", "Clip"):
            users = self.users.get(users[0].output[0], [])
        block = None
        for user in users:
            found = _attributes(user)
            if user.op_type == "DepthToSpace" and found.get("mode") == b"CRD":
                block = int(found["blocksize"])
            shuffle = self._shuffle(user)
            if shuffle:
                block = shuffle[2]
        if block is None:
            return own
        if len(users) > 1:
            raise CannotConvert(f"{node.name}: several layers use what a pixel shuffle reads")
        return own.reshape(-1, block * block).T.reshape(-1)

    def _convolution(self, node: onnx.NodeProto, x: Any) -> Any:
        found = _attributes(node)
        weight = self.constants[node.input[1]].astype(np.float32)
        order = self._order(node, len(weight))
        weight, bias = weight[order], self._bias(node, len(weight))[order]
        strides, group = found.get("strides", [1, 1]), found.get("group", 1)
        if list(found.get("dilations", [1, 1])) != [1, 1]:
            raise CannotConvert(f"Conv ({node.name}) is dilated")
        padded = _padded(x, found.get("pads", [0] * 4), weight.shape[2:], strides)
        if group == 1:
            y = tf.nn.conv2d(padded, weight.transpose(2, 3, 1, 0), strides, "VALID")
        elif group == len(weight) == x.shape[3]:
            y = tf.nn.depthwise_conv2d(
                padded, weight.transpose(2, 3, 0, 1), [1, *strides, 1], "VALID"
            )
        else:
            raise CannotConvert(f"Conv ({node.name}) has {group} groups")
        return tf.nn.bias_add(y, bias)

    def _transposed(self, node: onnx.NodeProto, x: Any) -> Any:
        found = _attributes(node)
        weight = self.constants[node.input[1]].astype(np.float32)
        if found.get("group", 1) != 1 or list(found.get("dilations", [1, 1])) != [1, 1]:
            raise CannotConvert(f"ConvTranspose ({node.name}) is grouped or dilated")
        strides = list(found.get("strides", [1, 1]))
        extra, pads = found.get("output_padding", [0, 0]), list(found.get("pads", [0] * 4))
        kernel = weight.transpose(2, 3, 1, 0)
        sizes = [
            (side - 1) * s + k - pads[i] - pads[i + 2] + extra[i]
            for i, (side, s, k) in enumerate(zip(x.shape[1:3], strides, kernel.shape, strict=False))
        ]
        same = [side * s for side, s in zip(x.shape[1:3], strides, strict=True)] == sizes
        for zeros in (0, 1):
            wider = np.pad(kernel, [(0, zeros), (0, zeros), (0, 0), (0, 0)])
            begins = [max(0, k - s) // 2 for k, s in zip(wider.shape, strides, strict=False)]
            if same and begins == pads[:2]:
                shape = [x.shape[0], *sizes, kernel.shape[2]]
                y = tf.nn.conv2d_transpose(x, wider, shape, strides, "SAME")
                return tf.nn.bias_add(y, self._bias(node, kernel.shape[2]))
        kernel = np.pad(kernel, [(0, extra[0]), (0, extra[1]), (0, 0), (0, 0)])
        whole = [(side - 1) * s + k for side, s, k in zip(x.shape[1:3], strides, kernel.shape,
                                                          strict=False)]  # fmt: skip
        shape = [x.shape[0], *whole, kernel.shape[2]]
        y = tf.nn.conv2d_transpose(x, kernel, shape, strides, "VALID")
        y = tf.nn.bias_add(y, self._bias(node, kernel.shape[2]))
        top, left = pads[:2]
        return y[:, top : top + sizes[0], left : left + sizes[1], :]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _padded(x: Any, pads: list[int], kernel: tuple[int, ...], strides: list[int]) -> Any:
    """Return x with as many zeros around it as the kernel gets to see."""
    sides = []
    for i, (side, k, s) in enumerate(zip(x.shape[1:3], kernel, strides, strict=True)):
        outputs = (side + pads[i] + pads[i + 2] - k) // s + 1
        sides.append((pads[i], max(0, (outputs - 1) * s + k - side - pads[i])))
    return tf.pad(x, [(0, 0), *sides, (0, 0)]) if any(map(any, sides)) else x


def _shuffled(x: Any, block: int) -> Any:
    """Return (N, rH, rW, C) from (N, H, W, r r C), of reshapes and one transpose of four axes."""
    n, h, w, c = x.shape
    rows = tf.transpose(tf.reshape(x, [n * h, w, block, c // block]), [0, 2, 1, 3])
    return tf.reshape(rows, [n, h * block, w * block, c // block**2])
