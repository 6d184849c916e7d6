"""What sections of options are made of: plain values, each with its help and its bounds."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from lic.codec.errors import ConfigError

# Of another option: one of some values, or whether it is on, set or above 0.
Need = bool | tuple[str, ...]


def option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    multiple: int = 1,
    short: str = "",
    count: tuple[int, ...] = (),
    needs: Mapping[str, Need] | None = None,
) -> Any:
    """Return a dataclass field that knows its help text and which values can work.

    `count` is for texts of numbers with commas between: how many there may be, each within the
    bounds. `needs` says beside which other options, by name, it means something at all.
    """
    metadata = {
        "help": help_text, "choices": choices, "above": above, "least": least, "most": most,
        "below": below, "multiple": multiple, "short": short,
        "count": count, "needs": dict(needs or {}),
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a text such as "0.3,0.4,0.3"; of an empty one, none.

    Raises:
        ValueError: something else stands there.
    """
    return tuple(float(part) for part in text.split(",")) if text else ()


def option_name(name: str) -> str:
    """Return how a field is spelt on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Options that belong together; names are unique over all sections.

    Raises:
        ConfigError: a value that cannot work; the message names the option.
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            # TOML and JSON have lists where a frozen value wants a tuple.
            if isinstance(item.default, tuple) and isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
            _check(item, getattr(self, item.name))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON and TOML values."""
        pairs = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}


def _check(item: "Field[Any]", value: Any) -> None:
    expected = _expected(item, value)
    if expected:
        raise ConfigError(f"{option_name(item.name)} is {value!r}; expected {expected}")


def _expected(item: "Field[Any]", value: Any) -> str:
    """Return what was expected in place of `value`, nothing where it is fine."""
    default, facts = item.default, item.metadata
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, tuple):
        texts = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
        return "" if texts else "texts"
    if isinstance(default, str):
        choices = facts["choices"]
        if not isinstance(value, str) or (choices and value not in choices):
            return f"one of {', '.join(choices)}" if choices else "text"
        return _unlike_numbers(facts, value) if facts["count"] else ""
    if isinstance(default, int):
        if type(value) is not int:
            return "a whole number"
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "a finite number"
    return _out_of_bounds(facts, value)


def _unlike_numbers(facts: Mapping[str, Any], text: str) -> str:
    """Return what was expected in place of a text that is not the numbers it should be."""
    counts = " or ".join(map(str, facts["count"]))
    try:
        values = numbers(text)
    except ValueError:
        values = (math.nan,)
    if len(values) not in facts["count"] or not all(map(math.isfinite, values)):
        return f"{counts} numbers with commas between"
    wrong = [_out_of_bounds(facts, value) for value in values if _out_of_bounds(facts, value)]
    return f"each of them {wrong[0]}" if wrong else ""


def _out_of_bounds(facts: Mapping[str, Any], value: float) -> str:
    bounds = [(word, facts[key], holds) for key, word, holds in _BOUNDS if facts[key] is not None]
    divides = facts["multiple"] == 1 or value % facts["multiple"] == 0
    if divides and all(holds(value, b) for _, b, holds in bounds):
        return ""
    kind = f"a multiple of {facts['multiple']}" if facts["multiple"] > 1 else "a number"
    return " ".join([kind, " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds)])


_BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("above", "above", operator.gt),
    ("least", "at least", operator.ge),
    ("below", "below", operator.lt),
    ("most", "at most", operator.le),
)
