"""The networks, in torch. `MODELS` maps an architecture's name to its class."""

from lic.codec.models.blocks import ACTIVATIONS
from lic.codec.models.bmshj2018 import (
    FactorizedConfig,
    FactorizedPrior,
    Output,
    bits,
    factorized_config,
)
from lic.codec.models.context import ContextModel
from lic.codec.models.hyperprior import HyperpriorConfig, ScaleHyperprior, hyperprior_config

MODELS: dict[str, type[FactorizedPrior] | type[ContextModel]] = {
    FactorizedPrior.name: FactorizedPrior,
    ScaleHyperprior.name: ScaleHyperprior,
}

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "ContextModel",
    "FactorizedConfig",
    "FactorizedPrior",
    "HyperpriorConfig",
    "Output",
    "ScaleHyperprior",
    "bits",
    "factorized_config",
    "hyperprior_config",
]
