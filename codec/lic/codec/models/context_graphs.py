"""Models with a context as modules of their own, from which graphs can be made.

Shapes: M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16. One picture
at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.graph_plan import FROM_CONSTANTS, FROM_WEIGHTS, Call, Plan, PlannedStep
from lic.codec.models import hierarchy
from lic.codec.models.context import ContextModel
from lic.codec.models.graphs import to_symbols
from lic.codec.models.hierarchy import SCALES, STEPS
from lic.codec.models.hpcm import HPCM
from lic.codec.models.hpcm import Progress as HPCMProgress
from lic.codec.models.hyperprior import ScaleHyperprior


@dataclass(frozen=True)
class Piece:
    """One graph to be: a module and the names of what goes in and comes out.

    Attributes:
        outputs: no graph may call one as it calls an input: "next_" stands before what replaces it.
        fixed: inputs whose shapes do not grow with the picture.
        any_size: of h and w nothing is known, as it runs at several scales.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: frozenset[str] = frozenset()
    any_size: bool = False


@dataclass(frozen=True)
class Pieces:
    """A model taken apart.

    Attributes:
        pieces: by the name of their file, without its ending.
        plan: how they come together; its calls name pieces.
        constants: arrays that calls refer to.
    """

    pieces: Mapping[str, Piece]
    plan: Plan
    constants: Mapping[str, Tensor] = field(default_factory=dict)


ENCODER, DECODER = "encoder", "decoder"


def take_apart(model: ContextModel) -> Pieces:
    """Return a model's pieces; the modules share its tensors, under its names for them."""
    if isinstance(model, HPCM):
        return _hpcm(model)
    assert isinstance(model, ScaleHyperprior)
    return _hyperprior(model)


class _Part(nn.Module):
    """What all pieces share: the model, under whose own names its tensors are known."""

    def __init__(self, model: ContextModel) -> None:
        super().__init__()
        self.model = model


class Encoder(_Part):
    """x (1, 3, H, W) in [0, 1] -> z (1, N, h / 4, w / 4) int32, and each step's part of y."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return z, then the parts in order."""
        y = self.model.analyze(x)
        z = to_symbols(torch.round(self.model.hyper_analyze(y)))
        return z, *(self.model.select(step, y) for step in range(len(self.model.steps)))


class Decoder(_Part):
    """y_hat (1, M, h, w) -> x_hat (1, 3, H, W) in [0, 1]."""

    def forward(self, y_hat: Tensor) -> Tensor:
        """Return the picture."""
        return self.model.synthesize(y_hat).clamp(0, 1)


def _ends(model: ContextModel) -> dict[str, Piece]:
    """Return the pieces at both ends."""
    parts = tuple(f"part_{step}" for step in range(len(model.steps)))
    return {
        ENCODER: Piece(Encoder(model), ("x",), ("z", *parts)),
        DECODER: Piece(Decoder(model), ("y_hat",), ("x_hat",)),
    }


class _HyperpriorBegin(_Part):
    """z int32 -> scales and means (1, M, h, w)."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.parameters_of(0, self.model.begin(z.to(torch.float32)))


def _hyperprior(model: ScaleHyperprior) -> Pieces:
    begin = Piece(_HyperpriorBegin(model), ("z",), ("scales", "means"))
    plan = Plan(
        levels=tuple(model.levels.tolist()),
        begin=(_call("begin", begin),),
        # All of y comes at once, so that the part is y_hat.
        steps=(PlannedStep("y", (), ()),),
        y_hat="part",
    )
    return Pieces({**_ends(model), "begin": begin}, plan)


class _Begin(_Part):
    """z int32 -> hyper, context and y_hat of `HPCM`'s progress before its first step."""

    model: HPCM

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        progress = self.model.begin(z.to(torch.float32))
        return progress.hyper, progress.context, progress.y_hat


class _Attend(_Part):
    """A step's parameters and the context -> the next step's context, at one scale."""

    def __init__(self, model: HPCM, name: str) -> None:
        super().__init__(model)
        self._name = name

    def forward(self, parameters: Tensor, context: Tensor) -> Tensor:
        attended: Tensor = self.model.get_submodule(self._name)(parameters, context)
        return attended


