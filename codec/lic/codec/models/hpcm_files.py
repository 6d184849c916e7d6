"""State dicts of HPCM, as its authors' scripts save them, -> models.

The published files have no `adaptive_params_list.*`: those vectors were neither trained nor saved
then, and stayed ones. Later scripts save them. Files written by several GPUs have a `module.`
before every name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models.hpcm import HPCM, TABLE_BUFFERS
from lic.codec.models.hpcm_config import SIZES, HPCMConfig, Placement, hpcm_config
from lic.codec.models.names import difference, listed
from lic.codec.models.parameter_counts import check_size

# Lambdas of the published models, by metric, in order of their rate points from 1.
LMBDAS: dict[str, tuple[float, ...]] = {
    "mse": (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483),
    "ms-ssim": (2.4, 4.58, 8.73, 16.64, 31.73, 60.5),
}

_PREFIX = "module."
_ADAPTIVE = "adaptive_params_list."
# Of the density itself, not of a model: a file with others was trained for another bitstream.
_STANDARD = "entropy_estimation."
# As the names have them, and no longer than what a config may hold.
_NUMBER = "(0|[1-9][0-9]{0,3})"


def hpcm_from_state_dict(
    state: Mapping[str, Tensor], size: str | None = None, *, placement: Placement = "upstream"
) -> HPCM:
    """Return the model of a state dict.

    Args:
        state: in any floating-point precision; whether upstream's tables were built plays no part.
        size: key of `lic.codec.models.hpcm_config.SIZES`; None reads it off the tensors.
        placement: as the model was trained; published files have "upstream".

    Raises:
        ModelMismatchError: tensors are missing, unexpected, of the wrong shape or no numbers, or
            the size is none that is known; names them and what was expected.
        ConfigError: no such size.
    """
    given = _plain_names(state)
    if size is None:
        config = _detect(given)
    else:
        config = hpcm_config(size)
        _check_size(given, size)
    # Not on the meta device: that imports torch's compiler, two seconds for nothing.
    model = HPCM(replace(config, placement=placement))
    wanted = {n: v for n, v in model.state_dict().items() if n not in TABLE_BUFFERS}
    _check_names(given, wanted)
    _check_values(given, wanted)
    # The standard's own constants stay: half precision has no 1e-9.
    weights = {name: value for name, value in given.items() if not name.startswith(_STANDARD)}
    model.load_state_dict(weights, strict=False)
    return model.eval()


def hpcm_size(config: HPCMConfig) -> str | None:
    """Return the key of SIZES that a config has, whatever its placement, or None."""
    published = replace(config, placement="upstream")
    return next((name for name, known in SIZES.items() if known == published), None)


def published_rate_point(lmbda: float, metric: str | None = None) -> tuple[str, int] | None:
    """Return metric and rate point, from 1, of the published model with a lambda, or None.

    With `metric`, "mse" or "ms-ssim", only models that were trained for it count.
    """
    for kind, lmbdas in LMBDAS.items():
        for point, known in enumerate(lmbdas, start=1):
            if metric in (None, kind) and math.isclose(lmbda, known):
                return kind, point
    return None


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the model's names, without upstream's tables."""
    given = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    if len(given) < len(state):
        twice = sorted(name for name in given if name in state and _PREFIX + name in state)
        raise ModelMismatchError(f"with and without {_PREFIX!r} in one file: {listed(twice)}")
    return {name: value for name, value in given.items() if name not in TABLE_BUFFERS}


