"""Mixed precision, and the modules that stay out of it."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models.blocks import GDN
from lic.codec.models.conditional import Conditional
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.config import PrecisionConfig

_Rule = Callable[[str, nn.Module], bool]

# The models that tell how probable a latent is: differences of nearly equal numbers.
ENTROPY = (EntropyBottleneck, Conditional)
# What divides by sums or takes exponentials.
NORMEXP = (
    *ENTROPY, GDN, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.Softmax,
    nn.Softplus, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh,
)  # fmt: skip


def fabric_precision(config: PrecisionConfig, device: str) -> str:
    """Return Fabric's name for --amp on a device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: fp16 on a CPU, where torch has no kernels to gain from.
    """
    if config.amp == "off":
        return "32-true"
    if config.amp == "bf16":
        return "bf16-mixed"
    if _is_cpu(device):
        raise ConfigError("--amp fp16 on a CPU; expected bf16 or off there, or --device cuda")
    return "16-mixed"


def _is_cpu(device: str) -> bool:
    if device == "auto":
        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return device == "cpu"


def keep_float32(model: nn.Module, config: PrecisionConfig) -> list[str]:
    """Have the modules of --local-fp32 compute in float32 under autocast; returns their names.

    Their inputs are cast, too; what a latent or activation lost before stays lost. State dicts,
    names, classes and copies of the model stay as they are. It replaces what an earlier call
    chose, and goes after everything that puts other modules into the model. Without --amp nothing
    is chosen: all is float32.

    Without it the entropy models compute likelihoods in bfloat16, which has three digits: the
    rate is wrong, and so is its gradient. The last layer of g_s would round x_hat to steps of 1/256
    near white, a squared error of 1.3e-6. Under fp16, GDN's squares overflow from 256 on.

    Raises:
        ConfigError: a class of --local-fp32-class that the model does not have.
    """
    release_float32(model)
    if config.amp == "off":
        return []
    chooses = _rule(model, config)
    names = [name for name, module in model.named_modules() if chooses(name, module)]
    for name in names:
        module = model.get_submodule(name)
        # A bound method: copies of the module get one of their own, and torch.compile, which sees
        # no context that hooks enter, looks into it.
        vars(module)["forward"] = MethodType(_in_float32, module)
    return names


def release_float32(model: nn.Module) -> None:
    """Undo `keep_float32`."""
    for module in model.modules():
        if getattr(module.forward, "__func__", None) is _in_float32:
            del vars(module)["forward"]


def _rule(model: nn.Module, config: PrecisionConfig) -> _Rule:
    """Return which modules, by name and module, stay in float32."""
    if config.local_fp32 == "none":
        return lambda *_: False
    if config.local_fp32 != "custom":
        kinds = NORMEXP if config.local_fp32 == "all_normexp" else ENTROPY
        whole = config.local_fp32 == "entropy+decoder"
        last = "g_s" if whole else _last_layer(model)
        return lambda name, module: isinstance(module, kinds) or name == last
    existing = sorted({type(module).__name__ for module in model.modules()})
    wanted = config.local_fp32_class
    unknown = [name for name in wanted if name not in existing]
    if unknown:
        raise ConfigError(
            f"--local-fp32-class is {unknown[0]!r}; expected one of {', '.join(existing)}"
        )
    return lambda _, module: type(module).__name__ in wanted


def _last_layer(model: nn.Module) -> str:
    """Return the name of the layer that gives x_hat; empty where there is no g_s."""
    layers = [name for name, module in model.named_modules() if not any(module.children())]
    return next((name for name in reversed(layers) if name.startswith("g_s.")), "")


def _in_float32(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Compute what the module's class does, out of autocast and with inputs in float32."""
    values = [*args, *kwargs.values()]
    device = next((v.device.type for v in values if isinstance(v, Tensor)), "cpu")
    with torch.autocast(device, enabled=False):
        inputs = {name: _single(value) for name, value in kwargs.items()}
        return type(module).forward(module, *map(_single, args), **inputs)


def _single(value: Any) -> Any:
    """Return a tensor of floats in float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
