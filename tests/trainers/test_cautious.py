import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.trainers.cautious import CautiousAdam

LR = 0.01
BOTH = pytest.mark.parametrize("foreach", [True, False])


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5, 3, 3), (6,), (4, 7), (1,))
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]


def gradients(step: int, like: Sequence[Tensor]) -> list[Tensor]:
    """Return noise with a drift, so that about a third of the signs disagree with the moment's."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.2 for p in like]


def run(optimizer: torch.optim.Optimizer, steps: Sequence[int]) -> list[Tensor]:
    """Take steps along given gradients and return the parameters."""
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for parameter, grad in zip(moved, gradients(step, moved), strict=True):
            parameter.grad = grad
        optimizer.step()
    return [p.detach().clone() for p in moved]


def one(*grads: Tensor, **options: Any) -> tuple[Tensor, Tensor, CautiousAdam]:
    """Return a parameter before and after the last of some gradients, and the optimiser."""
    parameter = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = CautiousAdam([parameter], lr=LR, **options)
    before = parameter.detach().clone()
    for grad in grads:
        before = parameter.detach().clone()
        parameter.grad = grad
        optimizer.step()
    return before, parameter.detach(), optimizer


def close(first: list[Tensor], second: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


@BOTH
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_caution_it_is_adam(foreach: bool, decay: float) -> None:
    adam: torch.optim.Optimizer = torch.optim.Adam(parameters(), lr=LR, betas=(0.8, 0.99), eps=1e-6)
    if decay:
        adam = torch.optim.AdamW(
            parameters(), lr=LR, betas=(0.8, 0.99), eps=1e-6, weight_decay=decay
        )
    ours = CautiousAdam(parameters(), LR, (0.8, 0.99), 1e-6, decay, cautious=False, foreach=foreach)
    assert close(run(ours, range(200)), run(adam, range(200))) < 1e-6


@BOTH
def test_the_first_step_is_adams(foreach: bool) -> None:
    ours = run(CautiousAdam(parameters(), lr=LR, foreach=foreach), [0])
    assert close(ours, run(torch.optim.Adam(parameters(), lr=LR), [0])) < 1e-7
    assert close(ours, [p.detach() for p in parameters()]) == pytest.approx(LR, rel=1e-3)


@BOTH
@pytest.mark.parametrize(("live", "cap"), [(True, 10.0), (False, 10.0), (True, 1.25)])
def test_updates_are_those_of_the_rule(foreach: bool, live: bool, cap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    grads = torch.randn(4, 60, generator=generator, dtype=torch.float64)
    grads[3, ::5] = 0
    before, after, optimizer = one(*grads, foreach=foreach, live=live, cap=cap)
    first = sum(0.1 * 0.9 ** (3 - i) * g for i, g in enumerate(grads))
    second = sum(0.001 * 0.999 ** (3 - i) * g * g for i, g in enumerate(grads))
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    agrees = (first * grads[3]) > 0
    share = agrees.sum() / (48 if live else 60)
    update = first / (1 - 0.9**4) / ((second / (1 - 0.999**4)).sqrt() + 1e-8)
    factor = min(cap, 1 / float(share))
    assert 0 < agrees.sum() < 48 and (factor == cap) == (cap == 1.25)
    assert torch.equal(after[~agrees], before[~agrees])
    expected = -LR * update[agrees] * factor
    torch.testing.assert_close((after - before)[agrees], expected, rtol=1e-6, atol=0)
    # Moments are never masked.
    state = next(iter(optimizer.state.values()))
    torch.testing.assert_close(state["exp_avg"], first)
    torch.testing.assert_close(state["exp_avg_sq"], second)


@BOTH
def test_weight_decay_is_not_masked(foreach: bool) -> None:
    parameter = nn.Parameter(torch.tensor([2.0, 2.0]))
    optimizer = CautiousAdam([parameter], lr=LR, weight_decay=0.5, foreach=foreach)
    parameter.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    decayed = 2 * (1 - LR * 0.5)
    assert parameter.tolist() == pytest.approx([decayed - LR, decayed])


@BOTH
def test_no_update_goes_against_its_gradient(foreach: bool) -> None:
    moved = parameters()
    optimizer = CautiousAdam(moved, lr=LR, foreach=foreach)
    for step in range(20):
        before = [p.detach().clone() for p in moved]
        grads = gradients(step, moved)
        run(optimizer, [step])
        for parameter, old, grad in zip(moved, before, grads, strict=True):
            products = (old - parameter.detach()) * grad
            assert products.min() >= 0
            first = optimizer.state[parameter]["exp_avg"]
            assert (products.sum() > 0) == bool((first.sign() == grad.sign()).any())


@BOTH
@pytest.mark.parametrize("size", [1, 4])
def test_where_nothing_agrees_nothing_moves_but_the_moments(foreach: bool, size: int) -> None:
    grads = [torch.ones(size), -0.1 * torch.ones(size)]
    before, after, optimizer = one(*grads, foreach=foreach, cap=None)
    assert torch.equal(after, before) and before.abs().min() > 0
    state = next(iter(optimizer.state.values()))
    reference = nn.Parameter(torch.zeros(size))
    adam = torch.optim.Adam([reference])
    for grad in grads:
        reference.grad = grad
        adam.step()
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name], adam.state[reference][name])


@BOTH
@pytest.mark.parametrize("live", [True, False])
def test_gradients_of_zero_move_nothing(foreach: bool, live: bool) -> None:
    before, after, _ = one(torch.ones(3), torch.zeros(3), foreach=foreach, live=live)
    assert torch.equal(after, before) and before.abs().min() > 0


@BOTH
def test_coordinates_are_counted_beyond_half_precision(foreach: bool) -> None:
    grad = torch.ones(70_000, dtype=torch.float16)
    _, after, _ = one(grad, foreach=foreach, eps=1e-4)
    assert [after.min().item(), after.max().item()] == pytest.approx([-LR, -LR], rel=0.01)


@BOTH
def test_of_noise_64_percent_agree(foreach: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(200_000, generator=generator) for _ in range(60)]
    before, after, _ = one(*noise, foreach=foreach)
    expected = 0.5 + math.asin(math.sqrt(1 - 0.9**2)) / math.pi
    assert expected == pytest.approx(0.6436, abs=1e-4)
    assert (after != before).float().mean().item() == pytest.approx(expected, abs=0.01)


@BOTH
def test_dead_coordinates_leave_the_steps_of_others_alone(foreach: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    sparse = torch.zeros(3, 2000, dtype=torch.float64)
    sparse[:, ::10] = dense

    def last_update(grads: Tensor, **options: Any) -> Tensor:
        before, after, _ = one(*grads, foreach=foreach, **options)
        return (after - before)[after != before]

    alone = last_update(dense)
    torch.testing.assert_close(last_update(sparse), alone, rtol=1e-6, atol=0)
    masked, capped = last_update(sparse, live=False, cap=None), last_update(sparse, live=False)
    share = alone.numel() / 200
    assert 1 / (0.1 * share) > 10
    # The mean over all coordinates is a tenth, so that the factor is ten times as large.
    torch.testing.assert_close(masked, 10 * alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(capped, 10 * share * alone, rtol=1e-6, atol=0)


@BOTH
def test_the_floor_bounds_the_factor(foreach: bool) -> None:
    first = torch.ones(1000)
    second = -0.1 * torch.ones(1000)
    second[0] = 0.1
    steps = {}
    for floor, cap in ((0.5, None), (1e-3, None), (1e-3, 10.0)):
        before, after, _ = one(first, second, foreach=foreach, floor=floor, cap=cap)
        steps[floor, cap] = (before - after)[0].item()
    plain = steps[0.5, None] / 2
    assert steps[1e-3, None] == pytest.approx(1000 * plain, rel=1e-4)
    assert steps[1e-3, 10.0] == pytest.approx(10 * plain, rel=1e-4)


@BOTH
def test_tiny_gradients_are_not_lost(foreach: bool) -> None:
    tiny = 1e-23 * torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert torch.equal(tiny * tiny, torch.zeros(4))
    before, after, _ = one(tiny, tiny, foreach=foreach)
    assert torch.equal((after - before).sign(), -tiny.sign())


def test_both_ways_agree_and_differ_from_adam() -> None:
    options: dict[str, Any] = {"lr": LR, "weight_decay": 0.1}
    together = run(CautiousAdam(parameters(), **options), range(50))
    apart = run(CautiousAdam(parameters(), foreach=False, **options), range(50))
    plain = run(torch.optim.AdamW(parameters(), **options), range(50))
    assert close(together, apart) < 1e-6
    # A mask of the moment's sign with itself would be all ones, and this 0.
    for mine, adams in zip(together, plain, strict=True):
        assert (mine - adams).abs().max() > LR


@BOTH
def test_a_resumed_run_is_the_same(foreach: bool) -> None:
    options: dict[str, Any] = {"lr": LR, "weight_decay": 0.1, "cap": None, "foreach": foreach}
    straight = run(CautiousAdam(parameters(), **options), range(10))
    moved = parameters()
    first = CautiousAdam(moved, **options)
    run(first, range(5))
    file = io.BytesIO()
    torch.save({"model": moved, "optimizer": first.state_dict()}, file)
    for kept in (True, False):
        file.seek(0)
        state = torch.load(file, weights_only=True)
        # Options come with the state.
        second = CautiousAdam(state["model"], **({"lr": 99.0} if kept else options))
        if kept:
            second.load_state_dict(state["optimizer"])
        resumed = run(second, range(5, 10))
        same = [torch.equal(a, b) for a, b in zip(resumed, straight, strict=True)]
        assert all(same) if kept else not any(same)


@BOTH
def test_parameters_keep_their_memory_format(foreach: bool) -> None:
    def made(layout: torch.memory_format, of_grads: torch.memory_format) -> CautiousAdam:
        kernel = nn.Parameter(parameters()[0].detach().to(memory_format=layout))
        optimizer = CautiousAdam([kernel], lr=LR, foreach=foreach)
        for step in range(5):
            kernel.grad = gradients(step, [kernel])[0].to(memory_format=of_grads)
            optimizer.step()
        return optimizer

    rows = made(torch.contiguous_format, torch.contiguous_format)
    for of_grads in (torch.channels_last, torch.contiguous_format):
        last = made(torch.channels_last, of_grads)
        (kernel,) = last.param_groups[0]["params"]
        assert torch.equal(kernel, rows.param_groups[0]["params"][0])
        for tensor in (kernel, last.state[kernel]["exp_avg"], last.state[kernel]["exp_avg_sq"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert not tensor.is_contiguous()


@BOTH
def test_parameters_without_a_gradient_wait(foreach: bool) -> None:
    early, late, never = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = CautiousAdam([early, late, never], lr=LR, weight_decay=0.1, foreach=foreach)
    early.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(late, torch.ones(3)) and late not in optimizer.state
    late.grad = torch.ones(3)
    optimizer.step()
    # Each has its own number of steps: the first of any is as long as the learning rate.
    assert late.tolist() == pytest.approx([1 - LR * 0.1 - LR] * 3)
    assert [optimizer.state[p]["step"] for p in (early, late)] == [2, 1]
    assert torch.equal(never, torch.ones(3)) and never not in optimizer.state


@BOTH
def test_types_and_options_may_differ_between_parameters(foreach: bool) -> None:
    def made(together: bool) -> list[Tensor]:
        double, half = parameters(torch.float64)[0], parameters(torch.bfloat16)[0]
        plain = parameters()[0]
        options: list[dict[str, Any]] = [{}, {}, {"cautious": False}]
        groups = [{"params": [p], **o} for p, o in zip((double, half, plain), options, strict=True)]
        if together:
            groups = [{"params": [double, half]}, groups[2]]
            optimizers = [CautiousAdam(groups, lr=LR, foreach=foreach)]
        else:
            optimizers = [CautiousAdam([g], lr=LR, foreach=foreach) for g in groups]
        for step in range(6):
            for parameter in (double, half, plain):
                parameter.grad = gradients(step, [parameter])[0]
            for optimizer in optimizers:
                optimizer.step()
        return [double.detach(), half.detach(), plain.detach()]

    for mixed, alone in zip(made(True), made(False), strict=True):
        assert torch.equal(mixed, alone)
    reference = torch.optim.Adam([parameters()[0]], lr=LR)
    assert close([made(True)[2]], run(reference, range(6))) < 1e-6


def test_a_closure_makes_the_gradients() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = CautiousAdam([weight], lr=LR)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9
    assert weight.item() == pytest.approx(3 - LR)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"lr": math.nan}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)},
        {"eps": 0.0}, {"weight_decay": -0.1}, {"floor": 0.0}, {"floor": 2.0}, {"cap": 0.5},
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} is .*; expected "):
        CautiousAdam([nn.Parameter(torch.zeros(1))], **wrong)
    # Those of a group, too.
    with pytest.raises(ConfigError, match=name):
        CautiousAdam([{"params": [nn.Parameter(torch.zeros(1))], **wrong}])
