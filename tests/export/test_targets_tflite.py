"""The conversion to TFLite, as far as it can be told where TensorFlow is not installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest

from lic.codec.bundle import DECODER
from lic.export.forms import Form
from lic.export.parts import GraphOptions
from lic.export.targets.compilers.toolkit import WORKERS
from lic.export.targets.operators import without_ends
from lic.export.targets.source import Graph, complete
from lic.export.variants import part_graphs
from tests.export.conftest import model_of


def converter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the worker's module with a stand-in for TensorFlow."""
    monkeypatch.setitem(sys.modules, "tensorflow", MagicMock())
    spec = importlib.util.spec_from_file_location("layers", Path(WORKERS) / "tflite_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", ["subpixel", "shuffle"])
def test_what_a_shuffle_reads_is_ordered_as_tensorflow_reads_it(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a ReLU, too; the last layer has none."""
    model = part_graphs(model_of("relu", "relu"), GraphOptions(upsample=form))[DECODER]
    whole = complete(Graph(source="s", name="decoder", model=model, stride=16), (32, 32))
    layers = converter(monkeypatch).Layers(without_ends(whole))
    orders = [
        layers._order(node, len(layers.constants[node.input[1]]))
        for node in layers.nodes
        if node.op_type == "Conv"
    ]
    # From (K, 2 x 2), the block innermost, to (2 x 2, K).
    expected = [np.arange(4 * k).reshape(k, 4).T.ravel() for k in (8, 8, 8, 3)]
    assert [order.tolist() for order in orders] == [order.tolist() for order in expected]
