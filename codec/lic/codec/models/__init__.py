"""The networks, in torch. `MODELS` maps an architecture's name to its class."""

from lic.codec.models.blocks import ACTIVATIONS
from lic.codec.models.bmshj2018 import (
    FactorizedConfig,
    FactorizedPrior,
    Output,
    bits,
    factorized_config,
)

MODELS: dict[str, type[FactorizedPrior]] = {FactorizedPrior.name: FactorizedPrior}

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "FactorizedConfig",
    "FactorizedPrior",
    "Output",
    "bits",
    "factorized_config",
]
