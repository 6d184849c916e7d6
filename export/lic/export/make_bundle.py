"""A trained model -> a checked bundle."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from lic.codec.bundle import (
    DECODER,
    ENCODER,
    TABLES,
    WEIGHTS,
    Bundle,
    Manifest,
    tables_to_npz,
    write_bundle,
)
from lic.codec.errors import ConfigError, ExportError, OutputError
from lic.codec.models import FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder
from lic.export.onnx_export import check_graph, export_graph, share_weights

GRAPHS: dict[str, Any] = {
    "encoder": {
        "file": ENCODER,
        "inputs": {"x": ["batch", "3", "16*height", "16*width"]},
        "outputs": {"symbols": ["batch", "M", "height", "width"]},
    },
    "decoder": {
        "file": DECODER,
        "inputs": {"symbols": ["batch", "M", "height", "width"]},
        "outputs": {"x_hat": ["batch", "3", "16*height", "16*width"]},
    },
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the manifest says beyond the model itself."""

    name: str
    rate_point: int
    lmbda: float | None = None
    metric: Literal["mse", "ms-ssim"] = "mse"
    training: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def make_bundle(
    model: FactorizedPrior,
    target: Path,
    description: Description,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
) -> Bundle:
    """Freeze tables, export both graphs, check them against torch, and write the bundle.

    The model itself stays as it is.

    With `dtype` float16 the transforms' weights are rounded first; everything that follows,
    tables included, comes from the rounded model.

    Raises:
        ExportError: a weight is not finite, or a graph cannot be exported or differs from torch;
            nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    weights = _stored_weights(model, dtype)
    frozen = type(model)(model.config)
    frozen.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    frozen.eval()
    packed = save(weights)
    files = {WEIGHTS: packed, TABLES: tables_to_npz(frozen.entropy_bottleneck.tables())}
    files |= _graphs(frozen, packed)
    manifest = Manifest(
        name=description.name,
        rate_point=description.rate_point,
        architecture=model.name,
        config=model.config.to_dict(),
        stride=model.stride,
        lmbda=description.lmbda,
        metric=description.metric,
        training=dict(description.training),
        source=description.source,
        graphs=GRAPHS,
    )
    return write_bundle(target, manifest, files, overwrite=overwrite)


def _stored_weights(model: FactorizedPrior, dtype: str) -> dict[str, Tensor]:
    """Return the state dict as it will be stored; the entropy model stays in float32."""
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype is {dtype!r}; expected float32 or float16")
    model = copy.deepcopy(model)
    model.entropy_bottleneck.solve_quantiles()
    stored = {}
    for name, value in model.state_dict().items():
        shrink = dtype == "float16" and name.startswith(("g_a.", "g_s."))
        kept = value.detach().cpu().to(torch.float16) if shrink else value.detach().cpu()
        if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
            largest = float(value.abs().max())
            raise ExportError(f"{name}: not finite in {kept.dtype} (largest magnitude {largest:g})")
        stored[name] = kept.contiguous()
    return stored


def _graphs(model: FactorizedPrior, weights: bytes) -> dict[str, bytes]:
    graphs = {}
    generator = torch.Generator().manual_seed(0)
    for name, module, sizes, names in (
        (ENCODER, Encoder(model), ((32, 48), (16, 16), (80, 64)), ("x", "symbols")),
        (DECODER, Decoder(model), ((2, 3), (1, 1), (5, 4)), ("symbols", "x_hat")),
    ):
        module.eval()
        examples = [_example(model, size, names[0], generator) for size in sizes]
        graph = export_graph(module, examples[0], input_name=names[0], output_name=names[1])
        graph = share_weights(graph, weights)
        graph.producer_name = "lic"
        check_graph(name, graph, weights, module, examples)
        graphs[name] = graph.SerializeToString()
    return graphs


def _example(
    model: FactorizedPrior, size: tuple[int, int], kind: str, generator: torch.Generator
) -> Tensor:
    if kind == "x":
        return torch.rand(1, 3, *size, generator=generator)
    shape = (1, model.config.M, *size)
    return torch.randint(-3, 4, shape, generator=generator, dtype=torch.int32)
