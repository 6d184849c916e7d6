"""What rules look at: the facts about every operator of a graph, read from the graph alone.

Three kinds of nodes are no work for an NPU. Those with constant inputs only, such as conversions
of weights, are computed when the graph is compiled. Quantise and dequantise nodes mark the
precision of the operators between them. And what a graph does to its inputs before the first, and
to its outputs after the last real layer (round, convert, clip) may as well run on the CPU, which
holds the entropy coder: these are the graph's ends, counted apart.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lic.export.fixed_size import with_shapes

Fact = int | float | str | bool
Part = Literal["network", "ends"]
MARKS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# A graph may begin and end in these without being any less a network.
_ENDS = frozenset(
    {
        "Abs", "And", "Cast", "Ceil", "Clip", "Equal", "Floor", "Greater", "GreaterOrEqual",
        "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Round", "Where", *MARKS,
    }
)  # fmt: skip
_ENDS_WITH_CONSTANT = frozenset({"Add", "Div", "Mul", "Sub"})
# Attributes that say something as they are.
_PLAIN = ("axis", "blocksize", "mode", "to", "alpha", "keepdims", "ceil_mode", "count_include_pad")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator.

    Attributes:
        index: its place among the graph's nodes.
        name: the node's own, or its first output's.
        type: of ONNX, with the domain before it where that is another.
        part: network, or ends.
        facts: what rules may ask for, by the names that `FACTS` lists; unknown ones are missing.
        shapes: of its first input and output, for people.
    """

    index: int
    name: str
    type: str
    part: Part
    facts: Mapping[str, Fact]
    shapes: str

    @property
    def label(self) -> str:
        """Type and the facts that people know it by, such as "ConvTranspose k5 s2"."""
        marks = [(f"{key}{self.facts[name]}") for name, key in _LABEL if name in self.facts]
        if self.facts.get("grouping", "none") != "none":
            marks.append(str(self.facts["grouping"]))
        if self.facts.get("output_padding"):
            marks.append(f"output_padding {self.facts['output_padding']}")
        if self.facts.get("operand") == "same":
            marks.append("of itself")
        return " ".join([self.type, *marks])