def _check_names(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse missing and unexpected tensors."""
    missing = [name for name in wanted if name not in given]
    unexpected = sorted(set(given) - set(wanted))
    adaptive = [name for name in missing if name.startswith(_ADAPTIVE)]
    lacking = [n for n in missing if not n.startswith((_ADAPTIVE, _STANDARD))]
    if lacking or unexpected:
        raise ModelMismatchError(
            f"not a state dict of this HPCM: {difference(lacking, unexpected)}"
        )
    every = sum(name.startswith(_ADAPTIVE) for name in wanted)
    if adaptive and len(adaptive) < every:
        raise ModelMismatchError(
            f"{len(adaptive)} of {every} vectors {_ADAPTIVE}* are missing: {', '.join(adaptive)}; "
            "expected all of them, or none as in the published files"
        )


def _check_values(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse shapes and kinds that do not fit, and constants other than the model's."""
    for name, value in given.items():
        expected = wanted[name]
        if value.shape != expected.shape:
            raise ModelMismatchError(
                f"{name} has shape {tuple(value.shape)}; expected {tuple(expected.shape)}"
            )
        if not value.is_floating_point() or value.layout != torch.strided:
            raise ModelMismatchError(
                f"{name} holds {value.layout} {value.dtype}; expected plain floating point"
            )
        if name.startswith(_STANDARD) and not _equal(value, expected):
            raise ModelMismatchError(
                f"{name} is {value.flatten().tolist()}; expected {expected.flatten().tolist()}: "
                "this model codes with another density"
            )


def _equal(value: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are the same but for rounding in the first one's precision."""
    rounded = expected.to(value.dtype).double()
    return torch.allclose(value.double(), rounded, rtol=1e-6, atol=0)


def _check_size(given: Mapping[str, Tensor], size: str) -> None:
    """Say which known size a file has where that is another than asked for."""
    try:
        found = hpcm_size(_detect(given))
    except ModelMismatchError:
        # What exactly does not fit the size asked for says more.
        return
    if found is not None and found != size:
        raise ModelMismatchError(
            f"these are the tensors of HPCM {found}; expected {size}; leave out --arch or name "
            f"hpcm-{found}"
        )


def _detect(given: Mapping[str, Tensor]) -> HPCMConfig:
    """Return the config whose shapes a state dict has.

    The number of attention heads shows in no shape, so that models with attention must be of a
    known size.
    """
    config = _read_off(given)
    if config is None:
        _refuse_nearly(given)
        raise ModelMismatchError(
            f"not a state dict of HPCM: found {listed(sorted(given))}; expected one of the sizes "
            f"{', '.join(SIZES)}"
        )
    attention = any(name.startswith("attn_") for name in given)
    if not attention:
        check_size(HPCM.name, config.to_dict(), given, "HPCM by the shapes of some tensors")
        return config
    for known in SIZES.values():
        if known.heads and replace(known, heads=0) == config:
            return known
    _refuse_nearly(given)
    raise ModelMismatchError(
        f"an HPCM with attention of no known size: widths {config.widths}, blocks {config.blocks}, "
        f"M = {config.M}, N = {config.N}, priors {config.prior_s1_s2} and {config.prior_s3}; "
        f"expected one of {', '.join(SIZES)}"
    )


def _refuse_nearly(given: Mapping[str, Tensor]) -> None:
    """Say what keeps a state dict from the known size with most of its names and shapes.

    Of which it must have more than half: what fits less is no file of that size with a fault.
    """
    known = {}
    for size, config in SIZES.items():
        with torch.device("meta"):
            state = HPCM(config).state_dict()
        known[size] = {n: v.shape for n, v in state.items() if n not in TABLE_BUFFERS}

    def shared(size: str) -> int:
        return sum(n in given and given[n].shape == v for n, v in known[size].items())

    size = max(known, key=shared)
    wanted = known[size]
    if 2 * shared(size) <= len(wanted):
        return
    missing = [n for n in wanted if n not in given and not n.startswith((_ADAPTIVE, _STANDARD))]
    unexpected = sorted(set(given) - set(wanted))
    wrong = [
        f"{n} has shape {tuple(given[n].shape)}, not {tuple(v)}"
        for n, v in wanted.items()
        if n in given and given[n].shape != v
    ]
    raise ModelMismatchError(
        f"none of the sizes {', '.join(SIZES)}: nearest to HPCM {size}, but "
        f"{difference(missing, unexpected, wrong)}; if it is meant to be that size, mend it and "
        f"name --arch hpcm-{size}"
    )


def _read_off(given: Mapping[str, Tensor]) -> HPCMConfig | None:
    """Return the config without attention whose shapes the tensors have; None if they have none."""
    stages = _numbers(given, rf"g_a\.branch\.{_NUMBER}\.weight")
    means = given.get("means_hyper")
    if len(stages) != 4 or means is None or means.ndim != 4:
        return None
    # Not by its largest number: a name costs a few bytes, a block megabytes.
    if len({name.split(".")[2] for name in given if name.startswith("g_a.branch.")}) <= stages[-1]:
        return None
    try:
        half, quarter, eighth, m = (given[f"g_a.branch.{n}.weight"].shape[0] for n in stages)
        return HPCMConfig(
            widths=(half, quarter, eighth),
            blocks=tuple(b - a - 1 for a, b in pairwise(stages)),  # type: ignore[arg-type]
            M=m,
            N=means.shape[1],
            prior_s1_s2=_depths(given, "s1_s2"),
            prior_s3=_depths(given, "s3"),
            heads=0,
        )
    except (ConfigError, IndexError):
        return None


def _depths(given: Mapping[str, Tensor], scale: str) -> tuple[int, int]:
    """Return how many blocks a prior has before and after the adaptive product."""
    prior = rf"y_spatial_prior_{scale}"
    blocks = [
        _numbers(given, rf"{prior}\.branch_{part}\.{_NUMBER}\.branch\.0\.weight") for part in (1, 2)
    ]
    return len(blocks[0]), len(blocks[1])


def _numbers(names: Iterable[str], pattern: str) -> list[int]:
    """Return the numbers in names of a pattern, in order."""
    found = (re.fullmatch(pattern, name) for name in names)
    return sorted(int(match[1]) for match in found if match)
