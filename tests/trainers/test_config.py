import json
import math
from typing import Any

import pytest

from lic.codec.errors import ConfigError
from lic.trainers.config import TrainConfig

REFUSED: list[tuple[str, list[Any]]] = [
    ("lmbda", [0, -0.01, math.nan, math.inf, "0.01", None, True]),
    ("steps", [0, -1, 1.5, "10", None, True]),
    ("batch", [0, 2.0]),
    ("crop", [0, -16, 15, 24, 32.0]),
    ("lr", [0, -1e-3, math.nan, math.inf]),
    ("entropy_lr", [0, math.nan, [1e-3]]),
    ("final_lr_fraction", [-0.1, 1.1, math.nan]),
    ("warmup_steps", [-1, 0.5]),
    ("optimizer", ["sgd", "", None]),
    ("start", ["warm", None]),
    ("max_grad_norm", [-1, math.nan, math.inf]),
    ("ema", [-0.1, 1, 1.5, math.nan]),
    ("checkpoint_every", [0, None]),
    ("log_every", [0]),
    ("seed", [-1, 0.5]),
    ("init", [None, 3]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED for value in values]
)
def test_a_bad_value_is_refused_with_its_option(name: str, value: Any) -> None:
    option = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"^{option} is .*; expected "):
        TrainConfig(**{name: value})


def test_every_option_has_a_bad_value_above() -> None:
    assert {name for name, _ in REFUSED} == set(TrainConfig().to_dict())


@pytest.mark.parametrize(
    "values",
    [
        {"lmbda": 1},
        {"crop": 16},
        {"ema": 0},
        {"ema": 0.0},
        {"max_grad_norm": 0},
        {"final_lr_fraction": 1},
        {"warmup_steps": 0},
        {"steps": 1},
    ],
)
def test_the_edges_are_allowed(values: dict[str, Any]) -> None:
    TrainConfig(**values)


def test_a_config_comes_back_from_its_dictionary() -> None:
    config = TrainConfig(lmbda=0.0067, optimizer="adam", start="random", seed=9)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config
