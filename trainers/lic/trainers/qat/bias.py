"""The mean error of a rounded weight, taken back in the bias (arXiv 1906.04721, section 4.2).

Behind ReLU all inputs are positive, so that a channel's rounding errors add up to an offset, layer
after layer. It is most of what int8 costs a codec before any training. What the offset is follows
from the weight and the mean of the input; borders, where zeros are padded, are taken like the rest.

Shapes: B batch, C channels of the input, K of the output, H W height and width of the tensor at
hand.
"""

import torch
from torch import Tensor, nn

from lic.trainers.qat.ranges import Convolution, moving_share, over_processes


class InputMean:
    """The mean (C,) of each channel of a layer's input, over batches."""

    def __init__(self, layer: Convolution) -> None:
        self._mean = torch.zeros(layer.in_channels)

    @torch.no_grad()
    def observe(self, x: Tensor, batches: int) -> None:
        """Take x (B, C, H, W) into the mean, after `batches` others."""
        found = over_processes(x.float().mean(dim=(0, 2, 3)), mean=True)
        self._mean = torch.lerp(self.of(x), found, moving_share(batches))

    def of(self, x: Tensor) -> Tensor:
        """Return the mean on the device of x."""
        self._mean = self._mean.to(x.device)
        return self._mean

    def state(self) -> Tensor:
        """Return the mean."""
        return self._mean.cpu().clone()

    def load(self, mean: Tensor) -> None:
        """Take back what `state` gave."""
        self._mean = mean.clone()


@torch.no_grad()
def bias_shift(layer: Convolution, rounded: Tensor, mean: InputMean) -> Tensor:
    """Return what to add (K,) to the bias where `rounded` stands for the layer's own weight."""
    weight = layer.get_parameter("weight")
    # Of each input channel, all taps together.
    error = (weight - rounded).float().sum(dim=(2, 3))
    inputs = mean.of(weight)
    if isinstance(layer, nn.ConvTranspose2d):
        # Every output pixel sees one in stride x stride of the taps.
        return (error.T @ inputs) / (layer.stride[0] * layer.stride[1])
    of_group = inputs.reshape(layer.groups, -1)
    return (error * of_group.repeat_interleave(layer.out_channels // layer.groups, 0)).sum(dim=1)
