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
from lic.codec.models.hpcm import HPCM
from lic.codec.models.hpcm_config import HPCMConfig, hpcm_config
from lic.codec.models.hyperprior import HyperpriorConfig, ScaleHyperprior, hyperprior_config

MODELS: dict[str, type[FactorizedPrior] | type[ContextModel]] = {
    FactorizedPrior.name: FactorizedPrior,
    ScaleHyperprior.name: ScaleHyperprior,
    HPCM.name: HPCM,
}

__all__ = [
    "ACTIVATIONS",
    "HPCM",
    "MODELS",
    "ContextModel",
    "FactorizedConfig",
    "FactorizedPrior",
    "HPCMConfig",
    "HyperpriorConfig",
    "Output",
    "ScaleHyperprior",
    "bits",
    "factorized_config",
    "hpcm_config",
    "hyperprior_config",
]
