"""Which options mean something beside which others: the table is the `needs` of the options.

Only what somebody gave is held to it. A file of --save-config has every option, most of them of no
use to its run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from lic.codec.errors import ConfigError
from lic.trainers.config import OPTIONS, TrainConfig
from lic.trainers.sections import Need, option_name

# Of more values of a sweep, the first and the last are told.
_LISTED: Final = 4


def needs_of(name: str) -> dict[str, Need]:
    """Return which other options have to have which values, those first that others hang on.

    What an option needs to be on, or to have some value, brings its own needs along.
    """
    # Whether a run goes on from a model is no option of a section, and needs nothing.
    own: dict[str, Need] = OPTIONS[name].metadata["needs"] if name in OPTIONS else {}
    inherited: dict[str, Need] = {}
    for other, need in own.items():
        if need is not False:
            inherited |= needs_of(other)
    return inherited | own


def of_others(*archs: str) -> frozenset[str]:
    """Return the options that mean nothing to models of any of some architectures."""

    def serves(name: str) -> bool:
        need = needs_of(name).get("arch", archs)
        return any(_meets(arch, need) for arch in archs)

    return frozenset(name for name in OPTIONS if not serves(name))


def check_needs(
    given: Iterable[str], config: TrainConfig, swept: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Refuse options that change nothing, because of what others are.

    Args:
        given: names of the options that were asked for.
        config: all options.
        swept: values of those that a sweep goes over; one that serves is enough.

    Raises:
        ConfigError: says which options stand against it, and what they would have to be.
    """
    values = {name: (value,) for name, value in config.by_name().items()} | dict(swept or {})
    for name in given:
        unmet = {
            other: need
            for other, need in needs_of(name).items()
            if not any(_meets(value, need) for value in values[other])
        }
        if unmet:
            found = " and ".join(_found(other, values[other]) for other in unmet)
            raise ConfigError(
                f"{option_name(name)} means nothing with {found}; expected {told_needs(unmet)}. "
                f"Change that, or leave {option_name(name)} out"
            )


def told_needs(needs: Mapping[str, Need]) -> str:
    """Return needs as a command line would meet them, such as "--amp bf16 or fp16"."""
    return " and ".join(_wanted(other, need) for other, need in needs.items())


def _meets(value: Any, need: Need) -> bool:
    return bool(value) is need if isinstance(need, bool) else value in need


def _wanted(name: str, need: Need) -> str:
    default = OPTIONS[name].default if name in OPTIONS else ""
    if not isinstance(need, bool):
        return _spelt(name, need)
    if isinstance(default, bool):
        return _spelt(name, (need,))
    if isinstance(default, str):
        return f"{'a' if need else 'no'} {option_name(name)}"
    return f"{option_name(name)} {'above 0' if need else '0'}"


def _found(name: str, values: Sequence[Any]) -> str:
    if values[0] == "":
        return f"no {option_name(name)}"
    many = len(values) > _LISTED
    return f"{option_name(name)} {values[0]} to {values[-1]}" if many else _spelt(name, values)


def _spelt(name: str, values: Sequence[Any]) -> str:
    bare = option_name(name)
    if isinstance(values[0], bool):
        return " or ".join(bare if value else f"--no-{bare[2:]}" for value in values)
    *others, last = map(str, values)
    return f"{bare} {', '.join(others)}{' or ' * bool(others)}{last}"
