from collections.abc import Callable

import pytest
import torch

from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.codec.models.blocks import GDN, Activation
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock

MakeModel = Callable[..., FactorizedPrior]
MakeHyperprior = Callable[..., ScaleHyperprior]


def _make_model(
    encoder: Activation = "gdn", decoder: Activation = "gdn", *, seed: int = 0
) -> FactorizedPrior:
    config = FactorizedConfig(N=8, M=12, encoder_activation=encoder, decoder_activation=decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FactorizedPrior(config).eval()
        _randomise(model)
    return model


def _make_hyperprior(
    encoder: Activation = "gdn", decoder: Activation = "gdn", *, seed: int = 0
) -> ScaleHyperprior:
    config = HyperpriorConfig(N=8, M=12, encoder_activation=encoder, decoder_activation=decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ScaleHyperprior(config).eval()
        _randomise(model)
        with torch.no_grad():
            for name in ("h_a.0.weight", "h_a.4.weight", "h_s.0.weight", "h_s.4.weight"):
                model.get_parameter(name).mul_(3)
            model.get_parameter("h_s.4.bias").uniform_(0, 1)
    return model


@torch.no_grad()
def _randomise(model: FactorizedPrior | ScaleHyperprior) -> None:
    """Move every parameter away from its initial value; latents spread over several steps."""
    for module in model.modules():
        if isinstance(module, GDN):
            module.beta.uniform_(0.5, 1.5)
            module.gamma.uniform_(-0.1, 0.3)
        elif isinstance(module, EncoderBlock | DecoderBlock):
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    for name in ("g_a.0.weight", "g_a.6.weight"):
        model.get_parameter(name).mul_(10)
    bottleneck = model.entropy_bottleneck
    for matrix in bottleneck.matrices:
        matrix.uniform_(-1.8, 0.4)
    for parameter in (*bottleneck.biases, *bottleneck.factors):
        parameter.uniform_(-1, 1)
    bottleneck.quantiles.copy_(torch.tensor([-9.0, 0.0, 9.0]))
    bottleneck.quantiles.add_(torch.rand_like(bottleneck.quantiles) - 0.5)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A function: (encoder's activation, decoder's, seed) -> a small model in eval mode."""
    return _make_model


@pytest.fixture(scope="session")
def make_hyperprior() -> MakeHyperprior:
    """The same for the model with a hyperprior."""
    return _make_hyperprior
