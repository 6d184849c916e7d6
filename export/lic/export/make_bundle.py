"""A trained model -> a checked bundle."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lic.codec.backends.torch_backend import load_model
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.bundle import (
    DECODER,
    ENCODER,
    TABLES,
    WEIGHTS,
    Bundle,
    Manifest,
    fingerprint,
    tables_to_npz,
    write_bundle,
)
from lic.codec.entropy import Reader, Tables, Writer
from lic.codec.errors import ConfigError, ExportError, LicError, OutputError
from lic.codec.latents import walk
from lic.codec.models import ContextModel, FactorizedPrior, ScaleHyperprior
from lic.codec.models.graphs import Analysis, Synthesis
from lic.export.coding_check import check_coding
from lic.export.context_export import context_graphs
from lic.export.graph_check import LEFT, check_graph, runs_of
from lic.export.onnx_export import any_size, export_graph, share_weights

GRAPHS: dict[str, Any] = {
    "encoder": {
        "file": ENCODER,
        "inputs": {"x": ["batch", "3", "16*height", "16*width"]},
        "outputs": {"y": ["batch", "M", "height", "width"]},
    },
    "decoder": {
        "file": DECODER,
        "inputs": {"y_hat": ["batch", "M", "height", "width"]},
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
    model: FactorizedPrior | ContextModel,
    target: Path,
    description: Description,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    graphs: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Freeze tables, check what a decoder will run against `model`, and write the bundle.

    A factorized prior's graphs are exported and compared with torch. A model with a context codes a
    picture and must decode its own symbols; with `graphs`, which take a minute, those are exported
    and compared, too. The model itself stays as it is.

    With `dtype` float16 the transforms' weights are rounded first; everything that follows,
    tables included, comes from the rounded model. What selects tables stays in float32.

    Memory: of a model with a context, at the most three times its weights, `model` included.

    Raises:
        ExportError: a weight is not finite, a graph cannot be exported or differs from torch, or
            the model does not decode what it coded; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    frozen, packed, tables = freeze(model, dtype)
    files: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    if graphs or isinstance(frozen, FactorizedPrior):
        files, entries = _all_graphs(frozen, packed)
    if isinstance(frozen, ContextModel):
        _check_coding(frozen, tables)
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
        graphs=entries,
    )
    files = {WEIGHTS: packed, TABLES: tables_to_npz(tables), **files}
    check = check_coding if entries else None
    return write_bundle(target, manifest, files, overwrite=overwrite, check=check)


def add_graphs(bundle: Bundle, target: Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle's weights and tables, as they are, with graphs made anew.

    Raises:
        ExportError: a graph cannot be exported, or differs from torch; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    packed = bundle.read(WEIGHTS)
    files, entries = _all_graphs(load_model(bundle), packed)
    manifest = replace(bundle.manifest, graphs=entries)
    files |= {WEIGHTS: packed, TABLES: bundle.read(TABLES)}
    return write_bundle(target, manifest, files, overwrite=overwrite, check=check_coding)


def refit(bundle: Bundle, target: Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle's weights, as they are, with tables and graphs made anew; so is what it says.

    Raises:
        ExportError: the bundle's graphs have another form than those made here, or the model
            cannot be frozen; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    if any("precision" in entry for entry in bundle.manifest.graphs.values()):
        raise ExportError(
            f"{bundle.label}: its graphs have a precision or form of their own; refit the bundle "
            "that it was made from, and export it again"
        )
    packed, model = bundle.read(WEIGHTS), load_model(bundle)
    files: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    if bundle.has_graphs or isinstance(model, FactorizedPrior):
        files, entries = _all_graphs(model, packed)
    manifest = replace(bundle.manifest, graphs=entries)
    files |= {WEIGHTS: packed, TABLES: tables_to_npz(_tables_of(model))}
    check = check_coding if entries else None
    return write_bundle(target, manifest, files, overwrite=overwrite, check=check)


def _tables_of(model: FactorizedPrior | ContextModel) -> Tables:
    if isinstance(model, ContextModel):
        return model.tables()
    return model.entropy_bottleneck.tables()


def _all_graphs(
    model: FactorizedPrior | ContextModel, packed: bytes
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return graphs by file name, and what the manifest says of them."""
    if isinstance(model, ContextModel):
        return context_graphs(model, packed)
    return _graphs(model, packed), GRAPHS


class Frozen(NamedTuple):
    """What a decoder will make of a model, and the files that it will make it from.

    Attributes:
        model: with the values as they are stored.
        weights: the safetensors file.
        tables: for entropy coding.
    """

    model: FactorizedPrior | ContextModel
    weights: bytes
    tables: Tables

    @property
    def fingerprint(self) -> str:
        """That of a bundle of these files."""
        return fingerprint(self.model.name, self.model.config.to_dict(), self.weights, self.tables)


