"""Put other non-linearities into a trained model in place of GDN.

As they are made, new layers know nothing of the old ones. With `fit` they begin as their best
stand-in: side by side, layer by layer, the old network runs on crops as it is and the new one is
made to give the same. The old layers' output is the target, the new ones' running features are the
input, and all that is solved are least squares.

Shapes: B crops, C input and K output channels of a layer, S samples, F features of a sample.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models.blocks import GDN
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock
from lic.trainers.model_options import ActivationConfig, ReplacementConfig
from lic.trainers.models import Balle2018, gain_of

# Hidden values get this many standard deviations of head room above zero where ReLU comes next.
HEAD_ROOM = 8.0
# How strongly weights are held to the old ones, in shares of the features' mean variance.
RIDGE = 1e-3
# The same of gains, whose systems have few samples for each channel's few large values.
GAIN_RIDGE = 1e-2
# Where hidden values of a gain block with a residual saturate, in standard deviations.
KNEE = 1.0
# Positions of one crop that a system of equations is made of.
POSITIONS = 1024
# Of all crops together, where every channel has a system of its own.
CHANNEL_SAMPLES = 8192
_SIDES = {"encoder": "g_a", "decoder": "g_s"}
_MULTIPLICATIVE_STEPS = 300


class Replaced(NamedTuple):
    """A model with new non-linearities, their names in it, and what the user should know."""

    model: Balle2018
    modules: list[str]
    notes: list[str]


def replace_activations(
    model: Balle2018,
    activation: ActivationConfig,
    replacement: ReplacementConfig,
    crops: Tensor | None = None,
) -> Replaced:
    """Return a new model with other non-linearities; all other weights are carried over.

    Args:
        model: has GDN or GDN1 on the sides to replace; stays as it is.
        activation: what comes in its place.
        replacement: on which sides, and how the new layers begin. With `fit` the convolutions
            after them on that side are solved for as well; the other side stays as it is.
        crops: (B, 3, H, W) in [0, 1], for `fit` only.

    Raises:
        ConfigError: nothing to replace, or no crops to fit on.
    """
    sides, notes = _sides(model, activation, replacement)
    if replacement.replace_init == "fit" and crops is None:
        raise ConfigError("--replace-init fit needs photos to fit on; add them, or take plain")
    new = _rebuilt(model, activation, sides)
    modules = [f"{_SIDES[side]}.{number}" for side in sides for number in (1, 3, 5)]
    _carry_over(model, new, modules)
    if replacement.replace_init == "fit" and crops is not None:
        with torch.no_grad():
            _fit(model, new, crops, sides)
    elif activation.act == "relu":
        notes.append("--replace-init plain: ReLU cuts off half of what GDN passed")
    if activation.act == "igdn1" and "encoder" in sides:
        notes.append("igdn1 divides in the encoder, which few NPUs can; in the decoder it does not")
    return Replaced(new, modules, notes)


def _sides(
    model: Balle2018, activation: ActivationConfig, replacement: ReplacementConfig
) -> tuple[list[str], list[str]]:
    """Return the sides that have what is to be replaced, and notes on those that have not."""
    act, parts = activation.act, replacement.replace_parts
    if act == "gdn":
        raise ConfigError("--act is gdn, which is what is replaced; expected relu, gdnish or igdn1")
    wanted = list(_SIDES) if parts == "all" else [parts]
    found = {side: getattr(model.config, f"{side}_activation") for side in wanted}
    sides = [side for side, kind in found.items() if kind in ("gdn", "igdn1") and kind != act]
    said = ", ".join(f"{kind} in the {side}" for side, kind in found.items() if side not in sides)
    if not sides:
        raise ConfigError(
            f"--replace-parts is {parts} and --act {act}, but the model has {said} already; "
            "expected GDN there. Nothing to replace: train it on as it is, or choose another side"
        )
    return sides, [f"left as it is: {said}"] if said else []


def _rebuilt(model: Balle2018, activation: ActivationConfig, sides: list[str]) -> Balle2018:
    """Return a fresh model, in the old one's place and mode, with the new activations."""
    changed: dict[str, Any] = {}
    for side in sides:
        changed[f"{side}_activation"] = activation.act
        changed[f"{side}_gain"] = gain_of(activation, side) if activation.act == "gdnish" else None
    new: Balle2018 = type(model)(cast(Any, replace(model.config, **changed)))
    return new.to(next(model.parameters()).device).train(model.training)


