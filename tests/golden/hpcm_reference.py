"""The reference run of HPCM: its weights and pictures, which a rule makes, and upstream's tables.

Shapes: i flat index of a tensor, H W pixels.
"""

import hashlib
import itertools
import math
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.models.hpcm import HPCM, TABLE_BUFFERS
from lic.codec.models.hpcm_config import hpcm_config

# Weight rule, first match wins: pattern of a weight's name -> gain.
_GAINS: tuple[tuple[str, float], ...] = (
    (r"g_a\.branch\.0\.weight", 2.5),
    (r"g_a\.branch\.\d+\.weight", 1.1),
    (r"h_a\.branch\.\d+\.weight", 0.8),
    (r"h_s\.branch\.\d+\.weight", 1.0),
    (r"g_s\.branch\.(?:11|15)\.weight", 0.04),
    (r"y_spatial_prior_adaptor_list_s\d\.\d\.weight", 0.5),
    (r"y_spatial_prior_(?:s1_s2|s3)\.branch_2\.\d+\.weight", 0.25),
    (r"attn_s\d\.conv_out\.weight", 0.5),
    (r".*\.branch\.3\.weight", 0.5),
    (r".*", 1.0),
)
_HALVED_BIAS = re.compile(r"h_s\.branch\.4\.bias|y_spatial_prior_(?:s1_s2|s3)\.branch_2\.\d+\.bias")


def uniform(name: str, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [-1, 1) that depend on the name only."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761)
    x = x + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2**31 - 1


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    u = uniform(name, math.prod(shape))
    if name == "means_hyper":
        value = 2 * u
    elif name == "scales_hyper":
        value = 1.4 + 1.5 * u
    elif name.startswith("adaptive_params_list."):
        value = 1 + 0.25 * u
    elif name.endswith(".bias"):
        value = 0.1 * u
        if name in ("g_s.branch.11.bias", "g_s.branch.15.bias") and shape == (3,):
            value = 0.5 + value
        if _HALVED_BIAS.fullmatch(name):
            half = shape[0] // 2
            value[:half] = 2.5 + 2.3 * u[:half]
    else:
        gain = next(g for rule, g in _GAINS if re.fullmatch(rule, name))
        value = gain * np.sqrt(3 / math.prod(shape[1:])) * u
    return value.astype(np.float32).reshape(shape)


def reference_state(model: HPCM) -> dict[str, Tensor]:
    """Return the reference weights of a model, by name."""
    return {
        name: torch.from_numpy(weight(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
        if name not in TABLE_BUFFERS and not name.startswith("entropy_estimation.")
    }


def digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of all values in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(state[name].numpy().astype("<f4").tobytes())
    return sha.hexdigest()


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return the reference picture (3, H, W)."""
    i, j, c = np.meshgrid(
        np.arange(height), np.arange(width), np.arange(3), indexing="ij", sparse=True
    )
    f = (
        0.5
        + 0.22 * np.sin(2 * np.pi * (3 * i / height + 2 * j / width + c / 3))
        + 0.18 * np.cos(2 * np.pi * 5 * i * j / (height * width) + 0.7 * c)
        + 0.1 * np.sin(2 * np.pi * (17 * j + 11 * i) / 64 + c)
    )
    return np.clip(np.floor(255 * f + 0.5), 0, 255).astype(np.uint8).transpose(2, 0, 1)


def published_tables(
    scales: Tensor,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return upstream's 16-bit tables for scales (T,): cdfs (T, L), their lengths, the offsets."""
    from lic.codec.models.conditional import cumulative

    sigma = torch.clamp(scales.float(), min=0.12)
    # Minus the quantile of the density at 5e-7.
    centre = np.ceil(sigma.double().numpy() * 5.42691097558631).astype(np.int64)
    longest = int(2 * centre.max() + 1)
    grid = torch.arange(longest).float()[None] - torch.from_numpy(centre)[:, None].float()
    upper = cumulative((grid + 0.5) / sigma[:, None])
    lower = cumulative((grid - 0.5) / sigma[:, None])
    mass = (upper - lower).numpy()
    tails = (lower[:, :1] + 1.0 - upper[:, -1:]).numpy()
    cdf = np.zeros((len(centre), longest + 2), np.int32)
    lengths = 2 * centre + 1
    for row, (length, p, tail) in enumerate(zip(lengths, mass, tails, strict=True)):
        entries = _pmf_to_cdf([*p[:length].tolist(), float(tail[0])])
        cdf[row, : len(entries)] = entries
    return cdf, (lengths + 2).astype(np.int32), (-centre).astype(np.int32)


def _pmf_to_cdf(pmf: list[float]) -> list[int]:
    total = 1 << 16
    steps = [math.floor(p * total + 0.5) for p in pmf]
    whole = sum(steps)
    cdf = [0]
    for step in steps:
        cdf.append(cdf[-1] + total * step // whole)
    cdf[-1] = total
    for i in range(len(cdf) - 1):
        if cdf[i] == cdf[i + 1]:
            widths = [b - a for a, b in itertools.pairwise(cdf)]
            narrow = min(w for w in widths if w > 1)
            donor = widths.index(narrow)
            if donor < i:
                for k in range(donor + 1, i + 1):
                    cdf[k] -= 1
            else:
                for k in range(i + 1, donor + 1):
                    cdf[k] += 1
    return cdf


def write_checkpoint(size: str, path: Path) -> None:
    """Write the reference weights as published files hold theirs: without adaptive vectors."""
    with torch.device("meta"):
        model = HPCM(hpcm_config(size))
    state = reference_state(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("adaptive_params_list.")}, path)


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
