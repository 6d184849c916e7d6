import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from lic.codec.bundle import fingerprint
from lic.codec.entropy import Reader, Writer
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import (
    MODELS,
    HyperpriorConfig,
    ScaleHyperprior,
    bits,
    hyperprior_config,
)
from lic.codec.models.conditional import scale_indexes

MakeHyperprior = Callable[..., ScaleHyperprior]
TABLE = "gaussian_conditional.scale_table"


@pytest.fixture(scope="module")
def model(make_hyperprior: MakeHyperprior) -> ScaleHyperprior:
    return make_hyperprior()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 64), (65, 63), (70, 129)])
def test_any_picture_size_works(model: ScaleHyperprior, size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = -(-height // 64), -(-width // 64)
    with torch.no_grad():
        x_hat, likelihoods = model(_picture(2, height, width))
    assert x_hat.shape == (2, 3, height, width)
    assert likelihoods["y"].shape == (2, 12, 4 * rows, 4 * columns)
    assert likelihoods["z"].shape == (2, 8, rows, columns)


@pytest.mark.parametrize("activation", ["gdn", "igdn1", "relu", "gdnish"])
@pytest.mark.parametrize("size", [(64, 128), (50, 70)])
def test_coding_gives_exactly_what_forward_gives(
    make_hyperprior: MakeHyperprior, activation: str, size: tuple[int, int]
) -> None:
    model = make_hyperprior(activation, activation)
    x = _picture(2, *size)
    rows, columns = -size[0] % 64, -size[1] % 64
    extended = torch.nn.functional.pad(x, (0, columns, 0, rows), mode="replicate")
    with torch.no_grad():
        x_hat, likelihoods = model(x)
        z, y, scales = _symbols(model, extended)
        assert z.std() > 0.5 and y.std() > 0.5 and scales.std() > 0.2, "too little to prove it"
        progress = model.begin(z.to(torch.int16).float())
        decoded, means = model.parameters_of(0, progress)
        model.accept(0, progress, y.to(torch.int16).float() + means)
        assert torch.equal(decoded, scales)
        again = model.synthesize(model.y_hat(progress))[..., : size[0], : size[1]]
        assert torch.equal(again, x_hat)
        assert torch.equal(likelihoods["y"], model.gaussian_conditional(y, scales))
        assert torch.equal(
            likelihoods["z"], model.entropy_bottleneck(model.entropy_bottleneck.dequantize(z))[1]
        )


def test_the_step_codes_all_of_y_around_zero(model: ScaleHyperprior) -> None:
    y = model.analyze(_picture(2, 64, 128))
    progress = model.begin(torch.round(model.hyper_analyze(y)))
    scales, means = model.parameters_of(0, progress)
    assert model.steps == ("y",)
    assert torch.equal(model.select(0, y), y)
    assert scales.shape == means.shape == y.shape == (2, 12, 4, 8)
    assert not means.any() and (scales >= 0).all()


def test_pictures_of_a_batch_do_not_meet(model: ScaleHyperprior) -> None:
    x = _picture(3, 64, 80)
    with torch.no_grad():
        together = model(x)
        alone = [model(x[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together.x_hat, torch.cat([a.x_hat for a in alone]))
    for name in ("y", "z"):
        likelihoods = torch.cat([a.likelihoods[name] for a in alone])
        torch.testing.assert_close(together.likelihoods[name], likelihoods)


def test_training_adds_noise_to_both_latents(make_hyperprior: MakeHyperprior) -> None:
    model = make_hyperprior().train()
    x = _picture(1, 64, 64)
    first, second = model(x), model(x)
    assert not torch.equal(first.x_hat, second.x_hat)
    assert not torch.equal(first.likelihoods["z"], second.likelihoods["z"])


@pytest.mark.parametrize("activation", ["gdn", "igdn1", "relu", "gdnish"])
def test_every_parameter_but_the_quantiles_learns_from_a_picture(
    make_hyperprior: MakeHyperprior, activation: str
) -> None:
    model = make_hyperprior(activation, activation).train()
    x = _picture(2, 128, 64)
    x_hat, likelihoods = model(x)
    torch.autograd.backward(bits(likelihoods) + (x_hat - x).square().sum())
    idle = {k for k, v in model.named_parameters() if v.grad is None or not v.grad.any()}
    assert idle == {"entropy_bottleneck.quantiles"}


def test_h_s_learns_through_scales_below_the_bound(make_hyperprior: MakeHyperprior) -> None:
    model = make_hyperprior().train()
    with torch.no_grad():
        model.get_parameter("h_s.4.weight").mul_(1e-3)
        model.get_parameter("h_s.4.bias").fill_(0.05)
    _, likelihoods = model(_picture(1, 64, 64))
    torch.autograd.backward(bits(likelihoods))
    gradient = model.get_parameter("h_s.4.bias").grad
    assert gradient is not None and gradient.min() < 0, "scales that are too small cannot grow"


def test_state_dict_has_the_names_and_shapes_of_compressai() -> None:
    with torch.device("meta"):
        model = ScaleHyperprior(hyperprior_config("1"))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == _published_shapes()


def test_qualities_have_the_papers_widths() -> None:
    widths = [(c.N, c.M) for c in (hyperprior_config(str(q)) for q in range(1, 9))]
    assert widths == [(128, 192)] * 5 + [(192, 320)] * 3
    lite = hyperprior_config("lite", "relu")
    assert lite == HyperpriorConfig(
        N=64, M=96, encoder_activation="relu", decoder_activation="relu"
    )


def test_the_architecture_is_known_by_name(model: ScaleHyperprior) -> None:
    again = MODELS["bmshj2018-hyperprior"].from_dict(model.config.to_dict())
    assert isinstance(again, ScaleHyperprior)
    assert again.config == model.config and again.stride == 64


@pytest.mark.parametrize("options", [{"N": "8"}, {"K": 8}, {"M": None}])
def test_dictionaries_that_are_no_config_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="bmshj2018-hyperprior"):
        ScaleHyperprior.from_dict(options)


def test_z_has_a_table_per_channel_and_y_one_per_scale(model: ScaleHyperprior) -> None:
    tables = model.tables()
    assert len(tables) == 8 + 64 + 1
    every = model.entropy_bottleneck.tables()
    bottleneck = every.of_set(every.sets // 2)
    assert np.array_equal(tables.offset[:8], bottleneck.offset)
    assert np.array_equal(tables.cdf_length[:8], bottleneck.cdf_length)
    assert (np.diff(tables.cdf_length[8:-1].astype(int)) >= 0).all(), "wider scales, fewer symbols"
    edges = torch.tensor([0.0, 0.11, 0.1101, 1.0, 256.0, 1e9])
    scales = model.get_buffer(TABLE)
    indexes = _indexes(model, edges)
    assert indexes.dtype == torch.int64
    assert indexes[[0, 1, 2, 4, 5]].tolist() == [8, 8, 9, 71, 71]
    assert scales[indexes[3] - 9] < 1 <= scales[indexes[3] - 8]


def test_tables_depend_on_weights_alone(model: ScaleHyperprior) -> None:
    digest = model.tables().digest()
    again = ScaleHyperprior(model.config)
    again.load_state_dict(model.state_dict())
    assert again.tables().digest() == digest
    assert copy.deepcopy(model).double().train().tables().digest() == digest
    again.get_buffer(TABLE)[20] *= 1.05
    assert again.tables().digest() != digest


def test_files_cost_what_the_likelihoods_say(model: ScaleHyperprior) -> None:
    rng = np.random.default_rng(4)
    table = model.get_buffer(TABLE)
    scales = table[table < 32].repeat_interleave(20_000)
    residuals = torch.from_numpy(rng.standard_normal(len(scales))).float() * scales
    symbols = torch.round(residuals)
    with torch.no_grad():
        ideal = float(bits({"y": model.gaussian_conditional(symbols, scales).double()}))
    coded = symbols.numpy().astype(np.int16)[None]
    indexes = _indexes(model, scales).numpy().astype(np.uint16)[None]
    streams = _write(model, coded, indexes)
    assert abs(8 * sum(map(len, streams)) / ideal - 1) < 0.002
    assert np.array_equal(Reader(model.tables(), streams).code(None, indexes), coded)


def test_scales_between_those_of_the_table_cost_little_more(model: ScaleHyperprior) -> None:
    generator = torch.Generator().manual_seed(4)
    scales = torch.exp(torch.empty(500_000).uniform_(-2.2, 3.4, generator=generator))
    symbols = torch.round(torch.randn(scales.shape, generator=generator) * scales)
    with torch.no_grad():
        ideal = float(bits({"y": model.gaussian_conditional(symbols, scales).double()}))
    streams = _write(
        model,
        symbols.numpy().astype(np.int16)[None],
        _indexes(model, scales).numpy().astype(np.uint16)[None],
    )
    assert abs(8 * sum(map(len, streams)) / ideal - 1) < 0.005


@pytest.mark.parametrize("length", [1, 3, 200])
def test_another_scale_table_is_part_of_the_weights(model: ScaleHyperprior, length: int) -> None:
    state = {**model.state_dict(), TABLE: torch.linspace(0.2, 20, length)}
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()[TABLE], state[TABLE])
    assert len(other.tables()) == 8 + length + 1 == other.table_count
    assert int(_indexes(other, torch.tensor(1e9))) == 8 + length - 1
    # The first model keeps its own.
    assert len(model.tables()) == 8 + 64 + 1


@pytest.mark.parametrize(
    "name, counts",
    [(TABLE, True), ("h_s.2.weight", True), ("g_s.0.bias", True), ("h_a.0.weight", False)],
)
def test_fingerprints_tell_apart_what_decodes_differently(
    model: ScaleHyperprior, name: str, counts: bool
) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tables = model.tables()
    before = fingerprint(model.name, model.config.to_dict(), save(state), tables)
    state[name].reshape(-1)[3].mul_(1 + 1e-6)
    after = fingerprint(model.name, model.config.to_dict(), save(state), tables)
    assert (before != after) == counts


def test_an_empty_scale_table_means_the_standard_one(model: ScaleHyperprior) -> None:
    again = ScaleHyperprior(model.config)
    again.load_state_dict({**model.state_dict(), TABLE: torch.empty(0)})
    standard = torch.logspace(np.log10(0.11), np.log10(256), 64)
    torch.testing.assert_close(again.get_buffer(TABLE), standard, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "table",
    [
        torch.ones(2, 2),
        torch.tensor([0.0, 1.0]),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([1.0, 1e6]),
        torch.linspace(1, 2, 2000),
    ],
)
def test_scales_that_can_have_no_tables_are_refused(model: ScaleHyperprior, table: Tensor) -> None:
    other = copy.deepcopy(model)
    with pytest.raises(ModelMismatchError, match=rf"{TABLE} has shape .* rising scales above 0"):
        other.load_state_dict({**model.state_dict(), TABLE: table})


def _picture(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator)


def _symbols(model: ScaleHyperprior, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what an encoder writes, z (B, N, h / 4, w / 4) and y (B, M, h, w), and y's scales."""
    y = model.analyze(x)
    z = torch.round(model.hyper_analyze(y))
    scales, means = model.parameters_of(0, model.begin(z))
    return z, torch.round(model.select(0, y) - means), scales


def _indexes(model: ScaleHyperprior, scales: torch.Tensor) -> torch.Tensor:
    """Return the tables of scales that are rounded up, as CompressAI does."""
    return model.config.N + scale_indexes(scales, model.levels)


def _write(
    model: ScaleHyperprior, symbols: NDArray[np.int16], indexes: NDArray[np.uint16]
) -> tuple[bytes, ...]:
    writer = Writer(model.tables())
    writer.code(symbols, indexes)
    return writer.finish()


def _published_shapes() -> dict[str, tuple[int, ...]]:
    """Return the keys of CompressAI 1.2.8's `ScaleHyperprior(128, 192)` and their shapes.

    The scale table is as after `update()`, the integer tables as before.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "g_a.0.weight": (128, 3, 5, 5),
        "g_a.0.bias": (128,),
        "g_a.2.weight": (128, 128, 5, 5),
        "g_a.2.bias": (128,),
        "g_a.4.weight": (128, 128, 5, 5),
        "g_a.4.bias": (128,),
        "g_a.6.weight": (192, 128, 5, 5),
        "g_a.6.bias": (192,),
        "g_s.0.weight": (192, 128, 5, 5),
        "g_s.0.bias": (128,),
        "g_s.2.weight": (128, 128, 5, 5),
        "g_s.2.bias": (128,),
        "g_s.4.weight": (128, 128, 5, 5),
        "g_s.4.bias": (128,),
        "g_s.6.weight": (128, 3, 5, 5),
        "g_s.6.bias": (3,),
        "h_a.0.weight": (128, 192, 3, 3),
        "h_a.0.bias": (128,),
        "h_a.2.weight": (128, 128, 5, 5),
        "h_a.2.bias": (128,),
        "h_a.4.weight": (128, 128, 5, 5),
        "h_a.4.bias": (128,),
        "h_s.0.weight": (128, 128, 5, 5),
        "h_s.0.bias": (128,),
        "h_s.2.weight": (128, 128, 5, 5),
        "h_s.2.bias": (128,),
        "h_s.4.weight": (192, 128, 3, 3),
        "h_s.4.bias": (192,),
        "entropy_bottleneck.quantiles": (128, 1, 3),
        "entropy_bottleneck.target": (3,),
        "entropy_bottleneck.likelihood_lower_bound.bound": (1,),
        "entropy_bottleneck._offset": (0,),
        "entropy_bottleneck._quantized_cdf": (0,),
        "entropy_bottleneck._cdf_length": (0,),
        "entropy_bottleneck.matrices.0": (128, 3, 1),
        "entropy_bottleneck.matrices.1": (128, 3, 3),
        "entropy_bottleneck.matrices.2": (128, 3, 3),
        "entropy_bottleneck.matrices.3": (128, 3, 3),
        "entropy_bottleneck.matrices.4": (128, 1, 3),
        "entropy_bottleneck.biases.0": (128, 3, 1),
        "entropy_bottleneck.biases.1": (128, 3, 1),
        "entropy_bottleneck.biases.2": (128, 3, 1),
        "entropy_bottleneck.biases.3": (128, 3, 1),
        "entropy_bottleneck.biases.4": (128, 1, 1),
        "entropy_bottleneck.factors.0": (128, 3, 1),
        "entropy_bottleneck.factors.1": (128, 3, 1),
        "entropy_bottleneck.factors.2": (128, 3, 1),
        "entropy_bottleneck.factors.3": (128, 3, 1),
        "gaussian_conditional._offset": (0,),
        "gaussian_conditional._quantized_cdf": (0,),
        "gaussian_conditional._cdf_length": (0,),
        "gaussian_conditional.scale_table": (64,),
        "gaussian_conditional.scale_bound": (1,),
        "gaussian_conditional.likelihood_lower_bound.bound": (1,),
        "gaussian_conditional.lower_bound_scale.bound": (1,),
    }
    for side in ("g_a", "g_s"):
        for layer in (1, 3, 5):
            shapes |= {
                f"{side}.{layer}.beta": (128,),
                f"{side}.{layer}.gamma": (128, 128),
                f"{side}.{layer}.beta_reparam.pedestal": (1,),
                f"{side}.{layer}.beta_reparam.lower_bound.bound": (1,),
                f"{side}.{layer}.gamma_reparam.pedestal": (1,),
                f"{side}.{layer}.gamma_reparam.lower_bound.bound": (1,),
            }
    return shapes
