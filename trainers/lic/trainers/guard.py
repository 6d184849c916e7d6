"""Finds the first value of a forward pass, or the gradient, that is no use."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from lic.codec.errors import TrainingError

# They hand on what their last module gives.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList)
ADVICE = "The last checkpoint is kept. Try a lower --lr"


class ForwardGuard:
    """Watches what every module of a model gives while it is training.

    The largest magnitude of each output stays on the device; `check` fetches all of them at once.
    That is two passes over each output and one synchronisation per step.
    """

    def __init__(self, model: nn.Module, tolerance: float) -> None:
        """Watch a model until `close`; values above `tolerance` in size are too large."""
        self._tolerance = tolerance
        self._names: list[str] = []
        self._largest: list[Tensor] = []
        self._handles = [
            module.register_forward_hook(_Watch(self, model, name, module))
            for name, module in model.named_modules()
            if not isinstance(module, CONTAINERS)
        ]

    @torch.no_grad()
    def add(self, name: str, output: Any) -> None:
        """Take notice of what the module `name` gave, in the order of calls."""
        for path, tensor in _tensors(name, output):
            if tensor.is_floating_point() and tensor.numel():
                self._names.append(path)
                # Keeps NaN; seven times as fast on CPUs as the norm that says the same.
                self._largest.append(tensor.detach().abs().amax().float())

    def check(self, step: int, batch: str) -> None:
        """Look at the forward passes since the last check, of the batch that the text describes.

        Raises:
            TrainingError: a NaN, an infinity or a value above the tolerance; names the step, the
                first such output in the order of computation, and the batch.
        """
        names, largest = self._names, self._largest
        self._names, self._largest = [], []
        values = torch.stack(largest).tolist() if largest else []
        for name, value in zip(names, values, strict=True):
            # Not the other way round: NaN is not above anything.
            if not value <= self._tolerance:
                raise TrainingError(
                    f"step {step}: {name} gave {_found(value)}; expected finite values up to "
                    f"{self._tolerance:g} (--overflow-tol), on {batch}. {ADVICE}"
                )

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def check_gradients(norm: Tensor | float, step: int) -> None:
    """Refuse a gradient's norm that is not finite, before a step is taken with it.

    Not for fp16: there a gradient scaler skips such steps and lowers its scale.

    Raises:
        TrainingError: it is NaN or infinite.
    """
    value = float(norm)
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: the gradient's norm is {value}; expected a finite one. {ADVICE}, or "
            "--overflow-check to look for the layer"
        )


class _Watch:
    """The hook of one module. It takes no notice of copies of the model, which have it, too."""

    def __init__(self, guard: ForwardGuard, model: nn.Module, name: str, module: nn.Module) -> None:
        self._guard = guard
        self._model = model
        self._module = module
        self._name = f"{name} ({type(module).__name__})" if name else ""

    def __deepcopy__(self, _: Any) -> Self:
        """Return the same hook: a copy would keep a guard that nobody asks."""
        return self

    def __call__(self, module: nn.Module, _: Any, output: Any) -> None:
        """Show the output to the guard, in training."""
        if module is self._module and self._model.training:
            self._guard.add(self._name, output)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output, with the names of fields and keys."""
    if isinstance(value, Tensor):
        yield name or "the model", value
        return
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, tuple | list):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), part)


def _found(value: float) -> str:
    return {"nan": "NaN", "inf": "an infinite value"}.get(str(value), f"a value of {value:.3g}")
