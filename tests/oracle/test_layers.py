"""lic's layers give what CompressAI's give, values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressai import layers as oracle_layers
from compressai import ops as oracle_ops
from torch import Tensor, nn

from lic.codec.models.blocks import GDN, LowerBound, NonNegativeParametrizer

CHANNELS = 24


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("oracle_class, simplified", [("GDN", False), ("GDN1", True)])
def test_gdn_and_gdn1_agree(oracle_class: str, simplified: bool, inverse: bool) -> None:
    oracle = getattr(oracle_layers, oracle_class)(CHANNELS, inverse=inverse)
    mine = GDN(CHANNELS, inverse=inverse, simplified=simplified)
    initial = oracle.state_dict()
    assert all(torch.equal(value, initial[name]) for name, value in mine.state_dict().items())
    _randomise(oracle)
    mine.load_state_dict(oracle.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(2, CHANNELS, 9, 7, generator=generator)

    x_hat, gradients = _run(mine, x)
    wanted, wanted_gradients = _run(oracle, x)

    assert (x_hat - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert len(gradients) == len(wanted_gradients) == 3
    for gradient, other in zip(gradients, wanted_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("minimum", [0.0, 1e-6, 0.25])
def test_parametrizers_agree_on_both_sides_of_the_bound(minimum: float) -> None:
    mine, oracle = NonNegativeParametrizer(minimum), oracle_ops.NonNegativeParametrizer(minimum)
    values = torch.linspace(-1, 1, 401)
    assert torch.equal(mine.init(values), oracle.init(values))
    assert torch.equal(mine(values), oracle(values))


@pytest.mark.parametrize("loss", [torch.sum, lambda x: -x.sum()])
def test_lower_bounds_pass_the_same_gradients(loss: Callable[[Tensor], Tensor]) -> None:
    gradients = []
    for bound in (LowerBound(0.5), oracle_ops.LowerBound(0.5)):
        x = torch.linspace(-1, 1, 401, requires_grad=True)
        torch.autograd.backward(loss(bound(x)))
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def _randomise(gdn: Any) -> None:
    """Set parameters far from the initial ones, some of gamma below the parametrizer's bound."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gdn.beta.uniform_(0.5, 1.5, generator=generator)
        gdn.gamma.uniform_(-0.1, 0.4, generator=generator)


def _run(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    x_hat = layer(x)
    weights = torch.randn(x_hat.shape, generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((x_hat * weights).sum())
    leaves = (x, *layer.parameters())
    return x_hat.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]