def _carry_over(old: nn.Module, new: nn.Module, modules: list[str]) -> None:
    """Copy all tensors but those of the replaced modules."""
    new_ones = tuple(f"{name}." for name in modules)
    state = {k: v for k, v in old.state_dict().items() if not k.startswith(new_ones)}
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(new_ones) for name in missing)


def _fit(old: Balle2018, new: Balle2018, crops: Tensor, sides: list[str]) -> None:
    mode = old.training
    old.eval()
    x = old.extend(crops)
    y = fitted_y = old.g_a(x)
    if "encoder" in sides:
        fitted_y = _fit_side(old.g_a, new.g_a, x, x)
    if "decoder" in sides:
        # The decoder meets rounded latents, of an encoder that gives them nearly as before.
        _fit_side(old.g_s, new.g_s, old.code(y)[0], old.code(fitted_y)[0])
    old.train(mode)


def _fit_side(old: nn.Sequential, new: nn.Sequential, x: Tensor, fitted: Tensor) -> Tensor:
    """Fit a transform to another, on the inputs x of the old and `fitted` of the new one."""
    both = zip(pairs(old), pairs(new), strict=True)
    for (conv, act), (own, own_act) in both:
        same_input = fitted is x
        u = conv(x)
        x = u if act is None else act(u)
        wanted, gain = _wanted(own_act, u, x)
        if not same_input or wanted is not u:
            _fit_convolution(cast(Any, own), fitted, wanted, gain)
        v = own(fitted)
        fitted = v
        if act is not None and own_act is not None:
            fitted = _fit_activation(own_act, act, u, v, x)
    return fitted


def pairs(transform: nn.Sequential) -> list[tuple[nn.Module, nn.Module | None]]:
    """Return convolutions with the non-linearity behind each, None behind the last."""
    layers = list(transform)
    return list(zip(layers[0::2], [*layers[1::2], None], strict=True))


