"""Fits a factorized prior's contexts to photos: which table codes a symbol, and the tables.

The tables' class follows the logarithm of a symbol's expected magnitude: a weighted sum over the
activities around it, and over four sums of the channels before it. The weights minimise the code
length under discrete Laplace distributions, are rounded to the coder's integers, and then all that
is counted comes from the coder itself.

Shapes: C channels in the order of coding, h w rows and columns of latents, N positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.codec.entropy import Contexts, Tables, build_tables, context_symbols
from lic.codec.entropy.contexts import (
    BESIDE_LIMIT,
    BIAS_LIMIT,
    CLASSES,
    GROUP,
    LEVELS,
    NEIGHBOURS,
    RANK,
    SUM_SHIFT,
    VALUE_SHIFT,
)
from lic.codec.errors import ConfigError

Latents = Sequence[NDArray[np.int16]]
# Activities are 32 log2(1 + magnitude): a byte holds those of all magnitudes up to 249.
_PER_OCTAVE = 32
_NAT = _PER_OCTAVE / math.log(2)
# Of the weights of activities; sums lose SUM_SHIFT bits, so that the two factors share the rest.
_BESIDE = 64.0
_FACTOR = math.sqrt(_BESIDE * 2**SUM_SHIFT)
# A prediction must explain this share of a channel's variance.
_PREDICTABLE = 0.4
_MOST_PREDICTED = 16
# Symbols further out than this are counted at their table's ends, and cost an escape.
_REACH = 1000
_AROUND = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
# Positions that the weights are fitted to: more change nothing.
_POSITIONS = 200_000


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How contexts are fitted.

    Attributes:
        tables: At most so many, 1 to 256.
        steps: Of the optimiser.
        batch: Positions in a step.
        lr: The highest learning rate.
        seed: Of the start and the order of positions.
    """

    tables: int = 128
    steps: int = 600
    batch: int = 2048
    lr: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("tables", 1, 256), ("steps", 1, 10**6), ("batch", 1, 10**6)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; expected {low} to {high}")


def fit_contexts(
    latents: Latents,
    options: FitOptions | None = None,
    step_done: Callable[[int], None] = lambda _: None,
) -> Contexts:
    """Return contexts for symbols like these.

    Args:
        latents: Symbols (C, h, w) of each picture.
        options: None takes the defaults.
        step_done: Is told the number of each step that is done.

    Raises:
        ConfigError: There are no symbols.
    """
    options = options or FitOptions()
    if not sum(each.size for each in latents):
        raise ConfigError("there are no symbols to fit contexts to")
    contexts = _with_means(_blank(len(latents[0])), latents)
    contexts = _with_means(_with_predictions(contexts, latents), latents)
    weights = _fit_weights(contexts, latents, options, step_done)
    contexts = _rounded(contexts, weights)
    counts = _count(contexts, latents)
    cells, tables = _cluster(counts, options.tables)
    table_map = cells.reshape(-1, CLASSES).astype(np.uint8)
    return replace(contexts, table_map=table_map, tables=tables)


def _blank(channels: int) -> Contexts:
    """Return contexts that know nothing."""
    levels = np.round(_PER_OCTAVE * np.log2(1.0 + np.arange(LEVELS)))
    return Contexts(
        levels=np.minimum(levels, 255).astype(np.uint8),
        order=np.arange(channels, dtype=np.uint16),
        mean=np.zeros(channels, np.uint8),
        beside=np.zeros((channels, NEIGHBOURS), np.int8),
        into=np.zeros((channels, RANK), np.int8),
        from_sums=np.zeros((channels, RANK), np.int8),
        bias=np.zeros(channels, np.int32),
        table_map=np.zeros((channels, CLASSES), np.uint8),
        predicted=np.zeros(0, np.uint16),
        weights=np.zeros((0, NEIGHBOURS), np.int8),
        # As many as there are classes: counting asks for those.
        tables=build_tables([np.ones(2)] * CLASSES, [0] * CLASSES),
    )


