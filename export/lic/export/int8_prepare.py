"""What int8 needs no range for, because its integers are known: a graph made ready for a plan.

* A picture of 8 bits, on both ends: steps of 1 / 255.
* Symbols that leave the encoder: with the medians in the last bias and steps of one, the rounding
  to 8 bits is the rounding to symbols.
* Symbols that enter the decoder. The medians that it adds are no integers, so they come as one more
  channel of the first convolution, which is constant within the picture and, like all channels,
  zero in the padding around it.

The last two hold for symbols from -128 to 127. Where calibration comes near these ends, and in
bundles, between whose graphs lie latents of any quantisation step, y stays in
float, and so do the last convolution of the encoder and the first of the decoder: a grid wide
enough would round all small symbols to zero.

Shapes: N batch, M latent channels, h w latent rows and columns, K C output and input channels.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lic.codec.errors import ExportError
from lic.export.calibration import observe
from lic.export.int8_plan import Plan, bias_of, store_bias
from lic.export.qdq import CONVOLUTIONS, PICTURE, SYMBOLS, Levels, Wiring, channel_axis

Inputs = Sequence[NDArray[Any]]
# Symbols of other pictures may be larger than those of the calibration.
SYMBOL_LIMIT = 100


def prepare(
    graph: onnx.ModelProto,
    inputs: Inputs,
    keep_float: Collection[str] = (),
    *,
    symbols: bool = True,
) -> Plan:
    """Return a plan without ranges for an encoder's or a decoder's graph.

    Args:
        graph: from pictures (floating point, in [0, 1]) or from symbols.
        inputs: what it sees in calibration.
        keep_float: names of convolutions that stay as they are.
        symbols: what leaves the encoder or enters the decoder are symbols; otherwise latents.

    Raises:
        ExportError: it has no convolution to quantise, or none of a name.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    _separate_parameters(copied)
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
        fits = symbols and names[-1] in layers and _symbols_fit(copied, wiring, last, inputs)
        if fits:
            _fold_medians(wiring, last)
            fixed[site] = SYMBOLS
        else:
            left.add(site)
    else:
        fixed[site] = PICTURE
        first = wiring.convolutions()[names[0]]
        exact = ""
        small = all(_largest(value) <= SYMBOL_LIMIT for value in inputs)
        if symbols and names[0] in layers and small:
            exact = _expose_symbols(wiring, first)
        if exact:
            fixed[exact] = SYMBOLS
        else:
            layers = tuple(name for name in layers if name != names[0])
    return Plan(graph=copied, layers=layers, fixed=fixed, left=left)


def _separate_parameters(graph: onnx.ModelProto) -> None:
    """Give every convolution weights and biases of its own: the exporter stores equal ones once."""
    held = {i.name: i for i in graph.graph.initializer}
    taken: set[str] = set()
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        for place, name in enumerate(node.input):
            if place == 0 or name not in held:
                continue
            if name in taken:
                own = onnx.TensorProto()
                own.CopyFrom(held[name])
                stem, dot, last = name.rpartition(".")
                own.name = f"{stem}{dot}own{len(taken)}.{last}"
                graph.graph.initializer.append(own)
                node.input[place] = name = own.name
            taken.add(name)


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
    store_bias(wiring, last, bias_of(wiring, last) - medians)
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
