import pytest
import torch
from torch import Tensor

from lic.codec.errors import ConfigError
from lic.codec.models import HPCM, Output, hpcm_config
from lic.trainers.config import LossConfig
from lic.trainers.losses import Terms, pyramid, terms_of
from lic.trainers.objective import RateDistortion
from lic.trainers.tasks import ScaleRates, Tasks, exact5, exact7, fixed5, two_tasks

LOSS = LossConfig(lmbda=0.013)
PLAIN = RateDistortion(0.013)
WEIGHT = 0.013 * 255**2


@pytest.fixture(scope="module")
def model() -> HPCM:
    torch.manual_seed(0)
    return HPCM(hpcm_config("tiny")).train()


@pytest.fixture(scope="module")
def terms(model: HPCM) -> Terms:
    torch.manual_seed(1)
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        return terms_of(model(x), x, LOSS, ScaleRates(model))


def test_rates_of_the_scales_and_of_z_add_up(terms: Terms) -> None:
    assert terms.rates is not None and terms.rates.keys() == {"z", "s1", "s2", "s3"}
    assert float(sum(terms.rates.values())) == pytest.approx(float(terms.bpp), rel=1e-6)


def test_every_latent_is_of_one_scale(model: HPCM) -> None:
    masks = model.scale_masks(16, 16)
    assert [float(mask.mean()) for mask in masks.values()] == [1 / 16, 3 / 16, 12 / 16]
    stacked = torch.cat(list(masks.values()))
    assert bool(((stacked == 0) | (stacked == 1)).all())
    assert torch.equal(stacked.sum(dim=0), torch.ones(64, 16, 16))


# By eighth of the channels, row and column in cells of 4x4: where s1 lies, and where upstream's
# helper for a mask of s1 has it.
OF_S1 = ((0, 0), (1, 1), (0, 3), (1, 2), (2, 0), (3, 1), (2, 3), (3, 2))
OF_THE_HELPER = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))


@pytest.mark.parametrize(("phases", "agree"), [(OF_S1, 8), (OF_THE_HELPER, 2)])
def test_s1_lies_where_it_is_coded_and_not_where_upstreams_helper_says(
    model: HPCM, phases: tuple[tuple[int, int], ...], agree: int
) -> None:
    mask = model.scale_masks(16, 16)["s1"]
    wanted = torch.zeros(8, 8, 16, 16)
    for group, (row, column) in zip(wanted, phases, strict=True):
        group[:, row::4, column::4] = 1
    same = [torch.equal(a, b) for a, b in zip(mask.reshape(8, 8, 16, 16), wanted, strict=True)]
    assert same == [True] * agree + [False] * (8 - agree)


@pytest.fixture(scope="module")
def latents(model: HPCM) -> tuple[Tensor, Tensor]:
    """What y (1, 64, 16, 16) and z (1, 32, 4, 4) of a picture are, before rounding."""
    with torch.no_grad():
        y = model.analyze(torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2)))
        # Several steps of the quantiser wide, so that contexts say something.
        y = 4 * y / y.std()
        return y, model.hyper_analyze(y)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@torch.no_grad()
def test_with_frozen_contexts_y_at_the_sites_of_a_scale_changes_its_rate_alone(
    model: HPCM, latents: tuple[Tensor, Tensor]
) -> None:
    y, z = latents
    _, residuals, scales = model.quantize(y, z)
    rates = ScaleRates(model)

    def of(y: Tensor) -> dict[str, Tensor]:
        # Means and scales stay as they were, whatever y has become.
        likelihoods = model.entropy_estimation(residuals + (y - latents[0]), scales)
        return rates({"y": likelihoods, "z": torch.full((1, 32, 4, 4), 0.5)})

    before = of(y)
    for name, mask in model.scale_masks(16, 16).items():
        assert changed(before, of(y + 3 * mask)) == {name}


