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


def test_shares_of_the_scales_are_those_of_their_latents(model: HPCM) -> None:
    masks = model.scale_masks(16, 16)
    shares = [float(mask.mean()) for mask in masks.values()]
    assert shares == [1 / 16, 3 / 16, 12 / 16]
    assert torch.equal(sum(masks.values(), torch.zeros(())), torch.ones(1, 64, 16, 16))


def test_a_change_at_the_sites_of_one_scale_changes_its_rate_alone(model: HPCM) -> None:
    torch.manual_seed(2)
    rates = ScaleRates(model)
    p = torch.rand(1, 64, 16, 16) * 0.8 + 0.1
    likelihoods = {"y": p, "z": torch.full((1, 32, 4, 4), 0.5)}
    before = rates(likelihoods)
    for name, mask in model.scale_masks(16, 16).items():
        after = rates({**likelihoods, "y": p * (1 - 0.5 * mask)})
        assert {k for k in before if not torch.equal(before[k], after[k])} == {name}
        gained = float(after[name] - before[name])
        assert gained == pytest.approx(float(mask.sum()), rel=1e-4)


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
