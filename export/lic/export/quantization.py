"""Static int8 from calibration: a float graph and what it sees -> a QDQ graph.

Activations in uint8, one grid for a tensor; weights in int8, one scale for an output channel. Three
tensors need no range because their integers are known:

* a picture of 8 bits, on both ends: steps of 1 / 255;
* symbols that leave the encoder: with the medians in the last bias and steps of one, the rounding
  to 8 bits is the rounding to symbols;
* symbols that enter the decoder. The medians that it adds are no integers, so they come as one more
  channel of the first convolution, which is constant within the picture and, like all channels,
  zero in the padding around it.

The last two hold for symbols from -128 to 127. Where calibration comes near these ends, y stays in
float, and so do the last convolution of the encoder and the first of the decoder: a grid wide
enough would round all small symbols to zero.

Shapes: N batch, M latent channels, h w latent rows and columns, K C output and input channels.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lic.codec.errors import ConfigError, ExportError
from lic.export.calibration import Method, Ranges, channel_means, observe, ranges_of
from lic.export.equalisation import STRENGTH, equalise, pairs
from lic.export.qdq import (
    BIAS_LEVEL,
    PICTURE,
    SYMBOLS,
    WEIGHT_LEVEL,
    IntegerLayer,
    Levels,
    Wiring,
    channel_axis,
    write_qdq,
)

Inputs = Sequence[NDArray[Any]]
# Symbols of other pictures may be larger than those of the calibration.
SYMBOL_LIMIT = 100
# Strengths of equalisation that "rd" tries besides the usual one.
STRENGTHS = (0.3, 0.4, 0.6, 0.7)
# Factors on both ends of a range that "rd" tries, downwards and upwards.
FACTORS = ((0.85, 0.72, 0.6, 0.5), (1.15,))


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
                _store(wiring, node, self.biases[name])
        grids = {**{name: levels_of(*ends) for name, ends in self.ranges.items()}, **self.fixed}
        layers = {}
        for name in self.layers:
            node = wiring.convolutions()[name]
            layers[name] = integer_layer(
                wiring.value(node.input[1]),
                channel_axis(node),
                _bias(wiring, node),
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


def _bias(wiring: Wiring, node: onnx.NodeProto) -> NDArray[np.float32]:
    if len(node.input) > 2:
        return wiring.value(node.input[2]).astype(np.float32)
    channels = wiring.value(node.input[1]).shape[channel_axis(node)]
    return np.zeros(channels, np.float32)


def prepare(graph: onnx.ModelProto, inputs: Inputs, keep_float: Collection[str] = ()) -> Plan:
    """Return a plan without ranges for an encoder's or a decoder's graph.

    Args:
        graph: from pictures (floating point, in [0, 1]) or from symbols.
        inputs: what it sees in calibration.
        keep_float: names of convolutions that stay as they are.

    Raises:
        ExportError: it has no convolution to quantise, or none of a name.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    _separate_biases(copied)
    wiring = Wiring(copied)
    names = list(wiring.convolutions())
    unknown = set(keep_float) - set(names)
    if not names or unknown:
        raise ExportError(
            f"the graph has the convolutions {', '.join(names) or '(none)'}; "
            + (f"not {', '.join(sorted(unknown))}" if names else "nothing here can become int8")
        )
    if set(keep_float) - {names[0], names[-1]}:
        raise ExportError(
            f"only {names[0]} and {names[-1]} can stay in float: ONNX Runtime quantises the "
            "weights between two pairs by itself, and worse"
        )
    layers = tuple(name for name in names if name not in keep_float)
    (entry,) = copied.graph.input
    last = wiring.convolutions()[names[-1]]
    site = wiring.site(last)
    fixed: dict[str, Levels] = {}
    left: set[str] = set()
    if _gives_symbols(wiring, last):
        fixed[entry.name] = PICTURE
        fits = names[-1] in layers and _symbols_fit(copied, wiring, last, inputs)
        if fits:
            _fold_medians(wiring, last)
            fixed[site] = SYMBOLS
        else:
            left.add(site)
    else:
        fixed[site] = PICTURE
        first = wiring.convolutions()[names[0]]
        exact = ""
        if names[0] in layers and all(_largest(value) <= SYMBOL_LIMIT for value in inputs):
            exact = _expose_symbols(wiring, first)
        if exact:
            fixed[exact] = SYMBOLS
        else:
            layers = tuple(name for name in layers if name != names[0])
    return Plan(graph=copied, layers=layers, fixed=fixed, left=left)


