"""Numbers as int8 hardware holds them: uint8 activations per tensor, int8 weights per channel.

Observers and the choice of a weight's scale are torchao's, which took them over from
torch.ao.quantization; rounding with straight-through gradients is PyTorch's own operator.

Shapes: a range or a scale of an activation (1,), of a weight (K,) for K output channels.
"""

import functools
import importlib
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lic.codec.errors import TrainingError

Convolution = nn.Conv2d | nn.ConvTranspose2d

LEVELS = 255
# Symmetric about zero: -128 would have no counterpart, and some kernels overflow on it.
WEIGHT_LEVEL = 127
# Smallest scale, for channels and activations that are all zero.
EPS = 2.0**-23
# Share of values on either side of which --qat-init percentile takes no notice.
TAIL = 1e-4
# Values that a percentile is read from: some 26 beyond each tail.
SAMPLE = 2**18
# Weight of a batch in a moving average, once its share of the mean of all would be less.
MOVING = 0.01


@functools.cache
def torchao() -> Any:
    """Return torchao's observers and primitives, imported when they are needed: it takes seconds.

    Raises:
        TrainingError: it is not installed, or does not go with this torch.
    """
    # Importing it lists the GPU kernels that this machine cannot load; none of them is used here.
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            observers = importlib.import_module("torchao.quantization.pt2e")
            primitives = importlib.import_module("torchao.quantization")
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise _unfit(error) from None
        raise TrainingError("--qat needs torchao; install it: pip install torchao") from None
    except (ImportError, AttributeError, RuntimeError) as error:
        raise _unfit(error) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return _Torchao(observers, primitives)


class _Torchao:
    def __init__(self, observers: Any, primitives: Any) -> None:
        self.MinMaxObserver = observers.MinMaxObserver
        self.MovingAverageMinMaxObserver = observers.MovingAverageMinMaxObserver
        self.MappingType = primitives.MappingType
        self.choose_qparams_affine = primitives.choose_qparams_affine


def _unfit(error: Exception) -> TrainingError:
    reason = str(error).partition("\n")[0]
    return TrainingError(
        f"--qat: torchao does not work beside torch {torch.__version__} ({reason}); install the "
        "torchao that belongs to this torch"
    )


class ActivationRange:
    """The range of one activation: observed, then simulated.

    Running extremes (minmax) never shrink; the others follow the training until they are frozen.

    Args:
        name: of the activation, for messages.
        init: how values become ranges, see `QatConfig.qat_init`.
        margin: share by which both ends move away from zero.
    """

    def __init__(self, name: str, init: str, margin: float) -> None:
        self.name = name
        self._percentile = init == "percentile"
        self._widen = 1.0 + margin
        kind = "MinMaxObserver" if init == "minmax" else "MovingAverageMinMaxObserver"
        self._observer = getattr(torchao(), kind)(
            dtype=torch.uint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=LEVELS,
            eps=EPS,
        )  # fmt: skip
        self._parameters: tuple[Tensor, Tensor] | None = None

    @property
    def observed(self) -> bool:
        """Whether any value was seen."""
        return bool(torch.isfinite(self._observer.min_val))

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale (1,) float32 and zero point (1,) int32."""
        if self._parameters is None:
            if not self.observed:
                raise TrainingError(
                    f"{self.name}: int8 arithmetic cannot be simulated, no range was observed; "
                    "run the calibration steps first (--qat-calibration-steps)"
                )
            scale, zero_point = self._observer.calculate_qparams()
            self._parameters = scale, zero_point.to(torch.int32)
        return self._parameters

    @torch.no_grad()
    def observe(self, x: Tensor, batches: int) -> None:
        """Take x into the range, after `batches` others.

        Raises:
            TrainingError: a value is NaN or infinite, which rounding would hide from the loss.
        """
        low, high = self._percentiles(x) if self._percentile else torch.aminmax(x)
        both = torch.stack([low, high]).float()
        ends = over_processes(both, mean=self._percentile) * self._widen
        if not bool(torch.isfinite(ends).all()):
            raise TrainingError(
                f"{self.name}: values reach from {float(ends[0])} to {float(ends[1])}; the last "
                "checkpoint is kept. Try a lower --lr, or --overflow-check to find the layer"
            )
        if self._observer.min_val.device != ends.device:
            self._observer.to(ends.device)
        self._observer.averaging_constant = moving_share(batches)
        self._observer(ends)
        self._parameters = None

    def simulate(self, x: Tensor) -> Tensor:
        """Return x as uint8 would hold it; gradients pass where it is within the range."""
        scale, zero_point = self.parameters
        if scale.device != x.device:
            self._parameters = scale.to(x.device), zero_point.to(x.device)
            scale, zero_point = self._parameters
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, LEVELS)

    def state(self) -> Tensor:
        """Return both ends (2,), margin included; infinite where none was seen."""
        return torch.stack([self._observer.min_val, self._observer.max_val]).detach().cpu()

    def load(self, ends: Tensor) -> None:
        """Take back what `state` gave."""
        self._observer.min_val.copy_(ends[0])
        self._observer.max_val.copy_(ends[1])
        self._parameters = None

    def _percentiles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.flatten()
        # An odd stride meets every column of a picture whose width is even.
        values = values[:: (values.numel() // SAMPLE) | 1].float()
        beyond = int(TAIL * values.numel())
        low = values.kthvalue(beyond + 1).values
        return low, values.kthvalue(values.numel() - beyond).values


class PictureRange(ActivationRange):
    """The range of a picture in [0, 1]: its own 8 bits, scale 1 / 255 and zero point 0."""

    def __init__(self) -> None:
        super().__init__("picture", "minmax", 0.0)
        self.load(torch.tensor([0.0, 1.0]))

    def observe(self, x: Tensor, batches: int) -> None:
        """Look away: the range is known."""


def moving_share(batches: int) -> float:
    """Return the weight of a batch in a moving average, after `batches` others.

    The mean of all at first: a moving average alone would cling to its first batch.
    """
    return max(MOVING, 1 / (batches + 1))


def over_processes(ends: Tensor, *, mean: bool) -> Tensor:
    """Return what was observed over the batches of all processes, so that all simulate alike.

    The mean of values of any shape, or the outermost of both ends (2,) of a range.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return ends
    if mean:
        distributed.all_reduce(ends)
        return ends / distributed.get_world_size()
    outwards = ends.new_tensor([-1.0, 1.0])
    ends = ends * outwards
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return ends * outwards


def channel_axis(layer: Convolution) -> int:
    """Return the dimension of a layer's weight that counts its output channels."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def weight_scales(weight: Tensor, axis: int) -> Tensor:
    """Return the scale (K,) of each channel along `axis`, by its largest absolute value."""
    package = torchao()
    block = tuple(1 if i == axis else size for i, size in enumerate(weight.shape))
    scales: Tensor = package.choose_qparams_affine(
        weight.detach().float(), package.MappingType.SYMMETRIC, block, torch.int8,
        -WEIGHT_LEVEL, WEIGHT_LEVEL, eps=EPS, scale_dtype=torch.float32,
    )[0]  # fmt: skip
    return scales.flatten()


def simulate_weight(weight: Tensor, axis: int, scales: Tensor) -> Tensor:
    """Return the weight as int8 would hold it; the gradient passes straight through."""
    zero_points = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight.float(), scales, zero_points, axis, -WEIGHT_LEVEL, WEIGHT_LEVEL
    )