def _residuals(contexts: Contexts, latents: Latents) -> list[NDArray[np.int16]]:
    """Return what is coded of each picture, (C, h, w) in the order of coding."""
    found = []
    for symbols in latents:
        coded, _ = context_symbols(contexts, symbols)
        found.append(coded.transpose(2, 0, 1))
    return found


def _with_means(contexts: Contexts, latents: Latents) -> Contexts:
    """Return contexts with the channels in order of their mean activity, the most active first.

    What they say tells more of the others than the others of them.
    """
    total = np.zeros(len(contexts))
    count = 0
    for residuals in _residuals(contexts, latents):
        magnitudes = np.minimum(np.abs(residuals.astype(np.int32)), LEVELS - 1)
        total += contexts.levels[magnitudes].sum(axis=(1, 2), dtype=np.int64)
        count += residuals[0].size
    ranks = np.argsort(-total, kind="stable")
    places = np.argsort(ranks, kind="stable")
    mean = np.minimum(np.round(total[ranks] / count), 255)
    return replace(
        contexts,
        order=contexts.order[ranks],
        mean=mean.astype(np.uint8),
        predicted=places[contexts.predicted].astype(np.uint16),
    )


def _with_predictions(contexts: Contexts, latents: Latents) -> Contexts:
    """Return contexts that predict the values of channels whose neighbours tell them."""
    chosen: list[int] = []
    weights: list[NDArray[np.float64]] = []
    for place, channel in enumerate(contexts.order.tolist()):
        values, around = _values_around(latents, channel)
        variance = float(values.var())
        # A prediction is rounded, which costs nothing only where values are larger than that.
        if variance < 0.5 or len(chosen) == _MOST_PREDICTED:
            continue
        found, *_ = np.linalg.lstsq(around, values, rcond=None)
        rounded = np.clip(np.round(found * 2**VALUE_SHIFT), -128, 127)
        left = values - np.floor(around @ rounded / 2**VALUE_SHIFT + 0.5)
        if left.var() < (1 - _PREDICTABLE) * variance:
            chosen.append(place)
            weights.append(rounded)
    return replace(
        contexts,
        predicted=np.array(chosen, np.uint16),
        weights=np.array(weights, np.int8).reshape(-1, NEIGHBOURS),
    )


def _values_around(latents: Latents, channel: int) -> tuple[NDArray[np.float64], ...]:
    """Return values (N,) of a channel and those around them (N, 6), inside the pictures."""
    values, around = [], []
    for symbols in latents:
        plane = symbols[channel].astype(np.float64)
        height, width = plane.shape
        if height > 2 and width > 3:
            values.append(plane[2:, 2:-1].reshape(-1))
            shifted = [
                plane[2 - up : height - up, 2 - left : width - 1 - left].reshape(-1)
                for up, left in _AROUND
            ]
            around.append(np.stack(shifted, axis=1))
    if not values:
        return np.zeros(1), np.zeros((1, NEIGHBOURS))
    return np.concatenate(values), np.concatenate(around)


