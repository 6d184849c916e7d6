import dataclasses
import json
import math
from typing import Any

import pytest

from lic.codec.errors import ConfigError
from lic.trainers.config import SECTIONS, TrainConfig
from lic.trainers.sections import option_name

OPTIONS = [
    (section, item) for section, kind in SECTIONS.items() for item in dataclasses.fields(kind)
]


def refused(item: "dataclasses.Field[Any]") -> list[Any]:
    """Return values that an option cannot have, by what its field says of it."""
    facts, default = item.metadata, item.default
    if isinstance(default, bool):
        return [1, "true", None]
    if isinstance(default, tuple):
        return ["text", ("",), (1,), None]
    if isinstance(default, str):
        return [None, 3, *(["", "nonsense"] if facts["choices"] else [])]
    values: list[Any] = ["1", None, True, math.nan, math.inf]
    if isinstance(default, int):
        values += [1.5]
    values += [facts[k] for k in ("above", "below") if facts[k] is not None]
    if facts["least"] is not None:
        values.append(facts["least"] - 1)
    if facts["most"] is not None:
        values.append(facts["most"] + 1)
    if facts["multiple"] > 1:
        values.append(facts["least"] + 1)
    return values


CASES = [(section, item.name, value) for section, item in OPTIONS for value in refused(item)]


@pytest.mark.parametrize(("section", "name", "value"), CASES)
def test_a_bad_value_is_refused_with_its_option(section: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{option_name(name)} is .*expected "):
        TrainConfig.from_dict({section: {name: value}})


def test_the_bounds_of_the_issue_hold() -> None:
    for values in (
        {"crop": 24}, {"crop": 0}, {"lr": 0.0}, {"ema": 1.0}, {"batch": 0}, {"lmbda": -1.0},
        {"alpha_l1": 1.1}, {"amp": "fp8"}, {"act": "tanh"}, {"keep_last": 0}, {"enc_kdw": 4},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            TrainConfig().updated(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enc_kdw": 4}, "--enc-kdw is 4; expected an odd number"),
        ({"dec_k": 2}, "--dec-k is 2; expected an odd number"),
        ({"spectral_reg": True, "tau_final": 0.04}, "--tau-init is 0.05; expected at most"),
        ({"dec_gmin": 5.0}, "--dec-gmin is 5.0; expected below --dec-gmax"),
        ({"local_fp32": "custom"}, "--local-fp32 is 'custom' and --local-fp32-class names 0"),
        ({"local_fp32_class": ["GDN"]}, "--local-fp32 is 'entropy' and --local-fp32-class names 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        TrainConfig().updated(values)


def test_names_are_unique_over_all_sections() -> None:
    names = [item.name for _, item in OPTIONS]
    assert len(names) == len(set(names))


def test_every_option_has_help() -> None:
    assert [
        item.name for _, item in OPTIONS if not item.metadata["help"].endswith((".", ")"))
    ] == []


def test_a_config_comes_back_from_its_dictionary() -> None:
    config = TrainConfig(init="x.pth.tar").updated(
        {"lmbda": 0.0067, "optimizer": "adam", "prefix": ("a", "b"), "qat": True, "epochs": 3}
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {}}, r"no section is called 'optimiser'; expected some of model, "),
        ({"loss": {"lambda": 1}}, r"\[loss\] has no option 'lambda'; expected some of loss, lmbda"),
        ({"loss": 3}, r"\[loss\] is 3; expected a section"),
        ({"init": 3}, r"init is 3; expected text"),
    ],
)
def test_what_is_no_option_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)
