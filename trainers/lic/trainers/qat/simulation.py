"""int8 inference simulated while a model trains (arXiv 1712.05877, section 3).

As an NPU runs it: the input of every convolution in uint8, its weight in int8, sums in int32 with
a bias of that precision, ReLU taken along. Convolutions that something else than ReLU follows give
their output in uint8, too. What stays in float:

* the entropy part, always: the entropy models, and h_a and h_s that decide their parameters;
* y, the output of the last convolution of g_a: it is rounded to integers right after, and one
  uint8 step of its whole range would be about as coarse as that rounding. Devices take it from the
  int32 sums or in 16 bits;
* x_hat, the output of the last convolution of g_s, for the same reason;
* biases, which devices hold in int32: they take back the mean error of the rounded weights, see
  `bias`;
* what is no convolution (GDN, products and gates of GDN-ish blocks); `Qat.notes` names it.

The model's modules and its state dict stay as they are: hooks quantise on the way, so checkpoints
and averages hold plain float weights.
"""

import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models.int8_files import Converted, QuantizedLayer
from lic.trainers.config import QatConfig
from lic.trainers.qat.bias import InputMean, bias_shift
from lic.trainers.qat.ranges import (
    ActivationRange,
    Convolution,
    PictureRange,
    channel_axis,
    simulate_weight,
    weight_scales,
)

SIDES = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}


class Phase(enum.Enum):
    """What happens to ranges (observed or not) and values (quantised or not)."""

    CALIBRATION = enum.auto()
    TRAINING = enum.auto()
    FROZEN = enum.auto()