def _separate_biases(graph: onnx.ModelProto) -> None:
    """Give every convolution a bias of its own: the exporter stores equal ones once.

    Raises:
        ExportError: convolutions share their weights.
    """
    wiring = Wiring(graph)
    for name, node in wiring.convolutions().items():
        if len(wiring.consumers[node.input[1]]) > 1:
            raise ExportError(f"{name}: its weights serve several convolutions")
        if len(node.input) > 2 and len(wiring.consumers[node.input[2]]) > 1:
            own = numpy_helper.from_array(wiring.value(node.input[2]), f"{name}.own_bias")
            graph.graph.initializer.append(own)
            node.input[2] = own.name


def _largest(value: NDArray[Any]) -> float:
    return float(np.abs(value.astype(np.float64)).max(initial=0))


def _medians(wiring: Wiring, node: onnx.NodeProto) -> NDArray[np.float32] | None:
    """Return the medians (M,) that a node adds or subtracts, if it does."""
    if node.op_type in ("Add", "Sub") and node.input[1] in wiring.initializers:
        values = wiring.value(node.input[1])
        if values.ndim == 4 and values.size == values.shape[1]:
            return values.reshape(-1)
    return None


def _gives_symbols(wiring: Wiring, last: onnx.NodeProto) -> bool:
    following = wiring.consumers.get(last.output[0], [])
    return len(following) == 1 and _medians(wiring, following[0]) is not None


def _symbols_fit(
    graph: onnx.ModelProto, wiring: Wiring, last: onnx.NodeProto, inputs: Inputs
) -> bool:
    (less,) = wiring.consumers[last.output[0]]
    name = less.output[0]
    return all(_largest(seen[name]) <= SYMBOL_LIMIT for seen in observe(graph, [name], inputs))


def _fold_medians(wiring: Wiring, last: onnx.NodeProto) -> None:
    """Take the medians off the last bias in place of y."""
    (less,) = wiring.consumers[last.output[0]]
    medians = _medians(wiring, less)
    assert medians is not None, "asked before"
    _store(wiring, last, _bias(wiring, last) - medians)
    difference = less.output[0]
    if difference in wiring.outputs:
        less.op_type = "Identity"
        del less.input[1:]
    else:
        for node in wiring.consumers[difference]:
            for i, name in enumerate(node.input):
                if name == difference:
                    node.input[i] = less.input[0]
        wiring.graph.node.remove(less)


