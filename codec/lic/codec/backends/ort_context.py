"""ONNX Runtime for models whose entropy parameters come from a network: hyperprior, HPCM.

Shapes: M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends.ort_sessions import Sessions
from lic.codec.bundle import (
    DECODER,
    ENCODER,
    MANIFEST,
    TABLES,
    WEIGHTS,
    Bundle,
    safetensors_index,
)
from lic.codec.errors import ModelMismatchError
from lic.codec.graph_plan import CONSTANTS, FROM_CONSTANTS, FROM_WEIGHTS, Call, Plan
from lic.codec.latents import SYMBOL_LIMIT, State, Steps, checked_symbols
from lic.codec.nudges import Nudger, block_count, checked
from lic.codec.stages import stage

Floats = NDArray[np.float32]
# Larger than any symbol: what NaN and infinity become, whose conversion differs by machine.
_UNCODABLE = 2**16


@dataclass
class CodingState:
    """Latents on their way through the walk.

    Attributes:
        shape: of z, (1, N, h / 4, w / 4).
        z: symbols int32, None when decoding.
        parts: of y by step, empty when decoding.
        values: the plan's arrays.
        nudges: of the step under way, (b,).
        symbols: of the step under way as floats, None when decoding.
    """

    shape: tuple[int, ...]
    z: NDArray[np.int32] | None = None
    parts: list[Floats] = field(default_factory=list)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    nudges: NDArray[np.int16] | None = None
    symbols: Floats | None = None


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
            entry = index.get(name.removeprefix(FROM_WEIGHTS))
            if entry is None or entry[0] != "F32":
                raise ModelMismatchError(f"{bundle.path / WEIGHTS}: no float32 tensor {name}")
            _, shape, begin, end = entry
            found[name] = np.frombuffer(data[begin:end], "<f4").reshape(shape)
    of_constants = sorted(name for name in wanted if name.startswith(FROM_CONSTANTS))
    if of_constants:
        try:
            with np.load(io.BytesIO(bundle.read(CONSTANTS)), allow_pickle=False) as arrays:
                found |= {name: arrays[name.removeprefix(FROM_CONSTANTS)] for name in of_constants}
        except (OSError, ValueError, KeyError) as error:
            raise ModelMismatchError(f"{bundle.path / CONSTANTS}: unreadable ({error})") from None
    return found


class ContextSteps:
    """Orders the latents of a model as `torch_context.ContextSteps` does, by its plan."""

    def __init__(self, graphs: PlannedGraphs, tables: int) -> None:
        plan = graphs.plan
        self.groups: tuple[str, ...] = ("z", *(s.part for s in plan.steps for _ in range(2)))
        self._graphs = graphs
        self._channels = tables - len(plan.levels) - 1
        self._nudger = Nudger(np.array(plan.levels, np.float32))
        self._nudges_table = np.uint16(tables - 1)

    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return a group's symbols (None when decoding) and the indexes of their tables."""
        step, part = divmod(group - 1, 2)
        if group == 0:
            return self._propose_z(state)
        return (self._propose_nudges, self._propose_y)[part](step, state)

    def _propose_z(self, state: CodingState) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        channels = np.arange(self._channels, dtype=np.uint16)[:, None, None]
        symbols = None if state.z is None else checked_symbols(state.z, "z")
        return symbols, np.broadcast_to(channels, state.shape)

    def _propose_nudges(
        self, step: int, state: CodingState
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        self._graphs.run(self._graphs.plan.steps[step].before, state.values)
        scales = state.values["scales"]
        indexes = np.broadcast_to(self._nudges_table, (block_count(scales.size),))
        if state.z is None:
            return None, indexes
        state.nudges = self._nudger.choose(scales)
        return state.nudges, indexes

    def _propose_y(
        self, step: int, state: CodingState
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        assert state.nudges is not None
        levels = self._nudger.levels(state.values["scales"], state.nudges)
        indexes = (self._channels + levels).astype(np.uint16)
        if state.z is None:
            return None, indexes
        with stage("quantise"):
            state.symbols = np.rint(state.parts[step] - state.values["means"])
            codable = np.abs(state.symbols) <= SYMBOL_LIMIT
            symbols = np.where(codable, state.symbols, _UNCODABLE).astype(np.int32)
            return checked_symbols(symbols, f"y, step {step}"), indexes

    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        """Return the state with a group's symbols known.

        Raises:
            BitstreamError: a nudge is none that an encoder writes.
        """
        step, part = divmod(group - 1, 2)
        if group == 0:
            state.values["z"] = symbols.astype(np.int32).reshape(state.shape)
            self._graphs.run(self._graphs.plan.begin, state.values)
        elif part == 0:
            state.nudges = checked(symbols)
        else:
            known = symbols.astype(np.float32).reshape(state.values["means"].shape)
            state.values["part"] = known + state.values["means"]
            self._graphs.run(self._graphs.plan.steps[step].after, state.values)
        return state


class OrtContextBackend:
    """Runs a bundle's graphs by its plan; encoder and decoder make the very same calls."""

    name = "onnx"

    def __init__(self, bundle: Bundle, sessions: Sessions) -> None:
        self.device = sessions.device
        self._sessions = sessions
        self._graphs = PlannedGraphs(bundle, sessions)
        self._channels = len(bundle.tables) - len(self._graphs.plan.levels) - 1
        if self._channels < 1:
            raise ModelMismatchError(
                f"{bundle.path / TABLES}: holds {len(bundle.tables)} entropy tables; the plan of "
                f"graphs needs more than {len(self._graphs.plan.levels) + 1}"
            )
        self.steps: Steps = ContextSteps(self._graphs, len(bundle.tables))

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
        return CodingState(shape=(1, self._channels, height // 64, width // 64))

    def synthesize(self, state: State) -> Floats:
        """Return x_hat (1, 3, H, W) in [0, 1] from the state after the walk."""
        (x_hat,) = self._sessions.run(
            DECODER, {"y_hat": state.values[self._graphs.plan.y_hat]}, ["x_hat"]
        )
        return x_hat