class _Refine(_Part):
    """hyper, context and y_hat of one scale -> context and y_hat of the next finer one."""

    model: HPCM

    def __init__(self, model: HPCM, scale: int) -> None:
        super().__init__(model)
        self._scale = scale

    def forward(self, hyper: Tensor, context: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        progress = HPCMProgress(hyper=hyper, context=context, parameters=None, y_hat=y_hat)
        self.model.refine(self._scale, progress)
        return progress.context, progress.y_hat


class _Predict(_Part):
    """context and y_hat -> a step's parameters, by the prior that several steps share."""

    def __init__(self, model: HPCM, name: str) -> None:
        super().__init__(model)
        self._name = name

    def forward(
        self, context: Tensor, y_hat: Tensor, weight: Tensor, bias: Tensor, adaptive: Tensor
    ) -> Tensor:
        adapted = F.conv2d(torch.cat((context, y_hat), dim=1), weight, bias)
        parameters: Tensor = self.model.get_submodule(self._name)(adapted, adaptive)
        return parameters


class _Fold(nn.Module):
    """Parameters of all sites -> scales and means of a step's part."""

    def forward(self, parameters: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = parameters.chunk(2, dim=1)
        return hierarchy.fold(scales, sites), hierarchy.fold(means, sites)


class _Accept(nn.Module):
    """y_hat with a step's part put to its sites."""

    def forward(self, y_hat: Tensor, part: Tensor, sites: Tensor) -> Tensor:
        return y_hat + hierarchy.spread(part, sites)


def _hpcm(model: HPCM) -> Pieces:
    sites, at_step = frozenset(("sites",)), frozenset(("weight", "bias", "adaptive"))
    state, next_state = ("context", "y_hat"), ("next_context", "next_y_hat")
    pieces = {**_ends(model), "begin": Piece(_Begin(model), ("z",), ("hyper", *state))}
    for number, scale in enumerate(SCALES):
        prior = model.prior_of(number)
        module, inputs = _Predict(model, prior), (*state, "weight", "bias", "adaptive")
        pieces[_predict_by(prior)] = Piece(module, inputs, ("parameters",), at_step, any_size=True)
        folded = ("scales", "means")
        pieces[f"fold_{scale}"] = Piece(_Fold(), ("parameters", "sites"), folded, sites)
        pieces[f"accept_{scale}"] = Piece(
            _Accept(), ("y_hat", "part", "sites"), ("next_y_hat",), sites
        )
        if model.config.heads:
            attend = _Attend(model, f"attn_{scale}")
            pieces[f"attend_{scale}"] = Piece(attend, ("parameters", "context"), ("next_context",))
        if number:
            pieces[f"refine_{scale}"] = Piece(_Refine(model, number), ("hyper", *state), next_state)
    begin = _call("begin", pieces["begin"])
    steps = tuple(_hpcm_step(model, pieces, step) for step in range(len(STEPS)))
    patterns = enumerate(hierarchy.step_patterns())
    return Pieces(
        pieces,
        Plan(tuple(model.levels.tolist()), (begin,), steps),
        {f"sites_{step}": sites for step, sites in patterns},
    )


def _predict_by(prior: str) -> str:
    return f"predict{prior.removeprefix('y_spatial_prior')}"


def _hpcm_step(model: HPCM, pieces: Mapping[str, Piece], step: int) -> PlannedStep:
    """Return the calls that do what `parameters_of` and `accept` do."""
    scale, before = STEPS[step].name, []

    def call(name: str, **inputs: str) -> Call:
        return _call(name, pieces[name], **inputs)

    sites = f"{FROM_CONSTANTS}sites_{step}"
    # Before the second step there are no parameters yet, and without attention they are what
    # becomes the context.
    context = "context" if step < 2 or model.config.heads else "parameters"
    parameters = "context"
    if step >= 2 and model.config.heads:
        before.append(call(f"attend_{STEPS[step - 1].name}"))
    if step and STEPS[step].place == 0:
        before.append(call(f"refine_{scale}", context=context))
        context = "context"
    if step:
        parameters = "parameters"
        adaptor = f"{FROM_WEIGHTS}{model.adaptor_of(step)}"
        own = {"weight": f"{adaptor}.weight", "bias": f"{adaptor}.bias"}
        own["adaptive"] = f"{FROM_WEIGHTS}adaptive_params_list.{step - 1}"
        predict = _predict_by(model.prior_of(STEPS[step].scale))
        before.append(call(predict, context=context, **own))
    before.append(call(f"fold_{scale}", parameters=parameters, sites=sites))
    return PlannedStep(scale, tuple(before), (call(f"accept_{scale}", sites=sites),))


def _call(name: str, piece: Piece, **inputs: str) -> Call:
    """Return a call whose inputs are the arrays of the same names, but for those given."""
    given = {each: inputs.get(each, each) for each in piece.inputs}
    made = {each: each.removeprefix("next_") for each in piece.outputs}
    return Call(f"{name}.onnx", given, made)