def _store(wiring: Wiring, node: onnx.NodeProto, bias: NDArray[np.float32]) -> None:
    """Give a convolution a bias (K,)."""
    if len(node.input) > 2:
        wiring.initializers[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
        return
    name = node.input[1].removesuffix(".weight") + ".bias"
    # The exporter drops biases that are all zero.
    wiring.graph.initializer.append(numpy_helper.from_array(bias, name))
    wiring.initializers[name] = wiring.graph.initializer[-1]
    node.input.append(name)


def _expose_symbols(wiring: Wiring, first: onnx.NodeProto) -> str:
    """Bring the medians as one more channel; returns the tensor of symbols, if there is one."""
    adding = wiring.producer.get(first.input[0])
    medians = None if adding is None else _medians(wiring, adding)
    if adding is None or medians is None or len(wiring.consumers[first.input[0]]) != 1:
        return ""
    weight = wiring.value(first.input[1])
    # Input channels are the other one of the first two dimensions.
    inward = 1 - channel_axis(first)
    extra = np.tensordot(weight, medians, axes=(inward, 0))
    extra = np.expand_dims(extra, inward)
    # As large as it takes for its weights to stay below the others, so that they keep their scale.
    others = tuple(i for i in range(weight.ndim) if i != channel_axis(first))
    ratio = np.abs(extra).max(axis=others) / np.maximum(np.abs(weight).max(axis=others), 1e-30)
    level = np.float32(min(127.0, max(1.0, math.ceil(float(ratio.max())))))
    wider = np.concatenate([weight, extra / level], axis=inward).astype(np.float32)
    wiring.initializers[first.input[1]].CopyFrom(numpy_helper.from_array(wider, first.input[1]))
    symbols, joined = adding.input[0], f"{adding.output[0]}.symbols"
    constants = {
        "start": np.array([0]), "end": np.array([1]), "axis": np.array([1]),
        "zero": np.float32(0), "level": level,
    }  # fmt: skip
    for name, value in constants.items():
        held = numpy_helper.from_array(np.asarray(value), f"{joined}.{name}")
        wiring.graph.initializer.append(held)
    slice_, zeros, constant = (f"{joined}.{name}" for name in ("slice", "zeros", "constant"))
    bounds = [f"{joined}.{name}" for name in ("start", "end", "axis")]
    nodes = [
        helper.make_node("Slice", [symbols, *bounds], [slice_], name=slice_),
        helper.make_node("Mul", [slice_, f"{joined}.zero"], [zeros], name=zeros),
        helper.make_node("Add", [zeros, f"{joined}.level"], [constant], name=constant),
        helper.make_node("Concat", [symbols, constant], [joined], name=joined, axis=1),
    ]
    place = list(wiring.graph.node).index(adding)
    ordered = list(wiring.graph.node)
    ordered[place : place + 1] = nodes
    first.input[0] = joined
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del wiring.graph.node[:]
    wiring.graph.node.extend(kept)
    return joined


def correct_biases(
    plan: Plan, inputs: Inputs, means: Mapping[str, NDArray[np.float64]], start: int = 0
) -> Plan:
    """Return a plan whose convolutions have, on the calibration, the float graph's mean outputs.

    Layer after layer, each behind corrected ones (arXiv 1906.04721, section 4.2): behind ReLU all
    values are positive, and rounding errors add up to an offset. Float layers take part: what
    enters them is rounded, too.

    Args:
        plan: with ranges.
        inputs: of the calibration.
        means: (K,) of each convolution's output in the float graph; see `output_means`.
        start: number of the first convolution to correct.

    Raises:
        ExportError: NaN or infinite values.
    """
    wiring = Wiring(plan.graph)
    nodes = wiring.convolutions()
    biases = dict(plan.biases)
    names = list(nodes)[start:]
    for name in names:
        biases[name] = _bias(wiring, nodes[name])
    for name in names:
        found = channel_means(replace(plan, biases=biases).write(), [nodes[name].output[0]], inputs)
        shift = means[name] - found[nodes[name].output[0]]
        biases[name] = (biases[name] + shift).astype(np.float32)
    return replace(plan, biases=biases)


def output_means(plan: Plan, inputs: Inputs) -> dict[str, NDArray[np.float64]]:
    """Return the mean (K,) of each channel of each convolution's output in the float graph."""
    nodes = Wiring(plan.graph).convolutions()
    outputs = {name: node.output[0] for name, node in nodes.items()}
    found = channel_means(plan.graph, list(outputs.values()), inputs)
    return {name: found[output] for name, output in outputs.items()}


def quantise_graph(
    graph: onnx.ModelProto,
    inputs: Inputs,
    *,
    method: Method = "minmax",
    keep_float: Collection[str] = (),
    loss: Callable[[onnx.ModelProto], float] | None = None,
) -> onnx.ModelProto:
    """Return the QDQ graph of an encoder's or a decoder's float graph.

    Channels are equalised, ranges chosen, biases corrected; "rd" then changes strengths and ranges
    as long as the loss falls.

    Args:
        graph: self-contained; opset and names of inputs and outputs stay.
        inputs: pictures (N, 3, H, W) or symbols (N, M, h, w) of the calibration.
        method: how ranges are chosen.
        keep_float: names of convolutions that stay as they are, the first or the last.
        loss: what "rd" makes small; see `rate_distortion.Loss`.

    Raises:
        ConfigError: no such method, or "rd" without a loss.
        ExportError: nothing to quantise, or NaN or infinite values.
    """
    if not inputs:
        raise ConfigError("calibration needs at least one picture")
    if method == "rd" and loss is None:
        raise ConfigError('method "rd" needs a loss to make small')
    search = _Search(prepare(graph, inputs, keep_float), inputs, method)
    plan = search.plan({pair.tensor: STRENGTH for pair in pairs(search.prepared.graph)})
    if method == "rd" and loss is not None:
        plan = search.ranges(search.strengths(plan, loss), loss)
    return plan.write()


class _Search:
    """Plans for one graph, and the way to better ones."""

    def __init__(self, prepared: Plan, inputs: Inputs, method: Method) -> None:
        self.prepared = prepared
        self._inputs = inputs
        self._method = method
        tensors = [pair.tensor for pair in pairs(prepared.graph)]
        self._largest: dict[str, NDArray[np.float32]] = {}
        for seen in observe(prepared.graph, tensors, inputs):
            for name, values in seen.items():
                most = values.max(axis=(0, 2, 3))
                self._largest[name] = np.maximum(self._largest.get(name, most), most)
        self._strengths: dict[str, float] = {}

    def plan(self, strengths: Mapping[str, float]) -> Plan:
        """Return the plan of equalised channels, with ranges and biases."""
        self._strengths = dict(strengths)
        plan = self.prepared
        plan = replace(plan, graph=equalise(plan.graph, self._largest, strengths))
        ranges = ranges_of(self._method, plan.graph, plan.tensors(), self._inputs)
        return self._corrected(replace(plan, ranges=ranges))

    def _corrected(self, plan: Plan, start: int = 0) -> Plan:
        return correct_biases(plan, self._inputs, output_means(plan, self._inputs), start)

    def strengths(self, plan: Plan, loss: Callable[[onnx.ModelProto], float]) -> Plan:
        """Return the plan with the strengths of least loss, found pair by pair."""
        best, chosen = loss(plan.write()), dict(self._strengths)
        for tensor in chosen:
            for strength in STRENGTHS:
                tried = self.plan({**chosen, tensor: strength})
                found = loss(tried.write())
                if found < best:
                    plan, best, better = tried, found, {**chosen, tensor: strength}
                    chosen = better
        return plan

    def ranges(self, plan: Plan, loss: Callable[[onnx.ModelProto], float]) -> Plan:
        """Return the plan with the ranges of least loss, found tensor by tensor.

        Both ends of a range are multiplied by FACTORS, outwards from 1 as long as that helps. What
        cuts off values that matter is told by the loss, not by the values.
        """
        best = loss(plan.write())
        for tensor, (low, high) in dict(plan.ranges).items():
            start = _first_behind(plan, tensor)
            for factors in FACTORS:
                for factor in factors:
                    ranges = {**plan.ranges, tensor: (low * factor, high * factor)}
                    tried = self._corrected(replace(plan, ranges=ranges), start)
                    found = loss(tried.write())
                    if found >= best:
                        break
                    plan, best = tried, found
        return plan


def _first_behind(plan: Plan, tensor: str) -> int:
    """Return the number of the first convolution that a tensor's grid makes a difference to."""
    wiring = Wiring(plan.graph)
    nodes = wiring.convolutions().values()
    taking = [wiring.root(node.input[0]) == tensor for node in nodes]
    return taking.index(True) if True in taking else len(taking)