@torch.no_grad()
def test_y_at_the_sites_of_a_scale_changes_what_is_coded_from_then_on(
    model: HPCM, latents: tuple[Tensor, Tensor]
) -> None:
    y, z = latents
    rates = ScaleRates(model)

    def of(y: Tensor) -> dict[str, Tensor]:
        _, residuals, scales = model.quantize(y, z)
        likelihoods = model.entropy_estimation(residuals, scales)
        return rates({"y": likelihoods, "z": torch.full((1, 32, 4, 4), 0.5)})

    before, masks = of(y), model.scale_masks(16, 16)
    for number, mask in enumerate(masks.values()):
        assert changed(before, of(y + 3 * mask)) == set(list(masks)[number:])


def checkerboard() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    return (1.0 - 2 * ((rows + columns) % 2)).expand(2, 3, 16, 16)


def test_errors_are_split_by_resolution() -> None:
    torch.manual_seed(0)
    noise = torch.randn(4, 3, 64, 64)
    parts = pyramid(noise)
    assert all(float(part) >= 0 for part in parts)
    assert float(sum(parts)) == pytest.approx(float(noise.square().mean()), rel=1e-6)
    shares = [float(part) for part in parts]
    assert shares == pytest.approx([1 / 16, 3 / 16, 12 / 16], abs=0.01)
    assert [float(p) for p in pyramid(torch.full((1, 3, 8, 8), 0.5))] == [0.25, 0.0, 0.0]
    assert [float(p) for p in pyramid(checkerboard())] == [0.0, 0.0, 1.0]
    blocks = checkerboard().repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert [float(p) for p in pyramid(blocks)] == [0.0, 1.0, 0.0]


def test_errors_of_odd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="crops are 10x8; expected multiples of 4"):
        pyramid(torch.zeros(1, 3, 8, 10))


@pytest.mark.parametrize("tasks", [two_tasks(PLAIN.distortion), exact5(WEIGHT), exact7(WEIGHT)])
def test_exact_tasks_add_up_to_the_loss(tasks: Tasks, terms: Terms) -> None:
    losses = tasks.of(terms)
    assert losses.shape == (len(tasks.names),) == (len(tasks.scales),)
    assert float(losses.sum()) == pytest.approx(float(PLAIN.loss(terms, 0)), rel=1e-6)
    distortion = losses[tasks.distortion].sum()
    assert float(distortion) == pytest.approx(float(PLAIN.distortion(terms)), rel=1e-6)


@pytest.mark.parametrize(("renormalise", "share"), [(False, 0.75), (True, 1.0)])
def test_fixed_tasks_leave_out_a_quarter_of_the_distortion(
    terms: Terms, renormalise: bool, share: float
) -> None:
    tasks = fixed5(PLAIN.distortion, renormalise=renormalise)
    losses = tasks.of(terms)
    expected = float(terms.bpp) + share * float(PLAIN.distortion(terms))
    assert float(losses.sum()) == pytest.approx(expected, rel=1e-6)
    if renormalise:
        d = float(PLAIN.distortion(terms))
        assert losses[::2][:2].tolist() == pytest.approx([4 / 7.5 * d, 3.5 / 7.5 * d], rel=1e-5)


def test_names_and_scales_go_together() -> None:
    five = exact5(1.0)
    assert five.names == fixed5(PLAIN.distortion, renormalise=False).names
    assert five.scales == (0, 0, 1, 1, 2)
    assert five.distortion.tolist() == [True, False, True, False, False]
    seven = exact7(1.0)
    assert [seven.names[i] for i, s in enumerate(seven.scales) if s == 0] == ["D1", "R_s1", "R_z"]


def test_terms_by_scale_are_logged_by_name(terms: Terms) -> None:
    names = set(terms.detached())
    assert {"bpp_s1", "bpp_s2", "bpp_s3", "bpp_z", "mse_1", "mse_2", "mse_3"} <= names
    output = Output(torch.zeros(1, 3, 4, 4), {"y": torch.ones(1)})
    assert set(terms_of(output, torch.zeros(1, 3, 4, 4), LOSS).detached()) == {
        "bpp",
        "mse",
        "floored_symbols",
    }
