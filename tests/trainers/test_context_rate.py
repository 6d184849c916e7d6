"""The training loss of contexts: the coder's bits, and gradients between the integers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lic.codec.entropy import Contexts, ContextWriter
from lic.codec.errors import ConfigError
from lic.codec.models import HyperpriorConfig, ScaleHyperprior
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.checkpoints import load_model
from lic.trainers.context_fit import FitOptions, fit_contexts
from lic.trainers.context_rate import (
    ContextBottleneck,
    arrays_of,
    contexts_of,
    laplace_mass,
    rate_by_contexts,
)
from lic.trainers.loop import Trainer
from lic.trainers.runs import Place, open_fabric, start
from tests.trainers.small_runs import again, assert_identical, cut_off, last, quiet
from tests.trainers.test_context_fit import CHANNELS, textured
from tests.trainers.test_loop import BASE, tiny


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    # Neighbours weigh much here, and channel 3 is predicted.
    return fit_contexts([textured(s) for s in range(8)], FitOptions(steps=80, batch=512, tables=40))


def bottleneck(contexts: Contexts) -> ContextBottleneck:
    torch.manual_seed(0)
    plain = EntropyBottleneck(CHANNELS)
    return ContextBottleneck(plain, contexts)


def as_latents(made: ContextBottleneck, seeds: list[int]) -> Tensor:
    symbols = torch.from_numpy(np.stack([textured(seed) for seed in seeds])).float()
    return symbols + made.medians + 0.3 * torch.rand(symbols.shape)


def test_rounded_latents_cost_what_the_coder_writes(contexts: Contexts) -> None:
    made = bottleneck(contexts).eval()
    y = as_latents(made, [30, 31])
    y_hat, likelihoods = made(y)
    assert torch.equal(y_hat, made.dequantize(made.quantize(y)))
    for number, seed in enumerate((30, 31)):
        writer = ContextWriter(contexts)
        writer.code(textured(seed), np.zeros(textured(seed).shape, np.uint16))
        coded = 8 * sum(map(len, writer.finish()))
        bits = float(-torch.log2(likelihoods[number].detach()).sum())
        # Lanes start with 64 bits that no symbol pays for; escapes are counted as one byte.
        assert bits == pytest.approx(coded - 64, abs=64)


def test_noise_costs_about_as_much_as_rounding(contexts: Contexts) -> None:
    made = bottleneck(contexts)
    y = as_latents(made, [30])
    _, exact = made.eval()(y)
    _, noisy = made.train()(y)
    bits = [float(-torch.log2(each.detach()).sum()) for each in (exact, noisy)]
    assert bits[0] < bits[1] < 1.35 * bits[0]


def test_a_latent_answers_for_its_own_cost_only(contexts: Contexts) -> None:
    made = bottleneck(contexts).train()
    y = as_latents(made, [32]).requires_grad_()
    _, likelihoods = made(y)
    (gradient,) = torch.autograd.grad(-torch.log2(likelihoods[0, 4, 5, 6]), y)
    assert gradient[0, 4, 5, 6] != 0
    assert torch.count_nonzero(gradient) == 1


def test_the_choice_follows_the_symbols_around(contexts: Contexts) -> None:
    made = bottleneck(contexts).eval()
    y = as_latents(made, [33]).detach()
    _, before = made(y)
    louder = y.clone()
    louder[0, 0, 5, 6] += 40
    _, after = made(louder)
    changed = (before != after).nonzero()
    # Later in the order of coding, or the symbol itself.
    assert len(changed) > 5
    assert all(tuple(place[2:]) >= (5, 6) for place in changed.tolist())


def test_densities_learn_as_without_contexts_and_tell_latents_nothing(contexts: Contexts) -> None:
    made = bottleneck(contexts).train()
    y = as_latents(made, [34]).requires_grad_()
    torch.manual_seed(5)
    y_hat, likelihoods = made(y)
    own = [p for name, p in made.named_parameters() if not name.endswith("quantiles")]
    found = torch.autograd.grad(-torch.log2(likelihoods).sum(), own)
    expected = torch.autograd.grad(-torch.log2(made.likelihoods(y_hat.detach())).sum(), own)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_masses_are_those_of_the_laplace_distributions_intervals() -> None:
    values = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    for width in (0.02, 0.3, 2.0):
        scale = torch.full_like(values, width)
        upper, lower = (values + shift for shift in (0.5, -0.5))
        below = [
            torch.where(x < 0, torch.exp(x / width) / 2, 1 - torch.exp(-x / width) / 2)
            for x in (upper, lower)
        ]
        expected = below[0] - below[1]
        torch.testing.assert_close(laplace_mass(values, scale), expected, rtol=1e-6, atol=1e-9)
    tight = torch.tensor([0.0, 0.5, -0.5, 20.0], requires_grad=True)
    laplace_mass(tight, torch.full((4,), 0.02)).sum().backward()  # type: ignore[no-untyped-call]
    assert tight.grad is not None and torch.isfinite(tight.grad).all()


def test_contexts_come_back_from_a_checkpoint(contexts: Contexts) -> None:
    again = contexts_of(arrays_of(contexts))
    assert again is not None and again.digest() == contexts.digest()
    assert contexts_of(arrays_of(None)) is None


def test_contexts_of_another_model_are_refused(contexts: Contexts) -> None:
    with pytest.raises(ConfigError, match="10 latent channels, not for bmshj2018-factorized of 12"):
        rate_by_contexts(tiny(), contexts)
    hyper = ScaleHyperprior(HyperpriorConfig(N=8, M=10))
    with pytest.raises(ConfigError, match="not for bmshj2018-hyperprior of 10"):
        rate_by_contexts(hyper, contexts)
    with pytest.raises(ConfigError, match="but it has none; lic models fit gives a bundle some"):
        rate_by_contexts(tiny(), None)


def test_a_run_with_contexts_goes_on_bit_for_bit_and_ships_a_plain_model(
    photos: Path, tmp_path: Path
) -> None:
    latents = [np.concatenate([textured(seed), textured(seed + 9)[:2]]) for seed in range(4)]
    contexts = fit_contexts(latents, FitOptions(steps=40, batch=256, tables=30))
    config = BASE.updated({"contexts": True, "lr": 1e-4})

    def begin(folder: Path) -> Trainer:
        place = Place(images=photos, folder=folder, device="cpu")
        fabric = open_fabric(config, place)
        return start(tiny(), config, place, fabric, lambda _: None, fresh=False, contexts=contexts)

    begin(tmp_path / "whole").run(quiet)
    cut_off(begin(tmp_path / "cut"), 8)
    again(tmp_path / "cut", photos).run(quiet)
    assert_identical(last(tmp_path / "cut"), last(tmp_path / "whole"))
    model, _ = load_model(tmp_path / "cut")
    assert type(model.entropy_bottleneck).__name__ == "EntropyBottleneck"
    with pytest.raises(ConfigError, match="--contexts rates symbols"):
        place = Place(images=photos, folder=tmp_path / "none", device="cpu")
        start(tiny(), config, place, open_fabric(config, place), lambda _: None, fresh=False)
