import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.trainers.config import LossConfig, OptimizerConfig
from lic.trainers.losses import terms_of
from lic.trainers.objective import build_objective
from lic.trainers.optimizers import NamedOptimizer, build_optimizers

KINDS = ("adam", "adamw", "soap", "muon")
LOSS = LossConfig(lmbda=0.01)


def factorized() -> FactorizedPrior:
    torch.manual_seed(0)
    model = FactorizedPrior(FactorizedConfig(N=8, M=8)).train()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def hyperprior() -> ScaleHyperprior:
    torch.manual_seed(0)
    return ScaleHyperprior(HyperpriorConfig(N=8, M=8)).train()


def moved(named: NamedOptimizer) -> set[int]:
    return {id(p) for group in named.optimizer.param_groups for p in group["params"]}


def by_name(optimizers: list[NamedOptimizer]) -> dict[str, NamedOptimizer]:
    return {named.name: named for named in optimizers}


def train(model: FactorizedPrior, optimizers: list[NamedOptimizer], steps: range) -> list[float]:
    objective, losses = build_objective(LOSS), []
    for step in steps:
        torch.manual_seed(step)
        x = torch.rand(1, 3, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = x.contiguous(memory_format=torch.channels_last)
        loss = objective.loss(terms_of(model(x), x, LOSS), step)
        for named in optimizers:
            named.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if any(named.name == "aux" for named in optimizers):
            model.entropy_bottleneck.aux_loss().backward()  # type: ignore[no-untyped-call]
        for named in optimizers:
            named.optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eb_aux", [False, True])
def test_every_parameter_has_its_optimiser(kind: str, eb_aux: bool) -> None:
    model = hyperprior()
    found = by_name(build_optimizers(model, OptimizerConfig(optimizer=kind, eb_aux=eb_aux)))
    bottleneck = model.entropy_bottleneck
    quantiles = {id(bottleneck.quantiles)}
    densities = {id(p) for p in bottleneck.parameters()} - quantiles
    transforms = {id(p) for p in model.parameters()} - quantiles - densities
    expected = {"transforms": transforms, "entropy": densities}
    if eb_aux:
        expected["aux"] = quantiles
    assert {name: moved(named) for name, named in found.items()} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_those_of_the_options(kind: str) -> None:
    config = OptimizerConfig(optimizer=kind, lr=0.02, entropy_lr=0.03, eb_aux_lr=0.04, eb_aux=True)
    for named in build_optimizers(factorized(), config):
        expected = {"transforms": 0.02, "entropy": 0.03, "aux": 0.04}[named.name]
        assert set(named.rates) == {expected}
        assert len(named.rates) == len(named.optimizer.param_groups)


def test_peak_rates_stay_while_a_schedule_moves_the_groups() -> None:
    named = build_optimizers(factorized(), OptimizerConfig(lr=0.02))[0]
    for group in named.optimizer.param_groups:
        group["lr"] = 0.0
    assert set(named.rates) == {0.02}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_is_left_out(kind: str) -> None:
    config = OptimizerConfig(optimizer=kind, eb_aux=True)
    model = factorized()
    model.entropy_bottleneck.requires_grad_(False)
    model.g_a.requires_grad_(False)
    (only,) = build_optimizers(model, config)
    assert only.name == "transforms"
    assert moved(only) == {id(p) for p in model.g_s.parameters()}
    model = factorized()
    model.g_a.requires_grad_(False)
    model.g_s.requires_grad_(False)
    assert [named.name for named in build_optimizers(model, config)] == ["entropy", "aux"]


@pytest.mark.parametrize("kind", KINDS)
def test_scopes_without_kernels_or_without_the_rest_work(kind: str) -> None:
    for wanted in ("bias", "weight"):
        model = factorized()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("g_") and name.endswith(wanted))
        (only,) = build_optimizers(model, OptimizerConfig(optimizer=kind))
        before = [p.clone() for p in model.parameters() if p.requires_grad]
        train(model, [only], range(2))
        after = [p for p in model.parameters() if p.requires_grad]
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_nothing_to_train_is_refused() -> None:
    model = factorized()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"nothing to train.*--train-scope"):
        build_optimizers(model, OptimizerConfig())


def test_quantiles_alone_are_nothing_to_train() -> None:
    model = factorized()
    model.requires_grad_(False)
    model.entropy_bottleneck.quantiles.requires_grad_(True)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizers(model, OptimizerConfig(eb_aux=True))


