"""What half precision may change of symbols; of pictures see `test_quantization`."""

import numpy as np
import pytest
import torch

from lic.codec.errors import ExportError
from lic.export.half import FLIPS, check_half
from tests.export.test_onnx_export import graph_of

X = np.full((1, 3, 10, 10), 1.0, np.float32)


def weights(value: float) -> torch.Tensor:
    return torch.full((1, 3, 1, 1), value)


def test_few_symbols_may_move_by_one_step() -> None:
    """Twice 0.2500001 rounds up, twice 0.2499999 does not."""
    up, down = (graph_of(weights(v), rounded=True) for v in (0.2500001, 0.2499999))
    x = X.copy()
    x[0, 0, 0, :10] = 2
    assert check_half(up, down, [x]) == pytest.approx(10 / 300)
    x[0, 1, 0, :10] = 2
    assert 20 / 300 > FLIPS
    with pytest.raises(ExportError, match=r"float16: 6\.67% of the symbols differ, by up to 1"):
        check_half(up, down, [x])


def test_no_symbol_may_move_by_two() -> None:
    one, other = (graph_of(weights(v), rounded=True) for v in (1.0, 3.0))
    x = 0 * X
    x[0, 0, 0, 0] = 1
    with pytest.raises(ExportError, match="by up to 2"):
        check_half(one, other, [x])
