"""Models with a context -> graphs that code in ONNX Runtime.

Shapes: H W pixels of the picture, multiples of the model's stride.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lic.codec.graph_plan import CONSTANTS, FROM_CONSTANTS, FROM_WEIGHTS, Call
from lic.codec.models import ContextModel
from lic.codec.models.context_graphs import DECODER, ENCODER, Piece, Pieces, take_apart
from lic.export.graph_check import Rounded, Run, check_graph
from lic.export.onnx_export import any_size, export_graph, share_weights

# In strides: two and three, so that no length is mistaken for another; then the smallest.
_SIZES = ((2, 3), (1, 1))


def context_graphs(model: ContextModel, weights: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Export all graphs of a model and compare each with torch on two pictures.

    Args:
        model: with the values of `weights`.
        weights: the safetensors file that the graphs will point into.

    Returns:
        Files of the bundle by name, and the manifest's entry `graphs`.

    Raises:
        ExportError: a graph cannot be exported, or differs.
    """
    parts = take_apart(model)
    recorders = [_Recorder(model, parts) for _ in _SIZES]
    generator = torch.Generator().manual_seed(0)
    for recorder, (rows, columns) in zip(recorders, _SIZES, strict=True):
        shape = (1, 3, rows * model.stride, columns * model.stride)
        recorder.code(torch.rand(shape, generator=generator))
    files: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for name, piece in parts.pieces.items():
        runs = [run for recorder in recorders for run in recorder.runs[name]]
        example = recorders[0].examples[name]
        sizes = _free_sizes(piece, example)
        graph = share_weights(export_graph(piece.module, example, piece.outputs, sizes), weights)
        check_graph(f"{name}.onnx", graph, weights, runs)
        files[f"{name}.onnx"] = graph.SerializeToString()
        entries[name] = _entry(name, piece, runs[0])
    if parts.constants:
        files[CONSTANTS] = _packed(parts.constants)
    return files, {**entries, "plan": parts.plan.to_dict()}


class _Recorder:
    """Codes a picture by the plan with the pieces as they are, and keeps what each was given."""

    def __init__(self, model: ContextModel, parts: Pieces) -> None:
        self._parts = parts
        self._weights: dict[str, Tensor] = model.state_dict()
        self._values: dict[str, Tensor] = {}
        self.examples: dict[str, dict[str, Tensor]] = {}
        self.runs: dict[str, list[Run]] = {name: [] for name in parts.pieces}

    @torch.no_grad()
    def code(self, x: Tensor) -> None:
        """Run every piece in its turn on x (1, 3, H, W)."""
        plan, values = self._parts.plan, self._values
        values["x"] = x
        self._run(ENCODER, {"x": "x"}, {name: name for name in self._parts.pieces[ENCODER].outputs})
        self._calls(plan.begin)
        for number, step in enumerate(plan.steps):
            self._calls(step.before)
            symbols = torch.round(values[f"part_{number}"] - values["means"])
            values["part"] = symbols + values["means"]
            self._calls(step.after)
        self._run(DECODER, {"y_hat": plan.y_hat}, {"x_hat": "x_hat"})

    def _calls(self, calls: tuple[Call, ...]) -> None:
        for call in calls:
            self._run(call.graph.removesuffix(".onnx"), call.inputs, call.outputs)

    def _run(self, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        piece = self._parts.pieces[name]
        given = {each: self._value(inputs[each]) for each in piece.inputs}
        self.examples.setdefault(name, given)
        with Rounded() as before:
            result = piece.module(*given.values())
        found = result if isinstance(result, tuple) else (result,)
        made = dict(zip(piece.outputs, found, strict=True))
        self.runs[name].append(Run(_as_arrays(given), _as_arrays(made), before.values))
        for each, target in outputs.items():
            self._values[target] = made[each]

    def _value(self, name: str) -> Tensor:
        if name.startswith(FROM_WEIGHTS):
            return self._weights[name.removeprefix(FROM_WEIGHTS)]
        if name.startswith(FROM_CONSTANTS):
            return self._parts.constants[name.removeprefix(FROM_CONSTANTS)]
        return self._values[name]


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}


def _free_sizes(piece: Piece, example: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Return which dimensions of a piece's inputs grow with the picture, and by how much."""
    rows, _ = _SIZES[0]
    return {
        name: {}
        if name in piece.fixed
        else any_size(1 if piece.any_size else value.shape[2] // rows)
        for name, value in example.items()
    }


def _entry(name: str, piece: Piece, run: Run) -> dict[str, Any]:
    """Return what the manifest says of a graph: its file, and shapes for the size of a run."""

    def shapes(names: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {
            each: [
                str(length) if axis < 2 or each in piece.fixed else ("height", "width")[axis - 2]
                for axis, length in enumerate(values[each].shape)
            ]
            for each in names
        }

    return {
        "file": f"{name}.onnx",
        "inputs": shapes(piece.inputs, run.inputs),
        "outputs": shapes(piece.outputs, run.outputs),
    }


def _packed(constants: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, allow_pickle=False, **{name: value.numpy() for name, value in constants.items()}
    )
    return buffer.getvalue()