def _wanted(act: nn.Module | None, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a convolution should give before `act`, and its gain (K,) over the old one.

    u are the old convolution's outputs, a those of the old non-linearity behind it.
    """
    one = torch.ones(u.shape[1], device=u.device)
    if act is None or isinstance(act, GDN):
        return u, one
    # The line through zero that is nearest to the old non-linearity.
    gain = (u * a).sum(dim=(0, 2, 3)) / (u * u).sum(dim=(0, 2, 3)).clamp(min=1e-12)
    if isinstance(act, nn.ReLU):
        # A channel that never varies still has to pass: what it is worth comes after it.
        deviation = a.std(dim=(0, 2, 3)).clamp(min=0.05 * float(a.square().mean().sqrt()))
        room = HEAD_ROOM * deviation - a.mean(dim=(0, 2, 3))
        return a + room[:, None, None], gain
    return u * gain[:, None, None], gain


def _fit_convolution(
    conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, wanted: Tensor, gain: Tensor
) -> None:
    """Solve for the weights that make `wanted` (B, K, H', W') of x (B, C, H, W).

    `gain` (K,) times the present weights is what they are held to.
    """
    if isinstance(conv, nn.ConvTranspose2d):
        conv.weight.mul_(gain[:, None, None])
        _fit_transposed(conv, x, wanted)
        return
    conv.weight.mul_(gain[:, None, None, None])
    size = cast(Any, conv.kernel_size)
    columns = _moments(
        x, wanted, lambda crop: F.unfold(crop, size, stride=conv.stride[0], padding=size[0] // 2),
        lambda crop: crop.flatten(2),
    )  # fmt: skip
    weight, bias = columns.solve(conv.weight.flatten(1).T)
    conv.weight.copy_(weight.T.reshape(conv.weight.shape))
    cast(Tensor, conv.bias).copy_(bias)


def _fit_transposed(deconv: nn.ConvTranspose2d, x: Tensor, wanted: Tensor) -> None:
    """Solve for 5x5 taps at stride 2: one system for each of the four phases of the output.

    Output row 2 m + p meets input row m + d through tap p + 2 - 2 d. A phase of its own has less
    taps than another, so that head room adds up to something else; the bias is one for all.
    """
    channels, count = deconv.weight.shape[:2]
    moments = _moments(
        x, wanted, lambda crop: F.unfold(crop, 3, padding=1),
        lambda crop: F.pixel_unshuffle(crop, 2).flatten(2),
    )  # fmt: skip
    phases = []
    for p in range(2):
        for q in range(2):
            rows, columns = ([d for d in (-1, 0, 1) if p_ + 2 - 2 * d < 5] for p_ in (p, q))
            taps = [(p + 2 - 2 * r, q + 2 - 2 * c) for r in rows for c in columns]
            inner = torch.tensor([(r + 1) * 3 + c + 1 for r in rows for c in columns])
            feature = (torch.arange(channels)[:, None] * 9 + inner).flatten().to(x.device)
            target = torch.arange(count, device=x.device) * 4 + 2 * p + q
            held = torch.stack([deconv.weight[:, :, i, j] for i, j in taps], dim=1)
            phases.append((taps, moments.part(feature, target), held.reshape(-1, count)))
    bias = torch.stack([part.solve(held)[1] for _, part, held in phases]).mean(dim=0)
    for taps, part, held in phases:
        weight = part.solve(held, bias)[0].reshape(channels, len(taps), count)
        for number, (i, j) in enumerate(taps):
            deconv.weight[:, :, i, j] = weight[:, number]
    cast(Tensor, deconv.bias).copy_(bias)


class _Moments(NamedTuple):
    """Means over samples of features f (F,), targets t (K,) and their products; float64."""

    f: Tensor  # (F,)
    t: Tensor  # (K,)
    ff: Tensor  # (F, F)
    ft: Tensor  # (F, K)

    def part(self, features: Tensor, targets: Tensor) -> "_Moments":
        """Return the moments of some features and targets, by their numbers."""
        ft = self.ft[features[:, None], targets]
        return _Moments(self.f[features], self.t[targets], self.ff[features[:, None], features], ft)

    def solve(self, held: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return weights (F, K), drawn towards `held` (F, K), and the bias (K,), given or best."""
        covariance = self.ff - torch.outer(self.f, self.f)
        # Features that never vary, as of an encoder that gives nothing yet, must not blow up.
        level = self.ff.diagonal().mean().clamp(min=1e-12)
        ridge = RIDGE * torch.maximum(covariance.diagonal().mean(), 1e-3 * level)
        if bias is None:
            left, right = covariance, self.ft - torch.outer(self.f, self.t)
        else:
            left, right = self.ff, self.ft - torch.outer(self.f, bias.double())
        left = left + ridge * torch.eye(len(self.f), dtype=left.dtype, device=left.device)
        weight = torch.linalg.solve(left, right + ridge * held.double())
        best = self.t - self.f @ weight if bias is None else bias.double()
        return weight.to(held.dtype), best.to(held.dtype)


def _moments(
    x: Tensor,
    wanted: Tensor,
    features: Callable[[Tensor], Tensor],
    targets: Callable[[Tensor], Tensor],
) -> _Moments:
    """Return moments over positions of crops; `features` and `targets` give (1, F, S)."""
    generator = torch.Generator().manual_seed(0)
    sums: list[Any] = [0.0, 0.0, 0.0, 0.0]
    count = 0
    for number in range(len(x)):
        f, t = features(x[number : number + 1])[0], targets(wanted[number : number + 1])[0]
        chosen = torch.randperm(f.shape[1], generator=generator)[:POSITIONS].to(f.device)
        f, t = f[:, chosen], t[:, chosen]
        parts = (f.sum(dim=1), t.sum(dim=1), f @ f.T, f @ t.T)
        sums = [total + part.double() for total, part in zip(sums, parts, strict=True)]
        count += f.shape[1]
    return _Moments(*(total / count for total in sums))


def _fit_activation(act: nn.Module, old: nn.Module, u: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """Fit a non-linearity to the old one's a = old(u), on its own inputs v; returns act(v)."""
    if isinstance(act, GDN):
        _fit_simplified(act, cast(GDN, old), u, v)
    elif isinstance(act, EncoderBlock):
        # Beside a residual, hidden values that saturate tell small inputs from large ones, as GDN
        # does; alone, they have to pass everything.
        small, large = KNEE * v.std(dim=(0, 2, 3)), v.abs().amax(dim=(0, 2, 3))
        act.make_identity(small if act.gain.residual else large)
        _fit_projection(act, v, a)
    elif isinstance(act, DecoderBlock):
        act.make_identity(v.abs().amax(dim=(0, 2, 3)))
        _fit_gains(act, v, a)
    result: Tensor = act(v)
    return result


def _fit_simplified(act: GDN, old: GDN, u: Tensor, v: Tensor) -> None:
    """Fit beta + gamma |v| to what the old GDN divides or multiplies by.

    Non-negative least squares by multiplicative updates (Lee and Seung): all numbers are positive.
    """
    beta, gamma = old.folded()
    size = torch.abs(u) if old.simplified else u * u
    pool = F.conv2d(size, gamma[:, :, None, None], beta)
    goal = _samples(pool if old.simplified else torch.sqrt(pool)).double()
    f = _samples(torch.abs(v)).double()
    f = torch.cat((f, torch.ones_like(f[:1])))
    means = f.mean(dim=1, keepdim=True)
    # Half of the goal's mean comes from beta at first, and half from all channels alike.
    share = torch.where(torch.arange(len(f), device=f.device)[:, None] < len(f) - 1, 1.0, 0.0)
    weight = 0.5 * goal.mean(dim=1) * (share / (means * share).sum() + (1 - share))
    gram, product = f @ f.T / f.shape[1], f @ goal.T / f.shape[1]
    for _ in range(_MULTIPLICATIVE_STEPS):
        weight = weight * product / (gram @ weight).clamp(min=1e-12)
    act.beta.copy_(act.beta_reparam.init(weight[-1].to(beta.dtype)))
    act.gamma.copy_(act.gamma_reparam.init(weight[:-1].T.to(gamma.dtype)))


def _fit_projection(act: EncoderBlock, v: Tensor, a: Tensor) -> None:
    """Solve for the projection of a block, whose gate passes everything at first."""
    goal = a - v if act.gain.residual else a
    moments = _moments(act.hidden(v), goal, lambda f: f.flatten(2), lambda t: t.flatten(2))
    weight, bias = moments.solve(act.project.weight.flatten(1).T)
    act.project.weight.copy_(weight.T[:, :, None, None])
    cast(Tensor, act.project.bias).copy_(bias)


def _fit_gains(act: DecoderBlock, v: Tensor, a: Tensor) -> None:
    """Solve for the gains' 1x1 convolution, channel by channel, as if nothing were clipped."""
    inputs, goals, f = _samples(v), _samples(a), _samples(act.hidden(v))
    f = torch.cat((f, torch.ones_like(f[:1])))
    bias = cast(Tensor, act.pointwise.bias)
    for channel, (x, goal) in enumerate(zip(inputs, goals, strict=True)):
        weighted = f * (act.slope * x)
        gram = (weighted @ weighted.T).double() / len(x)
        ridge = GAIN_RIDGE * gram.diagonal().mean().clamp(min=1e-12)
        held = torch.zeros(len(f), dtype=gram.dtype, device=gram.device)
        held[-1] = bias[channel]
        right = (weighted @ (goal - act.low * x)).double() / len(x) + ridge * held
        solved = torch.linalg.solve(gram + ridge * torch.eye(len(f)).to(gram), right)
        act.pointwise.weight[channel, :, 0, 0] = solved[:-1].to(bias.dtype)
        bias[channel] = solved[-1].clamp(0, 6)


def _samples(values: Tensor) -> Tensor:
    """Return (C, S) of values (B, C, H, W) at positions that are the same for the same size."""
    flat = values.transpose(0, 1).flatten(1)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(flat.shape[1], generator=generator)[:CHANNEL_SAMPLES]
    return flat[:, chosen.to(flat.device)]
