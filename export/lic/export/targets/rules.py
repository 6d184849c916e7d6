"""Written rules: for every target one file that says which operators its NPU runs, and whence.

    title = "..."            for people
    sizes = "fixed"          or "free": whether one compiled graph serves every size
    precision = "int8"       what the rules are about; "float" for targets that take floats
    opset = [12, 19]         optional: first and last that the target's compiler reads
    toolkit = "rknn"         optional: which compiler can be asked, see `compilers`

    [[rule]]
    operator = "Conv"        or a list of them
    where = { kernel = 5 }   facts of `operators.FACTS`: a value, a list, or { min = 1, max = 5 }
    placement = "npu"        or "cpu" or "fails"
    reason = "..."
    cure = "..."             what to do about it; for cpu and fails
    known = "measured: ..."  or "document: ..."

The first rule that fits decides. An operator that none fits has no rule, and counts as unknown.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast

from lic.codec.errors import ConfigError
from lic.export.targets.operators import FACTS, Fact, Operator, Reading

Placement = Literal["npu", "cpu", "fails", "unknown"]
PLACEMENTS = ("npu", "cpu", "fails")
TARGETS = (
    "generic-int8",
    "hexagon-htp",
    "rk3588",
    "ethos-u55",
    "ethos-u65",
    "ethos-u85",
    "openvino",
    "tensorrt",
)
TOOLKITS = ("qnn", "rknn", "vela")
_NEEDED = {"title", "sizes", "precision", "rule"}
_HEAD = _NEEDED | {"opset", "toolkit"}
_RULE = {"operator", "where", "placement", "reason", "cure", "known"}
_KNOWN = ("measured: ", "document: ")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A condition on a number; an end that is None is open."""

    low: float | None = None
    high: float | None = None

    def fits(self, value: Fact) -> bool:
        """Return whether a fact is a number within."""
        if isinstance(value, bool | str):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a file."""

    operators: frozenset[str]
    where: Mapping[str, Range | tuple[Fact, ...]]
    placement: Placement
    reason: str
    cure: str = ""
    known: str

    def fits(self, operator: Operator) -> bool:
        """Return whether the rule is about an operator; an unknown fact fits no condition."""
        return operator.type in self.operators and all(
            name in operator.facts and _fits(condition, operator.facts[name])
            for name, condition in self.where.items()
        )


# What an operator without a rule gets.
NO_RULE = Rule(
    operators=frozenset(),
    where={},
    placement="unknown",
    reason="no rule for this operator",
    known="",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a whole graph.

    Attributes:
        level: "fails" where the graph cannot be compiled as it is, else "note".
    """

    level: Literal["fails", "note"]
    reason: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target's file."""

    name: str
    title: str
    sizes: Literal["fixed", "free"]
    precision: Literal["int8", "float"]
    rules: tuple[Rule, ...]
    opset: tuple[int, int] | None = None
    toolkit: str | None = None

    def rule_for(self, operator: Operator) -> Rule:
        """Return the first rule that fits, NO_RULE where none does."""
        return next((rule for rule in self.rules if rule.fits(operator)), NO_RULE)

    def findings(self, reading: Reading) -> list[Finding]:
        """Return what is to say about a graph as a whole."""
        found = []
        if self.sizes == "fixed" and reading.free:
            inputs = ", ".join(f"{name}: {shape}" for name, shape in reading.free.items())
            found.append(
                Finding(
                    level="fails",
                    reason=f"the size is free ({inputs}), and {self.name} compiles one size",
                    cure="--input-size, one file for each; below: at a fixed size",
                )
            )
        if self.opset and not self.opset[0] <= reading.opset <= self.opset[1]:
            first, last = self.opset
            found.append(
                Finding(
                    level="fails",
                    reason=f"opset {reading.opset}; {self.name} reads {first} to {last}",
                    cure=f"--opset {last}",
                )
            )
        if self.precision == "int8" and not reading.quantised:
            found.append(
                Finding(
                    level="note",
                    reason=f"a graph of floats, and {self.name} computes in int8",
                    cure="quantise it; below: after that",
                )
            )
        return found


