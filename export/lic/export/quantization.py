"""Static int8 from calibration: a float graph and what it sees -> a QDQ graph.

Shapes: N batch, M latent channels, h w latent rows and columns, K output channels.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from lic.codec.errors import ConfigError
from lic.export.calibration import Method, channel_means, observe, ranges_of
from lic.export.equalisation import STRENGTH, equalise, pairs
from lic.export.int8_plan import Plan, bias_of
from lic.export.int8_prepare import Inputs, prepare
from lic.export.qdq import Wiring

# Strengths of equalisation that "rd" tries besides the usual one.
STRENGTHS = (0.3, 0.4, 0.6, 0.7)
# Factors on both ends of a range that "rd" tries, downwards and upwards.
FACTORS = ((0.85, 0.72, 0.6, 0.5), (1.15,))


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
        biases[name] = bias_of(wiring, nodes[name])
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
    symbols: bool = True,
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
        symbols: between encoder and decoder lie symbols; otherwise latents, which stay in float.
        loss: what "rd" makes small; see `rate_distortion.Loss`.

    Raises:
        ConfigError: no such method, or "rd" without a loss.
        ExportError: nothing to quantise, or NaN or infinite values.
    """
    if not inputs:
        raise ConfigError("calibration needs at least one picture")
    if method == "rd" and loss is None:
        raise ConfigError('method "rd" needs a loss to make small')
    search = _Search(prepare(graph, inputs, keep_float, symbols=symbols), inputs, method)
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
