"""Bundles with other graphs for the same model: weights, tables and fingerprint stay.

The new graphs hold their weights themselves. A file that was coded with one bundle decodes with the
other: neither what makes y nor what makes the picture selects tables.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, ENCODER, Bundle, write_bundle
from lic.codec.container import parse
from lic.codec.errors import ExportError, LicError, OutputError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec
from lic.export.forms import Form
from lic.export.make_bundle import GRAPHS
from lic.export.parts import GraphOptions, Model, Part, export_part
from lic.export.rate_distortion import check_errors

_FILES: dict[Part, str] = {"encoder": ENCODER, "decoder": DECODER}


def part_graphs(
    model: Model, options: GraphOptions, parts: Sequence[Part] = ("encoder", "decoder")
) -> dict[str, onnx.ModelProto]:
    """Return encoder and decoder by file name, weights inside, each compared with torch.

    Those of single graphs, or with `options.bundled` those of a bundle.

    Raises:
        ConfigError: an option that the model cannot have.
        ExportError: the exporter failed, or a graph differs from torch.
    """
    return {_FILES[part]: export_part(model, part, options).graph for part in parts}


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
        # The plan of a model with a context is no graph.
        if entry.get("file") in graphs:
            entry.update(note)
    manifest = replace(bundle.manifest, graphs=described)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files.update(graphs)
    return write_bundle(
        target,
        manifest,
        files,
        overwrite=overwrite,
        check=lambda tried: _check(bundle, tried, picture),
    )


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
    for name in ("new", "mixed"):
        check_errors(bundle.label, errors["old"], errors[name])


def sample_picture() -> NDArray[np.float32]:
    """Return a smooth picture (1, 3, 64, 96) in [0, 1] with an edge, in 8 bits."""
    rows, columns = np.mgrid[0:64, 0:96].astype(np.float32)
    planes = np.stack([rows / 64, columns / 96, (columns > rows) * 0.5 + 0.25])
    levels: NDArray[np.float32] = np.rint(planes * 255).astype(np.float32)[None] / np.float32(255)
    return levels


def half_bundle(
    bundle: Bundle, target: Path, upsample: Form = "k5", *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whose encoder and decoder compute in float16.

    Of models with a context, too: what selects entropy tables lies in other graphs and stays.

    Raises:
        ConfigError: no such form.
        ExportError: the graphs differ from float32 by more than `half` allows, or do not code;
            nothing is written.
        OutputError: the target exists.
    """
    return _rewritten(
        bundle, target, GraphOptions(upsample=upsample, bundled=True, half=True), overwrite
    )


def form_bundle(bundle: Bundle, target: Path, upsample: Form, *, overwrite: bool = False) -> Bundle:
    """Write a bundle whose encoder and decoder have another form, in float32.

    Raises:
        ConfigError: no such form.
        ExportError: the graphs differ from torch, or do not code; nothing is written.
        OutputError: the target exists.
    """
    return _rewritten(bundle, target, GraphOptions(upsample=upsample, bundled=True), overwrite)


def _rewritten(bundle: Bundle, target: Path, options: GraphOptions, overwrite: bool) -> Bundle:
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    graphs = part_graphs(load_model(bundle), options)
    data = {name: graph.SerializeToString() for name, graph in graphs.items()}
    note = {"precision": "float16" if options.half else "float32", "upsample": options.upsample}
    return write_variant(bundle, target, data, note, picture=sample_picture(), overwrite=overwrite)
