from collections.abc import Callable

import pytest
import torch

from lic.codec.latents import SYMBOL_LIMIT, UNCODABLE
from lic.codec.models import FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder

MakeModel = Callable[..., FactorizedPrior]


def _picture() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["gdn", "igdn1", "relu"])
def test_decoded_symbols_are_the_models_picture(make_model: MakeModel, kind: str) -> None:
    model = make_model(kind, kind)
    with torch.no_grad():
        symbols = Encoder(model)(_picture())
        x_hat = Decoder(model)(symbols)
        wanted = model(_picture()).x_hat
    assert symbols.dtype == torch.int32 and symbols.shape == (2, 12, 2, 3)
    assert symbols.unique().numel() > 3
    assert torch.equal(x_hat, wanted.clamp(0, 1))


def test_symbols_are_steps_from_the_medians(make_model: MakeModel) -> None:
    model = make_model()
    with torch.no_grad():
        y = model.analyze(_picture())
        symbols = Encoder(model)(_picture())
    medians = model.entropy_bottleneck.quantiles.detach()[:, 0, 1].reshape(1, -1, 1, 1)
    assert medians.std() > 0.1
    assert ((symbols + medians - y).abs() <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 4e4, -4e4, 1e30])
def test_latents_that_cannot_be_coded_are_marked(make_model: MakeModel, value: float) -> None:
    model = make_model()
    before = Encoder(model)(_picture())
    with torch.no_grad():
        model.get_parameter("g_a.6.bias")[5] = value
    symbols = Encoder(model)(_picture())
    assert (symbols[:, 5] == UNCODABLE).all()
    others = [channel for channel in range(12) if channel != 5]
    assert torch.equal(symbols[:, others], before[:, others])


def test_the_largest_symbols_are_coded_and_the_next_are_marked(make_model: MakeModel) -> None:
    model = make_model()
    steps = [SYMBOL_LIMIT, -SYMBOL_LIMIT, SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1]
    with torch.no_grad():
        model.entropy_bottleneck.quantiles[:, 0, 1] = 0
        model.get_parameter("g_a.6.weight").zero_()
        model.get_parameter("g_a.6.bias")[:4] = torch.tensor(steps).float()
    symbols = Encoder(model)(_picture())[0, :4, 0, 0]
    assert symbols.tolist() == [SYMBOL_LIMIT, -SYMBOL_LIMIT, UNCODABLE, UNCODABLE]
    assert UNCODABLE > torch.iinfo(torch.int16).max


def test_damaged_pixels_spoil_only_their_neighbourhood(make_model: MakeModel) -> None:
    x = torch.rand(1, 3, 256, 32, generator=torch.Generator().manual_seed(0))
    damaged = x.clone()
    damaged[0, 0, 3, 3] = float("nan")
    encoder = Encoder(make_model())
    symbols, others = encoder(damaged), encoder(x)
    assert (symbols[:, :, 0, 0] == UNCODABLE).all()
    assert torch.equal(symbols[:, :, -8:], others[:, :, -8:])


def test_decoded_pictures_stay_between_black_and_white(make_model: MakeModel) -> None:
    model = make_model()
    symbols = torch.zeros(1, 12, 2, 3, dtype=torch.int32)
    symbols[..., 1] = 500
    with torch.no_grad():
        x_hat = Decoder(model)(symbols)
        free = model.synthesize(symbols + model.entropy_bottleneck.medians)
    assert free.min() < 0 and free.max() > 1
    assert x_hat.shape == (1, 3, 32, 48)
    assert torch.equal(x_hat, free.clamp(0, 1))


def test_graphs_keep_the_medians_they_were_made_with(make_model: MakeModel) -> None:
    model = make_model()
    encoder = Encoder(model)
    before = encoder(_picture())
    with torch.no_grad():
        model.entropy_bottleneck.quantiles.add_(3)
    assert torch.equal(encoder(_picture()), before)
