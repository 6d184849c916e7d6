import json
import math
from pathlib import Path
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


def test_a_config_comes_back_from_its_file(tmp_path: Path) -> None:
    config = TrainConfig(lmbda=0.0067, optimizer="adam", start="random", seed=9)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert TrainConfig.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"stepz": 1, "a": 2}', "unknown options a, stepz"),
        ('{"steps": 0}', "--steps is 0"),
        ('{"steps": "many"}', "--steps is 'many'"),
        ("[1]", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_file(tmp_path / "config.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a training config"):
        TrainConfig.from_file(tmp_path / "none.json")
