"""Bundles whose graphs compute in int8: calibrated here, or as training left them.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16, K output channels of a
convolution.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from lic.codec.bundle import DECODER, ENCODER, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError, OutputError
from lic.codec.latents import checked_symbols
from lic.codec.models import MODELS, FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder
from lic.codec.models.int8_files import QuantizedLayer, load_converted
from lic.codec.models.parameter_counts import check_size
from lic.export.calibration import CROPS, METHODS, SIDE, Method, calibration_crops, run, session
from lic.export.forms import Form, FromBlocks, SubPixel, check_form, with_upsampling
from lic.export.make_bundle import Description, make_bundle
from lic.export.qdq import PICTURE, IntegerLayer, Levels, Wiring, write_qdq
from lic.export.quantization import quantise_graph
from lic.export.rate_distortion import Loss
from lic.export.variants import factorized, float_graphs, sample_picture, write_variant

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
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}")
        check_form(self.upsample)


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
    model = factorized(bundle)
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


def trained_bundle(
    path: Path,
    target: Path,
    description: Description,
    upsample: Form = "blocks",
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle of an int8 model of `lic train --qat`, integers as they are.

    The weights file holds what the integers stand for. y stays in float, as in training; x_hat
    leaves in the 8 bits that a picture file has.

    Raises:
        ModelMismatchError: no int8 model, or a damaged one.
        ConfigError: no such form, or a model with a context.
        ExportError: the graphs do not code; nothing is written.
        OutputError: the target exists.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    converted = load_converted(path)
    if converted.architecture != FactorizedPrior.name:
        raise ConfigError(f"{path}: only {FactorizedPrior.name} can have int8 graphs")
    state = converted.float_state_dict()
    check_size(converted.architecture, converted.config, state, str(path))
    model = MODELS[converted.architecture].from_dict(converted.config).eval()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelMismatchError(f"{path}: {error}") from None
    assert isinstance(model, FactorizedPrior), "asked before"
    graphs = float_graphs(model, upsample)
    made = {}
    for name, module in ((ENCODER, Encoder(model)), (DECODER, Decoder(model))):
        in_form = with_upsampling(module, upsample)
        layers = dict(
            _in_form(in_form, layer, held, graphs[name])
            for layer, held in converted.layers.items()
            if layer.startswith("g_a." if name == ENCODER else "g_s.")
        )
        if layers:
            made[name] = write_qdq(graphs[name], layers).SerializeToString()
    note = {"precision": "int8", "method": "trained", "upsample": upsample}
    with tempfile.TemporaryDirectory() as scratch:
        floating = make_bundle(model, Path(scratch) / "float", description)
        return write_variant(
            floating, target, made, note, picture=sample_picture(), overwrite=overwrite
        )


def _in_form(
    module: nn.Module, name: str, held: QuantizedLayer, graph: onnx.ModelProto
) -> tuple[str, IntegerLayer]:
    """Return name and integers of a layer in the form that a module gives it."""
    weight, scale = held.weight, held.weight_scale
    bias = held.bias if held.bias is not None else torch.zeros_like(scale)
    layer = module.get_submodule(name)
    if isinstance(layer, SubPixel):
        weight = layer.spread_weight(weight)
        scale, bias = layer.spread_channels(scale), layer.spread_channels(bias)
    elif isinstance(layer, FromBlocks):
        weight = layer.spread_weight(weight)
    elif layer.get_parameter("weight").shape != weight.shape:
        weight = F.pad(weight, (0, 1, 0, 1))
    whole = f"{name}.conv" if isinstance(layer, SubPixel | FromBlocks) else name
    output = _levels(held.output_scale, held.output_zero_point)
    if whole == list(Wiring(graph).convolutions())[-1] and name.startswith("g_s."):
        output = PICTURE
    entering = _levels(held.input_scale, held.input_zero_point)
    assert entering is not None, "every layer of the file has an input"
    return whole, IntegerLayer(
        weight=weight.numpy().astype(np.int8),
        weight_scale=scale.numpy(),
        bias=bias.numpy(),
        input=entering,
        output=output,
    )


def _levels(scale: torch.Tensor | None, zero_point: torch.Tensor | None) -> Levels | None:
    if scale is None or zero_point is None:
        return None
    return Levels(scale=float(scale), zero_point=int(zero_point))
