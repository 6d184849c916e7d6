"""Bundles whose graphs compute in int8: calibrated here, or as training left them.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16, K output channels of a
convolution.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, ENCODER, Bundle
from lic.codec.errors import ConfigError, ExportError, ModelMismatchError, OutputError
from lic.codec.models import MODELS, FactorizedPrior
from lic.codec.models.graphs import Analysis, Synthesis
from lic.codec.models.int8_files import QuantizedLayer, load_converted
from lic.codec.models.parameter_counts import check_size
from lic.export.calibration import CROPS, METHODS, SIDE, Method, calibration_crops
from lic.export.fixed_size import fixed_size
from lic.export.forms import Form, FromBlocks, SubPixel, check_form, with_upsampling
from lic.export.graph_check import compare, session
from lic.export.make_bundle import Description, make_bundle
from lic.export.parts import Exported, GraphOptions, Part, picture_size
from lic.export.qdq import PICTURE, IntegerLayer, Levels, Wiring, write_qdq
from lic.export.quantization import quantise_graph
from lic.export.rate_distortion import Loss, check_distortion, symbols_of
from lic.export.variants import part_graphs, sample_picture, write_variant

Sides = Literal["encoder", "decoder", "both"]
# What these compute of constants are weights, which are to stay integers.
_INTEGERS = ("QuantizeLinear", "DequantizeLinear")
SIDES: tuple[Sides, ...] = ("encoder", "decoder", "both")


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a bundle becomes int8.

    Attributes:
        sides: which graphs.
        method: how ranges are chosen.
        upsample: form of the networks; "blocks" is the fastest in ONNX Runtime on a CPU.
        float_ends: keep the last convolution of a single encoder in float: 6 % of its products,
            and where int8 weights cost most. Those of bundles always stay so, as does the first
            of the decoder: between them lie latents, whose step a file tells.
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
    pictures = _crops(bundle, calibration, options)
    found = _quantised(
        bundle,
        pictures,
        options,
        part_graphs(factorized(bundle), GraphOptions(upsample=options.upsample, bundled=True)),
        symbols=False,
    )
    made = {name: graph.SerializeToString() for name, graph in found.graphs.items()}
    note = {
        "precision": "int8",
        "method": options.method,
        "upsample": options.upsample,
        "crops": len(found.pictures),
    }
    return write_variant(bundle, target, made, note, picture=found.pictures[0], overwrite=overwrite)


def quantise_part(
    bundle: Bundle,
    part: Part,
    calibration: Path,
    options: Int8Options | None = None,
    graph_options: GraphOptions | None = None,
) -> Exported:
    """Return an int8 encoder or decoder as a single graph, and how far it is from float32.

    Its agreement is with the float graph on the pictures of the calibration. A picture coded with
    it and the float graph of the other side comes back first.

    Args:
        bundle: of a factorized prior.
        part: "encoder" or "decoder".
        calibration: folder of pictures.
        options: `sides` means nothing here.
        graph_options: size, opset and external rounding; the form is that of `options`.

    Raises:
        ConfigError: another part, an option that cannot work, or a model with a context.
        ImageError: no pictures in the folder, or one that cannot be read.
        ExportError: the graph cannot become int8, or the check failed.
    """
    if part == "full":
        raise ConfigError(
            "--int8 is not for --part full, whose bits hang on more digits; take encoder, decoder"
        )
    given = graph_options or GraphOptions()
    options = replace(options or Int8Options(), sides=part)
    size = picture_size(given.size, bundle.manifest.stride)
    pictures = _crops(bundle, calibration, options)
    form = replace(given, size=None, upsample=options.upsample)
    floats = part_graphs(factorized(bundle), form)
    found = _quantised(bundle, pictures, options, floats)
    ((name, graph),) = found.graphs.items()
    inputs = found.pictures if part == "encoder" else _entering(floats, found.symbols)
    agreement = compare(part, floats[name], graph, inputs)
    check_distortion(bundle.label, found.pictures[0], floats, {**floats, name: graph})
    if size is not None:
        scale = 1 if part == "encoder" else bundle.manifest.stride
        graph = _of_size(part, graph, (size[0] // scale, size[1] // scale))
    return Exported(graph, agreement)


def factorized(bundle: Bundle) -> FactorizedPrior:
    """Return the model of a bundle that can become int8.

    Raises:
        ConfigError: a model with a context.
    """
    model = load_model(bundle)
    if not isinstance(model, FactorizedPrior):
        raise ConfigError(
            f"{bundle.label}: only {FactorizedPrior.name} can become int8, whose graphs are chains "
            "between pictures and symbols; --fp16 takes all models"
        )
    return model


def _of_size(name: str, graph: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """Return a graph of any size as one of a single size (H, W), which computes the same.

    Raises:
        ExportError: it does not.
    """
    made = fixed_size(graph, size, kept=_INTEGERS)
    (entry,) = made.graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    shape = (1, entry.type.tensor_type.shape.dim[1].dim_value, *size)
    values = np.random.default_rng(0).random(shape)
    sample = (values if kind == np.float32 else np.rint(6 * values - 3)).astype(kind)
    agreement = compare(name, graph, made, [sample])
    if agreement.error or agreement.flips:
        raise ExportError(f"{name}: at {size[0]} x {size[1]} it differs from itself: {agreement}")
    return made


class _Quantised(NamedTuple):
    """Graphs by file name, and what calibrated them: pictures and symbols."""

    graphs: dict[str, onnx.ModelProto]
    pictures: list[NDArray[np.float32]]
    symbols: list[NDArray[np.int16]]


def _crops(bundle: Bundle, folder: Path, options: Int8Options) -> list[NDArray[np.float32]]:
    """Return what calibrates; first of all, as what is wrong there should not cost minutes."""
    return calibration_crops(
        folder, padding=bundle.manifest.padding, count=options.crops, side=options.side
    )


def _quantised(
    bundle: Bundle,
    pictures: list[NDArray[np.float32]],
    options: Int8Options,
    floats: dict[str, onnx.ModelProto],
    *,
    symbols: bool = True,
) -> _Quantised:
    """Return int8 graphs; `symbols`: what lies between encoder and decoder has a step of 1."""
    running = session(floats[ENCODER])
    coded = [symbols_of(running, x) for x in pictures]
    loss = None
    if options.method == "rd":
        lmbda = options.lmbda or bundle.manifest.lmbda
        if options.lmbda is None and bundle.manifest.metric != "mse":
            raise ConfigError(
                f"{bundle.label} was trained for {bundle.manifest.metric}; ranges by rate and "
                "distortion are chosen by the squared error: take another method"
            )
        loss = Loss(pictures, floats[ENCODER], floats[DECODER], bundle.tables, lmbda)
    made: dict[str, onnx.ModelProto] = {}
    if options.sides != "decoder":
        last = list(Wiring(floats[ENCODER]).convolutions())[-1:]
        made[ENCODER] = quantise_graph(
            floats[ENCODER],
            pictures,
            method=options.method,
            keep_float=last if options.float_ends or not symbols else [],
            symbols=symbols,
            loss=loss.of_encoder if loss else None,
        )
    if options.sides != "encoder":
        made[DECODER] = quantise_graph(
            floats[DECODER],
            _entering(floats, coded),
            method=options.method,
            symbols=symbols,
            loss=loss.of_decoder if loss else None,
        )
    return _Quantised(made, pictures, coded)


def _entering(
    floats: dict[str, onnx.ModelProto], symbols: list[NDArray[np.int16]]
) -> list[NDArray[Any]]:
    """Return symbols in the type that the decoder takes."""
    (entry,) = floats[DECODER].graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    return [values.astype(kind) for values in symbols]


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
    graphs = part_graphs(model, GraphOptions(upsample=upsample, bundled=True))
    made = {}
    for name, module in ((ENCODER, Analysis(model)), (DECODER, Synthesis(model))):
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
