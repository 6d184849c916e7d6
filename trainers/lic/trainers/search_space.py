"""What a sweep goes over: options and their values, read from texts and tried before anything runs.

No torch and no Optuna here: `lic train --help` reads this module.
"""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, Final, NamedTuple

from lic.codec.errors import ConfigError
from lic.trainers import recipes
from lic.trainers.config import OPTIONS, SECTIONS, LossConfig, TrainConfig
from lic.trainers.needs import check_needs
from lic.trainers.sections import option_name

Value = bool | int | float | str
Values = dict[str, Value]

RECIPES: Final = {"hpcm": recipes.hpcm, "bmshj2018": recipes.bmshj2018}

# What val_loss is made of: where these differ, values of it say nothing about each other.
MEASURE: Final = frozenset(item.name for item in fields(LossConfig))
# The same step is then another share of a run.
LENGTH: Final = frozenset(("steps", "epochs", "batch"))

SAMPLERS: Final = ("grid", "random", "tpe")
PRUNERS: Final = ("median", "none")
# Of random and tpe, which have no end of their own.
TRIALS: Final = 20
MOST_CELLS: Final = 10_000
# Of a range of whole numbers, as many are tried one by one.
MOST_WHOLE: Final = 256

_NO_TRAINING: Final = frozenset(
    item.name for name in ("watch", "checkpoint", "bundle") for item in fields(SECTIONS[name])
)
_PICTURES: Final = frozenset(("val", "val_share", "val_count"))
_WORDS: Final = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One option and what it is set to.

    Attributes:
        name: of the field in its section.
        values: all of them; of a range the least and the greatest.
        is_range: whether values between them count.
        log: whether a range is even in logarithms.
    """

    name: str
    values: tuple[Value, ...]
    is_range: bool = False
    log: bool = False

    @property
    def text(self) -> str:
        """The values as --over takes them."""
        if self.is_range:
            return f"{self.values[0]}..{self.values[1]}{':log' * self.log}"
        return _separator(self.name).join(map(_spelt, self.values))

    def tried(self) -> Sequence[Value]:
        """Return the values that stand for all of them where their bounds are looked at."""
        low, high = self.values[0], self.values[-1]
        if self.is_range and isinstance(low, int) and isinstance(high, int):
            return range(low, high + 1) if high - low < MOST_WHOLE else (low, high)
        return self.values


class Preset(NamedTuple):
    """A sweep with a name: options that all of its trials have, and what it goes over."""

    settings: Values
    over: tuple[str, ...]


PRESETS: Final[dict[str, Preset]] = {
    # How fast the weights of two tasks learn and forget.
    "gamma": Preset(
        {"objective": "balanced"}, ("gamma=0.001,0.003,0.006,0.01", "w_lr=0.01,0.025,0.05")
    ),
    # The default, nearly even ones, and each scale with more than the others.
    "scale-weights": Preset(
        {"objective": "hierarchical"},
        ("scale_weights=0.3,0.4,0.3/0.34,0.33,0.33/0.5,0.25,0.25/0.25,0.5,0.25/0.25,0.25,0.5",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep does.

    Attributes:
        model: key of RECIPES.
        base: options of every trial but for those swept.
        space: what is swept.
        sampler: one of SAMPLERS.
        trials: how many are wanted in all; None: all cells of a grid, else TRIALS.
        pruner: one of PRUNERS.
        retry_failed: whether trials that have failed before are tried again.

    Raises:
        ConfigError: a value that cannot work, or a sampler that would compare what cannot be.
    """

    model: str
    base: TrainConfig
    space: tuple[Dimension, ...]
    sampler: str = "grid"
    trials: int | None = None
    pruner: str = "median"
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for option, found, known in (
            ("--sampler", self.sampler, SAMPLERS), ("--pruner", self.pruner, PRUNERS)
        ):  # fmt: skip
            if found not in known:
                raise ConfigError(f"{option} is {found!r}; expected one of {', '.join(known)}")
        if self.trials is not None and self.trials < 1:
            raise ConfigError(f"--trials is {self.trials}; expected at least 1")
        check_space(self.space, self.base)
        if self.sampler == "grid":
            cells(self.space)
        swept = self.swept(MEASURE)
        if self.sampler == "tpe" and swept:
            raise ConfigError(
                f"--sampler tpe looks for the least val_loss, and {swept} changes what val_loss "
                "is made of: it would find the value that makes the number small, not the model "
                "good; take --sampler grid or random, or one sweep for each value"
            )

    def swept(self, names: frozenset[str]) -> str:
        """Return those of some options that are swept, as a text."""
        return ", ".join(d.name for d in self.space if d.name in names)

    def unprunable(self) -> str:
        """Return why trials cannot be compared on their way, nothing where they can."""
        if self.pruner == "none":
            return ""
        measure, length = self.swept(MEASURE), self.swept(LENGTH)
        if measure:
            return f"no trial is pruned: {measure} is swept, so that losses cannot be compared"
        if length:
            return f"no trial is pruned: {length} is swept, so that steps cannot be compared"
        return ""


