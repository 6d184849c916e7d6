"""ONNX Runtime for models whose entropy parameters come from a network: hyperprior, HPCM.

Shapes: M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends.context_steps import ContextState, ContextSteps
from lic.codec.backends.ort_sessions import Sessions
from lic.codec.bundle import (
    DECODER,
    ENCODER,
    MANIFEST,
    TABLES,
    UNREADABLE,
    WEIGHTS,
    Bundle,
    safetensors_index,
)
from lic.codec.errors import ModelMismatchError
from lic.codec.graph_plan import CONSTANTS, FROM_CONSTANTS, FROM_WEIGHTS, Call, Plan
from lic.codec.latents import SYMBOL_LIMIT, UNCODABLE, State, Steps, checked_symbols
from lic.codec.nudges import Nudger
from lic.codec.stages import stage

Floats = NDArray[np.float32]


@dataclass(kw_only=True)
class CodingState(ContextState):
    """Latents on their way through the walk.

    Attributes:
        z: symbols int32, None when decoding.
        parts: of y by step, empty when decoding.
        values: the plan's arrays.
    """

    z: NDArray[np.int32] | None = None
    parts: list[Floats] = field(default_factory=list)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)


class PlannedGraphs:
    """Runs a plan's calls on named arrays."""

    def __init__(self, bundle: Bundle, sessions: Sessions) -> None:
        self._sessions = sessions
        self._where = f"{bundle.path / MANIFEST}"
        self.plan = Plan.from_dict(bundle.manifest.graphs["plan"], self._where)
        self._graphs = tuple(dict.fromkeys(call.graph for call in self.plan.calls()))
        self._fixed = _fixed_arrays(bundle, self.plan)

    def load(self) -> None:
        """Make the sessions of all calls, unless they are made."""
        self._sessions.load(*self._graphs)

    def run(self, calls: Iterable[Call], values: dict[str, NDArray[Any]]) -> None:
        """Make calls in order; each takes arrays from `values` and leaves its own there."""
        # Together: the weights' file may have hundreds of megabytes, and its hash is checked.
        self.load()
        for call in calls:
            inputs = {name: self._value(source, values) for name, source in call.inputs.items()}
            found = self._sessions.run(call.graph, inputs, list(call.outputs))
            values.update(zip(call.outputs.values(), found, strict=True))

    def _value(self, name: str, values: dict[str, NDArray[Any]]) -> NDArray[Any]:
        value = self._fixed.get(name, values.get(name))
        if value is None:
            raise ModelMismatchError(f"{self._where}: the plan of graphs has no array {name!r} yet")
        return value


def _fixed_arrays(bundle: Bundle, plan: Plan) -> dict[str, NDArray[Any]]:
    """Return the arrays of a plan that are the same for every picture.

    Raises:
        ModelMismatchError: one is not there, or no float32.
    """
    wanted = {source for call in plan.calls() for source in call.inputs.values()}
    found: dict[str, NDArray[Any]] = {}
    of_weights = sorted(name for name in wanted if name.startswith(FROM_WEIGHTS))
    if of_weights:
        data = bundle.read(WEIGHTS)
        index = safetensors_index(data)
        for name in of_weights:
            dtype, shape, begin, end = index.get(name.removeprefix(FROM_WEIGHTS), ("", (), 0, 0))
            if dtype != "F32" or 4 * math.prod(shape) != end - begin:
                raise ModelMismatchError(f"{bundle.path / WEIGHTS}: no float32 tensor {name}")
            found[name] = np.frombuffer(data[begin:end], "<f4").reshape(shape)
    of_constants = sorted(name for name in wanted if name.startswith(FROM_CONSTANTS))
    if of_constants:
        try:
            with np.load(io.BytesIO(bundle.read(CONSTANTS)), allow_pickle=False) as arrays:
                found |= {name: arrays[name.removeprefix(FROM_CONSTANTS)] for name in of_constants}
        except (KeyError, *UNREADABLE) as error:
            raise ModelMismatchError(f"{bundle.path / CONSTANTS}: unreadable ({error})") from None
    return found