@dataclass(frozen=True, kw_only=True)
class SimulatedLayer:
    """A convolution with what is observed: its input and, where it is quantised, its output."""

    name: str
    module: Convolution
    input: ActivationRange
    mean: InputMean
    output: ActivationRange | None

    def observations(self) -> Iterator[tuple[str, ActivationRange | InputMean]]:
        """Yield names and observations."""
        yield f"{self.name}.input", self.input
        yield f"{self.name}.mean", self.mean
        if self.output is not None:
            yield f"{self.name}.output", self.output

    def parameters(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the weight as int8 holds it, its scales (K,) and the bias (K,) that suits it."""
        weight: Tensor = self.module.get_parameter("weight")
        bias: Tensor | None = self.module._parameters["bias"]
        axis = channel_axis(self.module)
        scales = weight_scales(weight, axis)
        rounded = simulate_weight(weight, axis, scales)
        if bias is not None:
            bias = bias + bias_shift(self.module, rounded, self.mean)
        return rounded, scales, bias


class Qat:
    """Simulated int8 arithmetic on a model; made by `prepare_qat`.

    Ranges of activations are state. Those of weights follow the weights, so that averaged weights
    have ranges of their own.
    """

    def __init__(self, config: QatConfig, layers: list[SimulatedLayer], notes: list[str]) -> None:
        self.config = config
        self.layers = layers
        self.notes = notes
        self.phase = Phase.CALIBRATION
        self._batches = 0
        self._handles: list[RemovableHandle] = []
        for layer in layers:
            before = functools.partial(self._before, layer)
            after = functools.partial(self._after, layer)
            self._handles += [
                layer.module.register_forward_pre_hook(before),
                # Even after an error, so that no quantised weight stays in the way.
                layer.module.register_forward_hook(after, always_call=True),
            ]

    def at_step(self, step: int, total_steps: int) -> None:
        """Do what the step (from 0) asks for: calibrate, train, or train with frozen ranges.

        Raises:
            ConfigError: the run ends before its calibration does.
        """
        calibration = self.config.qat_calibration_steps
        if calibration >= total_steps:
            raise ConfigError(
                f"--qat-calibration-steps is {calibration}; expected fewer than the run's "
                f"{total_steps} steps"
            )
        freeze = max(self.config.qat_freeze_step or total_steps // 2, calibration)
        self._batches = step
        if step < calibration:
            self.phase = Phase.CALIBRATION
        else:
            self.phase = Phase.TRAINING if step < freeze else Phase.FROZEN

    def freeze(self) -> None:
        """Keep the ranges as they are and simulate, whatever the step: to evaluate, to convert."""
        self.phase = Phase.FROZEN

    def detach(self) -> None:
        """Give the model back its float arithmetic; its weights were float all the time."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was observed, by name.

        LAYER.input and LAYER.output: both ends (2,) of a range, margin included. LAYER.mean: the
        mean (C,) of each channel of the input.
        """
        return {name: observed.state() for name, observed in self._observations()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            TrainingError: ranges of other layers, as of another scope.
        """
        own = dict(self._observations())
        if own.keys() != state.keys():
            differing = min(own.keys() ^ state.keys())
            where = "has no" if differing in own else "has a"
            raise TrainingError(
                f"the checkpoint {where} range for {differing}; go on with the --qat options that "
                "it was written with"
            )
        for name, observed in own.items():
            observed.load(state[name])

    def _observations(self) -> Iterator[tuple[str, ActivationRange | InputMean]]:
        for layer in self.layers:
            yield from layer.observations()

    def _observes(self, module: nn.Module) -> bool:
        return module.training and self.phase is not Phase.FROZEN

    def _before(self, layer: SimulatedLayer, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Quantise the input and shadow the parameters for the time of the layer's forward."""
        if self._observes(module):
            layer.mean.observe(args[0].detach(), self._batches)
        x = self._activation(layer.input, args[0], module)
        if self.phase is not Phase.CALIBRATION:
            weight, _, bias = layer.parameters()
            # Found before the parameters of these names, which stay what optimisers and state
            # dicts know.
            module.__dict__.update(weight=weight, bias=bias)
        return (x, *args[1:])

    def _after(
        self, layer: SimulatedLayer, module: nn.Module, _: tuple[Any, ...], output: Tensor | None
    ) -> Tensor | None:
        for name in ("weight", "bias"):
            module.__dict__.pop(name, None)
        if output is None or layer.output is None:
            return output
        return self._activation(layer.output, output, module)

    def _activation(self, range_: ActivationRange, x: Tensor, module: nn.Module) -> Tensor:
        if self._observes(module):
            range_.observe(x.detach(), self._batches)
        # In float32 also below autocast: 8 bits of bfloat16 would round scales away.
        return x if self.phase is Phase.CALIBRATION else range_.simulate(x.float())


def prepare_qat(model: nn.Module, config: QatConfig) -> Qat:
    """Attach simulated int8 arithmetic to g_a and g_s of a bmshj2018 model, as `config` says.

    Calibrating at first: the model computes in float until `Qat.at_step` or `Qat.freeze` is called.

    Raises:
        ConfigError: another kind of model.
        TrainingError: torchao is missing or does not go with this torch.
    """
    layers: list[SimulatedLayer] = []
    notes: list[str] = []
    for side in SIDES[config.qat_scope]:
        transform = getattr(model, side, None)
        if not isinstance(transform, nn.Sequential):
            raise ConfigError(f"--qat knows bmshj2018 models; found {type(model).__name__}")
        found = _layers(side, transform, config)
        layers += found
        kept = _float_modules(side, transform, found)
        if kept:
            notes.append(f"int8: {side} keeps in float: {', '.join(kept)}")
    if config.qat_skip_first_conv and config.qat_scope == "decoder":
        notes.append("int8: --qat-skip-first-conv means nothing to the decoder")
    return Qat(config, layers, notes)


def _layers(side: str, transform: nn.Sequential, config: QatConfig) -> list[SimulatedLayer]:
    """Return the convolutions of a transform that are quantised."""
    found = []
    for name, module in transform.named_modules():
        first = side == "g_a" and name == "0"
        if not _is_quantizable(module) or (first and config.qat_skip_first_conv):
            continue
        whole = f"{side}.{name}"
        found.append(
            SimulatedLayer(
                name=whole,
                module=module,
                input=PictureRange() if first else _range(f"{whole}.input", config),
                mean=InputMean(module),
                output=_range(f"{whole}.output", config) if _has_output(transform, name) else None,
            )
        )
    return found


def _range(name: str, config: QatConfig) -> ActivationRange:
    return ActivationRange(name, config.qat_init, config.qat_range_margin)


def _is_quantizable(module: nn.Module) -> bool:
    if isinstance(module, nn.ConvTranspose2d):
        # With groups, the second dimension of its weight no longer counts output channels.
        return module.groups == 1
    return isinstance(module, nn.Conv2d)


def _has_output(transform: nn.Sequential, name: str) -> bool:
    """Whether a convolution's output leaves the integers before the next one's input does.

    Within a block, products and residuals are taken in float, between quantised inputs.
    """
    if not name.isdecimal() or int(name) + 1 == len(transform):
        return False
    return not isinstance(transform[int(name) + 1], nn.ReLU | nn.ReLU6)


def _float_modules(side: str, transform: nn.Sequential, found: list[SimulatedLayer]) -> list[str]:
    """Return name and class of modules with parameters that are not quantised."""
    quantised = {layer.name for layer in found}
    return [
        f"{side}.{name} ({type(module).__name__})"
        for name, module in transform.named_modules()
        if f"{side}.{name}" not in quantised and any(True for _ in module.parameters(recurse=False))
    ]


@torch.no_grad()
def convert(model: Any, qat: Qat) -> Converted:
    """Return the int8 model: its present weights, and the ranges that `qat` observed on it.

    Raises:
        TrainingError: a range was never observed.
    """
    return Converted(
        architecture=model.name,
        config=model.config.to_dict(),
        layers={layer.name: _converted_layer(layer) for layer in qat.layers},
        rest={
            name: tensor.detach().cpu().clone()
            for name, tensor in model.state_dict().items()
            if name.rpartition(".")[0] not in {layer.name for layer in qat.layers}
        },
    )


def _converted_layer(layer: SimulatedLayer) -> QuantizedLayer:
    rounded, scales, bias = layer.parameters()
    axis = channel_axis(layer.module)
    shape = [-1 if i == axis else 1 for i in range(rounded.ndim)]
    # From what training computed with, so that no tie is rounded the other way.
    steps = torch.round(rounded / scales.reshape(shape))
    input_scale, input_zero_point = layer.input.parameters
    output = layer.output.parameters if layer.output is not None else None
    return QuantizedLayer(
        axis=axis,
        weight=steps.to(torch.int8).cpu().contiguous(),
        weight_scale=scales.cpu(),
        input_scale=input_scale.cpu(),
        input_zero_point=input_zero_point.to(torch.uint8).cpu(),
        bias=None if bias is None else bias.float().cpu(),
        output_scale=None if output is None else output[0].cpu(),
        output_zero_point=None if output is None else output[1].to(torch.uint8).cpu(),
    )
