"""HPCM: what holds for every size, on tiny."""

import pytest
import torch

from lic.codec.errors import ConfigError
from lic.codec.models import HPCM, HPCMConfig, bits, hpcm_config
from lic.codec.models.conditional import scale_indexes
from lic.codec.models.hierarchy import up
from lic.codec.models.hpcm_config import SIZES

SMALL = HPCMConfig(
    widths=(8, 8, 8),
    blocks=(1, 1, 1),
    M=16,
    N=8,
    prior_s1_s2=(1, 1),
    prior_s3=(1, 1),
    heads=4,
)


def _model(config: HPCMConfig = SMALL, seed: int = 0) -> HPCM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HPCM(config)
        with torch.no_grad():
            # Latents of several steps, scales all over the table, and nothing left at its start.
            for name, parameter in model.named_parameters():
                if name.startswith("adaptive_params_list") or name == "means_hyper":
                    parameter.add_(0.3 * torch.randn_like(parameter))
            model.get_parameter("g_a.branch.0.weight").mul_(20)
            model.get_parameter("h_s.branch.4.bias")[: config.M] += 1
            model.scales_hyper.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> HPCM:
    return _model()


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(2, 3, 256, 512, generator=torch.Generator().manual_seed(3))


def test_shapes(model: HPCM, picture: torch.Tensor) -> None:
    with torch.no_grad():
        output = model(picture)
    assert output.x_hat.shape == picture.shape
    assert output.likelihoods["y"].shape == (2, 16, 16, 32)
    assert output.likelihoods["z"].shape == (2, 8, 4, 8)


def test_pictures_of_a_batch_do_not_see_each_other(model: HPCM, picture: torch.Tensor) -> None:
    with torch.no_grad():
        together = model(picture)
        alone = [model(x[None]) for x in picture]
    torch.testing.assert_close(together.x_hat, torch.cat([o.x_hat for o in alone]))
    for name in ("y", "z"):
        one_by_one = torch.cat([o.likelihoods[name] for o in alone])
        torch.testing.assert_close(together.likelihoods[name], one_by_one, rtol=1e-3, atol=1e-6)


def test_training_reaches_every_parameter_and_decodes_the_same(picture: torch.Tensor) -> None:
    model = _model()
    with torch.no_grad():
        evaluated = model(picture).x_hat
    model.train()
    output = model(picture)
    torch.testing.assert_close(output.x_hat.detach(), evaluated, rtol=1e-4, atol=1e-5)
    loss = bits(output.likelihoods) / picture.numel() + (output.x_hat - picture).square().mean()
    loss.backward()
    # The attention of s3 works after each of its steps but the last; all others feed later ones.
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] == []
    assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)


def test_rounding_passes_gradients_straight_through() -> None:
    model = _model().train()
    y = torch.randn(1, 16, 16, 16, requires_grad=True)
    z = model.hyper_analyze(y.detach())
    y_hat, residuals, _ = model.quantize(y, z)
    assert not torch.equal(y_hat, y)
    torch.testing.assert_close(y_hat, y, atol=0.5 + 1e-4, rtol=0)
    # dy_hat/dy = 1 where nothing else depends on it: the very last step's latents.
    last = model.gather(
        [model.select(step, torch.zeros_like(y)) + (step == 10) for step in range(11)]
    )
    (grad,) = torch.autograd.grad((y_hat * last).sum(), y)
    torch.testing.assert_close(grad[last.bool()], torch.ones(int(last.sum())))
    assert residuals.shape == y.shape


def test_likelihoods_in_training_are_those_of_noise(picture: torch.Tensor) -> None:
    model = _model().train()
    with torch.no_grad():
        rates = [float(bits(model(picture).likelihoods)) for _ in range(2)]
        model.eval()
        rounded = [float(bits(model(picture).likelihoods)) for _ in range(2)]
    assert rates[0] != rates[1]
    assert rounded[0] == rounded[1]
    assert rates[0] == pytest.approx(rounded[0], rel=0.2)


def test_masks_of_the_scales_share_out_the_latents(model: HPCM) -> None:
    masks = model.scale_masks(16, 32)
    assert list(masks) == ["s1", "s2", "s3"]
    assert [float(mask.mean()) for mask in masks.values()] == [1 / 16, 3 / 16, 12 / 16]
    assert torch.equal(sum(masks.values(), torch.zeros(())), torch.ones(1, 16, 16, 32))


@torch.no_grad()
def test_bits_by_part_are_all_bits(model: HPCM, picture: torch.Tensor) -> None:
    likelihoods = model(picture).likelihoods
    parts = model.bits_by_part(likelihoods)
    assert list(parts) == ["z", "s1", "s2", "s3"]
    assert float(sum(parts.values())) == pytest.approx(float(bits(likelihoods)), rel=1e-5)
    # What a mask calls s1 is what the steps of s1 code.
    y = model.analyze(picture)
    z = model.hyper_analyze(y)
    progress = model.begin(torch.round(z))
    s1 = 0.0
    for step in (0, 1):
        scales, means = model.parameters_of(step, progress)
        q = torch.round(model.select(step, y) - means)
        s1 -= float(torch.log2(model.entropy_estimation(q, scales)).sum())
        model.accept(step, progress, q + means)
    assert float(parts["s1"]) == pytest.approx(s1, rel=1e-5)


