"""Plans of graphs: what a manifest may say, and what is refused."""

import json
from typing import Any

import pytest

from lic.codec.errors import ModelMismatchError
from lic.codec.graph_plan import Call, Plan, PlannedStep

CALL = Call("predict.onnx", {"context": "context"}, {"scales": "scales", "means": "means"})
PLAN = Plan((0.1, 1.0), (CALL,), (PlannedStep("s1", (CALL, CALL), ()),), "part")


def test_a_plan_comes_back_from_json() -> None:
    values = json.loads(json.dumps(PLAN.to_dict()))
    assert Plan.from_dict(values, "here") == PLAN
    assert len(list(PLAN.calls())) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": []},
        {"levels": [1.0, 1.0]},
        {"levels": [0.0, 1.0]},
        {"levels": [float("nan")]},
        {"levels": None},
        {"steps": []},
        {"steps": [{"part": "s1"}]},
        {"begin": [{"graph": "a"}]},
        {"begin": [{"graph": "a", "inputs": [1], "outputs": {}}]},
        {"begin": 7},
    ],
)
def test_what_is_no_plan_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelMismatchError, match=r"^here: .*plan of"):
        Plan.from_dict({**PLAN.to_dict(), **changes}, "here")


@pytest.mark.parametrize("missing", ["levels", "begin", "steps", "y_hat"])
def test_a_plan_has_all_its_entries(missing: str) -> None:
    values = PLAN.to_dict()
    del values[missing]
    with pytest.raises(ModelMismatchError, match=missing):
        Plan.from_dict(values, "here")


@pytest.mark.parametrize("values", [None, [], "plan", 3])
def test_anything_else_is_refused(values: Any) -> None:
    with pytest.raises(ModelMismatchError, match="not a plan of graphs"):
        Plan.from_dict(values, "here")
