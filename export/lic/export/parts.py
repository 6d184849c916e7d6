"""Parts of a codec as single ONNX files, weights inside: for engines and compilers of devices.

Shapes: N pictures, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, NamedTuple, get_args

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError, ExportError
from lic.codec.models import HPCM, ContextModel, FactorizedPrior, context_graphs, graphs
from lic.export.forms import external_round, with_upsampling
from lic.export.graph_check import LEFT, Agreement, check_graph, runs_of
from lic.export.half import check_half, half_graph
from lic.export.onnx_export import BITS, NEWEST, OLDEST, OPSET, any_size, export_graph

Part = Literal["full", "encoder", "decoder"]
PARTS: tuple[Part, ...] = get_args(Part)
Model = FactorizedPrior | ContextModel


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """How a graph is written.

    Attributes:
        size: height and width of the one picture that it takes, in pixels; None: any.
        opset: of ONNX's operators.
        upsample: form of transposed convolutions, a key of `forms.FORMS`.
        external_round: leave rounding, casts and clips of encoder and decoder to the caller.
        bundled: as bundles hold them, of a factorized prior from x to y and from y_hat to x_hat.
        half: compute in float16 inside.
    """

    size: tuple[int, int] | None = None
    opset: int = OPSET
    upsample: str = "k5"
    external_round: bool = False
    bundled: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        if not OLDEST <= self.opset <= NEWEST:
            raise ConfigError(f"--opset is {self.opset}; expected {OLDEST} to {NEWEST}")


class Exported(NamedTuple):
    """A checked graph, and how well it agrees with torch."""

    graph: onnx.ModelProto
    agreement: Agreement


class PartModule(NamedTuple):
    """What is exported.

    Attributes:
        input: its name.
        outputs: their names.
        unit: sides of the input are multiples of it.
        channels: of the input.
        integer: the input holds symbols.
    """

    module: nn.Module
    input: str
    outputs: tuple[str, ...]
    unit: int
    channels: int
    integer: bool = False


class _Full(nn.Module):
    """x (N, 3, H, W) in [0, 1] -> x_hat in [0, 1], and the bits (N,) that the model promises.

    Of Gaussian tails float32 in ONNX, which lacks erfc, knows no likelihoods below some 6e-8.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(x)
        bits = [-torch.log2(values).sum(dim=(1, 2, 3)) for values in output.likelihoods.values()]
        return output.x_hat.clamp(0, 1), torch.stack(bits).sum(dim=0)


class _FullWithoutBits(nn.Module):
    """The same of HPCM, whose likelihood, an incomplete gamma function, has no form in ONNX."""

    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = self.model.analyze(x)
        y_hat, _, _ = self.model.quantize(y, self.model.hyper_analyze(y))
        return self.model.synthesize(y_hat).clamp(0, 1)