def load(name: str) -> Target:
    """Return a target's rules.

    Raises:
        ConfigError: there is no such target, or its file is not as it must be.
    """
    if name not in TARGETS:
        raise ConfigError(f"no target {name!r}; expected one of {', '.join(TARGETS)}")
    text = resources.files("lic.export.targets").joinpath("rules", f"{name}.toml").read_text()
    return parse(name, text)


def parse(name: str, text: str) -> Target:
    """Return the target that a file's text describes; errors as `load`, which name the rule."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"rules of {name}: {error}") from None
    _check_keys(f"rules of {name}", values, _NEEDED, _HEAD)
    _check_choice(f"rules of {name}: sizes", values["sizes"], ("fixed", "free"))
    _check_choice(f"rules of {name}: precision", values["precision"], ("int8", "float"))
    if "toolkit" in values:
        _check_choice(f"rules of {name}: toolkit", values["toolkit"], TOOLKITS)
    opset = values.get("opset")
    if opset is not None and not (
        isinstance(opset, list) and len(opset) == 2 and all(type(o) is int for o in opset)
    ):
        raise ConfigError(f"rules of {name}: opset is {opset!r}; expected [first, last]")
    return Target(
        name=name,
        title=values["title"],
        sizes=values["sizes"],
        precision=values["precision"],
        rules=tuple(
            _rule(f"rules of {name}, rule {number}", entry)
            for number, entry in enumerate(values["rule"], 1)
        ),
        opset=cast(Any, tuple(opset) if opset else None),
        toolkit=values.get("toolkit"),
    )


def _rule(where: str, entry: Mapping[str, Any]) -> Rule:
    _check_keys(where, entry, {"operator", "placement", "reason", "known"}, _RULE)
    _check_choice(f"{where}: placement", entry["placement"], PLACEMENTS)
    operators = entry["operator"]
    operators = [operators] if isinstance(operators, str) else operators
    for key in ("reason", "known", "cure"):
        if not isinstance(entry.get(key, ""), str):
            raise ConfigError(f"{where}: {key} is {entry[key]!r}; expected text")
    if not entry["known"].startswith(_KNOWN):
        raise ConfigError(
            f"{where}: known is {entry['known']!r}; expected 'measured: ...' or 'document: ...'"
        )
    if not entry["reason"] or (entry["placement"] != "npu" and not entry.get("cure")):
        raise ConfigError(f"{where}: {'/'.join(operators)} has no reason, or no cure")
    return Rule(
        operators=frozenset(operators),
        where={name: _condition(where, name, c) for name, c in entry.get("where", {}).items()},
        placement=entry["placement"],
        reason=entry["reason"],
        cure=entry.get("cure", ""),
        known=entry["known"],
    )


def _condition(where: str, name: str, value: Any) -> Range | tuple[Fact, ...]:
    if name not in FACTS:
        raise ConfigError(f"{where}: no fact {name!r}; there are {', '.join(sorted(FACTS))}")
    if isinstance(value, dict):
        numbers = all(type(v) in (int, float) for v in value.values())
        if not value or not value.keys() <= {"min", "max"} or not numbers:
            raise ConfigError(f"{where}: {name} is {value!r}; expected numbers min, max or both")
        return Range(low=value.get("min"), high=value.get("max"))
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, int | float | str) for v in values):
        raise ConfigError(f"{where}: {name} is {value!r}; expected a value or a list of values")
    return tuple(values)


def _fits(condition: Range | tuple[Fact, ...], value: Fact) -> bool:
    if isinstance(condition, Range):
        return condition.fits(value)
    # 1 and true are equal in Python, and different answers here.
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in condition)


def _check_keys(
    where: str, values: Mapping[str, Any], needed: Iterable[str], known: Iterable[str]
) -> None:
    missing, extra = set(needed) - values.keys(), values.keys() - set(known)
    if missing or extra:
        raise ConfigError(
            f"{where}: missing {', '.join(sorted(missing)) or 'nothing'}, unknown "
            f"{', '.join(sorted(extra)) or 'nothing'}"
        )


def _check_choice(where: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(choices)}")
