"""Models with a context can be traced: one graph, without operators that hang on values."""

import io

import onnx
import pytest
import torch
from torch import Tensor, nn

from lic.codec.models import HPCM
from lic.codec.models.hpcm_config import Placement, hpcm_config
from lic.export.onnx_export import OPSET, quiet


class Steps(nn.Module):
    """All that lies between y, z and y_hat, with the residuals' scales."""

    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return y_hat and scales (B, M, h, w) of y (B, M, h, w) and z less its means."""
        y_hat, _, scales = self.model.quantize(y, z)
        return y_hat, scales


def _model(placement: Placement) -> HPCM:
    torch.manual_seed(0)
    return HPCM(hpcm_config("tiny", placement)).eval()


@pytest.mark.parametrize("placement", ["upstream", "corrected"])
def test_the_steps_become_a_graph_without_searches(placement: Placement) -> None:
    steps = Steps(_model(placement)).eval()
    example = (torch.randn(1, 64, 16, 32), torch.randn(1, 32, 4, 8))
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            steps, example, dynamo=True, opset_version=OPSET, verbose=False, optimize=True
        )
    assert program is not None
    model = onnx.load(io.BytesIO(program.model_proto.SerializeToString()))
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators
    assert operators.isdisjoint({"NonZero", "GatherND", "ScatterND", "Loop", "If", "Where"})


def test_forward_compiles_in_one_piece() -> None:
    model = _model("upstream")
    picture = torch.rand(2, 3, 256, 256)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, found = model(picture), compiled(picture)
    assert torch.equal(expected.x_hat, found.x_hat)
    for name, likelihoods in expected.likelihoods.items():
        assert torch.equal(likelihoods, found.likelihoods[name])
