"""Graphs in ONNX Runtime against the torch modules that they came from, or against other graphs.

What a graph rounds is compared before it is rounded, too: two engines may agree in all symbols of
a few pictures and yet be far apart.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lic.codec.bundle import WEIGHTS
from lic.codec.errors import ExportError

# Of floating outputs, relative to their largest magnitude where that is above 1.
TOLERANCE = 1e-4
# What an encoder's output is called that leaves rounding to its caller: y less the medians.
LEFT = "y"
Arrays = Mapping[str, NDArray[Any]]


class Run(NamedTuple):
    """What went into a module, and what came out, by name; and what it rounded, in order."""

    inputs: Arrays
    outputs: Arrays
    rounded: Sequence[NDArray[Any]] = ()


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps, while it is entered, what torch is given to round."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[NDArray[Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator; of `round` keep the input."""
        del types
        if func is torch.ops.aten.round.default:
            self.values.append(args[0].numpy().copy())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def runs_of(
    module: nn.Module, name: str, outputs: Sequence[str], examples: Iterable[Tensor]
) -> list[Run]:
    """Run a module of one input, `name`, on examples."""
    runs = []
    for example in examples:
        with Rounded() as before:
            found = module(example)
        values = found if isinstance(found, tuple) else (found,)
        made = {each: v.numpy() for each, v in zip(outputs, values, strict=True)}
        runs.append(Run({name: example.numpy()}, made, before.values))
    return runs


@dataclass(kw_only=True)
class Agreement:
    """How far a graph is from its module.

    Attributes:
        error: largest difference of floating outputs and of what is rounded, as TOLERANCE counts.
        flips: of integer outputs, how many differ.
        step: by how much at the most.
        symbols: how many there are.
    """

    error: float = 0.0
    flips: int = 0
    step: int = 0
    symbols: int = 0

    def add(self, other: "Agreement") -> None:
        """Take in what was found elsewhere."""
        self.error = max(self.error, other.error)
        self.flips += other.flips
        self.step = max(self.step, other.step)
        self.symbols += other.symbols

    def __str__(self) -> str:
        """Return what to tell of it."""
        flips = f", {self.flips} of {self.symbols} symbols flip" if self.symbols else ""
        return f"largest error {self.error:.1e}{flips}"


def check_graph(
    name: str, graph: onnx.ModelProto, weights: bytes, runs: Iterable[Run]
) -> Agreement:
    """Run a graph on what its module was run on.

    Floating outputs and what is rounded may differ by TOLERANCE; integer outputs by one step in one
    value, or in one of a thousand where that is more. NaN passes nowhere.

    Raises:
        ExportError: the graph is invalid, does not run, or differs.
    """
    opened, rounded = with_rounded(graph)
    running = session(opened, weights, threads=0, name=name)
    agreement = Agreement()
    for made in runs:
        if len(made.rounded) != len(rounded):
            raise ExportError(f"{name}: rounds {len(rounded)} times, torch {len(made.rounded)}")
        found = _run(name, running, [*made.outputs, *rounded], dict(made.inputs))
        names = [*made.outputs, *(f"{each}, before it is rounded" for each in rounded)]
        expected = [*made.outputs.values(), *made.rounded]
        for output, wanted, values in zip(names, expected, found, strict=True):
            _check(f"{name} ({output})", values, wanted, agreement, symbols=output == LEFT)
    return agreement


def compare(
    name: str, graph: onnx.ModelProto, other: onnx.ModelProto, inputs: Sequence[NDArray[Any]]
) -> Agreement:
    """Tell how far another graph of the same, single input is from a graph; both self-contained.

    Raises:
        ExportError: one does not run, or gives NaN, infinite values or other shapes.
    """
    found = [_outputs(name, each, inputs) for each in (graph, other)]
    names = [each.name for each in graph.graph.output]
    agreement = Agreement()
    for of_graph, of_other in zip(*found, strict=True):
        for place, (expected, value) in enumerate(zip(of_graph, of_other, strict=True)):
            left = names[place] == LEFT if place < len(names) else False
            agreement.add(agreement_of(name, value, expected, symbols=left))
    return agreement


def _outputs(
    name: str, graph: onnx.ModelProto, inputs: Iterable[NDArray[Any]]
) -> Iterator[list[NDArray[Any]]]:
    """Yield all outputs of a graph, then what it rounds, for each input."""
    opened, rounded = with_rounded(graph)
    running = session(opened, name=name)
    wanted = [*(each.name for each in graph.graph.output), *rounded]
    (given,) = (each.name for each in graph.graph.input)
    for value in inputs:
        yield _run(name, running, wanted, {given: value})


def with_rounded(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a graph that also gives what it rounds, and the names of that, in order."""
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    names = [node.input[0] for node in graph.graph.node if node.op_type == "Round"]
    given = {each.name for each in graph.graph.output}
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=each) for each in names if each not in given
    )
    return opened, names


def session(
    graph: onnx.ModelProto, weights: bytes = b"", *, threads: int = 1, name: str = ""
) -> Any:
    """Return an ONNX Runtime session of a graph, whose weights may lie in a file that it names.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    try:
        return onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
        where = f"{name}: " if name else ""
        raise ExportError(f"{where}ONNX Runtime cannot load the graph: {error}") from None


def run(of: Any, value: NDArray[Any]) -> NDArray[Any]:
    """Return the only output of a session for its only input."""
    (result,) = of.run(None, {of.get_inputs()[0].name: value})
    array: NDArray[Any] = result
    return array


def _run(name: str, session: Any, outputs: list[str], inputs: dict[str, Any]) -> list[NDArray[Any]]:
    try:
        found: list[NDArray[Any]] = session.run(outputs, inputs)
    except Exception as error:  # As above.
        raise ExportError(f"{name}: fails in ONNX Runtime: {error}") from None
    return found


def _check(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    agreement: Agreement,
    *,
    symbols: bool = False,
) -> None:
    if found.dtype != expected.dtype:
        raise ExportError(f"{name} is {found.dtype}, torch's {expected.dtype}")
    own = agreement_of(name, found, expected, symbols=symbols)
    if not own.error <= TOLERANCE:
        raise ExportError(f"{name} differs from torch by {own.error:.2e}; allowed {TOLERANCE:g}")
    if own.step > 1 or own.flips > max(1, own.symbols / 1000):
        raise ExportError(
            f"{name}: {own.flips} of {own.symbols} symbols differ from torch, by up to {own.step}; "
            "allowed one step in one of a thousand"
        )
    agreement.add(own)


def agreement_of(
    name: str, found: NDArray[Any], expected: NDArray[Any], *, symbols: bool = False
) -> Agreement:
    """Tell how far one output is from what it should be; `symbols`: floats that a caller rounds.

    Raises:
        ExportError: it has another shape, NaN or infinite values.
    """
    if found.shape != expected.shape:
        raise ExportError(f"{name} has the shape {found.shape}; expected {expected.shape}")
    if not np.isfinite(found).all():
        raise ExportError(f"{name} has NaN or infinite values")
    gap = np.abs(found.astype(np.float64) - expected)
    if expected.dtype.kind == "f":
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        agreement = Agreement(error=float(gap.max(initial=0)) / scale)
        if symbols:
            whole = [np.rint(each).astype(np.int64) for each in (found, expected)]
            agreement.add(agreement_of(name, *whole))
        return agreement
    step = int(gap.max(initial=0))
    return Agreement(flips=int(np.count_nonzero(gap)), step=step, symbols=found.size)
