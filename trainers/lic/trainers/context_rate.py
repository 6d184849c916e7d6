"""The rate of a factorized prior whose tables contexts choose, as a training loss.

The choice is made by the coder's own integers, from symbols that are rounded as they will be, and
counts as a constant: gradients reach a latent through its own cost, not through what it tells of
others. In training the cost is that of a Laplace distribution as wide as the chosen table, which
has a gradient between the integers; otherwise it is the table's own.

Shapes: B pictures, M latent channels, h w rows and columns of latents, T tables.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.entropy import Contexts, Tables, context_symbols
from lic.codec.entropy.tables import TOTAL
from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedPrior
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.models import Codec

# Widths of Laplace distributions, of which a table gets the one that codes its symbols best.
_WIDTHS = np.geomspace(0.02, 500, 400)
# An escape is followed by at least one byte.
_ESCAPE = 2.0**-8


def rate_by_contexts(model: Codec, contexts: Contexts | None) -> None:
    """Have a model's likelihoods be those of contexts from now on; its weights stay as they are.

    Raises:
        ConfigError: there are no contexts, or the model is not one that they fit.
    """
    if contexts is None:
        raise ConfigError(
            "--contexts rates symbols as the contexts of --init do, but it has none; lic models "
            "fit gives a bundle some"
        )
    if not isinstance(model, FactorizedPrior) or len(contexts) != model.config.M:
        raise ConfigError(
            f"--contexts: those of --init are for {FactorizedPrior.name} of {len(contexts)} latent "
            f"channels, not for {model.name} of {model.config.M}; leave it out"
        )
    model.entropy_bottleneck = ContextBottleneck(model.entropy_bottleneck, contexts)


class ContextBottleneck(EntropyBottleneck):
    """An entropy bottleneck whose likelihoods are those of contexts.

    Its own densities, which plain files and other steps need, learn from the same latents and
    tell them nothing. Names of parameters and buffers are those of `EntropyBottleneck`.

    Args:
        bottleneck: What it takes its parameters from.
        contexts: Of a bundle of the model.
    """

    def __init__(self, bottleneck: EntropyBottleneck, contexts: Contexts) -> None:
        super().__init__(bottleneck.channels, filters=bottleneck.filters)
        self.load_state_dict(bottleneck.state_dict())
        self.to(bottleneck.quantiles.device).train(bottleneck.training)
        for own, given in zip(self.parameters(), bottleneck.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)
        self.contexts = contexts
        self._widths = torch.from_numpy(_widths(contexts.tables).astype(np.float32))
        self._masses = _masses(contexts.tables)

    def forward(self, y: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return y_hat and its likelihoods, both (B, M, h, w)."""
        noisy = self.training if training is None else training
        y_hat = self.approximate(y, noisy)
        guess, coded, tables = self._chosen(y)
        if noisy:
            residual = y_hat - self.medians - guess.to(y)
            found = laplace_mass(residual, self._widths[tables].to(y))
        else:
            found = self._frozen(coded, tables).to(y)
        own = self.likelihoods(y_hat.detach())
        # Of value 1: the bits of the densities themselves have a gradient, but do not count.
        return y_hat, self.likelihood_lower_bound(found) * (own / own.detach())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _chosen(self, y: Tensor) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Return predicted symbols, what is coded and tables, all (B, M, h, w)."""
        symbols = self.quantize(y.float()).clamp(-32768, 32767).short().cpu().numpy()
        coded = np.empty(symbols.shape, np.int64)
        tables = np.empty(symbols.shape, np.int64)
        order = self.contexts.order
        for picture, residuals, chosen in zip(symbols, coded, tables, strict=True):
            # (h, w, M) in the order of coding.
            values, indexes = context_symbols(self.contexts, picture)
            residuals[order] = values.transpose(2, 0, 1)
            chosen[order] = indexes.transpose(2, 0, 1)
        return torch.from_numpy(symbols - coded), coded, tables

    def _frozen(self, coded: NDArray[np.int64], tables: NDArray[np.int64]) -> Tensor:
        """Return what tables give for integers, both (B, M, h, w); about right for escapes."""
        offsets = self.contexts.tables.offset.astype(np.int64)[tables]
        last = self.contexts.tables.cdf_length.astype(np.int64)[tables] - 2
        slots = coded - offsets
        slots = np.where((slots < 0) | (slots >= last), last, slots)
        return torch.from_numpy(self._masses[tables, slots])


def arrays_of(contexts: Contexts | None) -> dict[str, Tensor]:
    """Return contexts as a checkpoint keeps them; none are nothing."""
    arrays = contexts.to_arrays() if contexts else {}
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def contexts_of(arrays: Mapping[str, Tensor]) -> Contexts | None:
    """Return what `arrays_of` was given."""
    found = {name: array.numpy() for name, array in arrays.items()}
    return Contexts.from_arrays(found) if found else None


def laplace_mass(values: Tensor, widths: Tensor) -> Tensor:
    """Return the mass of [v - 1/2, v + 1/2] under Laplace distributions around 0."""
    magnitude = values.abs()
    inner = 1 - torch.exp(-0.5 / widths) * torch.cosh(torch.clamp(magnitude, max=0.5) / widths)
    outer = 0.5 * (
        torch.exp(-(magnitude.clamp_min(0.5) - 0.5) / widths)
        - torch.exp(-(magnitude.clamp_min(0.5) + 0.5) / widths)
    )
    return torch.where(magnitude < 0.5, inner, outer)


def _masses(tables: Tables) -> NDArray[np.float32]:
    """Return the probability of each slot, (T, slots); of an escape with the byte after it."""
    cdf = tables.quantized_cdf.astype(np.int64)
    masses = np.maximum(np.diff(cdf, axis=1), 0) / TOTAL
    last = tables.cdf_length.astype(np.int64) - 2
    masses[np.arange(len(tables)), last] *= _ESCAPE
    return masses.astype(np.float32)


def _widths(tables: Tables) -> NDArray[np.float64]:
    """Return the width of the Laplace distribution that codes each table's symbols best, (T,)."""
    masses = _masses(tables).astype(np.float64)
    places = np.arange(masses.shape[1])
    used = places < (tables.cdf_length.astype(np.int64) - 2)[:, None]
    magnitudes = np.abs(tables.offset.astype(np.int64)[:, None] + places)
    zero = -np.log(1 - np.exp(-0.5 / _WIDTHS))
    some = -np.log(np.sinh(0.5 / _WIDTHS))
    cost = np.empty((len(tables), len(_WIDTHS)))
    for number, width in enumerate(_WIDTHS):
        nats = np.where(magnitudes == 0, zero[number], magnitudes / width + some[number])
        cost[:, number] = (masses * used * nats).sum(axis=1)
    best: NDArray[np.float64] = _WIDTHS[cost.argmin(axis=1)]
    return best