class OrtContextSteps(ContextSteps):
    """Computes a model's steps with the graphs of its plan."""

    def __init__(self, graphs: PlannedGraphs, tables: int) -> None:
        plan = graphs.plan
        super().__init__([step.part for step in plan.steps], tables, len(plan.levels))
        self._graphs = graphs
        self._nudger = Nudger(np.array(plan.levels, np.float32))

    def _symbols_of_z(self, state: CodingState) -> NDArray[np.int16]:
        assert state.z is not None
        return checked_symbols(state.z, "z")

    def _begin(self, state: CodingState, symbols: NDArray[np.int16]) -> None:
        state.values["z"] = symbols.astype(np.int32).reshape(state.shape)
        self._graphs.run(self._graphs.plan.begin, state.values)

    def _predict(self, step: int, state: CodingState) -> int:
        self._graphs.run(self._graphs.plan.steps[step].before, state.values)
        return state.values["scales"].size

    def _choose_nudges(self, state: CodingState) -> NDArray[np.int16]:
        return self._nudger.choose(state.values["scales"])

    def _indexes_of_y(self, state: CodingState) -> NDArray[np.uint16]:
        assert state.nudges is not None
        levels = self._nudger.levels(state.values["scales"], state.nudges)
        return (self._channels + levels).astype(np.uint16)

    def _symbols_of_y(self, step: int, state: CodingState) -> NDArray[np.int16]:
        with stage("quantise"):
            rounded = np.rint(state.parts[step] - state.values["means"])
            codable = np.abs(rounded) <= SYMBOL_LIMIT
            symbols = np.where(codable, rounded, UNCODABLE).astype(np.int32)
            return checked_symbols(symbols, f"y, step {step}")

    def _finish(self, step: int, state: CodingState, symbols: NDArray[np.int16]) -> None:
        means = state.values["means"]
        state.values["part"] = symbols.astype(np.float32).reshape(means.shape) + means
        self._graphs.run(self._graphs.plan.steps[step].after, state.values)


class OrtContextBackend:
    """Runs a bundle's graphs by its plan; encoder and decoder make the very same calls."""

    name = "onnx"

    def __init__(self, bundle: Bundle, sessions: Sessions) -> None:
        self.device = sessions.device
        self._sessions = sessions
        self._graphs = PlannedGraphs(bundle, sessions)
        if len(bundle.tables) < len(self._graphs.plan.levels) + 2:
            raise ModelMismatchError(
                f"{bundle.path / TABLES}: holds {len(bundle.tables)} entropy tables; the plan of "
                f"graphs needs more than {len(self._graphs.plan.levels) + 1}"
            )
        steps = OrtContextSteps(self._graphs, len(bundle.tables))
        self.steps: Steps = steps
        self._shape_of_z = steps.shape_of_z

    @property
    def notes(self) -> tuple[str, ...]:
        """What the sessions made so far have to say."""
        return self._sessions.notes

    @property
    def provider(self) -> str:
        """The providers that the sessions made so far run on."""
        return ", ".join(self._sessions.providers)

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Make the sessions of the directions asked for."""
        self._graphs.load()
        self._sessions.load(*([ENCODER] * encoder), *([DECODER] * decoder))

    def analyze(self, x: Floats) -> State:
        """Return the state with y and z of x (1, 3, H, W) in [0, 1]."""
        parts = [f"part_{step}" for step in range(len(self._graphs.plan.steps))]
        z, *found = self._sessions.run(ENCODER, {"x": np.ascontiguousarray(x)}, ["z", *parts])
        return CodingState(shape=z.shape, z=z, parts=found)

    def blank(self, height: int, width: int) -> State:
        """Return the decoder's first state for one picture of H x W pixels."""
        return CodingState(shape=self._shape_of_z(height, width))

    def synthesize(self, state: State) -> Floats:
        """Return x_hat (1, 3, H, W) in [0, 1] from the state after the walk."""
        (x_hat,) = self._sessions.run(
            DECODER, {"y_hat": state.values[self._graphs.plan.y_hat]}, ["x_hat"]
        )
        return x_hat
