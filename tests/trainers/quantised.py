"""Tiny models with simulated int8 arithmetic."""

from typing import Any

import torch
from torch import Tensor, nn

from lic.codec.models import FactorizedConfig, FactorizedPrior, HyperpriorConfig, ScaleHyperprior
from lic.trainers.config import QatConfig
from lic.trainers.qat import Qat, prepare_qat

STEPS = 8  # Two to calibrate, two to train, four frozen.


def factorized(activation: str = "relu") -> FactorizedPrior:
    torch.manual_seed(0)
    kinds: Any = {"encoder_activation": activation, "decoder_activation": activation}
    model = FactorizedPrior(FactorizedConfig(N=8, M=8, **kinds))
    # As a trained codec's: fresh weights shrink the picture layer by layer to nothing.
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    return model.train()


def hyperprior() -> ScaleHyperprior:
    torch.manual_seed(0)
    config = HyperpriorConfig(N=8, M=8, encoder_activation="relu", decoder_activation="relu")
    return ScaleHyperprior(config).train()


def config(**options: Any) -> QatConfig:
    return QatConfig(qat=True, **{"qat_calibration_steps": 2, **options})


def pictures(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (2, 3, 32, 32), generator=generator).float() / 255


def forward(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)
    x_hat: Tensor = model(pictures(step)).x_hat
    return x_hat


def train(model: nn.Module, qat: Qat, first: int, last: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(first, last):
        qat.at_step(step, STEPS)
        loss = (forward(model, step) - pictures(step)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def calibrated(model: nn.Module, **options: Any) -> Qat:
    """Return simulated arithmetic after its calibration, with frozen ranges."""
    qat = prepare_qat(model, config(**options))
    for step in range(2):
        qat.at_step(step, STEPS)
        forward(model, step)
    qat.freeze()
    return qat