def freeze(
    model: FactorizedPrior | ContextModel, dtype: Literal["float32", "float16"] = "float32"
) -> Frozen:
    """Round a model's weights to what is stored, and make its tables of that.

    Raises:
        ExportError: a weight is not finite.
    """
    weights = _stored_weights(model, dtype)
    frozen = _frozen(model, weights)
    return Frozen(frozen, save(weights), _tables_of(frozen))


def _stored_weights(model: FactorizedPrior | ContextModel, dtype: str) -> dict[str, Tensor]:
    """Return the state dict as it will be stored, where possible without a copy of its own."""
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype is {dtype!r}; expected float32 or float16")
    stored = {}
    # Buffers are constants, such as the ends of a range, which would no longer be what they say.
    learned = dict(model.named_parameters())
    for name, value in {**model.state_dict(), **_solved_quantiles(model)}.items():
        transform = name in learned and name.startswith(("g_a.", "g_s."))
        shrink = transform and dtype == "float16"
        kept = value.detach().cpu().to(torch.float16) if shrink else value.detach().cpu()
        if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
            largest = float(value.abs().max())
            raise ExportError(f"{name}: not finite in {kept.dtype} (largest magnitude {largest:g})")
        stored[name] = kept.contiguous()
    return stored


def _solved_quantiles(model: FactorizedPrior | ContextModel) -> dict[str, Tensor]:
    """Return the exact quantiles of a model's bottleneck, by name, if it has one."""
    if not isinstance(model, FactorizedPrior | ScaleHyperprior):
        return {}
    bottleneck = copy.deepcopy(model.entropy_bottleneck)
    bottleneck.solve_quantiles()
    return {"entropy_bottleneck.quantiles": bottleneck.quantiles}


def _frozen(
    model: FactorizedPrior | ContextModel, weights: Mapping[str, Tensor]
) -> FactorizedPrior | ContextModel:
    """Return the model that a decoder will make of stored weights."""
    frozen = type(model).from_dict(model.config.to_dict())
    # Copying into the new model's tensors restores their precision.
    frozen.load_state_dict(weights)
    return frozen.eval()


def _check_coding(model: ContextModel, tables: Tables) -> None:
    """Code a small picture and decode it as a decoder would.

    Raises:
        ExportError: that fails, or gives other symbols or no picture.
    """
    side = model.stride
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, side, side, generator=generator).numpy()
    backend = TorchContextBackend(model, torch.device("cpu"))
    try:
        writer = Writer(tables)
        _, written = walk(backend.steps, backend.analyze(x), writer)
        reader = Reader(tables, writer.finish())
        state, read = walk(backend.steps, backend.blank(side, side), reader)
        reader.finish()
    except LicError as error:
        raise ExportError(f"{model.name}: does not code a test picture ({error})") from error
    if read != written:
        raise ExportError(
            f"{model.name}: a test picture decoded to other symbols (CRC-32 {read:08x}, the "
            f"encoder's {written:08x})"
        )
    if not bool(np.isfinite(backend.synthesize(state)).all()):
        raise ExportError(f"{model.name}: the decoded test picture has NaN or infinite pixels")


def _graphs(model: FactorizedPrior, weights: bytes) -> dict[str, bytes]:
    graphs = {}
    generator = torch.Generator().manual_seed(0)
    for name, module, sizes, (input_name, output_name), unit in (
        (ENCODER, Analysis(model), ((32, 48), (16, 16), (80, 64)), ("x", LEFT), 16),
        (DECODER, Synthesis(model), ((2, 3), (1, 1), (5, 4)), ("y_hat", "x_hat"), 1),
    ):
        module.eval()
        examples = [_example(model, size, input_name, generator) for size in sizes]
        # The encoder's input is a multiple of the stride; saying so keeps its shapes symbolic.
        free = {input_name: any_size(unit)}
        graph = export_graph(module, {input_name: examples[0]}, [output_name], free)
        graph = share_weights(graph, weights)
        runs = runs_of(module, input_name, (output_name,), examples)
        check_graph(name, graph, weights, runs)
        graphs[name] = graph.SerializeToString()
    return graphs


def _example(
    model: FactorizedPrior, size: tuple[int, int], kind: str, generator: torch.Generator
) -> Tensor:
    if kind == "x":
        return torch.rand(1, 3, *size, generator=generator)
    shape = (1, model.config.M, *size)
    return torch.randint(-3, 4, shape, generator=generator).to(torch.float32)