@torch.no_grad()
def test_placement_decides_where_hyper_parameters_of_s2_stand(picture: torch.Tensor) -> None:
    upstream = _model()
    corrected = HPCM(HPCMConfig(**{**SMALL.to_dict(), "placement": "corrected"})).eval()
    corrected.load_state_dict(upstream.state_dict())
    a, b = (m.bits_by_part(m(picture).likelihoods) for m in (upstream, corrected))
    # s1 is coded before the hyper parameters of s2 are looked at.
    assert float(a["s1"]) == float(b["s1"])
    assert float(a["s2"]) != float(b["s2"])


@pytest.mark.parametrize(
    ("placement", "right"),
    [
        ("upstream", [1, 1, 2 / 3, 2 / 3, 1 / 6, 1 / 6, 1 / 12, 1 / 12]),
        ("corrected", [1] * 8),
    ],
)
@torch.no_grad()
def test_shares_of_s2_that_get_the_hyper_parameters_of_their_own_site(
    placement: str, right: list[float]
) -> None:
    """By eighth of the channels, of latents of 16x16; the same of scales and of means."""
    model = _model(HPCMConfig(**{**SMALL.to_dict(), "placement": placement}))
    model.context_net[0] = torch.nn.Identity()
    sites = torch.arange(1.0, 257).reshape(16, 16)
    progress = model.begin(torch.zeros(1, 8, 4, 4))
    progress.hyper = sites.expand(1, 32, 16, 16)
    progress.context = torch.zeros_like(progress.context)
    model.refine(1, progress)
    new = model.scale_masks(16, 16)["s2"].bool()
    # The samples of s1 and s2, a fourth, lie densely in cells of 2x2 by now.
    placed = up(progress.context.reshape(2, 16, 8, 8), model.s2_in_s3)
    kept = (placed == sites) & new
    shares = kept.reshape(2, 8, -1).sum(dim=2) / new.reshape(8, -1).sum(dim=1)
    for half in shares:
        assert half.tolist() == pytest.approx(right, rel=1e-6)


def test_only_whole_windows_are_taken(model: HPCM) -> None:
    with pytest.raises(ConfigError, match="384x256; expected multiples of 256, pad it"):
        model(torch.zeros(1, 3, 256, 384))


@pytest.mark.parametrize(
    ("heads", "placement", "stride"),
    [(4, "upstream", 256), (4, "corrected", 256), (0, "upstream", 256), (0, "corrected", 128)],
)
@torch.no_grad()
def test_stride(heads: int, placement: str, stride: int) -> None:
    model = _model(HPCMConfig(**{**SMALL.to_dict(), "heads": heads, "placement": placement}))
    assert model.stride == stride
    assert model(torch.rand(1, 3, stride, stride)).x_hat.shape == (1, 3, stride, stride)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_same_parts(size: str) -> None:
    with torch.device("meta"):
        model = HPCM(hpcm_config(size))
    wanted = {"g_a", "g_s", "h_a", "h_s", "context_net", "adaptive_params_list", "attn_s1"}
    found = {name.split(".")[0] for name in model.state_dict()}
    assert wanted - found == ({"attn_s1"} if size == "phi" else set())
    assert HPCMConfig(**model.config.to_dict()) == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (96, 192)}, "widths is .*expected 3 numbers from 4 up"),
        ({"widths": (96, 192, 386)}, "expected multiples of 4"),
        ({"M": 36}, "M is 36; expected a multiple of 8"),
        ({"N": True}, "N is True"),
        ({"heads": 7}, "heads is 7; expected 0 or a divisor of 640"),
        ({"heads": -1}, "heads is -1"),
        ({"blocks": (1, 1, -1)}, "blocks is"),
        ({"prior_s3": [1, 2, 3]}, "prior_s3 is"),
        ({"placement": "mine"}, "placement is 'mine'; expected upstream or corrected"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HPCMConfig(**{**SIZES["base"].to_dict(), **change})


def test_unknown_sizes_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="size is 'huge'; expected one of base, large, phi, tiny"):
        hpcm_config("huge")
    with pytest.raises(ConfigError, match=r"hpcm: .*colour"):
        HPCM.from_dict({"colour": "red"})


def test_there_is_a_table_for_every_channel_of_z_and_every_level(model: HPCM) -> None:
    tables = model.tables()
    assert len(tables) == 8 + 60 + 1 == model.table_count
    scales = torch.tensor([-1.0, 0.0, 0.12, 0.1201, 63.0, 64.0, 1e9, float("nan")])
    assert scale_indexes(scales, model.levels).tolist() == [0, 0, 0, 1, 59, 59, 59, 59]


def test_tables_cost_what_the_likelihoods_promise(model: HPCM) -> None:
    """A residual drawn with a level's own scale costs at most 0.2 % more than its entropy."""
    tables = model.tables()
    pmfs, offsets = model.entropy_estimation.pmfs(model.levels)
    for level in range(0, 60, 7):
        pmf, row = pmfs[level][:-1], 8 + level
        cdf = tables.quantized_cdf[row].astype(float)
        first, used = int(tables.offset[row]), int(tables.cdf_length[row]) - 2
        mass = pmf[first - offsets[level] :][:used]
        slots = (cdf[1 : used + 1] - cdf[:used]) / 2**14
        inside = -(mass * torch.log2(torch.from_numpy(slots)).numpy()).sum()
        entropy = -(mass * torch.log2(torch.from_numpy(mass)).numpy()).sum()
        assert inside <= entropy * 1.002 + 2e-4, level


def test_forward_compiles_in_one_piece() -> None:
    model = _model(SMALL)
    picture = torch.rand(2, 3, 256, 256)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, found = model(picture), compiled(picture)
    assert torch.equal(expected.x_hat, found.x_hat)
    for name, likelihoods in expected.likelihoods.items():
        assert torch.equal(likelihoods, found.likelihoods[name])
