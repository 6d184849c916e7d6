"""What "rd" makes small is the loss of training: bpp + lambda 255^2 MSE."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lic.codec.entropy import Tables, build_tables
from lic.codec.errors import ConfigError
from lic.export.onnx_export import OPSET
from lic.export.rate_distortion import Loss, symbol_bits
from tests.export.test_onnx_export import W, graph_of

SIZE: list[str | int | None] = ["N", 3, "H", "W"]
LMBDA = 0.01


def decoder(step: float) -> ModelProto:
    """Return x_hat = step * symbols."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "step"], ["x_hat"]),
        ],
        "graph",
        [helper.make_tensor_value_info("s", TensorProto.INT32, SIZE)],
        [helper.make_tensor_value_info("x_hat", TensorProto.FLOAT, SIZE)],
        [numpy_helper.from_array(np.array(step, np.float32), "step")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def tables() -> Tables:
    mass = np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    return build_tables([mass] * 3, [-2] * 3)


def test_the_loss_is_rate_and_distortion_by_the_pixel() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.random((1, 3, 8, w), np.float32) for w in (8, 16)]
    weights = W.abs().clamp(max=2)
    encoder = graph_of(weights, rounded=True)
    loss = Loss(pictures, encoder, decoder(0.5), tables(), LMBDA)
    symbols = [np.rint(x * weights.numpy()).astype(np.int16) for x in pictures]

    def expected(step: float) -> float:
        bits = sum(symbol_bits(s, tables()) for s in symbols)
        errors = [
            np.square(x - np.float32(step) * s).ravel()
            for x, s in zip(pictures, symbols, strict=True)
        ]
        return float(bits / 192 + LMBDA * 255**2 * np.concatenate(errors).mean())

    assert loss.of_decoder(decoder(0.25)) == pytest.approx(expected(0.25), rel=1e-5)
    assert loss.of_encoder(encoder) == pytest.approx(expected(0.5), rel=1e-5)


@pytest.mark.parametrize("lmbda", [None, 0.0, -1.0, float("nan")])
def test_without_a_lambda_there_is_no_loss(lmbda: float | None) -> None:
    with pytest.raises(ConfigError, match="lambda is"):
        Loss([], graph_of(W, rounded=True), decoder(1), tables(), lmbda)
