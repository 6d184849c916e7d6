"""Which graphs an engine runs, and in which order, to code with a model that has a context.

A plan lies in the bundle's manifest, under graphs["plan"]. It is a short program over named
arrays, written by whoever exported the graphs; an engine knows nothing else of the architecture:

    1. the encoder's graph has y's parts "part_0", "part_1" ... and z as outputs;
    2. `begin` runs once z is known, as "z" (1, N, h, w) int32;
    3. then for each step, `before` leaves its "scales" and "means" behind, and `after` takes the
       step's y_hat, "part";
    4. the decoder's graph gives x_hat from the array that the plan names as y_hat.

A call's inputs are such arrays; "weights/NAME" is a float32 tensor of the bundle's weights file and
"constants/NAME" an array of its constants.npz.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from lic.codec.errors import ModelMismatchError

CONSTANTS = "constants.npz"
FROM_WEIGHTS, FROM_CONSTANTS = "weights/", "constants/"


@dataclass(frozen=True)
class Call:
    """One run of a graph.

    Attributes:
        graph: its file in the bundle.
        inputs: for each input of the graph the array that it gets.
        outputs: for each output the array that it becomes.
    """

    graph: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class PlannedStep:
    """One of a model's steps: the part of the latents that it belongs to, and its calls."""

    part: str
    before: tuple[Call, ...]
    after: tuple[Call, ...]


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        levels: the scales that y has tables for, rising.
        begin: once z is known.
        steps: in order.
        y_hat: the array that is y_hat (1, M, h, w) after the last step.
    """

    levels: tuple[float, ...]
    begin: tuple[Call, ...]
    steps: tuple[PlannedStep, ...]
    y_hat: str = "y_hat"

    def calls(self) -> Iterable[Call]:
        """Yield all calls in the order that they run in."""
        yield from self.begin
        for step in self.steps:
            yield from step.before
            yield from step.after

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Read what `to_dict` gave.

        Raises:
            ModelMismatchError: it is no plan.
        """
        try:
            levels = tuple(float(level) for level in values["levels"])
            begin, y_hat = _calls(values["begin"]), str(values["y_hat"])
            steps = tuple(
                PlannedStep(str(s["part"]), _calls(s["before"]), _calls(s["after"]))
                for s in values["steps"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelMismatchError(f"{where}: not a plan of graphs ({error!r})") from None
        rising = all(a < b for a, b in itertools.pairwise(levels))
        if not levels or not steps or not rising or not levels[0] > 0:
            raise ModelMismatchError(
                f"{where}: a plan of {len(steps)} steps and {len(levels)} levels; expected some of "
                "both, levels rising from above 0"
            )
        return cls(levels, begin, steps, y_hat)


def _calls(values: Iterable[Mapping[str, Any]]) -> tuple[Call, ...]:
    return tuple(Call(str(v["graph"]), _names(v["inputs"]), _names(v["outputs"])) for v in values)


def _names(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}