def test_weight_decay_that_would_do_nothing_is_refused() -> None:
    config = OptimizerConfig(optimizer="adam", weight_decay=0.1)
    with pytest.raises(ConfigError, match=r"--weight-decay is 0\.1 and --optimizer adam has none"):
        build_optimizers(factorized(), config)


@pytest.mark.parametrize("kind", ["adamw", "soap", "muon"])
def test_only_kernels_decay(kind: str) -> None:
    model = factorized()
    config = OptimizerConfig(optimizer=kind, lr=0.1, weight_decay=0.5, eb_aux=True)
    optimizers = build_optimizers(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for named in optimizers:
        # SOAP's first step only looks.
        for _ in range(2):
            named.optimizer.step()
    for name, parameter in model.named_parameters():
        if name.startswith("g_") and name.endswith("weight"):
            assert float(parameter.detach().norm()) < 0.96 * float(before[name].norm()), name
        else:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(kind: str) -> None:
    model = factorized()
    losses = train(
        model, build_optimizers(model, OptimizerConfig(optimizer=kind, lr=3e-3)), range(25)
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [1, 11])
def test_a_resumed_run_is_bit_identical(kind: str, half: int) -> None:
    """Half the steps lie before SOAP's first update of its bases, or right behind it."""
    config = OptimizerConfig(optimizer=kind, weight_decay=0.0 if kind == "adam" else 0.01)
    config = replace(config, eb_aux=True)
    straight = factorized()
    optimizers = build_optimizers(straight, config)
    train(straight, optimizers, range(half))
    file = io.BytesIO()
    torch.save([straight.state_dict(), [n.optimizer.state_dict() for n in optimizers]], file)
    expected = train(straight, optimizers, range(half, 2 * half))

    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    resumed = factorized()
    resumed.load_state_dict(weights)
    fresh = build_optimizers(resumed, config)
    for named, state in zip(fresh, states, strict=True):
        named.optimizer.load_state_dict(state)
    assert train(resumed, fresh, range(half, 2 * half)) == expected
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    for one_, two_ in zip(optimizers, fresh, strict=True):
        assert _equal(one_.optimizer.state_dict(), two_.optimizer.state_dict())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def test_the_quantiles_follow_their_own_loss_and_nothing_else_does() -> None:
    model = factorized()
    optimizers = by_name(build_optimizers(model, OptimizerConfig(eb_aux=True, eb_aux_lr=5.0)))
    bottleneck = model.entropy_bottleneck
    aux = optimizers["aux"].optimizer
    first = bottleneck.aux_loss()
    for _ in range(60):
        aux.zero_grad()
        bottleneck.aux_loss().backward()  # type: ignore[no-untyped-call]
        aux.step()
    assert bottleneck.aux_loss().item() < 0.2 * first.item()
    assert all(p.grad is None for p in model.parameters() if p is not bottleneck.quantiles)


def test_without_eb_aux_the_quantiles_stay() -> None:
    model = factorized()
    before = model.entropy_bottleneck.quantiles.detach().clone()
    train(model, build_optimizers(model, OptimizerConfig(optimizer="adam")), range(2))
    assert torch.equal(model.entropy_bottleneck.quantiles, before)


class _Depthwise(nn.Module):
    """What a GDN-ish block has: depthwise and pointwise convolutions, and a gate of one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.gate = nn.Conv1d(1, 1, 5)


def test_muon_makes_orthogonal_only_what_mixes_channels() -> None:
    model = _Depthwise()
    (named,) = build_optimizers(model, OptimizerConfig(optimizer="muon"))
    orthogonal = [g["params"] for g in named.optimizer.param_groups if g["use_muon"]]
    assert [[id(p) for p in params] for params in orthogonal] == [[id(model.pointwise.weight)]]
    assert len(moved(named)) == 6


def test_steps_of_muon_have_the_size_of_adams() -> None:
    """So that one rate serves kernels and all else; 0.2 is what Adam's steps come to on average."""
    model = factorized()
    optimizers = build_optimizers(model, OptimizerConfig(optimizer="muon", lr=1e-3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizers, range(1))
    for name, parameter in model.named_parameters():
        if name.startswith("g_") and name.endswith("weight"):
            size = float((parameter.detach() - before[name]).square().mean().sqrt())
            assert 0.1e-3 < size < 0.3e-3, name