_LABEL = (("kernel", "k"), ("stride", "s"), ("to", "to "), ("mode", ""))
# Every fact there is, with what it means: rules that ask for another one are refused.
FACTS: dict[str, str] = {
    "kernel": "largest side of the kernel",
    "stride": "largest stride",
    "dilation": "largest dilation",
    "output_padding": "largest output padding of a transposed convolution",
    "asymmetric": "whether padding differs between two opposite sides",
    "grouping": "none, depthwise or grouped",
    "constant_weights": "whether the weights are constant",
    "channels_in": "channels of the first input",
    "channels_out": "channels of the output",
    "dtype": "element type of the first computed input",
    "to": "element type that a Cast gives",
    "operand": "the other input: constant, same (one tensor twice), tensor, or broadcast",
    "position": "which input is constant: 0 or 1",
    "feeds": "type of the only operator that uses the output; divisor where it divides by it",
    "divisor": "type of the operator that computes what a Div divides by",
    "taps": "weights for one output of a convolution, input channels rounded up to 16",
    "rank": "number of dimensions of the output",
    "batch": "first dimension of the output",
    "low": "lower end of a Clip",
    "high": "upper end of a Clip",
    "perm": "order of a Transpose, as 0 2 3 1",
    "static": "whether the output's shape is known",
    **{name: f"the attribute {name}" for name in _PLAIN if name != "to"},
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A graph as rules see it.

    Attributes:
        operators: in the graph's order.
        folded: number of nodes that are computed when the graph is compiled.
        marks: number of quantise and dequantise nodes on computed tensors.
        quantised: element types of quantised activations; none in a graph of floats.
        free: inputs without a fixed size, by name, as "1x3xHxW".
        opset: of the standard operators.
    """

    operators: tuple[Operator, ...]
    folded: int
    marks: int
    quantised: frozenset[str]
    free: Mapping[str, str]
    opset: int


def read(model: onnx.ModelProto) -> Reading:
    """Return the facts about a graph; shapes that cannot be inferred are left out of them."""
    return _Reader(with_shapes(model)).read()


def without_ends(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network alone: inputs and outputs are tensors between it and the graph's ends."""
    reader = _Reader(with_shapes(model))
    parts = reader.parts()
    kept = [node for i, node in enumerate(model.graph.node) if parts.get(i) != "ends"]
    made = {name for node in kept for name in node.output}
    wanted = {name for node in kept for name in node.input if name}
    outside = {value.name for value in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if parts.get(index) == "ends":
            outside.update(node.input)
    cut = copy.deepcopy(model)
    graph = cut.graph
    for entries, names in (
        (graph.input, wanted - made - reader.constants),
        (graph.output, made & outside),
    ):
        values = [_value_info(reader, name) for name in sorted(names)]
        del entries[:]
        entries.extend(values)
    initializers = [i for i in graph.initializer if i.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    return cut


def _value_info(reader: "_Reader", name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, reader.types[name], reader.shapes.get(name))


class _Reader:
    """Tensors of one graph by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = model.graph.node
        self.values = {i.name: i for i in model.graph.initializer}
        self.shapes: dict[str, list[int | str | None]] = {}
        self.types: dict[str, int] = {}
        graph = model.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = [_dim(d) for d in tensor.shape.dim]
        for i in graph.initializer:
            self.shapes[i.name], self.types[i.name] = list(i.dims), i.data_type
        self.constants = set(self.values)
        self.folded: set[int] = set()
        for index, node in enumerate(self.nodes):
            inputs = [name for name in node.input if name]
            if node.op_type in ("Constant", "Shape") or (
                inputs and self.constants.issuperset(inputs)
            ):
                self.constants.update(node.output)
                self.folded.add(index)
                if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                    self.values[node.output[0]] = node.attribute[0].t
        self.live = [i for i in range(len(self.nodes)) if i not in self.folded]
        self.maker = {name: i for i in self.live for name in self.nodes[i].output}
        self.users: dict[str, list[int]] = {}
        for i in self.live:
            for name in self.nodes[i].input:
                self.users.setdefault(name, []).append(i)

    def read(self) -> Reading:
        parts = self.parts()
        operators = [
            self._operator(index, node, parts[index])
            for index, node in enumerate(self.nodes)
            if index in parts and node.op_type not in MARKS
        ]
        marks = [self.nodes[i] for i in parts if self.nodes[i].op_type in MARKS]
        zero_points = [n.input[2] for n in marks if len(n.input) > 2]
        free = {
            value.name: "x".join(str(d) for d in self.shapes.get(value.name, ["?"]))
            for value in self.model.graph.input
            if value.name not in self.values
            and not all(isinstance(d, int) for d in self.shapes.get(value.name, ["?"]))
        }
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        return Reading(
            operators=tuple(operators),
            folded=len(self.folded),
            marks=len(marks),
            quantised=frozenset(_type_name(self.types[z]) for z in zero_points if z in self.types),
            free=free,
            opset=opsets.get("", opsets.get("ai.onnx", 0)),
        )

    def parts(self) -> dict[int, Part]:
        """Return for every node that is not folded whether it is network or ends."""
        live, maker = self.live, self.maker
        users = {i: [u for n in self.nodes[i].output for u in self.users.get(n, [])] for i in live}
        before: set[int] = set()
        for i in live:
            sources = [maker[n] for n in self.nodes[i].input if n in maker]
            if self._may_end(i) and before.issuperset(sources):
                before.add(i)
        after: set[int] = set()
        for i in reversed(live):
            if self._may_end(i) and after.issuperset(users[i]):
                after.add(i)
        ends = before | after
        if len(ends) == len(live):
            return dict.fromkeys(live, "network")
        return {i: "ends" if i in ends else "network" for i in live}

    def _may_end(self, index: int) -> bool:
        node = self.nodes[index]
        constant = any(name in self.constants for name in node.input)
        return node.op_type in _ENDS or (node.op_type in _ENDS_WITH_CONSTANT and constant)

    def _operator(self, index: int, node: onnx.NodeProto, part: Part) -> Operator:
        computed = [name for name in node.input if name and name not in self.constants]
        ends = [self._shape_text(name) for name in (computed[:1] + list(node.output[:1]))]
        return Operator(
            index=index,
            name=node.name or node.output[0],
            type=f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else
            node.op_type,
            part=part,
            facts=self._facts(node, computed),
            shapes=" -> ".join(ends),
        )  # fmt: skip

    def _shape_text(self, name: str) -> str:
        return "x".join("?" if d is None else str(d) for d in self.shapes.get(name, [None]))

    def _facts(self, node: onnx.NodeProto, computed: list[str]) -> dict[str, Fact]:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        facts: dict[str, Fact] = {name: _plain(found[name]) for name in _PLAIN if name in found}
        if "to" in found:
            facts["to"] = _type_name(found["to"])
        if "perm" in found:
            facts["perm"] = " ".join(str(axis) for axis in found["perm"])
        facts |= self._surroundings(node, computed)
        if node.op_type in ("Conv", "ConvTranspose"):
            facts |= self._convolution(node, found)
        elif "kernel_shape" in found:
            facts["kernel"] = max(found["kernel_shape"])
            facts["stride"] = max(found.get("strides", [1]))
        elif node.op_type == "Clip":
            facts |= self._clip(node)
        elif len(node.input) == 2:
            facts |= self._operand(node)
        return facts

    def _surroundings(self, node: onnx.NodeProto, computed: list[str]) -> dict[str, Fact]:
        """Return facts about what a node reads, gives, and feeds."""
        facts: dict[str, Fact] = {}
        if computed:
            facts["dtype"] = _type_name(self.types.get(self._before_marks(computed[0]), 0))
        feeds = self._feeds(node.output[0])
        if feeds:
            facts["feeds"] = feeds
        shape = self.shapes.get(node.output[0])
        facts["static"] = shape is not None and all(isinstance(d, int) for d in shape)
        if shape is not None:
            facts["rank"] = len(shape)
            if shape and isinstance(shape[0], int):
                facts["batch"] = shape[0]
        if node.op_type == "Div":
            below = self._before_marks(node.input[1])
            if below in self.maker:
                facts["divisor"] = self.nodes[self.maker[below]].op_type
        return facts

    def _before_marks(self, name: str) -> str:
        """Return what was quantised and dequantised again to give a tensor."""
        while name in self.maker and self.nodes[self.maker[name]].op_type in MARKS:
            name = self.nodes[self.maker[name]].input[0]
        return name

    def _feeds(self, name: str) -> str | None:
        """Return the type of the only user of a tensor, looking through quantisation."""
        users = self.users.get(name, [])
        while len(users) == 1 and self.nodes[users[0]].op_type in MARKS:
            name = self.nodes[users[0]].output[0]
            users = self.users.get(name, [])
        if len(users) != 1:
            return None
        user = self.nodes[users[0]]
        divides = user.op_type == "Div" and user.input[1] == name != user.input[0]
        return "divisor" if divides else user.op_type

    def _convolution(self, node: onnx.NodeProto, found: Mapping[str, Any]) -> dict[str, Fact]:
        transposed = node.op_type == "ConvTranspose"
        facts: dict[str, Fact] = {
            "stride": max(found.get("strides", [1])),
            "dilation": max(found.get("dilations", [1])),
            "constant_weights": node.input[1] in self.constants,
        }
        if transposed:
            facts["output_padding"] = max(found.get("output_padding", [0]))
        pads = found.get("pads", [])
        half = len(pads) // 2
        facts["asymmetric"] = list(pads[:half]) != list(pads[half:])
        weight = self.shapes.get(node.input[1], [])
        kernel = found.get("kernel_shape") or weight[2:]
        if kernel and all(isinstance(side, int) for side in kernel):
            facts["kernel"] = max(kernel)
        group = found.get("group", 1)
        if len(weight) > 1 and isinstance(weight[0], int) and isinstance(weight[1], int):
            inner, outer = weight[0], weight[1] * group
            facts["channels_in"] = inner if transposed else outer
            facts["channels_out"] = outer if transposed else inner
            if kernel and all(isinstance(side, int) for side in kernel):
                read = int(facts["channels_in"]) // group
                facts["taps"] = math.prod(kernel) * -(-read // 16) * 16
        depthwise = group > 1 and group == facts.get("channels_in")
        facts["grouping"] = "none" if group == 1 else "depthwise" if depthwise else "grouped"
        return facts

    def _clip(self, node: onnx.NodeProto) -> dict[str, Fact]:
        facts: dict[str, Fact] = {}
        for name, key in zip(node.input[1:], ("low", "high"), strict=False):
            tensor = self.values.get(name)
            if tensor is not None and tensor.data_location != TensorProto.EXTERNAL:
                facts[key] = float(np.asarray(numpy_helper.to_array(tensor)).reshape(-1)[0])
        return facts

    def _operand(self, node: onnx.NodeProto) -> dict[str, Fact]:
        one, two = node.input
        if one == two:
            return {"operand": "same"}
        constant = [i for i, name in enumerate(node.input) if name in self.constants]
        if constant:
            return {"operand": "constant", "position": constant[0]}
        shapes = self.shapes.get(one), self.shapes.get(two)
        return {"operand": "tensor" if shapes[0] == shapes[1] else "broadcast"}


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _plain(value: Any) -> Fact:
    return value.decode() if isinstance(value, bytes) else value


def _type_name(number: int) -> str:
    name = TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name