class _Weights(nn.Module):
    """Weights before they are rounded; the result is a natural logarithm of a scale."""

    def __init__(self, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        channels = len(mean)
        padded = channels + -channels % GROUP
        self.beside = nn.Parameter(torch.full((channels, NEIGHBOURS), 0.1))
        self.into = nn.Parameter(0.05 * torch.randn(padded, RANK, generator=generator))
        self.from_sums = nn.Parameter(0.05 * torch.randn(padded, RANK, generator=generator))
        self.bias = nn.Parameter(0.5 * torch.log(mean + 1e-3))

    def forward(self, activity: Tensor, around: Tensor) -> Tensor:
        """Return log-scales (N, C) from activities (N, C) and those around (N, C, 6)."""
        count, channels = activity.shape
        padded = nn.functional.pad(activity, (0, len(self.into) - channels))
        added = (padded[:, :, None] * self.into).view(count, -1, GROUP, RANK).sum(2)
        sums = torch.cumsum(added, 1) - added
        known = sums.repeat_interleave(GROUP, 1)
        told = (known * self.from_sums).sum(2)[:, :channels]
        return told + (around * self.beside).sum(2) + self.bias


def _code_length(symbols: Tensor, log_scale: Tensor) -> Tensor:
    """Return bits a position of symbols (N, C) that are discrete Laplace of these scales."""
    rate = torch.exp(-log_scale.clamp(-6, 6))
    magnitude = symbols.abs()
    none = torch.log((1 - torch.exp(-rate / 2)).clamp_min(1e-6))
    step = torch.log((1 - torch.exp(-rate)).clamp_min(1e-6))
    some = step - rate * (magnitude - 0.5) - math.log(2)
    return -torch.where(magnitude == 0, none, some).sum(1).mean() / math.log(2)


def _fit_weights(
    contexts: Contexts, latents: Latents, options: FitOptions, step_done: Callable[[int], None]
) -> _Weights:
    residuals, activity, around = _samples(contexts, latents, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    weights = _Weights(torch.from_numpy(contexts.mean.astype(np.float32)) / _NAT, generator)
    optimizer = torch.optim.Adam(weights.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    for step in range(options.steps):
        chosen = torch.randint(len(residuals), (options.batch,), generator=generator)
        log_scale = weights(activity[chosen].float() / _NAT, around[chosen].float() / _NAT)
        loss = _code_length(residuals[chosen].float(), log_scale)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        step_done(step + 1)
    return weights


def _samples(contexts: Contexts, latents: Latents, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return residuals (N, C), activities less their means (N, C), and those around (N, C, 6)."""
    rng = np.random.default_rng(seed)
    total = sum(each[0].size for each in latents)
    share = min(1.0, _POSITIONS / total)
    parts: list[tuple[NDArray[np.int16], ...]] = []
    mean = contexts.mean.astype(np.int16)[:, None, None]
    for residuals in _residuals(contexts, latents):
        magnitudes = np.minimum(np.abs(residuals.astype(np.int32)), LEVELS - 1)
        activity = contexts.levels[magnitudes].astype(np.int16) - mean
        padded = np.pad(activity, ((0, 0), (2, 0), (2, 2)))
        _, height, width = activity.shape
        around = [
            padded[:, 2 - up : 2 - up + height, 2 - left : 2 - left + width] for up, left in _AROUND
        ]
        kept = rng.random(height * width) < share
        flat = [each.reshape(len(contexts), -1)[:, kept] for each in (residuals, activity)]
        beside = np.stack(around, axis=-1).reshape(len(contexts), -1, NEIGHBOURS)[:, kept]
        parts.append((flat[0].T, flat[1].T, beside.transpose(1, 0, 2)))
    residual, active, nearby = (
        torch.from_numpy(np.ascontiguousarray(np.concatenate(each)))
        for each in zip(*parts, strict=True)
    )
    return residual, active, nearby


def _rounded(contexts: Contexts, weights: _Weights) -> Contexts:
    """Return contexts with the weights as the coder's integers, and classes for tables."""
    values = {k: v.detach().double().numpy() for k, v in weights.named_parameters()}
    channels = len(contexts)
    into, from_sums = values["into"][:channels], values["from_sums"][:channels]
    # Each sum's two factors share its size, so that both use the range of a byte.
    ratio = np.sqrt(np.abs(from_sums).max(0) / np.maximum(np.abs(into).max(0), 1e-9))
    ratio = np.maximum(ratio, 1e-9)
    # Classes of 512 parts: 64 of them hold all scales from e^-6 to e^5.
    fixed = _BESIDE * _NAT
    bias = (values["bias"] + 6.0) * fixed
    # Rounding adds half at most to each weight.
    size = np.abs(values["beside"] * _BESIDE).sum(1)
    scale = np.minimum(1.0, (BESIDE_LIMIT - NEIGHBOURS / 2) / np.maximum(size, 1))
    return replace(
        contexts,
        beside=_bytes(values["beside"] * _BESIDE * scale[:, None]),
        into=_bytes(into * ratio * _FACTOR),
        from_sums=_bytes(from_sums / ratio * _FACTOR),
        bias=np.clip(np.round(bias), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32),
    )


def _bytes(values: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(np.round(values), -128, 127).astype(np.int8)


def _count(contexts: Contexts, latents: Latents) -> NDArray[np.int64]:
    """Return how often each residual occurs, (C * 64, symbols), from -_REACH to +_REACH."""
    classes = np.tile(np.arange(CLASSES, dtype=np.uint8), (len(contexts), 1))
    asked = replace(contexts, table_map=classes)
    width = 2 * _REACH + 1
    counts = np.zeros(len(contexts) * CLASSES * width, np.int64)
    base = np.arange(len(contexts)) * CLASSES
    for symbols in latents:
        coded, chosen = context_symbols(asked, symbols)
        cells = base + chosen
        places = cells * width + np.clip(coded, -_REACH, _REACH) + _REACH
        found, times = np.unique(places, return_counts=True)
        counts[found] += times
    return counts.reshape(-1, width)


def _cluster(
    counts: NDArray[np.int64], most: int, rounds: int = 30
) -> tuple[NDArray[np.int64], Tables]:
    """Return the table of each cell, and the tables: those that code the counts in fewest bits."""
    used = np.flatnonzero(counts.any(axis=0))
    reach = max(abs(int(used[0]) - _REACH), abs(int(used[-1]) - _REACH), 1)
    symbols = np.arange(-reach, reach + 1)
    seen = counts[:, _REACH - reach : _REACH + reach + 1].astype(np.float64)
    weight = seen.sum(axis=1)
    size = (seen * np.abs(symbols)).sum(axis=1) / np.maximum(weight, 1)
    # Where nothing was seen, what is usual in the class counts.
    classes = np.arange(len(seen)) % CLASSES
    by_class = np.array([(weight * size)[classes == k].sum() for k in range(CLASSES)])
    per_class = np.array([weight[classes == k].sum() for k in range(CLASSES)])
    usual = by_class / np.maximum(per_class, 1)
    known = np.flatnonzero(per_class)
    usual = np.interp(np.arange(CLASSES), known, usual[known])
    prior = _laplace(usual[classes], symbols)
    smooth = seen + 2 * prior
    order = np.argsort((smooth * np.abs(symbols)).sum(1) / smooth.sum(1), kind="stable")
    share = np.cumsum((weight + 1)[order] ** 0.5)
    cells = np.empty(len(seen), np.int64)
    cells[order] = np.minimum((share / share[-1] * most).astype(np.int64), most - 1)
    for _ in range(rounds):
        pmf = _pmfs(smooth, cells, most)
        chosen = (-(smooth @ np.log2(pmf).T)).argmin(axis=1)
        if (chosen == cells).all():
            break
        cells = chosen
    _, cells = np.unique(cells, return_inverse=True)
    pmf = _pmfs(smooth, cells, int(cells.max()) + 1)
    return cells, _tables(pmf, symbols)


def _pmfs(smooth: NDArray[np.float64], cells: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    total = np.zeros((count, smooth.shape[1]))
    np.add.at(total, cells, smooth)
    total += 1e-9
    pmfs: NDArray[np.float64] = total / total.sum(axis=1, keepdims=True)
    return pmfs


def _laplace(size: NDArray[np.float64], symbols: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return discrete Laplace distributions of these mean magnitudes, one a row."""
    rate = 1 / np.maximum(size, 1e-3)[:, None]
    decay = np.exp(-rate * np.abs(symbols)) + 1e-9
    masses: NDArray[np.float64] = decay / decay.sum(axis=1, keepdims=True)
    return masses


def _tables(pmfs: NDArray[np.float64], symbols: NDArray[np.int64]) -> Tables:
    """Return tables; symbols beyond all that was seen escape."""
    beyond = np.full((len(pmfs), 1), 1e-7)
    rows = list(np.concatenate([pmfs, beyond], axis=1))
    return build_tables(rows, [int(symbols[0])] * len(rows))
