import pytest
import torch
from torch import Tensor, nn

from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    Output,
    ScaleHyperprior,
)
from lic.trainers.config import LossConfig
from lic.trainers.losses import Terms, terms_of
from lic.trainers.objective import build_objective, no_rate_note, unreached

VALUES = Terms(
    bpp=torch.tensor(0.75),
    mse=torch.tensor(0.002),
    l1=torch.tensor(0.03),
    ms_ssim=torch.tensor(0.9),
)


def factorized() -> FactorizedPrior:
    return FactorizedPrior(FactorizedConfig(N=4, M=4)).train()


def hyperprior() -> ScaleHyperprior:
    return ScaleHyperprior(HyperpriorConfig(N=4, M=4)).train()


def named(model: nn.Module, *parts: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(parts)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LossConfig(lmbda=0.013), 0.75 + 0.013 * 255**2 * 0.002),
        (LossConfig(loss="recon"), 0.4 * 0.03 + 0.6 * 0.1),
        (LossConfig(loss="recon", alpha_l1=0.1), 0.1 * 0.03 + 0.9 * 0.1),
        (LossConfig(loss="rd", lambda_bpp=0.2), 0.4 * 0.03 + 0.6 * 0.1 + 0.2 * 0.75),
        (LossConfig(loss="rd", lambda_bpp=0.0), 0.4 * 0.03 + 0.6 * 0.1),
    ],
)
@pytest.mark.parametrize("step", [0, 10**6])
def test_the_loss_is_its_formula(config: LossConfig, expected: float, step: int) -> None:
    assert float(build_objective(config).loss(VALUES, step)) == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.1), (0.0, 1.0)])
def test_a_share_of_all_or_nothing_works(alpha: float, expected: float) -> None:
    """Of the two terms only one is computed; a picture inverted by 0.1 has hand-made values."""
    x = torch.zeros(1, 3, 16, 16)
    x[..., ::2] = 0.1
    output = Output(0.1 - x, {"y": torch.ones(1)})
    config = LossConfig(loss="recon", alpha_l1=alpha)
    loss = build_objective(config).loss(terms_of(output, x, config), 0)
    # Opposite structure: MS-SSIM 0.
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (LossConfig(lmbda=0.0067), "bpp + 0.0067 * 255^2 * MSE"),
        (LossConfig(loss="recon"), "0.4 * L1 + 0.6 * (1 - MS-SSIM)"),
        (LossConfig(loss="rd"), "0.4 * L1 + 0.6 * (1 - MS-SSIM) + 0.01 * bpp"),
    ],
)
def test_logs_can_say_what_is_minimised(config: LossConfig, formula: str) -> None:
    assert build_objective(config).formula == formula


@pytest.mark.parametrize("loss", ["mse", "recon", "rd"])
def test_the_objectives_have_no_state(loss: str) -> None:
    objective = build_objective(LossConfig(loss=loss))
    objective.load_state_dict(objective.state_dict())
    assert objective.state_dict() == {}


@pytest.mark.parametrize("model", [factorized(), hyperprior()])
@pytest.mark.parametrize("loss", ["mse", "rd"])
def test_with_a_rate_only_quantiles_are_unreached(model: nn.Module, loss: str) -> None:
    assert unreached(model, LossConfig(loss=loss)) == ["entropy_bottleneck.quantiles"]


def test_without_a_rate_nothing_that_serves_it_is_reached() -> None:
    model, hyper = factorized(), hyperprior()
    recon = LossConfig(loss="recon")
    assert unreached(model, recon) == named(model, "entropy_bottleneck")
    assert set(unreached(hyper, recon)) == set(named(hyper, "entropy_bottleneck", "h_a", "h_s"))
    assert unreached(model, LossConfig(loss="rd", lambda_bpp=0.0)) == unreached(model, recon)


def test_what_is_unreached_has_no_gradient_in_a_step() -> None:
    model, config = hyperprior(), LossConfig(loss="recon")
    names = unreached(model, config)
    x = torch.rand(2, 3, 64, 64)
    loss = build_objective(config).loss(terms_of(model(x), x, config), 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None] == names


def test_what_is_frozen_is_not_counted() -> None:
    model = factorized()
    model.requires_grad_(False)
    assert unreached(model, LossConfig(loss="recon")) == []
    model.g_s.requires_grad_(True)
    assert unreached(model, LossConfig(loss="recon")) == []


def test_a_loss_that_reaches_nothing_is_told() -> None:
    model = factorized()
    model.g_a.requires_grad_(False)
    model.g_s.requires_grad_(False)
    found = unreached(model, LossConfig(loss="recon"))
    assert found == named(model, "entropy_bottleneck")


def test_looking_changes_neither_random_states_nor_gradients() -> None:
    model = factorized()
    before = torch.random.get_rng_state()
    unreached(model, LossConfig())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_user_hears_of_a_loss_without_rate() -> None:
    hyper, recon, rd = hyperprior(), LossConfig(loss="recon"), LossConfig(loss="rd", lambda_bpp=0)
    note = no_rate_note(unreached(hyper, recon), recon)
    assert "entropy_bottleneck, h_a, h_s get no gradient" in note
    assert "--loss rd" in note
    assert "--lambda-bpp above 0" in no_rate_note(unreached(hyper, rd), rd)
    assert no_rate_note(unreached(hyper, LossConfig()), LossConfig()) == ""


class _Constant(nn.Module):
    """A model with one parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.ones(1))
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Output:
        return Output(x * self.used, {"y": torch.full((1,), 0.5)})


def test_any_model_is_looked_at() -> None:
    assert unreached(_Constant(), LossConfig()) == ["idle"]
