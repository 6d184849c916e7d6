import pytest
import torch
from torch import Tensor

from lic.codec.errors import ConfigError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
    bits,
)
from lic.codec.models.blocks import Activation
from lic.trainers.model_options import ReplacementConfig
from lic.trainers.models import Balle2018
from lic.trainers.scope import apply_scope

ENCODER = ["g_a.1", "g_a.3", "g_a.5"]
BOTH = [*ENCODER, "g_s.1", "g_s.3", "g_s.5"]


def build(arch: str, act: Activation) -> Balle2018:
    torch.manual_seed(0)
    options = {"N": 4, "M": 4, "encoder_activation": act, "decoder_activation": act}
    if arch == "factorized":
        return FactorizedPrior(FactorizedConfig(**options))  # type: ignore[arg-type]
    return ScaleHyperprior(HyperpriorConfig(**options))  # type: ignore[arg-type]


def changed(model: Balle2018) -> set[str]:
    """Return the modules that one training step of everything that learns changes."""
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2)
    output = model.train()(x)
    loss: Tensor = bits(output.likelihoods) / 100 + ((output.x_hat - x) ** 2).sum()
    torch.autograd.backward(loss)
    optimizer.step()
    return {k.rpartition(".")[0] for k, v in model.named_parameters() if not v.equal(before[k])}


def scoped(
    arch: str, act: Activation, scope: str, replaced: list[str], *, freeze_entropy: bool = False
) -> set[str]:
    """Return what learns, the parts of blocks and networks as one."""
    model = build(arch, act)
    replacement = ReplacementConfig(train_scope=scope, freeze_entropy=freeze_entropy)
    apply_scope(model, replaced, replacement)
    wanted = {
        name.rpartition(".")[0]
        for name, p in model.named_parameters()
        if p.requires_grad and not name.endswith("quantiles")
    }
    found = changed(model)
    assert found <= wanted
    # What is wanted but did not move has no gradient this time: ReLU behind it is shut.
    return {".".join(name.split(".")[: 2 if name.startswith("g_") else 1]) for name in wanted}


@pytest.mark.parametrize("arch", ["factorized", "hyperprior"])
@pytest.mark.parametrize("act", ["gdn", "gdnish", "igdn1"])
def test_replaced_layers_learn_alone(arch: str, act: Activation) -> None:
    assert scoped(arch, act, "replaced", ENCODER) == set(ENCODER)
    assert scoped(arch, act, "replaced", BOTH) == set(BOTH)


def test_the_convolution_before_each_relu_learns_in_its_place() -> None:
    found = scoped("factorized", "relu", "replaced", BOTH)
    assert found == {"g_a.0", "g_a.2", "g_a.4", "g_s.0", "g_s.2", "g_s.4"}


def test_exactly_the_named_tensors_change_in_a_step() -> None:
    model = build("factorized", "gdn")
    apply_scope(model, ENCODER, ReplacementConfig(train_scope="replaced"))
    assert changed(model) == set(ENCODER)
    everything = build("factorized", "gdn")
    apply_scope(everything, (), ReplacementConfig(train_scope="all"))
    assert {name.split(".")[0] for name in changed(everything)} == {
        "g_a",
        "g_s",
        "entropy_bottleneck",
    }


@pytest.mark.parametrize(
    ("scope", "more"),
    [
        ("replaced+entropy", {"entropy_bottleneck"}),
        ("replaced+hyper", {"entropy_bottleneck", "h_a", "h_s"}),
    ],
)
def test_scopes_with_the_entropy_model(scope: str, more: set[str]) -> None:
    assert scoped("hyperprior", "gdnish", scope, ENCODER) == {*ENCODER, *more}
    factorized = more & {"entropy_bottleneck"}
    assert scoped("factorized", "gdnish", scope, ENCODER) == {*ENCODER, *factorized}
    assert scoped("hyperprior", "gdnish", scope, ENCODER, freeze_entropy=True) == set(ENCODER)


def test_all_is_all_and_a_frozen_entropy_model_is_frozen_whole() -> None:
    for arch, own in (("factorized", set[str]()), ("hyperprior", {"h_a", "h_s"})):
        sides = {f"g_{s}.{i}" for s in "as" for i in range(7)}
        assert scoped(arch, "gdn", "all", []) == {*sides, "entropy_bottleneck", *own}
        assert scoped(arch, "gdn", "all", [], freeze_entropy=True) == sides


@pytest.mark.parametrize("freeze", [False, True])
def test_quantiles_are_open_to_their_own_optimiser_unless_frozen(freeze: bool) -> None:
    model = build("factorized", "gdn")
    scope = ReplacementConfig(train_scope="replaced+entropy", freeze_entropy=freeze)
    apply_scope(model, ENCODER, scope)
    assert model.entropy_bottleneck.quantiles.requires_grad is not freeze


def test_a_scope_can_be_widened_again() -> None:
    model = build("factorized", "gdn")
    apply_scope(model, ENCODER, ReplacementConfig(train_scope="replaced"))
    apply_scope(model, ENCODER, ReplacementConfig(train_scope="all"))
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--train-scope is replaced, but no layer was replaced"):
        apply_scope(build("factorized", "gdn"), [], ReplacementConfig(train_scope="replaced"))


def test_the_user_is_told_what_a_scope_means_here() -> None:
    model = build("factorized", "gdn")
    assert apply_scope(model, ENCODER, ReplacementConfig(train_scope="replaced")) == []
    (note,) = apply_scope(model, ENCODER, ReplacementConfig(train_scope="replaced+hyper"))
    assert "no hyper networks" in note
    frozen = ReplacementConfig(train_scope="replaced+entropy", freeze_entropy=True)
    notes = apply_scope(build("hyperprior", "gdn"), ENCODER, frozen)
    assert "takes back" in notes[0] and "h_a and h_s stay" in notes[1]
