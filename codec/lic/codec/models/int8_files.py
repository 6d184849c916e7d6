"""The int8 form of a trained model: the file that training writes, and its integer arithmetic.

The file is one safetensors file that holds the whole model, so that an exporter needs nothing
else. Metadata (texts):

    format        "lic-int8"
    version       "1"
    architecture  key of lic.codec.models.MODELS
    config        the architecture's options, as a JSON object
    layers        a JSON object: name of each quantised convolution, such as "g_a.0", and which
                  dimension of its weight counts output channels (0; transposed ones 1)

Tensors of a quantised convolution NAME with K output channels:

    NAME.weight             int8, -127 to 127, laid out as in the float model
    NAME.weight_scale       (K,) float32; the zero points are 0
    NAME.input_scale        (1,) float32
    NAME.input_zero_point   (1,) uint8
    NAME.bias               (K,) float32, where there is one; an exporter may round it to int32 in
                            steps of input_scale * weight_scale
    NAME.output_scale       (1,) float32, and NAME.output_zero_point (1,) uint8: only where the
                            output leaves the convolution quantised

with value = scale * (integer - zero_point) and integer = clip(round(value / scale) + zero_point)
to 0 ... 255. All other tensors have the names and values of the float model's state dict.

Shapes: B batch, C channels, H W height and width of the tensor at hand.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import MODELS
from lic.codec.models.parameter_counts import check_size

FORMAT, VERSION = "lic-int8", "1"


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A convolution in integers; the tensors are those of the file, `axis` counts channels."""

    axis: int
    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    bias: Tensor | None = None
    output_scale: Tensor | None = None
    output_zero_point: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by their names in the file, those that are there."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: value for name, value in named.items() if value is not None}

    def float_weight(self) -> Tensor:
        """Return what the integers of the weight stand for, float32."""
        shape = [-1 if i == self.axis else 1 for i in range(self.weight.ndim)]
        return self.weight.float() * self.weight_scale.reshape(shape)


TENSORS = tuple(item.name for item in fields(QuantizedLayer) if item.name != "axis")
REQUIRED = ("weight", "weight_scale", "input_scale", "input_zero_point")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """An int8 model: quantised convolutions by name, and the other tensors of the state dict."""

    architecture: str
    config: dict[str, Any]
    layers: dict[str, QuantizedLayer]
    rest: dict[str, Tensor]

    def float_state_dict(self) -> dict[str, Tensor]:
        """Return a state dict for the float model, with the weights that int8 can hold."""
        state = dict(self.rest)
        for name, layer in self.layers.items():
            state[f"{name}.weight"] = layer.float_weight()
            if layer.bias is not None:
                state[f"{name}.bias"] = layer.bias
        return state

    def model(self) -> nn.Module:
        """Return a model, ready to evaluate, whose quantised convolutions compute in integers.

        To check devices and exports against: slow, and not to be trained.

        Raises:
            ModelMismatchError: the tensors do not fit the config.
            ConfigError: a config that cannot work.
        """
        state = self.float_state_dict()
        check_size(self.architecture, self.config, state, "the int8 model")
        model = MODELS[self.architecture].from_dict(self.config)
        try:
            model.load_state_dict(state)
            for name, layer in self.layers.items():
                convolution = model.get_submodule(name)
                shape = convolution.get_parameter("weight").shape
                if shape != layer.weight.shape or len(layer.weight_scale) != shape[layer.axis]:
                    raise ModelMismatchError(f"the int8 model: {name} has weights of another shape")
                convolution.forward = partial(_in_integers, layer, convolution)
        except (RuntimeError, AttributeError) as error:
            raise ModelMismatchError(f"the int8 model: {error}") from None
        return model.eval()


