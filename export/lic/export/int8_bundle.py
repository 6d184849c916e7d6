"""Bundles whose graphs compute in int8 or float16; weights, tables and fingerprint stay.

Only the graphs are other ones, and they hold their weights themselves. A file that was coded with
one bundle decodes with the other: symbols of a factorized prior select no tables.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lic.codec.backends.ort_backend import OrtBackend
from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, ENCODER, TABLES, WEIGHTS, Bundle, write_bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, ExportError, LicError, OutputError
from lic.codec.image_io import Picture
from lic.codec.latents import checked_symbols
from lic.codec.models import FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder
from lic.codec.pipeline import Codec
from lic.export.calibration import CROPS, SIDE, Method, calibration_crops, run, session
from lic.export.forms import Form, with_upsampling
from lic.export.make_bundle import GRAPHS
from lic.export.onnx_export import export_graph
from lic.export.qdq import Wiring
from lic.export.quantization import quantise_graph
from lic.export.rate_distortion import Loss

Sides = Literal["encoder", "decoder", "both"]
SIDES: tuple[Sides, ...] = ("encoder", "decoder", "both")


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a bundle becomes int8.

    Attributes:
        sides: which graphs.
        method: how ranges are chosen.
        upsample: form of the networks; "blocks" is the fastest in ONNX Runtime on a CPU.
        float_ends: keep the last convolution of the encoder in float: 6 % of its products, and
            where int8 weights cost most.
        crops, side: number and side in pixels of calibration crops.
        lmbda: of method "rd"; None takes the bundle's.

    Raises:
        ConfigError: a value that cannot work.
    """

    sides: Sides = "both"
    method: Method = "minmax"
    upsample: Form = "blocks"
    float_ends: bool = True
    crops: int = CROPS
    side: int = SIDE
    lmbda: float | None = None

    def __post_init__(self) -> None:
        if self.sides not in SIDES:
            raise ConfigError(f"sides is {self.sides!r}; expected one of {', '.join(SIDES)}")


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
            x,
            input_name="x",
            output_name="symbols",
        ),
        DECODER: export_graph(
            with_upsampling(Decoder(model).eval(), form),
            symbols,
            input_name="symbols",
            output_name="x_hat",
        ),
    }


def quantise_bundle(
    bundle: Bundle,
    target: Path,
    calibration: Path,
    options: Int8Options | None = None,
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with int8 graphs, calibrated on a folder of pictures.

    Checked before it is written: every side runs in ONNX Runtime, and a picture coded with int8
    graphs decodes with them and with those of `bundle`.

    Raises:
        ConfigError: an option that cannot work, or a model with a context.
        ImageError: no pictures in the folder, or one that cannot be read.
        ExportError: a graph cannot become int8, or the check failed; nothing is written.
        OutputError: the target exists.
    """
    options = options or Int8Options()
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    model = _factorized(bundle)
    pictures = calibration_crops(
        calibration, padding=bundle.manifest.padding, count=options.crops, side=options.side
    )
    graphs = float_graphs(model, options.upsample)
    running = session(graphs[ENCODER])
    symbols = [run(running, x) for x in pictures]
    for values in symbols:
        checked_symbols(values, "y")
    loss = None
    if options.method == "rd":
        lmbda = options.lmbda or bundle.manifest.lmbda
        loss = Loss(pictures, graphs[ENCODER], graphs[DECODER], bundle.tables, lmbda)
    made: dict[str, bytes] = {}
    if options.sides != "decoder":
        last = list(Wiring(graphs[ENCODER]).convolutions())[-1:]
        kept = last if options.float_ends else []
        made[ENCODER] = quantise_graph(
            graphs[ENCODER],
            pictures,
            method=options.method,
            keep_float=kept,
            loss=loss.of_encoder if loss else None,
        ).SerializeToString()
    if options.sides != "encoder":
        made[DECODER] = quantise_graph(
            graphs[DECODER],
            symbols,
            method=options.method,
            loss=loss.of_decoder if loss else None,
        ).SerializeToString()
    note = {
        "precision": "int8",
        "method": options.method,
        "upsample": options.upsample,
        "crops": len(pictures),
    }
    return write_variant(bundle, target, made, note, picture=pictures[0], overwrite=overwrite)


def _factorized(bundle: Bundle) -> FactorizedPrior:
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
    written = {name: files[name] for name in files if name in (WEIGHTS, TABLES, ENCODER, DECODER)}
    return write_bundle(target, manifest, written, overwrite=overwrite)


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


def analyse(bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return the symbols (M, h, w) that a bundle's encoder graph gives for x (1, 3, H, W)."""
    found: NDArray[np.int16] = OrtBackend(bundle, threads=1).analyze(x)
    return found
