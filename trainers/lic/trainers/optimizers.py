"""Optimisers for the transforms and for the entropy model."""

import torch

from lic.codec.models import FactorizedPrior
from lic.trainers.config import TrainConfig


def build_optimizers(
    model: FactorizedPrior, config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return the optimiser of the transforms and Adam for the densities.

    The densities have few parameters and take ten times the step; their quantiles are solved for
    exactly at the end of a run and are left out.
    """
    transforms = [*model.g_a.parameters(), *model.g_s.parameters()]
    bottleneck = model.entropy_bottleneck
    densities = [p for p in bottleneck.parameters() if p is not bottleneck.quantiles]
    main: torch.optim.Optimizer
    if config.optimizer == "soap":
        # Second order; on learned codecs up to 70 % fewer steps (arXiv 2601.20769).
        from pytorch_optimizer.optimizer.soap import SOAP

        main = SOAP(transforms, lr=config.lr, weight_decay=0.0, precondition_frequency=10)
    else:
        main = torch.optim.Adam(transforms, lr=config.lr)
    return main, torch.optim.Adam(densities, lr=config.entropy_lr)