@torch.no_grad()
def _in_integers(layer: QuantizedLayer, module: nn.Module, x: Tensor) -> Tensor:
    """Return the convolution of x (B, C, H, W) as an int8 device computes it.

    Sums of products are exact: doubles hold every int32.
    """
    steps = _steps(x, layer.input_scale, layer.input_zero_point)
    sums = _sums(module, steps.double(), layer.weight.double())
    scales = layer.input_scale.double() * layer.weight_scale.double()
    output = sums * scales.reshape(-1, 1, 1)
    if layer.bias is not None:
        output = output + layer.bias.double().reshape(-1, 1, 1)
    output = output.float()
    if layer.output_scale is None or layer.output_zero_point is None:
        return output
    return layer.output_scale * _steps(output, layer.output_scale, layer.output_zero_point)


def _sums(module: nn.Module, steps: Tensor, weight: Tensor) -> Tensor:
    if isinstance(module, nn.ConvTranspose2d):
        assert not isinstance(module.padding, str)
        return nn.functional.conv_transpose2d(
            steps, weight, None, module.stride, module.padding, module.output_padding,
            module.groups, module.dilation,
        )  # fmt: skip
    assert isinstance(module, nn.Conv2d), "only convolutions are converted"
    return nn.functional.conv2d(
        steps, weight, None, module.stride, module.padding, module.dilation, module.groups
    )


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return how many steps from zero the uint8 form of x is, as integers in float32."""
    offset = zero_point.float()
    return (torch.round(x / scale) + offset).clamp(0, 255) - offset


def is_converted(path: Path) -> bool:
    """Return whether a file is one of these."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load_converted(path: Path) -> Converted:
    """Read what training wrote.

    Raises:
        ModelMismatchError: missing, damaged, or another kind of file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise ModelMismatchError(f"{path}: no such file") from None
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelMismatchError(f"{path}: not an int8 model of lic ({error})") from None
    found = metadata.get("format"), metadata.get("version")
    if found != (FORMAT, VERSION):
        raise ModelMismatchError(
            f"{path}: format and version are {found}; expected {(FORMAT, VERSION)}, an int8 model "
            "of this lic"
        )
    try:
        return _converted(metadata, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ModelMismatchError(f"{path}: a damaged int8 model of lic ({error})") from None


def _converted(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Converted:
    layers = {}
    for name, axis in json.loads(metadata["layers"]).items():
        held = {item: tensors.pop(f"{name}.{item}", None) for item in TENSORS}
        missing = [item for item in REQUIRED if held[item] is None]
        if missing:
            raise KeyError(f"{name}.{missing[0]} is missing")
        layers[name] = QuantizedLayer(axis=axis, **held)  # type: ignore[arg-type]
        _check_kinds(name, layers[name])
    architecture = metadata["architecture"]
    if architecture not in MODELS:
        raise ConfigError(f"its architecture is {architecture!r}; expected {', '.join(MODELS)}")
    config = json.loads(metadata["config"])
    if not isinstance(config, dict):
        raise ConfigError(f"its config is {config!r}; expected an object")
    return Converted(
        architecture=architecture,
        config=config,
        layers=layers,
        rest=tensors,
    )


def _check_kinds(name: str, layer: QuantizedLayer) -> None:
    """Refuse tensors that are not what the format says.

    Raises:
        ValueError: says which.
    """
    shape = tuple(layer.weight.shape)
    if layer.axis not in (0, 1) or len(shape) != 4:
        raise ValueError(f"{name}.weight is {shape} with axis {layer.axis!r}")
    one, each = (1,), (shape[layer.axis],)
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "weight": (torch.int8, shape),
        "weight_scale": (torch.float32, each),
        "bias": (torch.float32, each),
    }
    for side in ("input", "output"):
        kinds[f"{side}_scale"] = torch.float32, one
        kinds[f"{side}_zero_point"] = torch.uint8, one
    for item, value in layer.tensors().items():
        found = value.dtype, tuple(value.shape)
        if found != kinds[item]:
            raise ValueError(f"{name}.{item} is {found}; expected {kinds[item]}")