def export_part(model: Model, part: Part, options: GraphOptions) -> Exported:
    """Export a part, compare it with torch, and return it with its weights inside.

    full      x -> x_hat, and bits where ONNX can say them
    encoder   x -> symbols; with a context z's symbols and y's parts
    decoder   symbols -> x_hat; with a context y_hat -> x_hat

    Raises:
        ConfigError: the model does not take pictures of such a size.
        ExportError: the part cannot be exported, or differs from torch.
    """
    made = module_of(
        model.eval(), part, external_round=options.external_round, bundled=options.bundled
    )
    if options.half and part == "full":
        raise ConfigError(
            "--fp16 is not for --part full, whose bits hang on more digits; take encoder, decoder"
        )
    plain = made.module.eval()
    in_form = plain if options.upsample == "k5" else with_upsampling(plain, options.upsample)
    rows, columns = picture_size(options.size, model.stride) or (2 * model.stride, 3 * model.stride)
    scale = 1 if made.input == "x" else 16
    sizes = [(rows // scale, columns // scale)]
    free = None
    if options.size is None:
        unit = made.unit
        free = {made.input: any_size(unit)}
        sizes += [(unit, unit), (3 * unit, 2 * unit)]
    generator = torch.Generator().manual_seed(0)
    examples = [example_of(made, size, generator) for size in sizes]
    name = f"{model.name} {part}"
    graph = export_graph(
        in_form, {made.input: examples[0]}, made.outputs, free, opset=options.opset
    )
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: is no valid ONNX graph ({error})") from None
    agreement = check_graph(name, graph, b"", runs_of(plain, made.input, made.outputs, examples))
    if options.half:
        half = half_graph(graph)
        agreement = check_half(graph, half, plain, [example.numpy() for example in examples])
        graph = half
    return Exported(graph, agreement)


def with_facts(exported: Exported, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the graph with facts about it, and what made and checked it, in its metadata."""
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    checked = {"agreement": str(exported.agreement)}
    graph = onnx.ModelProto()
    graph.CopyFrom(exported.graph)
    values = {**facts, **checked, **versions, "lic": metadata.version("lic")}
    onnx.helper.set_model_props(
        graph, {f"lic.{name}": str(value) for name, value in values.items()}
    )
    return graph


def module_of(
    model: Model, part: Part, *, external_round: bool = False, bundled: bool = False
) -> PartModule:
    """Return the module that a part is exported from; `external_round`, `bundled`: GraphOptions."""
    if external_round:
        return _external(model, part)
    if part == "full":
        stride = model.stride
        if isinstance(model, HPCM):
            return PartModule(_FullWithoutBits(model), "x", ("x_hat",), stride, 3)
        return PartModule(_Full(model), "x", ("x_hat", BITS), stride, 3)
    if isinstance(model, FactorizedPrior):
        if bundled and part == "encoder":
            return PartModule(graphs.Analysis(model), "x", (LEFT,), model.stride, 3)
        if bundled:
            return PartModule(graphs.Synthesis(model), "y_hat", ("x_hat",), 1, model.config.M)
        if part == "encoder":
            return PartModule(graphs.Encoder(model), "x", ("symbols",), model.stride, 3)
        symbols = model.config.M
        return PartModule(graphs.Decoder(model), "symbols", ("x_hat",), 1, symbols, integer=True)
    piece = context_graphs.take_apart(model).pieces[part]
    (name,) = piece.inputs
    if part == "encoder":
        return PartModule(piece.module, name, piece.outputs, model.stride, 3)
    return PartModule(piece.module, name, piece.outputs, 1, model.config.M)


def _external(model: Model, part: Part) -> PartModule:
    """Return the encoder or the decoder of a factorized prior without what NPUs do differently."""
    if part == "full" or not isinstance(model, FactorizedPrior):
        raise ConfigError(
            f"--external-round is for the encoder and the decoder of {FactorizedPrior.name}; leave "
            f"it out with {model.name} and --part {part}"
        )
    encoder, decoder = external_round(model)
    if part == "encoder":
        return PartModule(encoder, "x", (LEFT,), model.stride, 3)
    return PartModule(decoder, "symbols", ("x_hat",), 1, model.config.M)


def picture_size(size: tuple[int, int] | None, stride: int) -> tuple[int, int] | None:
    """Return a size of pictures (H, W) that networks of a stride take, None for any.

    Raises:
        ConfigError: one that they do not take; names the next that they do.
    """
    if size is not None and any(side < stride or side % stride for side in size):
        height, width = size
        raise ConfigError(
            f"--input-size is {height},{width}; expected multiples of {stride}, such as "
            f"{max(1, round(height / stride)) * stride},{max(1, round(width / stride)) * stride}"
        )
    return size


def example_of(made: PartModule, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return an input (1, C, *size) for a part's module."""
    shape = (1, made.channels, *size)
    if made.integer:
        return torch.randint(-3, 4, shape, generator=generator, dtype=torch.int32)
    return torch.rand(shape, generator=generator)
