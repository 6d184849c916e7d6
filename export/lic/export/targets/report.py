"""The verdict on one graph and one target: by the rules, and by real compilers beside them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lic.export.targets.operators import Operator, Part, read
from lic.export.targets.rules import Finding, Placement, Rule, Target
from lic.export.targets.source import Graph

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

ORDER: tuple[Placement, ...] = ("npu", "cpu", "fails", "unknown")
SHOWN: dict[Placement, str] = {"npu": "NPU", "cpu": "CPU", "fails": "fails", "unknown": "no rule"}
_STYLES: dict[Placement, str] = {"npu": "green", "cpu": "yellow", "fails": "red", "unknown": "red"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operator and the rule that decided about it."""

    operator: Operator
    rule: Rule

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "index": self.operator.index,
            "name": self.operator.name,
            "operator": self.operator.type,
            "part": self.operator.part,
            "shapes": self.operator.shapes,
            "facts": dict(self.operator.facts),
            "placement": self.rule.placement,
            "reason": self.rule.reason,
            "cure": self.rule.cure,
            "known": self.rule.known,
        }


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a real compiler says about the network of a graph, whose ends are left outside.

    Attributes:
        toolkit: name and version.
        configuration: what it compiled for, such as ethos-u55-256 or fp16.
        operators: dictionaries with operator, name, placement (npu or cpu), reason, and where the
            toolkit tells, estimated cycles.
        estimates: cycles, milliseconds, KiB of memory: the toolkit's own, nothing was run.
        error: why nothing was compiled, else None.
    """

    toolkit: str
    configuration: str
    operators: tuple[Mapping[str, Any], ...] = ()
    estimates: Mapping[str, Any] | None = None
    error: str | None = None

    def count(self, placement: str) -> int:
        """Return the number of operators in one place."""
        return sum(operator["placement"] == placement for operator in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "toolkit": self.toolkit,
            "configuration": self.configuration,
            "totals": {place: self.count(place) for place in ("npu", "cpu")},
            "operators": [dict(operator) for operator in self.operators],
            "estimates": dict(self.estimates) if self.estimates else None,
            "error": self.error,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """One graph on one target.

    Attributes:
        source: the bundle's label or the file's path.
        graph: encoder, decoder, or a file's name.
        folded: nodes that are computed beforehand, such as conversions of weights.
        marks: quantise and dequantise nodes, which are no operators of their own.
        compiled: one for every configuration that a compiler was asked about.
        unasked: why no compiler was asked, where one was wanted.
    """

    source: str
    graph: str
    target: Target
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    folded: int
    marks: int
    compiled: tuple[Compiled, ...] = ()
    unasked: str = ""

    def count(self, placement: Placement, part: Part) -> int:
        """Return the number of operators of a part in one place."""
        return sum(r.rule.placement == placement and r.operator.part == part for r in self.rows)

    @property
    def totals(self) -> dict[Part, dict[Placement, int]]:
        """The number of operators by part and place."""
        parts: tuple[Part, ...] = ("network", "ends")
        return {part: {place: self.count(place, part) for place in ORDER} for part in parts}

    def differs(self, compiled: Compiled) -> str:
        """Return in what a compiler contradicts the rules, nothing where it does not."""
        fails = self.count("fails", "network")
        if compiled.error is not None:
            return "" if fails else "the rules expect no failure"
        if fails:
            return f"the rules expect {fails} operators to fail"
        ours = Counter(r.operator.type for r in self.rows
                       if r.rule.placement == "cpu" and r.operator.part == "network")  # fmt: skip
        theirs = Counter(o["operator"] for o in compiled.operators if o["placement"] == "cpu")
        if ours == theirs:
            return ""
        return f"on the CPU by the rules: {_listed(ours)}; by the compiler: {_listed(theirs)}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "source": self.source,
            "graph": self.graph,
            "target": self.target.name,
            "title": self.target.title,
            "findings": [vars(finding) for finding in self.findings],
            "operators": [row.to_dict() for row in self.rows],
            "totals": {**self.totals, "folded": self.folded, "marks": self.marks},
            "compiled": [
                {**compiled.to_dict(), "differs": self.differs(compiled)}
                for compiled in self.compiled
            ],
            "unasked": self.unasked,
        }

    def render(self) -> "Group":
        """Return a table for people, equal operators in one row."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [
            Text(f"{self.source}, {self.graph} on {self.target.name}: {self.target.title}", "bold")
        ]
        for finding in self.findings:
            style = "red" if finding.level == "fails" else ""
            parts.append(Text(f"{finding.level}: {finding.reason}; {finding.cure}", style))
        parts += [self._table(), Text(self._summary())]
        parts += [Text(line) for line in map(self._compiled_line, self.compiled)]
        if self.unasked:
            parts.append(Text(self.unasked))
        return Group(*parts, Text(""))

    def _table(self) -> "Table":
        from rich.table import Column, Table
        from rich.text import Text

        reason = Column("reason", overflow="fold")
        table = Table("operator", Column("n", justify="right"), "part", "runs on", reason, box=None)
        groups = Counter((r.operator.label, r.operator.part, r.rule.placement,
                          _said(r.rule)) for r in self.rows)  # fmt: skip
        for (label, part, placement, said), number in groups.items():
            place = Text(SHOWN[placement], _STYLES[placement])
            table.add_row(Text(label), str(number), part, place, Text(said))
        return table

    def _summary(self) -> str:
        said = []
        for part, totals in self.totals.items():
            if sum(totals.values()):
                counts = [f"{totals[p]} {SHOWN[p]}" for p in ORDER if totals[p] or p in ORDER[:2]]
                said.append(f"{part}: {', '.join(counts)}")
        if self.folded:
            said.append(f"{self.folded} computed beforehand, such as weights in half precision")
        return "; ".join(said)

    def _compiled_line(self, compiled: Compiled) -> str:
        head = f"{compiled.toolkit}, {compiled.configuration}: "
        if compiled.error is not None:
            line = head + f"fails ({compiled.error})"
        else:
            line = head + f"{compiled.count('npu')} NPU, {compiled.count('cpu')} CPU"
            if compiled.estimates:
                line += f"; estimates: {_estimates(compiled.estimates)}"
        differs = self.differs(compiled)
        return f"{line}; differs: {differs}" if differs else line


def check(graph: Graph, target: Target) -> Report:
    """Return what the rules say about a graph."""
    reading = read(graph.model)
    return Report(
        source=graph.source,
        graph=graph.name,
        target=target,
        findings=tuple(target.findings(reading)),
        rows=tuple(Row(operator=o, rule=target.rule_for(o)) for o in reading.operators),
        folded=reading.folded,
        marks=reading.marks,
    )


def _said(rule: Rule) -> str:
    return f"{rule.reason} -> {rule.cure}" if rule.cure else rule.reason


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "nothing"


def _estimates(values: Mapping[str, Any]) -> str:
    said = []
    if "milliseconds" in values:
        said.append(f"{values['milliseconds']:.1f} ms at {values['clock_mhz']:g} MHz")
    if "cycles" in values:
        said.append(f"{values['cycles']:,} cycles")
    said += [f"{kib:g} KiB {area.replace('_', ' ')}" for area, kib in values["kib"].items()]
    return ", ".join(said)
