"""Uniform noise, which stands for rounding in training, shared out among processes.

Shapes: B samples of this process, C channels, h w rows and columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_shard: ContextVar[tuple[int, int]] = ContextVar("noise shard", default=(0, 1))


def uniform_noise(values: Tensor) -> Tensor:
    """Return noise in [-1/2, 1/2) for values (B, C, h, w), of their shape, dtype and layout.

    It comes from the device's current generator. What is drawn does not depend on the layout in
    memory, and inside `noise_shard` it is this process's part of the noise of all.
    """
    rank, world = _shard.get()
    count = values.shape[0]
    shape = (world * count, *values.shape[1:])
    drawn = torch.empty(shape, dtype=values.dtype, device=values.device).uniform_(-0.5, 0.5)
    return torch.empty_like(values).copy_(drawn[rank * count : (rank + 1) * count])


@contextmanager
def noise_shard(rank: int, world: int) -> Iterator[None]:
    """Have `uniform_noise` draw for `world` processes and return the part of process `rank`.

    With the same seed, and as many samples in every process, they see together exactly the noise
    that one process with all samples sees: sample i of process r is sample r B + i of all.
    """
    assert 0 <= rank < world, f"rank {rank} of {world}"
    token = _shard.set((rank, world))
    try:
        yield
    finally:
        _shard.reset(token)