def parse_over(text: str) -> Dimension:
    """Return what NAME=VALUES asks for.

    Values have commas between; of options whose values are texts that may have commas themselves,
    such as scale_weights, slashes. LOW..HIGH is a range of numbers, LOW..HIGH:log an even one in
    logarithms.

    Raises:
        ConfigError: no such option, none that can be swept, or no values.
    """
    name, values = _split(text, "--over", "gamma=0.001,0.003")
    _check_name(name)
    if not values.strip():
        raise ConfigError(f"--over {text}: no values; expected some, such as gamma=0.001,0.003")
    default = OPTIONS[name].default
    if ".." in values and isinstance(default, int | float) and not isinstance(default, bool):
        return _range(name, values)
    parts = [part.strip() for part in values.split(_separator(name))]
    if not all(parts):
        raise ConfigError(f"--over {text}: an empty value; expected something on both sides of "
                          f"{_separator(name)!r}")  # fmt: skip
    found = tuple(_converted(name, part) for part in parts)
    if len(set(found)) < len(found):
        raise ConfigError(f"--over {text}: a value comes twice; name each once")
    return Dimension(name=name, values=found)


def parse_set(text: str) -> tuple[str, Any]:
    """Return the name and the value that NAME=VALUE gives an option.

    Raises:
        ConfigError: no such option, or nothing is given.
    """
    name, value = _split(text, "--set", "steps=20000")
    if isinstance(OPTIONS[name].default, tuple):
        return name, tuple(part.strip() for part in value.split(","))
    return name, _converted(name, value.strip())


def check_space(space: Sequence[Dimension], base: TrainConfig) -> None:
    """Try all values, as the options of a run.

    Raises:
        ConfigError: a value that cannot work, alone or beside others, or an option that changes
            nothing in any trial; the message says which.
    """
    names = [dimension.name for dimension in space]
    if not names:
        raise ConfigError("nothing to sweep; expected --over NAME=VALUES, or a --preset")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--over {twice[0]} is given twice; put all of its values into one")
    for values in _combinations(space):
        try:
            base.updated(values)
        except ConfigError as error:
            raise ConfigError(f"--over {told(values)}: {error}") from None
    check_needs(names, base, {d.name: d.tried() for d in space})


def cells(space: Sequence[Dimension]) -> list[Values]:
    """Return all combinations of values, the last option's changing fastest.

    Lambda and its like change slowest: a setting that fails at each would end a sweep as a fault
    of all trials does.

    Raises:
        ConfigError: a range has no end of them, or there are too many.
    """
    ranges = [dimension.name for dimension in space if dimension.is_range]
    if ranges:
        raise ConfigError(
            f"--over {ranges[0]} is a range, and --sampler grid wants values one by one; list "
            "them with commas, or take --sampler random or tpe"
        )
    count = math.prod(len(dimension.values) for dimension in space)
    if count > MOST_CELLS:
        raise ConfigError(
            f"the grid has {count} cells; expected at most {MOST_CELLS}, so take --sampler random"
        )
    ordered = sorted(space, key=lambda dimension: dimension.name not in MEASURE)
    return list(_product(ordered, [dimension.values for dimension in ordered]))


