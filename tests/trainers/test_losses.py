import math

import pytest
import torch

from lic.codec.models import Output
from lic.trainers.losses import Terms, rate_distortion_terms
from lic.trainers.objective import RateDistortion


def test_the_terms_are_those_of_a_hand_computation() -> None:
    x = torch.zeros(2, 3, 2, 4)
    x_hat = torch.full_like(x, 0.1)
    x_hat[1] = 0.3
    # 5 symbols of 2 bits and 2 of 3 bits, over 2 * 2 * 4 pixels.
    likelihoods = {"y": torch.full((5,), 0.25), "z": torch.full((1, 2), 0.125)}
    terms = rate_distortion_terms(Output(x_hat, likelihoods), x)
    assert float(terms.bpp) == pytest.approx((5 * 2 + 2 * 3) / 16)
    assert float(terms.mse) == pytest.approx((0.01 + 0.09) / 2)


def test_half_precision_terms_are_in_single() -> None:
    x = torch.zeros(1, 3, 2, 2)
    output = Output(x.bfloat16(), {"y": torch.full((1,), 0.5, dtype=torch.bfloat16)})
    terms = rate_distortion_terms(output, x)
    assert terms.bpp.dtype == terms.mse.dtype == torch.float32


@pytest.mark.parametrize("step", [0, 10**6])
def test_the_loss_is_rate_plus_lambda_distortion(step: int) -> None:
    terms = Terms(torch.tensor(0.75), torch.tensor(0.002))
    loss = RateDistortion(0.013).loss(terms, step)
    assert float(loss) == pytest.approx(0.75 + 0.013 * 255**2 * 0.002)


def test_both_terms_pull_on_the_network() -> None:
    x_hat = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    likelihood = torch.tensor([0.5], requires_grad=True)
    terms = rate_distortion_terms(Output(x_hat, {"y": likelihood}), torch.zeros(1, 3, 2, 2))
    loss = RateDistortion(0.01).loss(terms, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert likelihood.grad is not None
    assert float(likelihood.grad) == pytest.approx(-1 / (0.5 * math.log(2)) / 4)
    assert x_hat.grad is not None
    expected = 0.01 * 255**2 * 2 * 0.5 / 12
    assert torch.allclose(x_hat.grad, torch.full_like(x_hat, expected))


def test_the_objective_has_no_state() -> None:
    objective = RateDistortion(0.013)
    objective.load_state_dict(objective.state_dict())
    assert objective.state_dict() == {}
