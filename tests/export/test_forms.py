"""Forms of a network compute what the network computes."""

from typing import Any

import pytest
import torch
from torch import nn

from lic.codec.errors import ConfigError
from lic.codec.models import HyperpriorConfig, ScaleHyperprior
from lic.codec.models.graphs import Decoder, Encoder
from lic.export.forms import FORMS, external_round, with_upsampling
from lic.export.graph_check import run, session
from lic.export.onnx_export import any_size, export_graph
from tests.export.conftest import model_of


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["relu", "gdn", "igdn1", "gdnish"])
def test_every_form_gives_the_same_picture(form: str, activation: Any) -> None:
    model = model_of(activation, activation)
    y_hat = torch.randint(-4, 5, (2, 12, 3, 5)).float()
    with torch.no_grad():
        expected = model.g_s(y_hat)
        found = with_upsampling(model.g_s, form)(y_hat)
    if form in ("k5", "k6"):
        assert torch.equal(found, expected)
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
    assert found.shape == (2, 3, 48, 80)
    plain = isinstance(model.g_s[0], nn.ConvTranspose2d)
    assert plain, "the module itself stays as it is"


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_gives_the_same_latents(form: str) -> None:
    model = model_of("relu", "relu")
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected, found = model.g_a(x), with_upsampling(model.g_a, form)(x)
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_the_hyper_decoder_takes_every_form() -> None:
    torch.manual_seed(0)
    model = ScaleHyperprior(HyperpriorConfig(N=8, M=12)).eval()
    z = torch.randn(1, 8, 3, 1)
    with torch.no_grad():
        expected = model.h_s(z)
        for form in FORMS:
            found = with_upsampling(model, form).get_submodule("h_s")(z)
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6), form


def test_other_transposed_convolutions_stay() -> None:
    layer = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, padding=1), nn.ReLU())
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(with_upsampling(layer, "subpixel")(x), layer(x))


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ConfigError, match="upsample is 'k7'; expected one of k5, k6, subpixel"):
        with_upsampling(nn.Identity(), "k7")


@pytest.mark.parametrize("form", ["k6", "subpixel-reshape", "blocks"])
def test_graphs_of_a_form_take_any_size(form: str) -> None:
    model = model_of("relu", "relu")
    module = with_upsampling(Decoder(model).eval(), form)
    example = torch.zeros(1, 12, 2, 3, dtype=torch.int32)
    graph = export_graph(module, {"symbols": example}, ["x_hat"], {"symbols": any_size()})
    running = session(graph)
    for size in ((1, 1), (3, 4)):
        symbols = torch.randint(-3, 4, (1, 12, *size), dtype=torch.int32)
        with torch.no_grad():
            expected = module(symbols).numpy()
        assert abs(run(running, symbols.numpy()) - expected).max() < 1e-4


def test_rounding_left_outside_is_all_that_is_missing() -> None:
    model = model_of("relu", "relu")
    encoder, decoder = external_round(model)
    x = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        steps, symbols = encoder(x), Encoder(model)(x)
        assert torch.equal(torch.round(steps).to(torch.int32), symbols)
        assert torch.equal(decoder(symbols.float()).clamp(0, 1), Decoder(model)(symbols))
    graphs = [
        export_graph(encoder.eval(), {"x": x}, ["y"], {"x": any_size(16)}),
        export_graph(
            decoder.eval(), {"symbols": symbols.float()}, ["x_hat"], {"symbols": any_size()}
        ),
    ]
    operators = {node.op_type for graph in graphs for node in graph.graph.node}
    assert operators == {"Conv", "Relu", "Sub", "ConvTranspose", "Add"}
    assert abs(run(session(graphs[0]), x.numpy()) - steps.numpy()).max() < 1e-4


def test_rounding_of_models_with_a_context_stays_inside() -> None:
    model: Any = ScaleHyperprior(HyperpriorConfig(N=8, M=12))
    with pytest.raises(ConfigError, match="bmshj2018-hyperprior: rounding cannot be left outside"):
        external_round(model)
