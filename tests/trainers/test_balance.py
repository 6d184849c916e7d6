import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lic.codec.errors import TrainingError
from lic.trainers.balance import TaskWeights, gram_matrix, min_norm

NONE = torch.zeros(2, dtype=torch.float64)


def weights(count: int = 2, low: float = -1.0, **options: Any) -> TaskWeights:
    return TaskWeights([f"T{i}" for i in range(count)], [low] * count, **{"lr": 0.025, **options})


def losses(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_direction_is_the_gradient_of_the_weighted_logarithms() -> None:
    torch.manual_seed(0)
    theta = torch.randn(5, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(3, 5, dtype=torch.float64)
    made = (matrix @ theta).square()
    found = weights(3)
    with torch.no_grad():
        found.logits.copy_(torch.tensor([0.3, -0.7, 0.2]))
    omega = found.weigh(made)
    (mine,) = torch.autograd.grad((omega * made).sum(), theta, retain_graph=True)
    margins, z = made + 1 + 1e-8, found.shares
    scale = (z / margins).sum().detach()
    (theirs,) = torch.autograd.grad((z * torch.log(margins)).sum() / scale, theta)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    assert float(omega.sum()) == pytest.approx(1, abs=1e-6)
    assert not omega.requires_grad and found.logits.grad is None


def _descend(*, learns: bool) -> tuple[float, Tensor]:
    """Descend 400 steps along sum z_i grad log f_i of f_i = k_i x_i^2 / 2, k = (1, 100).

    Returns:
        The ratio of both decreases of the logarithm in the second half, and z.
    """
    curvature, x = losses(1.0, 100.0), losses(1.0, 3.0)
    famo = TaskWeights(["A", "B"], [0.0, 0.0], lr=0.025, learns=learns)
    history = []
    for _ in range(400):
        value = 0.5 * curvature * x**2
        famo.weigh(value)
        history.append(torch.log(value))
        x = x - 2e-4 * famo.shares * 2 / x
        if learns:
            famo.learn(0.5 * curvature * x**2, NONE)
    fall = history[200] - history[-1]
    return float(fall.max() / fall.min()), famo.shares


def test_relative_progress_is_evened_out() -> None:
    """Equal decreases want z in proportion to x^2, which is 1 to 9."""
    assert _descend(learns=False)[0] == pytest.approx(10.1, abs=0.1)
    ratio, z = _descend(learns=True)
    assert ratio < 1.1
    assert z.tolist() == pytest.approx([0.1, 0.9], abs=0.01)


def test_the_first_update_moves_each_logit_by_the_rate() -> None:
    famo = weights()
    famo.weigh(losses(1.0, 1.0))
    famo.learn(losses(0.8, 0.9), NONE)
    assert famo.logits.tolist() == pytest.approx([-0.025, 0.025], abs=1e-5)
    assert famo.shares.tolist() == pytest.approx([0.4875, 0.5125], abs=1e-5)


def test_without_progress_logits_stay_and_only_decay_acts() -> None:
    famo = weights()
    famo.weigh(losses(0.5, 0.7))
    famo.learn(losses(0.5, 0.7), torch.full((2,), 0.003))
    assert famo.logits.tolist() == [0.0, 0.0]
    with torch.no_grad():
        famo.logits.copy_(losses(0.4, -0.4))
    famo.weigh(losses(0.5, 0.7))
    famo.learn(losses(0.5, 0.7), NONE)
    assert famo.logits.tolist() == [0.4, -0.4]
    for _ in range(10):
        before = famo.logits.detach().abs().clone()
        famo.weigh(losses(0.5, 0.7))
        famo.learn(losses(0.5, 0.7), torch.full((2,), 0.003))
        assert bool((famo.logits.detach().abs() < before).all())


def test_plain_descent_on_the_decay_is_exact() -> None:
    famo = weights()
    famo._optimizer = torch.optim.SGD([famo.logits], lr=0.025)  # type: ignore[assignment]
    with torch.no_grad():
        famo.logits.copy_(losses(0.4, -0.4))
    famo.weigh(losses(0.5, 0.7))
    famo.learn(losses(0.5, 0.7), torch.full((2,), 0.003))
    expected = [0.4 * (1 - 0.025 * 0.003), -0.4 * (1 - 0.025 * 0.003)]
    assert famo.logits.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_sum_of_two_logits_stays_nought() -> None:
    torch.manual_seed(0)
    famo = weights()
    for _ in range(1000):
        famo.weigh(torch.rand(2))
        famo.learn(torch.rand(2), torch.full((2,), 0.003))
    assert abs(float(famo.logits.detach().sum())) < 1e-6
    assert float(famo.logits.detach().abs().max()) > 0.01


def test_a_prior_is_where_logits_start_and_return_to() -> None:
    prior = [0.1, 0.3, 0.6]
    famo = weights(3, prior=prior)
    assert famo.shares.tolist() == pytest.approx(prior)
    with torch.no_grad():
        famo.logits.add_(losses(0.5, -0.2, 0.1))
    for _ in range(3000):
        famo.weigh(losses(0.5, 0.7, 0.6))
        famo.learn(losses(0.5, 0.7, 0.6), torch.full((3,), 0.05))
    expected = torch.log(losses(*prior))
    assert famo.logits.tolist() == pytest.approx((expected - expected.mean()).tolist(), abs=1e-3)


def _direction(lmbda: float, low: float) -> Tensor:
    """Return the direction for rate 0.5 and distortion lambda M on a toy of two slopes."""
    rate, mse = 0.5, 0.02
    famo = weights(low=low)
    omega = famo.weigh(losses(lmbda * mse, rate))
    slopes = torch.tensor([[1.0, -0.3], [-0.4, 1.0]], dtype=torch.float64)
    return omega[0] * lmbda * slopes[0] + omega[1] * slopes[1]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_without_a_shift_lambda_drops_out_of_the_direction() -> None:
    assert _cosine(_direction(2, 0.0), _direction(60, 0.0)) > 1 - 1e-6
    assert _cosine(_direction(2, -1.0), _direction(60, -1.0)) < 0.99
    plain = 60 * torch.tensor([1.0, -0.3]) + torch.tensor([-0.4, 1.0])
    assert _cosine(_direction(60, -1e4), plain.double()) > 1 - 1e-4


@pytest.mark.parametrize(("bad", "said"), [(-1.5, "-1.5"), (math.nan, "nan"), (-1.0, "-1")])
def test_a_loss_that_is_not_above_its_bound_is_named(bad: float, said: str) -> None:
    famo = weights()
    with pytest.raises(TrainingError, match=rf"task T1 is {said}; expected above .* -1"):
        famo.weigh(losses(0.5, bad))
    famo.weigh(losses(0.5, 0.5))
    before = famo.state_dict()
    with pytest.raises(TrainingError, match="task T0"):
        famo.learn(losses(-3.0, 0.5), NONE)
    assert torch.equal(famo.state_dict()["logits"], before["logits"])


def test_small_changes_are_seen() -> None:
    famo = weights()
    famo.weigh(losses(0.41, 0.41).float())
    delta = famo.learn(losses(0.41 * (1 - 3e-4), 0.41).float(), NONE)
    assert float(delta[0]) == pytest.approx(8.7614e-5, rel=1e-2)
    assert famo.logits.dtype == torch.float64


def test_the_state_comes_back_exactly_and_matters() -> None:
    def run(famo: TaskWeights, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            famo.weigh(torch.rand(2, generator=generator))
            famo.learn(torch.rand(2, generator=generator), torch.full((2,), 0.003))

    whole, first, second, fresh = weights(), weights(), weights(), weights()
    for seed in (1, 2):
        run(whole, seed)
    run(first, 1)
    kept = second.logits
    second.load_state_dict(first.state_dict())
    assert second.logits is kept
    run(second, 2)
    run(fresh, 2)
    assert torch.equal(second.logits, whole.logits)
    assert torch.equal(second.progress, whole.progress)
    assert not torch.equal(fresh.logits, whole.logits)


def random_gram(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    vectors[1] *= 3 * torch.rand(1, generator=generator, dtype=torch.float64)
    return vectors @ vectors.T


def test_the_closed_form_is_the_shortest_combination() -> None:
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    pairs = torch.stack((grid, 1 - grid))
    inside = []
    for seed in range(20):
        gram = random_gram(seed)
        found = min_norm(gram)
        lengths = (pairs * (gram @ pairs)).sum(dim=0)
        assert float(found[0]) == pytest.approx(float(grid[lengths.argmin()]), abs=1e-3)
        inverse = torch.linalg.solve(gram, torch.ones(2, dtype=torch.float64))
        unclipped = inverse / inverse.sum()
        inside.append(bool((unclipped > 0).all()))
        if inside[-1]:
            torch.testing.assert_close(found, unclipped, rtol=1e-10, atol=1e-10)
        else:
            assert sorted(found.tolist()) == [0, 1]
        # Neither task gets worse along it.
        assert float((gram @ found).min()) >= -1e-8
    assert 0 < sum(inside) < 20


def test_gradients_that_leave_no_choice() -> None:
    same = torch.ones(2, 2, dtype=torch.float64)
    assert min_norm(same).tolist() == [0.5, 0.5]
    assert min_norm(torch.zeros(2, 2)).tolist() == [0.5, 0.5]
    one = torch.diag(losses(0.0, 4.0))
    assert min_norm(one).tolist() == [1.0, 0.0]
    assert min_norm(one.flip(0, 1)).tolist() == [0.0, 1.0]


def test_inner_products_leave_out_what_a_task_does_not_reach() -> None:
    a = [torch.tensor([1.0, 2.0]), None, torch.tensor([[3.0]])]
    b = [torch.tensor([4.0, 5.0]), torch.tensor([6.0]), torch.tensor([[-1.0]])]
    assert gram_matrix([a, b]).tolist() == [[14.0, 11.0], [11.0, 78.0]]
    assert gram_matrix([a[:1], [None]]).tolist() == [[5.0, 0.0], [0.0, 0.0]]
