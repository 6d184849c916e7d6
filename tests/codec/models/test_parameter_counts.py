"""A model's size is known from its config alone, and must be that of the model."""

import math
from typing import Any

import pytest
import torch

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import MODELS, HPCMConfig
from lic.codec.models.hpcm_config import SIZES
from lic.codec.models.parameter_counts import check_size, parameter_count

UNEVEN = HPCMConfig(
    widths=(8, 12, 20), blocks=(0, 3, 1), M=24, N=12, prior_s1_s2=(0, 2), prior_s3=(3, 1), heads=3
)
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("hpcm", config.to_dict()) for config in (*SIZES.values(), UNEVEN)),
    *(
        (name, {"N": n, "M": m, "encoder_activation": one, "decoder_activation": two})
        for name in ("bmshj2018-factorized", "bmshj2018-hyperprior")
        for n, m, one, two in (
            (8, 12, "gdn", "relu"),
            (64, 96, "relu", "igdn1"),
            (64, 96, "gdnish", "gdnish"),
        )
    ),
    (
        "bmshj2018-factorized",
        {
            "N": 8,
            "M": 12,
            "encoder_activation": "gdnish",
            "encoder_gain": {"t": 3, "kdw": 5, "eca": True, "residual": False},
            "decoder_activation": "gdnish",
            "decoder_gain": {"k": 7},
        },
    ),
]


@pytest.mark.parametrize(("architecture", "config"), CASES)
def test_the_count_is_that_of_the_model(architecture: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = MODELS[architecture].from_dict(config)
    found = parameter_count(architecture, config)
    assert found == sum(math.prod(p.shape) for p in model.parameters())


def test_every_architecture_has_a_count() -> None:
    assert {name for name, _ in CASES} == set(MODELS)


@pytest.mark.parametrize("architecture", MODELS)
def test_options_that_do_not_exist_are_refused_as_by_the_model(architecture: str) -> None:
    for build in (MODELS[architecture].from_dict, lambda c: parameter_count(architecture, c)):
        with pytest.raises(ConfigError, match=f"{architecture}: .*'colour'"):
            build({"colour": 3})


def test_weights_of_less_than_half_the_model_are_refused() -> None:
    config = SIZES["tiny"].to_dict()
    count = parameter_count("hpcm", config)
    check_size("hpcm", config, {"a": torch.zeros(1).expand(count // 2 + 1)}, "here")
    with pytest.raises(ModelMismatchError, match=rf"here: .* for {count:,} .* hold 1,000; they"):
        check_size("hpcm", config, {"a": torch.zeros(10, 100)}, "here")
