"""Graphs in ONNX Runtime against the torch modules that they came from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.codec.bundle import WEIGHTS
from lic.codec.errors import ExportError

# Of floating outputs, relative to their largest magnitude where that is above 1.
TOLERANCE = 1e-4
Arrays = Mapping[str, NDArray[Any]]


class Run(NamedTuple):
    """What went into a module, and what came out, by name."""

    inputs: Arrays
    outputs: Arrays


@torch.no_grad()
def runs_of(
    module: nn.Module, name: str, outputs: Sequence[str], examples: Iterable[Tensor]
) -> list[Run]:
    """Run a module of one input, `name`, on examples."""
    runs = []
    for example in examples:
        found = module(example)
        values = found if isinstance(found, tuple) else (found,)
        made = {each: v.numpy() for each, v in zip(outputs, values, strict=True)}
        runs.append(Run({name: example.numpy()}, made))
    return runs


@dataclass(kw_only=True)
class Agreement:
    """How far a graph is from its module.

    Attributes:
        error: largest difference of floating outputs, as TOLERANCE counts it.
        flips: of integer outputs, how many differ, by one step.
        symbols: how many there are.
    """

    error: float = 0.0
    flips: int = 0
    symbols: int = 0

    def __str__(self) -> str:
        """Return what to tell of it."""
        flips = f", {self.flips} of {self.symbols} symbols flip" if self.symbols else ""
        return f"largest error {self.error:.1e}{flips}"


def check_graph(
    name: str, graph: onnx.ModelProto, weights: bytes, runs: Iterable[Run]
) -> Agreement:
    """Run a graph on what its module was run on.

    Floating outputs may differ by TOLERANCE; integer outputs, which are rounded, by one step in one
    value, or in one of a thousand where that is more. NaN passes nowhere.

    Raises:
        ExportError: the graph is invalid, does not run, or differs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    try:
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
        raise ExportError(f"{name}: ONNX Runtime cannot load the graph: {error}") from None
    agreement = Agreement()
    for run in runs:
        try:
            found = session.run(list(run.outputs), dict(run.inputs))
        except Exception as error:
            raise ExportError(f"{name}: fails in ONNX Runtime: {error}") from None
        for (output, expected), values in zip(run.outputs.items(), found, strict=True):
            _compare(f"{name} ({output})", values, expected, agreement)
    return agreement


def _compare(name: str, found: NDArray[Any], expected: NDArray[Any], agreement: Agreement) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ExportError(
            f"{name} is {found.dtype} {found.shape}, torch's {expected.dtype} {expected.shape}"
        )
    gap = np.abs(found.astype(np.float64) - expected)
    if found.dtype.kind == "f":
        error = float(gap.max()) / max(1.0, float(np.abs(expected).max()))
        if not error <= TOLERANCE:
            raise ExportError(f"{name} differs from torch by {error:.2e}; allowed {TOLERANCE:g}")
        agreement.error = max(agreement.error, error)
        return
    flips = int(np.count_nonzero(gap))
    if gap.max() > 1 or flips > max(1, found.size / 1000):
        raise ExportError(
            f"{name}: {flips} of {found.size} symbols differ from torch, by up to {gap.max():.0f}; "
            "allowed one step in one of a thousand"
        )
    agreement.flips += flips
    agreement.symbols += found.size
