import itertools

import pytest
import torch
from torch import Tensor, nn

from lic.codec.models.blocks import (
    GDN,
    Activation,
    LowerBound,
    NonNegativeParametrizer,
    activation,
    conv,
    deconv,
)
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (5, 4), (16, 33)])
def test_conv_halves_rounding_up_and_deconv_doubles(size: tuple[int, int]) -> None:
    height, width = size
    x = torch.zeros(2, 3, height, width)
    assert conv(3, 4)(x).shape == (2, 4, (height + 1) // 2, (width + 1) // 2)
    assert deconv(3, 4)(x).shape == (2, 4, 2 * height, 2 * width)


def test_lower_bound_bounds_and_keeps_nan() -> None:
    x = torch.tensor([-3.0, 0.4, 0.5, 2.0, float("nan")])
    wanted = torch.tensor([0.5, 0.5, 0.5, 2.0, float("nan")])
    bound = LowerBound(0.5)
    torch.testing.assert_close(bound(x), wanted, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        torch.testing.assert_close(bound(x), wanted, rtol=0, atol=0, equal_nan=True)


def test_lower_bound_stops_only_gradients_that_push_further_below() -> None:
    # A step goes against the gradient: a negative one lets x rise.
    x = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], requires_grad=True)
    arriving = torch.tensor([-2.0, 2.0, -2.0, 2.0, -2.0, 2.0])
    torch.autograd.backward(LowerBound(0.5)(x), arriving)
    assert x.grad is not None
    assert x.grad.tolist() == [-2.0, 0.0, -2.0, 2.0, -2.0, 2.0]


@pytest.mark.parametrize("minimum", [0.0, 1e-6, 0.25])
def test_parametrizer_gives_back_what_it_stored(minimum: float) -> None:
    parametrizer = NonNegativeParametrizer(minimum)
    values = minimum + torch.logspace(-6, 2, 50)
    torch.testing.assert_close(parametrizer(parametrizer.init(values)), values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("minimum", [0.0, 1e-6, 0.25])
def test_parametrizer_never_gives_less_than_the_minimum(minimum: float) -> None:
    values = NonNegativeParametrizer(minimum)(torch.linspace(-10, 0, 101))
    torch.testing.assert_close(values, torch.full_like(values, minimum), rtol=1e-4, atol=0)


KINDS = list(itertools.product((False, True), repeat=2))


@pytest.mark.parametrize("inverse, simplified", KINDS)
def test_gdn_is_the_papers_formula(inverse: bool, simplified: bool) -> None:
    layer = _random_gdn(4, inverse=inverse, simplified=simplified)
    x = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(1))
    wanted = _plain_gdn(x, layer, inverse=inverse, simplified=simplified)
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("simplified", [False, True])
def test_inverse_gdn_multiplies_by_what_gdn_divides_by(simplified: bool) -> None:
    layer = _random_gdn(4, inverse=False, simplified=simplified)
    inverse = GDN(4, inverse=True, simplified=simplified)
    inverse.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x) * inverse(x), x * x)


@pytest.mark.parametrize("inverse, simplified", KINDS)
def test_gdn_has_the_formulas_gradient(inverse: bool, simplified: bool) -> None:
    layer = _random_gdn(3, inverse=inverse, simplified=simplified).double()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(x: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        parameters = {"beta": beta, "gamma": gamma}
        output: Tensor = torch.func.functional_call(layer, parameters, (x,))
        return output

    # Away from the bound of gamma, where the gradient is not the formula's on purpose.
    gamma = layer.gamma.detach().clamp(min=0.05)
    leaves = [value.detach().clone().requires_grad_() for value in (x, layer.beta, gamma)]
    assert torch.autograd.gradcheck(run, leaves)


def test_channels_that_start_apart_can_learn_to_interact() -> None:
    layer = GDN(2)
    assert layer.folded()[1][0, 1] == 0
    x = torch.ones(1, 2, 1, 1)
    torch.autograd.backward(layer(x).sum())
    # A sum falls when gamma rises, so the gradient that arrives is negative.
    assert layer.gamma.grad is not None and layer.gamma.grad[0, 1] < 0


@pytest.mark.parametrize("inverse", [False, True])
def test_activation_makes_the_layer_of_its_name(inverse: bool) -> None:
    kinds: tuple[tuple[Activation, bool], ...] = (("gdn", False), ("igdn1", True))
    for kind, simplified in kinds:
        layer = activation(kind, 5, inverse=inverse)
        assert isinstance(layer, GDN) and layer.beta.shape == (5,)
        assert (layer.inverse, layer.simplified) == (inverse, simplified)
    relu = activation("relu", 5, inverse=inverse)
    x = torch.tensor([-1.0, 2.0])
    assert isinstance(relu, nn.ReLU) and relu(x).tolist() == [0, 2]
    assert x.tolist() == [-1, 2], "ReLU changed its input in place"
    block = activation("gdnish", 5, inverse=inverse)
    assert isinstance(block, DecoderBlock if inverse else EncoderBlock)


def _random_gdn(channels: int, *, inverse: bool, simplified: bool) -> GDN:
    layer = GDN(channels, inverse=inverse, simplified=simplified)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.beta.uniform_(0.5, 1.5, generator=generator)
        layer.gamma.uniform_(-0.1, 0.6, generator=generator)
    return layer


def _plain_gdn(x: Tensor, layer: GDN, *, inverse: bool, simplified: bool) -> Tensor:
    """Return equation 2 of arXiv 1511.06281 (or GDN1) in double precision, sum by sum."""
    pedestal = 2.0**-36
    beta = [max(v, (1e-6 + pedestal) ** 0.5) ** 2 - pedestal for v in layer.beta.tolist()]
    gamma = [[max(v, 2.0**-18) ** 2 - pedestal for v in row] for row in layer.gamma.tolist()]
    result = torch.empty(x.shape, dtype=torch.float64)
    count, channels, height, width = x.shape
    for n, i, row, column in itertools.product(*map(range, (count, channels, height, width))):
        others = [float(x[n, j, row, column]) for j in range(channels)]
        powers = [abs(v) if simplified else v**2 for v in others]
        pool = beta[i] + sum(g * p for g, p in zip(gamma[i], powers, strict=True))
        factor = pool if simplified else pool**0.5
        result[n, i, row, column] = others[i] * factor if inverse else others[i] / factor
    return result
