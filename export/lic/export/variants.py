"""Bundles with other graphs for the same model: weights, tables and fingerprint stay.

The new graphs hold their weights themselves. A file that was coded with one bundle decodes with the
other: symbols of a factorized prior select no tables.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, ENCODER, Bundle, write_bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, ExportError, LicError, OutputError
from lic.codec.image_io import Picture
from lic.codec.models import FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder
from lic.codec.pipeline import Codec
from lic.export.calibration import run, session
from lic.export.forms import Form, with_upsampling
from lic.export.graph_check import check_graph, runs_of
from lic.export.half import check_half, half_graph
from lic.export.make_bundle import GRAPHS
from lic.export.onnx_export import any_size, export_graph


def float_graphs(model: FactorizedPrior, form: str) -> dict[str, onnx.ModelProto]:
    """Return encoder and decoder by file name, weights inside, in a form.

    Raises:
        ConfigError: no such form.
        ExportError: the exporter failed.
    """
    x = torch.zeros(1, 3, 32, 48)
    symbols = torch.zeros(1, model.config.M, 2, 3, dtype=torch.int32)
    return {
        ENCODER: export_graph(
            with_upsampling(Encoder(model).eval(), form),
            {"x": x},
            ["symbols"],
            {"x": any_size(model.stride)},
        ),
        DECODER: export_graph(
            with_upsampling(Decoder(model).eval(), form),
            {"symbols": symbols},
            ["x_hat"],
            {"symbols": any_size()},
        ),
    }


def factorized(bundle: Bundle) -> FactorizedPrior:
    """Return the model of a bundle that can have such graphs.

    Raises:
        ConfigError: a model with a context.
    """
    model = load_model(bundle)
    if not isinstance(model, FactorizedPrior):
        raise ConfigError(
            f"{bundle.label}: only {FactorizedPrior.name} can become int8 or half precision; "
            "numbers that differ from device to device would select other entropy tables"
        )
    return model


def write_variant(
    bundle: Bundle,
    target: Path,
    graphs: Mapping[str, bytes],
    note: Mapping[str, Any],
    *,
    picture: NDArray[np.float32],
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with some graphs replaced, once they have coded a picture.

    Args:
        bundle: the original; what is not replaced stays.
        target: folder or .zip.
        graphs: self-contained, by file name.
        note: what the manifest says of a replaced graph.
        picture: (1, 3, H, W) in [0, 1].
        overwrite: replace what is there.

    Raises:
        ExportError: a graph does not run, or files do not decode; nothing is written.
        OutputError: the target exists or cannot be written.
    """
    described = {name: dict(entry) for name, entry in (bundle.manifest.graphs or GRAPHS).items()}
    for entry in described.values():
        if entry["file"] in graphs:
            entry.update(note)
    manifest = replace(bundle.manifest, graphs=described)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files.update(graphs)
    with tempfile.TemporaryDirectory() as scratch:
        tried = write_bundle(Path(scratch) / "tried", manifest, files)
        _check(bundle, tried, picture)
    return write_bundle(target, manifest, files, overwrite=overwrite)


def _check(bundle: Bundle, tried: Bundle, picture: NDArray[np.float32]) -> None:
    """Code a picture with the new graphs, and decode it with the new and the old ones.

    Raises:
        ExportError: that fails, or gives other symbols or a picture that has nothing to do with it.
    """
    if tried.fingerprint != bundle.fingerprint:
        raise ExportError(f"{bundle.label}: the new graphs changed the model's fingerprint")
    pixels = np.rint(picture[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    errors = {}
    try:
        old, new = (Codec(b, backend="onnx", threads=1) for b in (bundle, tried))
        for name, encoder, decoder in (("old", old, old), ("new", new, new), ("mixed", new, old)):
            encoded = encoder.compress(Picture(pixels=pixels))
            decoded = decoder.decompress(parse(encoded.data)).picture.pixels
            errors[name] = float(np.square(decoded.astype(np.float32) - pixels).mean())
    except LicError as error:
        raise ExportError(f"{bundle.label}: the new graphs do not code ({error})") from error
    # A guard against graphs that compute something else, no measure of quality: 6 dB.
    for name in ("new", "mixed"):
        if not errors[name] <= 4 * errors["old"] + 4:
            raise ExportError(
                f"{bundle.label}: a calibration picture comes back with a mean squared error of "
                f"{errors[name]:.1f}, in float32 {errors['old']:.1f}; calibrate with more pictures "
                "or another method"
            )


def sample_picture() -> NDArray[np.float32]:
    """Return a smooth picture (1, 3, 64, 96) in [0, 1] with an edge, in 8 bits."""
    rows, columns = np.mgrid[0:64, 0:96].astype(np.float32)
    planes = np.stack([rows / 64, columns / 96, (columns > rows) * 0.5 + 0.25])
    levels: NDArray[np.float32] = np.rint(planes * 255).astype(np.float32)[None] / np.float32(255)
    return levels


def half_bundle(
    bundle: Bundle, target: Path, upsample: Form = "k5", *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whose graphs compute in float16.

    Raises:
        ConfigError: no such form, or a model with a context.
        ExportError: the graphs differ from float32 by more than `half.FLIPS` or `half.GAP`, or do
            not code; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    picture = sample_picture()
    graphs = float_graphs(factorized(bundle), upsample)
    halves = {name: half_graph(graph) for name, graph in graphs.items()}
    check_half(graphs[ENCODER], halves[ENCODER], [picture])
    symbols = run(session(graphs[ENCODER]), picture)
    check_half(graphs[DECODER], halves[DECODER], [symbols])
    made = {name: graph.SerializeToString() for name, graph in halves.items()}
    note = {"precision": "float16", "upsample": upsample}
    return write_variant(bundle, target, made, note, picture=picture, overwrite=overwrite)


def form_bundle(bundle: Bundle, target: Path, upsample: Form, *, overwrite: bool = False) -> Bundle:
    """Write a bundle whose float32 graphs have another form.

    Raises:
        ConfigError: no such form, or a model with a context.
        ExportError: the graphs differ from torch, or do not code; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    model, picture = factorized(bundle), sample_picture()
    graphs = float_graphs(model, upsample)
    encoder, decoder = Encoder(model).eval(), Decoder(model).eval()
    x = torch.from_numpy(picture)
    with torch.no_grad():
        symbols = encoder(x)
    for name, module, (given, made), example in (
        (ENCODER, encoder, ("x", "symbols"), x),
        (DECODER, decoder, ("symbols", "x_hat"), symbols),
    ):
        check_graph(name, graphs[name], b"", runs_of(module, given, (made,), [example]))
    data = {name: graph.SerializeToString() for name, graph in graphs.items()}
    note = {"precision": "float32", "upsample": upsample}
    return write_variant(bundle, target, data, note, picture=picture, overwrite=overwrite)
