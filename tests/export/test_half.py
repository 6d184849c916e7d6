"""What half precision may change of symbols; of pictures see `test_quantization`."""

from typing import Any

import numpy as np
import pytest
import torch

from lic.codec.errors import ExportError
from lic.export.half import FLIPS, check_half
from tests.export.test_onnx_export import Rounded, graph_of

X = np.full((1, 3, 10, 10), 1.0, np.float32)


def weights(value: float) -> torch.Tensor:
    return torch.full((1, 3, 1, 1), value)


def test_few_symbols_may_move_by_one_step() -> None:
    """Twice 0.2500001 rounds up, twice 0.2499999 does not."""
    up, down = (graph_of(weights(v), rounded=True) for v in (0.2500001, 0.2499999))
    x = X.copy()
    x[0, 0, 0, :10] = 2
    module = Rounded(weights(0.2500001))
    agreement = check_half(up, down, module, [x])
    # In float16 both weights are a quarter: torch's own half flips the same ones.
    assert (agreement.flips, agreement.symbols, agreement.step) == (10, 300, 1)
    x[0, 1, 0, :10] = 2
    assert 20 / 300 > FLIPS
    told = r"float16 as a graph: 6\.67% of the symbols differ, by up to 1"
    with pytest.raises(ExportError, match=told):
        check_half(up, down, module, [x])


def test_no_symbol_may_move_by_two() -> None:
    one, other = (graph_of(weights(v), rounded=True) for v in (1.0, 3.0))
    x = 0 * X
    x[0, 0, 0, 0] = 1
    with pytest.raises(ExportError, match="by up to 2"):
        check_half(one, other, Rounded(weights(1.0)), [x])


class Summed(Rounded):
    """A large constant comes and goes, which float16 pays for with the digits of y."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward((x + 1000) - 1000)


def test_arithmetic_is_asked_of_torch() -> None:
    graph = graph_of(weights(1.0), rounded=True)
    x = np.random.default_rng(0).random((1, 3, 10, 10), np.float32)
    with pytest.raises(ExportError, match=r"float16 in its arithmetic: 2\d\.\d+% of the symbols"):
        check_half(graph, graph, Summed(weights(1.0)), [x])
    with pytest.raises(ExportError, match="NaN or infinite"):
        check_half(graph, graph, Summed(weights(1e6)), [x])
