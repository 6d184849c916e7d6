import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import (
    HPCM,
    FactorizedConfig,
    FactorizedPrior,
    HPCMConfig,
    HyperpriorConfig,
    ScaleHyperprior,
    bits,
)
from lic.trainers.config import OptimizerConfig
from lic.trainers.groups import GROUPS, OF_SCALE, Plan, ScaleStopping, group_of
from lic.trainers.objective_options import FinetuneConfig
from lic.trainers.optimizers import NamedOptimizer, build_optimizers

ALL_STOPPED = {name for names in OF_SCALE.values() for name in names}
OPTIMIZERS = ("adam", "adamw", "cautious-adam", "soap", "muon")


def hpcm(heads: int = 2) -> HPCM:
    torch.manual_seed(0)
    # Small: nothing here depends on its sizes.
    config = HPCMConfig(
        widths=(4, 4, 4), blocks=(0, 0, 1), M=8, N=4, prior_s1_s2=(1, 1), prior_s3=(1, 1),
        heads=heads,
    )  # fmt: skip
    return HPCM(config)


def hyperprior() -> ScaleHyperprior:
    torch.manual_seed(0)
    return ScaleHyperprior(HyperpriorConfig(N=4, M=4))


def factorized() -> FactorizedPrior:
    torch.manual_seed(0)
    return FactorizedPrior(FactorizedConfig(N=4, M=4))


def plan(model: nn.Module, steps: int = 100, **options: Any) -> Plan:
    return Plan(model, FinetuneConfig(**options), steps)


