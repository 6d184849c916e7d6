import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lic.codec.errors import ConfigError
from lic.codec.models import HPCM, hpcm_config
from lic.trainers.inter_scale import InterScale, known_after, squared_correlation, warning
from lic.trainers.objective_options import SpectralConfig

FORMS = ("rel_l2", "cos2", "innovation", "literal")
BOUNDED = FORMS[:3]
M = 16


def term(form: str, channels: int = M, **options: Any) -> InterScale:
    torch.manual_seed(0)
    config = SpectralConfig(inter_scale_reg=True, inter_scale_form=form, **options)
    return InterScale(config, channels)


def shaken(made: InterScale) -> InterScale:
    """Move the alignment away from where it starts, so that a test sees it."""
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator(7)))
    return made


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def latents(side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Return y_hat, residuals that it predicts in part, and scales, some below their bound."""
    smooth = functional.avg_pool2d(white(4, M, side + 2, side + 2), 3, stride=1) * 3
    residuals = 0.5 * white(4, M, side, side, seed=1) + 0.5 * smooth
    return smooth, residuals, 0.05 + torch.rand(residuals.shape, generator=generator(2))


@pytest.fixture(scope="module")
def hpcm() -> HPCM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HPCM(hpcm_config("tiny"))


@pytest.fixture(scope="module")
def masks() -> tuple[Tensor, Tensor, Tensor]:
    """What HPCM with M channels codes at s1, s2, s3 of 32x32 latents."""
    with torch.random.fork_rng(devices=[]):
        config = hpcm_config("tiny").to_dict() | {"M": M}
        found = HPCM.from_dict(config).scale_masks(32, 32)
    return found["s1"], found["s2"], found["s3"]


def by_masks(x: Tensor, mask: Tensor, side: int) -> Tensor:
    """Return the mean of the masked samples of every cell."""
    return functional.avg_pool2d(x * mask, side) / functional.avg_pool2d(mask, side)


def rho2(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.transpose(0, 1).flatten(1), b.transpose(0, 1).flatten(1), strict=True)
    values = [torch.corrcoef(torch.stack(pair))[0, 1].item() ** 2 for pair in pairs]
    return sum(values) / len(values)


def test_the_grids_are_those_of_the_model(masks: tuple[Tensor, ...]) -> None:
    s1, s2, s3 = masks
    for samples, mask in zip(known_after(s1 + 2 * s2 + 3 * s3), masks, strict=True):
        assert samples.shape[-1] ** 2 * M == (samples != 0).sum()
        assert (samples == samples.max()).sum() == mask.sum()
    ones = [known_after(mask) for mask in masks]
    # A grid has all samples of its scale and of those before, and none of later ones.
    assert ones[0][0].min() == 1 and ones[1][0].max() == ones[2][0].max() == 0
    assert (ones[0][1] + ones[1][1]).min() == 1 and ones[2][1].max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_terms_are_those_of_the_definitions(form: str, masks: tuple[Tensor, ...]) -> None:
    s1, s2, s3 = masks
    y_hat, residuals, scales = latents()
    made = shaken(term(form, delta=0.5))
    coarse = by_masks(y_hat, s1, 4), by_masks(y_hat, s1 + s2, 2)
    if form in ("rel_l2", "literal"):
        means = by_masks(y_hat, s1 + s2, 4), functional.avg_pool2d(y_hat, 2)
        values = []
        for a, x, weight in zip(coarse, means, made.parameters(), strict=True):
            b = (x.movedim(1, -1) @ weight.T).movedim(-1, 1)
            error, energy = (a - b).square().sum(), a.square().sum() + b.square().sum()
            value = error / (energy if form == "rel_l2" else a.numel())
            assert form == "literal" or value < 1
            values.append(-value.item())
    else:
        new = y_hat if form == "cos2" else residuals / scales.clamp_min(0.12)
        fresh = by_masks(new, s2, 4), by_masks(new, s3, 2)
        values = [rho2(a, b) for a, b in zip(coarse, fresh, strict=True)]
    expected = 0.5 * sum(values) / 2
    assert abs(expected) > 0.01
    found = made(y_hat, residuals, scales)
    assert found.shape == () and found.dtype is torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", BOUNDED)
def test_bounded_forms_stay_in_range_whatever_the_scale(form: str) -> None:
    made = shaken(term(form, delta=1.0))
    y_hat, residuals, scales = latents()
    parts = y_hat, residuals, scales.clamp_min(0.12)
    with torch.no_grad():
        values = [made(*(s * part for part in parts)).item() for s in (1.0, 1e3, 1e6)]
    low, high = (-1, 0) if form == "rel_l2" else (0, 1)
    assert all(low < value < high and abs(value) > 0.01 for value in values)
    assert max(values) - min(values) < 1e-4


def test_the_literal_form_has_no_bound() -> None:
    made = term("literal")
    with torch.no_grad():
        values = [made(*(s * part for part in latents())).item() for s in (1.0, 1e3)]
    assert values[1] == pytest.approx(1e6 * values[0], rel=1e-4) and values[1] < -1000


def test_being_opposite_is_no_better_than_being_different() -> None:
    made = term("rel_l2", delta=0.3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.neg_()
    y_hat = torch.ones(1, M, 8, 8, requires_grad=True)
    value = made(y_hat, y_hat, y_hat)
    assert value.item() == pytest.approx(-0.3, rel=1e-6)
    value.backward()
    assert y_hat.grad is not None and y_hat.grad.abs().max() == 0
    assert made.align_loss(y_hat).item() == pytest.approx(2, rel=1e-5)


def test_white_latents_have_nothing_in_common_but_shared_samples() -> None:
    y_hat = white(32, 8, 64, 64)
    with torch.no_grad():
        disjoint = term("cos2", 8, delta=1.0)(y_hat, y_hat, y_hat).item()
    assert math.sqrt(disjoint) < 0.02
    # What is known after a scale contains what is known before: there, half is no redundancy.
    for coarse, fine in zip(known_after(y_hat), known_after(y_hat)[1:], strict=False):
        overlapping = squared_correlation(coarse, functional.avg_pool2d(fine, 2)).mean().item()
        assert math.sqrt(overlapping) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0])
def test_gradients_are_finite_where_latents_do_not_vary(form: str, value: float) -> None:
    made = term(form)
    parts = [torch.full((2, M, 8, 8), value, requires_grad=True) for _ in range(3)]
    loss = made(*parts) + made.align_loss(parts[0])
    assert loss.isfinite()
    loss.backward()
    grads = [p.grad for p in (*parts, *made.parameters())]
    assert grads[0] is not None and all(g.isfinite().all() for g in grads if g is not None)


@pytest.mark.parametrize("form", FORMS)
def test_without_training_there_is_no_term(form: str) -> None:
    made, parts = term(form), latents()
    assert made(*parts) != 0
    made.eval()
    for value in (made(*parts), made.align_loss(parts[0])):
        assert value == 0 and value.shape == () and not value.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_touch_it(form: str) -> None:
    made, parts = shaken(term(form)), latents()
    expected = made(*parts), made.align_loss(parts[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (made(*parts), made.align_loss(parts[0])) == expected
        halves = [part.bfloat16() for part in parts]
        found = made(*halves)
    assert found.dtype is torch.float32 and found == made(*(half.float() for half in halves))
    assert found.item() == pytest.approx(expected[0].item(), rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_the_transform_and_of_innovation_the_context(form: str, hpcm: HPCM) -> None:
    made = term(form, hpcm.config.M)
    hpcm.train().zero_grad()
    y = hpcm.analyze(torch.rand(1, 3, 256, 256, generator=generator(0)))
    y_hat, residuals, scales = hpcm.quantize(y, hpcm.hyper_analyze(y))
    scales.retain_grad()
    made(y_hat, residuals, scales).backward()
    moved = {
        name.partition(".")[0]
        for name, p in hpcm.named_parameters()
        if p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
    }
    # Rounding passes gradients straight through, so that y_hat does not depend on the means.
    if form == "innovation":
        assert {"g_a", "h_a", "h_s", "y_spatial_prior_s1_s2", "y_spatial_prior_s3"} <= moved
        assert "g_s" not in moved
    else:
        assert moved == {"g_a"}
    # Wrong scales must not pay.
    assert scales.grad is None


def test_the_alignment_of_rel_l2_plays_against_the_codec() -> None:
    made = shaken(term("rel_l2"))
    y_hat = latents()[0].requires_grad_()
    made(y_hat, y_hat, y_hat).backward()
    assert y_hat.grad is not None and y_hat.grad.abs().max() > 0
    assert [weight.grad for weight in made.parameters()] == [None, None]
    y_hat.grad = None
    made.align_loss(y_hat).backward()  # type: ignore[no-untyped-call]
    assert y_hat.grad is None
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in made.parameters())
    # The codec wants more of what the alignment wants less of.
    assert made(y_hat, y_hat, y_hat).item() == pytest.approx(-0.1 * made.align_loss(y_hat).item())


def test_the_alignment_of_literal_has_the_gradient_of_the_term() -> None:
    made = term("literal")
    y_hat = latents()[0].requires_grad_()
    made(y_hat, y_hat, y_hat).backward()
    assert y_hat.grad is not None and y_hat.grad.abs().max() > 0
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in made.parameters())
    assert made.align_loss(y_hat) == 0 and not made.align_loss(y_hat).requires_grad


def test_the_alignment_learns_what_can_be_predicted() -> None:
    made = term("rel_l2", 8)
    first, second = torch.randperm(8, generator=generator(5)), torch.arange(8).roll(3)
    y_hat = white(4, 8, 1, 1).expand(4, 8, 16, 16).clone()
    # Channels alike everywhere in a picture: any alignment but the identity is wrong.
    with torch.no_grad():
        for weight, order in zip(made.parameters(), (first, second), strict=True):
            weight.copy_(torch.eye(8)[order])
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    errors = []
    for _ in range(60):
        loss = made.align_loss(y_hat)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(loss.item())
    assert errors[0] > 0.5 and errors[-1] < 0.01


def test_the_alignment_starts_where_the_docstring_says() -> None:
    flat = white(2, M, 1, 1).expand(2, M, 8, 8)
    assert term("rel_l2").align_loss(flat) == 0
    weights = list(term("literal", 320).parameters())
    assert not torch.equal(weights[0], weights[1])
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.1 / math.sqrt(320), rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_alignment_is_all_that_a_checkpoint_holds(form: str) -> None:
    made = shaken(term(form))
    aligned = form in ("rel_l2", "literal")
    shapes = [tuple(p.shape) for p in made.parameters()]
    assert shapes == ([(M, M)] * 2 if aligned else [])
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert len(state) == len(shapes)
    loaded = term(form)
    if aligned:
        assert loaded(*latents()) != made(*latents())
    loaded.load_state_dict(state)
    assert loaded(*latents()) == made(*latents())


@pytest.mark.parametrize("options", [{}, {"spectral_reg": True, "truncation_epochs": 20.0}])
def test_the_term_begins_where_the_curriculum_ends(options: dict[str, Any]) -> None:
    made = term("cos2", **options)
    assert [made.active(epoch) for epoch in (0, 19.9, 20)] == [not options, not options, True]
    assert not InterScale(SpectralConfig(**options), M).active(3000)


def test_delta_is_the_weight() -> None:
    single, triple = (term("cos2", delta=delta)(*latents()).item() for delta in (0.1, 0.3))
    assert triple == pytest.approx(3 * single)


def test_only_the_literal_form_warns() -> None:
    assert [form for form in FORMS if warning(form)] == ["literal"]
    assert "no lower bound" in warning("literal") and "rel_l2" in warning("literal")


@pytest.mark.parametrize("channels", [0, 4, 12])
def test_channels_that_the_scales_do_not_divide_are_named(channels: int) -> None:
    with pytest.raises(ConfigError, match=f"with {channels} latent channels; expected a multiple"):
        term("cos2", channels)


class LinearCodec(nn.Module):
    """A codec of blocks of 4x4 pixels, with a Gaussian of learned scale for each latent."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Linear(16, M)
        self.g_s = nn.Linear(M, 16)
        self.log_scales = nn.Parameter(torch.zeros(M))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y, scales, bits per pixel and MSE of blocks x (B, h, w, 16)."""
        y = self.g_a(x)
        noisy = y + noise
        scales = self.log_scales.exp().expand_as(y)
        upper, lower = ((half - noisy.abs()) / scales for half in (0.5, -0.5))
        mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
        rate = -torch.log2(mass.clamp_min(1e-9)).sum() / x.numel()
        return y, scales, rate, (self.g_s(noisy) - x).square().mean()


STEPS = 150


@pytest.fixture(scope="module")
def blocks() -> tuple[Tensor, Tensor]:
    """Blocks (STEPS, 8, 8, 8, 16) of smooth fields of 32x32, and noise for their latents."""
    fields = white(STEPS * 8, 1, 44, 44)
    taps = torch.exp(-torch.arange(-6, 7).abs() / 2.0)
    taps = 0.5 * taps / taps.norm()
    for kernel in (taps[None, None, None], taps[None, None, :, None]):
        fields = functional.conv2d(fields, kernel)
    x = fields.reshape(STEPS, 8, 8, 4, 8, 4).transpose(3, 4).flatten(4)
    return x, torch.rand(x.shape, generator=generator(3)) - 0.5


def outcome(form: str, blocks: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Train a codec with a form, or without one; returns its last rates and distortions."""
    torch.manual_seed(0)
    codec = LinearCodec()
    made = term(form) if form else None
    weights = [*codec.parameters(), *(made.parameters() if made else ())]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    rates, distortions = [], []
    for x, noise in zip(*blocks, strict=True):
        y, scales, rate, mse = codec(x, noise)
        loss = rate + 100 * mse
        if made:
            y, scales = y.movedim(-1, 1), scales.movedim(-1, 1)
            y_hat = y + (y.round() - y).detach()
            loss = loss + made(y_hat, y, scales) + made.align_loss(y_hat)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(rate.item())
        distortions.append(100 * mse.item())
    return sum(rates[-25:]) / 25, sum(distortions[-25:]) / 25


@pytest.fixture(scope="module")
def baseline(blocks: tuple[Tensor, Tensor]) -> tuple[float, float]:
    return outcome("", blocks)


@pytest.mark.parametrize("form", BOUNDED)
def test_bounded_forms_leave_a_codec_as_good_as_it_was(
    form: str, blocks: tuple[Tensor, Tensor], baseline: tuple[float, float]
) -> None:
    found = outcome(form, blocks)
    assert found == pytest.approx(baseline, rel=0.05)
    assert found != baseline


def test_the_literal_form_diverges(
    blocks: tuple[Tensor, Tensor], baseline: tuple[float, float]
) -> None:
    assert baseline[0] < 1
    assert outcome("literal", blocks)[0] > 5
