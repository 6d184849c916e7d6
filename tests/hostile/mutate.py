"""Mutation number n of a run: which seed, which way, and the file."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.hostile.damage import DAMAGE, Seed
from tests.hostile.forged_tiles import TILE_FORGERY
from tests.hostile.forgery import FORGERY

_DAMAGES = tuple(DAMAGE.items())
_FORGERIES = (*FORGERY.items(), *TILE_FORGERY.items())
MUTATIONS = (*DAMAGE, *FORGERY, *TILE_FORGERY)


@dataclass(frozen=True)
class Mutated:
    """A file made of a seed; `forged` where checksums were mended."""

    seed: Seed
    mutation: str
    forged: bool
    data: bytes


def mutate(number: int, seeds: Sequence[Seed], run: int = 0) -> Mutated:
    """Return mutation `number` of a run: always the same for the same seeds."""
    rng = random.Random(run << 40 | number)
    seed = rng.choice(seeds)
    forged = rng.random() < 0.65
    name, mutation = rng.choice(_FORGERIES if forged else _DAMAGES)
    data = mutation(rng, seed, seeds)
    if rng.random() < 0.15:
        _, again = rng.choice(_FORGERIES if forged else _DAMAGES)
        data = again(rng, replace(seed, data=data), seeds)
    return Mutated(seed, name, forged, data)
