import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lic.codec.errors import TrainingError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.trainers.guard import ForwardGuard, check_gradients


def model() -> FactorizedPrior:
    torch.manual_seed(0)
    config = FactorizedConfig(N=4, M=4, encoder_activation="relu", decoder_activation="relu")
    return FactorizedPrior(config).train()


def picture() -> Tensor:
    return torch.rand(2, 3, 32, 32)


def test_a_sound_pass_is_left_alone() -> None:
    net = model()
    guard = ForwardGuard(net, 1e4)
    for step in range(2):
        net(picture())
        guard.check(step, "a.png")


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (math.nan, "NaN"),
        (math.inf, "an infinite value"),
        (-math.inf, "an infinite value"),
        (-3e5, "a value of 3e[+]05"),
    ],
)
def test_the_first_layer_that_overflows_is_named(bad: float, found: str) -> None:
    net = model()
    guard = ForwardGuard(net, 1e4)
    with torch.no_grad():
        net.g_a[2].bias[1] = bad  # type: ignore[operator]
    net(picture())
    with pytest.raises(TrainingError) as error:
        guard.check(17, "a.png, b.png")
    assert error.match(f"^step 17: g_a.2 .Conv2d. gave {found}; expected finite values up to 10000")
    assert error.match("--overflow-tol")
    assert error.match("a.png, b.png")
    assert error.match("last checkpoint is kept")


def test_order_is_that_of_computation_not_of_definition() -> None:
    net = model()
    # g_s was defined before the entropy bottleneck and computes after it.
    guard = ForwardGuard(net, 1e4)
    with torch.no_grad():
        net.g_s[0].bias[0] = math.nan  # type: ignore[operator]
        net.entropy_bottleneck.matrices[0][:] = math.nan
    net(picture())
    with pytest.raises(TrainingError, match="step 0: entropy_bottleneck"):
        guard.check(0, "")


def test_the_tolerance_itself_is_within_it() -> None:
    net = nn.Identity().train()
    guard = ForwardGuard(net, 8.0)
    net(torch.tensor([8.0, -8.0]))
    guard.check(0, "")
    net(torch.tensor([8.5]))
    with pytest.raises(TrainingError, match=r"the model gave a value of 8\.5"):
        guard.check(1, "")


class _Scaled(nn.Module):
    """Gives several tensors, of which no layer knows."""

    def forward(self, x: Tensor) -> dict[str, object]:
        numbers = torch.arange(3)
        return {"kept": x, "count": numbers, "none": None, "pair": (x, x * 1e6), "empty": x[:0]}


def test_what_no_layer_gives_is_seen_in_the_models_outputs() -> None:
    net = _Scaled().train()
    guard = ForwardGuard(net, 100.0)
    net(torch.ones(2))
    with pytest.raises(TrainingError, match=r"step 3: pair\.1 gave a value of 1e\+06"):
        guard.check(3, "")


def test_the_entropy_models_outputs_are_seen() -> None:
    """What it adds to latents belongs to no layer."""
    net = model()
    guard = ForwardGuard(net, 1e4)
    net.entropy_bottleneck.forward = lambda y: (y + math.inf, torch.ones_like(y))  # type: ignore[method-assign, assignment, misc]
    net(picture())
    with pytest.raises(TrainingError, match=r"entropy_bottleneck \(EntropyBottleneck\)\.0 gave"):
        guard.check(0, "")


def test_an_error_is_told_once() -> None:
    net = nn.Identity().train()
    guard = ForwardGuard(net, 1.0)
    net(torch.tensor([math.nan]))
    with pytest.raises(TrainingError):
        guard.check(0, "")
    guard.check(1, "")


def test_validation_is_not_watched() -> None:
    net = model()
    guard = ForwardGuard(net, 1e-9)
    net.eval()
    net(picture())
    guard.check(0, "")


def test_a_closed_guard_looks_at_nothing() -> None:
    net = model()
    guard = ForwardGuard(net, 1e-9)
    guard.close()
    net(picture())
    guard.check(0, "")
    guard.close()


def test_copies_of_the_model_are_not_watched() -> None:
    net = model()
    guard = ForwardGuard(net, 1e-9)
    copy.deepcopy(net)(picture())
    guard.check(0, "")
    net(picture())
    with pytest.raises(TrainingError):
        guard.check(1, "")


def test_watching_changes_no_number() -> None:
    nets = [ScaleHyperprior(HyperpriorConfig(N=4, M=4)).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ForwardGuard(nets[1], 1e4)
    x = torch.rand(1, 3, 64, 64)
    outputs = []
    for net in nets:
        torch.manual_seed(3)
        outputs.append(net(x))
        outputs[-1].x_hat.sum().backward()
    assert torch.equal(outputs[0].x_hat, outputs[1].x_hat)
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_judged(dtype: torch.dtype) -> None:
    net = nn.Identity().train()
    guard = ForwardGuard(net, 1e4)
    net(torch.ones(100_003, dtype=dtype))
    guard.check(0, "")
    for bad in (math.nan, math.inf, 6e4):
        values = torch.ones(100_003, dtype=dtype)
        values[50_001] = bad
        net(values)
        with pytest.raises(TrainingError):
            guard.check(1, "")


@pytest.mark.parametrize("norm", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_gradient_that_is_not_finite_is_refused(norm: float | Tensor) -> None:
    with pytest.raises(TrainingError, match=r"^step 5: the gradient's norm is (nan|inf); expected"):
        check_gradients(norm, 5)


@pytest.mark.parametrize("norm", [0.0, 1e30, torch.tensor(2.0)])
def test_any_finite_gradient_is_fine(norm: float | Tensor) -> None:
    check_gradients(norm, 5)