def told(values: Mapping[str, Any]) -> str:
    """Return options and values as a text, such as "gamma 0.003, w_lr 0.025"."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def shown(value: Value) -> str:
    """Return a value for people: of a sampled number, four digits."""
    return f"{value:.4g}" if isinstance(value, float) else _spelt(value)


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals:
        raise ConfigError(f"{option} is {text!r}; expected NAME=VALUE, such as {example}")
    if name not in OPTIONS:
        close = difflib.get_close_matches(name, OPTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else "'lic train hpcm --help' lists them"
        raise ConfigError(f"{option} {text}: no option is called {name!r}; {hint}")
    return name, values


def _check_name(name: str) -> None:
    """Refuse options that a sweep cannot go over."""
    if isinstance(OPTIONS[name].default, tuple):
        reason = "its value is a list"
    elif name in _PICTURES:
        reason = "trials on other pictures cannot be compared"
    elif name in _NO_TRAINING:
        reason = "it changes nothing of the training"
    else:
        return
    raise ConfigError(
        f"--over {name}: {reason}; give it one value with --set, and sweep other options"
    )


def _separator(name: str) -> str:
    item = OPTIONS[name]
    return "/" if isinstance(item.default, str) and not item.metadata["choices"] else ","


def _converted(name: str, text: str) -> Value:
    """Return a text as the option's kind of value; what is none stays text, and is refused later.

    The option's section knows best what it expected instead.
    """
    default = OPTIONS[name].default
    if isinstance(default, bool):
        return _WORDS.get(text.lower(), text)
    kind = type(default) if isinstance(default, int | float) else str
    try:
        return kind(text)
    except ValueError:
        return text


def _spelt(value: Value) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _range(name: str, text: str) -> Dimension:
    item: Field[Any] = OPTIONS[name]
    ends, colon, scale = text.partition(":")
    low, high = (_converted(name, part.strip()) for part in ends.split("..", 1))
    numeric = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
    if not numeric or (colon and scale.strip() != "log"):
        raise ConfigError(
            f"--over {name}={text}; expected LOW..HIGH or LOW..HIGH:log with two "
            f"{'whole ' * isinstance(item.default, int)}numbers"
        )
    assert not isinstance(low, str) and not isinstance(high, str)
    if low >= high:
        raise ConfigError(f"--over {name}={text} is empty; expected the lower end first")
    if colon and low <= 0:
        raise ConfigError(f"--over {name}={text}; expected a lower end above 0 with :log")
    if item.metadata["multiple"] > 1:
        raise ConfigError(
            f"--over {name}={text}: {option_name(name)} has to be a multiple of "
            f"{item.metadata['multiple']}; list its values with commas"
        )
    return Dimension(name=name, values=(low, high), is_range=True, log=bool(colon))


def _combinations(space: Sequence[Dimension]) -> Iterator[Values]:
    """Yield what is tried: everything beside everything, where that is no endless work."""
    tried = [dimension.tried() for dimension in space]
    if math.prod(map(len, tried)) <= MOST_CELLS:
        yield from _product(space, tried)
        return
    first = {dimension.name: values[0] for dimension, values in zip(space, tried, strict=True)}
    for dimension, values in zip(space, tried, strict=True):
        for value in values:
            yield {**first, dimension.name: value}


def _product(space: Sequence[Dimension], values: Sequence[Sequence[Value]]) -> Iterator[Values]:
    for cell in itertools.product(*values):
        yield {dimension.name: value for dimension, value in zip(space, cell, strict=True)}