def parameters(model: nn.Module, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


def closed(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_every_parameter_has_its_group() -> None:
    found: dict[str, set[str]] = {}
    for model in (hpcm(), hyperprior(), factorized()):
        for name, _ in model.named_parameters():
            found.setdefault(group_of(name), set()).add(name.partition(".")[0])
    assert found == {
        **{name: {name} for name in ("g_a", "g_s", "h_a", "h_s")},
        "context": {
            "y_spatial_prior_adaptor_list_s1",
            "y_spatial_prior_adaptor_list_s2",
            "y_spatial_prior_adaptor_list_s3",
            "y_spatial_prior_s1_s2",
            "y_spatial_prior_s3",
            "adaptive_params_list",
            "attn_s1",
            "attn_s2",
            "attn_s3",
            "context_net",
        },
        "entropy": {"means_hyper", "scales_hyper", "entropy_bottleneck"},
    }
    assert set(found) == set(GROUPS)
    assert group_of("entropy_estimation.any") == "entropy"


@pytest.mark.parametrize("name", ["g_b.0.weight", "g_ab.weight", "module.g_a.0.weight", "context"])
def test_a_parameter_of_no_group_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' belongs to no group.*Name modules"):
        group_of(name)


def test_without_options_everything_learns_alike() -> None:
    model = hpcm()
    made = plan(model)
    assert closed(model) == made.frozen_at(0) == set()
    assert {made.factor(name) for name, _ in model.named_parameters()} == {1.0}


def test_a_model_without_groups_can_have_a_plan() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert plan(model, freeze="1").frozen_at(5) == {"1.weight", "1.bias"} == closed(model)
    with pytest.raises(ConfigError, match="belongs to no group"):
        plan(model, freeze="g_a")
    with pytest.raises(ConfigError, match="such as 0"):
        plan(model, freeze="2")


def test_rates_are_scaled_by_group_module_and_parameter() -> None:
    model = hpcm()
    made = plan(model, lr_scale=" g_a.branch.0=3, context=0.5,g_a=2 ,means_hyper=1e-1,g_a.branch=4")
    wanted = {
        "g_a.branch.0.weight": 3.0,
        "g_a.branch.1.weight": 4.0,
        "attn_s2": 0.5,
        "adaptive_params_list.3": 0.5,
        "means_hyper": 0.1,
        "scales_hyper": 1.0,
        "h_s": 1.0,
    }
    for start, factor in wanted.items():
        names = parameters(model, start)
        assert names
        assert {made.factor(name) for name in names} == {factor}, start
    assert closed(model) == set()


def test_the_factor_of_what_does_not_exist_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"g_a\.99"):
        plan(hyperprior()).factor("g_a.99.weight")


def test_a_name_that_only_begins_alike_is_not_meant() -> None:
    model = nn.ModuleDict({"g_a": nn.ModuleList(nn.Linear(1, 1) for _ in range(11))})
    made = plan(model, lr_scale="g_a.1=0.5")
    assert made.factor("g_a.1.weight") == 0.5
    assert made.factor("g_a.10.weight") == 1.0
    assert plan(model, freeze="g_a.1").frozen_at(0) == {"g_a.1.weight", "g_a.1.bias"}


def test_what_is_frozen_for_good_has_no_gradient() -> None:
    model = hpcm()
    made = plan(model, freeze="h_a, context,g_s.branch.0")
    names = parameters(
        model, "h_a.", "g_s.branch.0.", "y_spatial_prior", "adaptive_params_list", "attn_", "conte"
    )
    assert closed(model) == made.frozen_at(0) == made.frozen_at(99) == names
    moved = {
        id(p)
        for named in build_optimizers(model, OptimizerConfig())
        for group in named.optimizer.param_groups
        for p in group["params"]
    }
    assert moved == {id(p) for name, p in model.named_parameters() if name not in names}


def test_frozen_quantiles_are_frozen_with_their_bottleneck() -> None:
    model = hyperprior()
    plan(model, freeze="entropy")
    assert not model.entropy_bottleneck.quantiles.requires_grad


@pytest.mark.parametrize(
    ("steps", "share", "first"),
    [
        (100, 0.2, 20),
        (30, 0.1, 3),
        (10, 0.99, 9),
        (100, 0.29, 29),
        (10, 0.25, 2),
        (1, 0.5, 0),
        (10, 1 - 5e-11, 9),
    ],
)
def test_layers_begin_at_their_share_of_the_run(steps: int, share: float, first: int) -> None:
    model = hyperprior()
    made = plan(model, steps, freeze="h_a,h_s", unfreeze=f"h_a={share}")
    late, never = parameters(model, "h_a."), parameters(model, "h_s.")
    assert [made.frozen_at(step) >= late for step in range(steps)] == [
        step < first for step in range(steps)
    ]
    assert all(made.frozen_at(step) >= never for step in range(steps))
    # An optimiser and other processes know only what has gradients from the start.
    assert closed(model) == never


def test_a_module_of_a_frozen_group_may_begin_on_its_own() -> None:
    model = hyperprior()
    made = plan(model, freeze="h_a,h_s", unfreeze="h_a.0=0.1,h_s=0.5,h_s.2=0.7")
    assert closed(model) == parameters(model, "h_a.2.", "h_a.4.")
    assert made.frozen_at(9) == parameters(model, "h_a.", "h_s.")
    assert made.frozen_at(10) == made.frozen_at(49) == parameters(model, "h_a.2", "h_a.4", "h_s.")
    assert made.frozen_at(50) == parameters(model, "h_a.2", "h_a.4", "h_s.2.")
    assert made.frozen_at(70) == closed(model)


def test_what_begins_later_may_be_scaled_and_half_of_what_is_scaled_frozen() -> None:
    model = hyperprior()
    made = plan(model, freeze="h_a,g_s.0", unfreeze="h_a=0.5", lr_scale="h_a=0.1,g_s=0.2")
    assert made.factor("h_a.0.weight") == 0.1
    assert made.factor("g_s.2.weight") == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": "h_b"}, r"--freeze has 'h_b', under which bmshj2018-hyperprior has no par.*"
         r"expected one of g_a, g_s, h_a, h_s, entropy, or the name of a module such as g_a\.0$"),
        ({"freeze": "h_a,,h_s"}, r"--freeze has ''"),
        ({"freeze": "context"}, r"--freeze has 'context', under which"),
        ({"freeze": "g_a.99"}, r"--freeze has 'g_a\.99'"),
        ({"freeze": "g_a."}, r"--freeze has 'g_a\.'"),
        ({"freeze": "h_a.1"}, r"--freeze has 'h_a\.1'"),
        ({"lr_scale": "g_b=1"}, r"--lr-scale has 'g_b'"),
        ({"lr_scale": "g_a"}, r"--lr-scale has 'g_a'; expected a name and a number: context=1"),
        ({"lr_scale": "g_a=fast"}, r"--lr-scale has 'g_a=fast'; expected a name and a number"),
        ({"lr_scale": "g_a=nan"}, r"--lr-scale has 'g_a=nan'"),
        ({"lr_scale": "g_a=1,"}, r"--lr-scale has ''; expected a name and a number"),
        ({"lr_scale": "=1"}, r"--lr-scale has '=1'"),
        ({"lr_scale": "g_a=0"}, r"--lr-scale has g_a=0; expected a number above 0.*--freeze"),
        ({"lr_scale": "g_a=-1"}, r"--lr-scale has g_a=-1; expected a number above 0"),
        ({"lr_scale": "g_a=inf"}, r"--lr-scale has g_a=inf; expected"),
        ({"lr_scale": "g_a=1,g_a=2"}, r"--lr-scale has g_a twice"),
        ({"lr_scale": "h_a=0.5", "freeze": "h_a"}, r"--lr-scale has h_a, which --freeze keeps"),
        ({"lr_scale": "h_a.0=0.5", "freeze": "h_a"}, r"--lr-scale has h_a\.0, which --freeze"),
        ({"freeze": "h_a", "unfreeze": "h_a=0"}, r"--unfreeze has h_a=0; expected a share"),
        ({"freeze": "h_a", "unfreeze": "h_a=1"}, r"--unfreeze has h_a=1; expected a share"),
        ({"freeze": "h_a", "unfreeze": "h_a=20%"}, r"--unfreeze has 'h_a=20%'; .*: h_a=0\.2"),
        ({"unfreeze": "h_a=0.2"}, r"--unfreeze has h_a, but --freeze leaves h_a\.0\.w.* Add h_a"),
        ({"freeze": "h_a.0", "unfreeze": "h_a=0.2"}, r"but --freeze leaves h_a\.2\.weight free"),
        ({"freeze": "g_a,g_s,h_a,h_s,entropy"}, r"nothing to train in the whole run: --freeze"),
        ({"freeze": "g_a,g_s,h_a,h_s,entropy", "unfreeze": "h_a=0.3,g_a=0.2"},
         r"nothing to train before step 20: --freeze holds"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_told(options: dict[str, Any], message: str) -> None:
    model = hyperprior()
    with pytest.raises(ConfigError, match=message):
        plan(model, **options)
    # Not half of it was done.
    assert closed(model) == set()


def test_quantiles_alone_are_nothing_to_train() -> None:
    rest = ",".join(f"entropy_bottleneck.{part}" for part in ("matrices", "biases", "factors"))
    with pytest.raises(ConfigError, match="nothing to train"):
        plan(factorized(), freeze=f"g_a,g_s,{rest}")


def test_what_another_option_froze_stays_so_and_cannot_be_let_go() -> None:
    model = hyperprior()
    model.h_a.requires_grad_(False)
    cases: list[dict[str, Any]] = [{"lr_scale": "h_a=1"}, {"freeze": "h_a", "unfreeze": "h_a=0.5"}]
    for options in cases:
        with pytest.raises(ConfigError, match=r"has 'h_a', which does not learn.*--train-scope"):
            plan(model, **options)
    plan(model, freeze="g_a,h_s")
    assert closed(model) == parameters(model, "h_a.", "g_a.", "h_s.")
    with pytest.raises(ConfigError, match="nothing to train"):
        plan(model, freeze="g_s,entropy")


def train(
    model: ScaleHyperprior, made: Plan, optimizers: list[NamedOptimizer], steps: range
) -> list[dict[str, Tensor]]:
    """Take steps; returns the parameters after each."""
    found = []
    for step in steps:
        torch.manual_seed(step)
        x = torch.rand(1, 3, 64, 64)
        output = model.train()(x)
        loss = bits(output.likelihoods) / 100 + ((output.x_hat - x) ** 2).sum()
        for named in optimizers:
            named.optimizer.zero_grad()
        torch.autograd.backward(loss)
        made.hold(step, model)
        for named in optimizers:
            named.optimizer.step()
        found.append({k: p.detach().clone() for k, p in model.named_parameters()})
    return found


def optimizers_of(model: nn.Module, kind: str) -> list[NamedOptimizer]:
    decay = 0.0 if kind == "adam" else 0.1
    return build_optimizers(model, OptimizerConfig(optimizer=kind, weight_decay=decay))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_late_layers_do_not_move_before_their_step_and_do_from_it_on(kind: str) -> None:
    model = hyperprior()
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    made = plan(model, 10, freeze="h_s,entropy", unfreeze="h_s=0.3,entropy=0.3")
    late = parameters(model, "h_s.", "entropy_bottleneck.")
    optimizers = optimizers_of(model, kind)
    before = train(model, made, optimizers, range(3))
    for values in before:
        assert {k for k, v in values.items() if v.equal(start[k])} >= late
    # No averages either.
    state = {id(p) for named in optimizers for p in named.optimizer.state}
    assert not state & {id(p) for name, p in model.named_parameters() if name in late}
    assert state
    (after,) = train(model, made, optimizers, range(3, 4))
    still = {k for k, v in after.items() if v.equal(start[k])}
    assert still & late == {"entropy_bottleneck.quantiles"}


def fake(model: nn.Module, step: int) -> None:
    """Give every parameter a gradient of about the same size."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = 1 + 0.5 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", ["adam", "cautious-adam"])
def test_the_first_steps_of_adam_are_those_of_a_new_run(kind: str) -> None:
    found = []
    for first in (0, 30):
        model = hyperprior()
        options: dict[str, Any] = {"freeze": "h_a", "unfreeze": f"h_a={first / 40}"}
        made = plan(model, 40, **(options if first else {}))
        (named, *_) = build_optimizers(model, OptimizerConfig(optimizer=kind))
        for step in range(40):
            fake(model, step - first)
            made.hold(step, model)
            named.optimizer.step()
            if step == first + 9:
                found.append([p.detach().clone() for p in model.h_a.parameters()])
    for fresh, late in zip(*found, strict=True):
        assert late.equal(fresh)


def flat(model: nn.Module, name: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.get_submodule(name).parameters()])


def lengths_of_h_a(kind: str, **options: str) -> list[float]:
    """Return how far each of 100 steps moves h_a."""
    model, found = hyperprior(), []
    made = plan(model, 100, **options)
    (named, *_) = build_optimizers(model, OptimizerConfig(optimizer=kind, lr=1e-3))
    for step in range(100):
        fake(model, step)
        made.hold(step, model)
        before = flat(model, "h_a")
        named.optimizer.step()
        found.append(float((flat(model, "h_a") - before).norm()))
    return found


@pytest.mark.parametrize("kind", ["soap", "muon"])
def test_the_first_steps_of_others_are_no_longer_than_those_of_a_new_run(kind: str) -> None:
    usual = lengths_of_h_a(kind)
    late = lengths_of_h_a(kind, freeze="h_a", unfreeze="h_a=0.4")
    assert set(late[:40]) == {0.0}
    assert 0 < min(late[40:])
    assert max(late[40:]) < 1.1 * max(usual)
    assert late[-10:] == pytest.approx(usual[-10:], rel=0.1)
    if kind == "soap":
        # What SOAP takes for the correction of its averages is that of step 41.
        weights = flat(hyperprior(), "h_a").numel()
        first = 1e-3 * math.sqrt(0.05 / (1 - 0.95**41) * weights)
        assert late[40] == pytest.approx(first, rel=0.01)
        assert max(late[40:]) < 0.4 * max(usual)


def test_zeros_instead_of_none_would_lengthen_the_first_step_of_adam() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([parameter], lr=1e-3)
    for step in range(5001):
        parameter.grad = torch.full((1,), float(step == 5000))
        adam.step()
    assert parameter.item() == pytest.approx(-1e-3 * 0.1 / math.sqrt(0.001), rel=0.01)


def test_layers_that_stopped_are_held_besides() -> None:
    model = hpcm()
    made = plan(model, freeze="h_a", unfreeze="h_a=0.5")
    stopped = {"attn_s1.", "y_spatial_prior_adaptor_list_s1."}
    for step, late in ((0, parameters(model, "h_a.")), (50, set[str]())):
        fake(model, step)
        made.hold(step, model, stopped)
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == late | parameters(model, *stopped)
    fake(model, 0)
    made.hold(50, model)
    assert all(p.grad is not None for p in model.parameters())


def stopping(*rows: tuple[float, float, float], patience: int = 2) -> ScaleStopping:
    made = ScaleStopping(patience)
    for row in rows:
        made.observe({"z": 1.0, **dict(zip(("s1", "s2", "s3"), row, strict=True))})
    return made


def test_layers_of_a_scale_stop_once_its_patience_is_at_its_end() -> None:
    one = ((5.0, 9.0, 9.0), (5.0, 8.0, 8.0))
    assert stopping(*one).stopped() == frozenset()
    found = stopping(*one, (5.0, 7.0, 7.0)).stopped()
    assert found == {"attn_s1.", "y_spatial_prior_adaptor_list_s1.", "adaptive_params_list.0"}


def test_stopped_names_are_those_of_the_model_and_no_others() -> None:
    stopped: dict[str, Any] = {}
    for scale, row in (("s1", (1.0, 0, 0)), ("s2", (0, 1.0, 0)), ("s3", (0, 0, 1.0))):
        rows = [tuple(v or 10.0 - n for v in row) for n in range(3)]
        stopped[scale] = stopping(*rows).stopped()  # type: ignore[arg-type]
    model = hpcm()
    names = {scale: parameters(model, *found) for scale, found in stopped.items()}
    parts = {scale: {n.partition(".")[0] for n in found} for scale, found in names.items()}
    assert parts == {
        "s1": {"attn_s1", "y_spatial_prior_adaptor_list_s1", "adaptive_params_list"},
        "s2": {
            "attn_s2", "y_spatial_prior_adaptor_list_s2", "adaptive_params_list", "context_net",
        },
        "s3": {
            "attn_s3", "y_spatial_prior_adaptor_list_s3", "y_spatial_prior_s3",
            "adaptive_params_list", "context_net",
        },
    }  # fmt: skip
    # Each network belongs to one scale, and all that are lists are shared out.
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    shared = parameters(model, "adaptive_params_list.", "context_net.")
    assert shared <= set().union(*names.values())
    # Phi has no attention.
    assert {n.partition(".")[0] for n in parameters(hpcm(heads=0), *stopped["s1"])} == {
        "y_spatial_prior_adaptor_list_s1", "adaptive_params_list",
    }  # fmt: skip


def test_the_shared_prior_stops_with_the_last_of_its_scales() -> None:
    falls = [(1.0, 9.0 - n, 9.0 - n) for n in range(3)]
    assert "y_spatial_prior_s1_s2." not in stopping(*falls).stopped()
    both = stopping(*falls, (1.0, 7.0, 5.0), (1.0, 7.0, 4.0))
    assert "y_spatial_prior_s1_s2." in both.stopped()
    assert "y_spatial_prior_s3." not in both.stopped()
    assert both.stopped() < ALL_STOPPED
    every = stopping(*falls, *[(1.0, 7.0, 5.0)] * 3)
    assert every.stopped() == ALL_STOPPED
    groups = {group_of(name) for name in parameters(hpcm(), *every.stopped())}
    assert groups == {"context"}


def test_a_gain_starts_the_count_again_and_a_stop_is_for_good() -> None:
    equal = (5.0, 5.0, 5.0)
    gained = stopping(equal, equal, (4.0, 4.0, 4.0), (4.0, 4.0, 4.0))
    assert gained.stopped() == frozenset()
    later = stopping(equal, equal, equal, (1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    assert later.stopped() == ALL_STOPPED


def test_a_gain_within_noise_is_none() -> None:
    start = (1000.0, 1000.0, 1000.0)
    # The bar is the best, not the last: slow gains count once they add up.
    assert stopping(start, (999.95,) * 3, (999.91,) * 3).stopped() == ALL_STOPPED
    assert not stopping(start, (999.95,) * 3, (999.89,) * 3).stopped()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_bits_that_are_not_finite_are_no_gain(broken: float) -> None:
    assert stopping((1.0,) * 3, (broken,) * 3, (broken,) * 3).stopped() == ALL_STOPPED
    # And they do not become the best, after which nothing else could gain.
    assert not stopping((broken,) * 3, (2.0,) * 3, (1.0,) * 3, (1.0,) * 3).stopped()


def test_without_patience_nothing_stops() -> None:
    made = stopping(*[(1.0, 1.0, math.nan)] * 50, patience=0)
    assert made.stopped() == frozenset()


def test_a_resumed_stopping_goes_on_where_it_was() -> None:
    rows = [(5.0, 5.0, 5.0), (5.0, 4.0, math.nan), (4.9, 4.0, 4.0), (4.9, 4.0, 4.0)]
    rows += [(4.9, 3.0, 3.0), (4.9, 3.0, 3.5)]
    straight = [stopping(*rows[:n]) for n in range(7)]
    assert len({made.stopped() for made in straight}) > 2
    for cut in range(7):
        file = io.BytesIO()
        torch.save(straight[cut].state_dict(), file)
        file.seek(0)
        resumed = ScaleStopping(2)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for number, row in enumerate(rows[cut:], cut + 1):
            resumed.observe(dict(zip(("s1", "s2", "s3"), row, strict=True)))
            assert resumed.stopped() == straight[number].stopped()
            assert resumed.state_dict() == straight[number].state_dict()
