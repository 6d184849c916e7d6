"""Ask real compilers about the embedded models, and fail where they contradict the rules.

    python -m tests.npu.check [FOLDER]

Prints a table for every model, graph and target; FOLDER gets the same as one JSON file a model.
Fails, too, where an operator of an encoder stays on the CPU: these models are there to avoid that.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from lic.codec.library import select
from lic.export.targets.compilers import TOOLKITS, compile_reports
from lic.export.targets.report import Report, check
from lic.export.targets.rules import TARGETS, load
from lic.export.targets.source import of_bundle

MODELS = ("bmshj2018-factorized-relu-lite", "bmshj2018-factorized-relu-128-192")


def reports(model: str) -> list[Report]:
    """Return what rules and compilers say of both graphs, for targets with a compiler here."""
    targets = [load(name) for name in TARGETS]
    asked = [t for t in targets if t.toolkit and TOOLKITS[t.toolkit].find()]
    done = []
    for graph in of_bundle(select(model)):
        done += compile_reports(graph, [check(graph, target) for target in asked])
    return done


def faults(report: Report) -> list[str]:
    """Return in what a report is not as it should be."""
    name = f"{report.source}, {report.graph} on {report.target.name}"
    found = []
    for compiled in report.compiled:
        differs = report.differs(compiled)
        if differs:
            found.append(f"{name}, {compiled.configuration}: {differs} ({compiled.error})")
        if report.graph == "encoder" and (compiled.error or compiled.count("cpu")):
            found.append(f"{name}, {compiled.configuration}: operators on the CPU")
    return found


def main() -> int:
    """Print the tables and return the exit code."""
    console = Console(width=120, highlight=False)
    found: list[str] = []
    asked = 0
    for model in MODELS:
        done = reports(model)
        for report in done:
            console.print(report.render())
            found += faults(report)
            asked += len(report.compiled)
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps([report.to_dict() for report in done], indent=1)
            (folder / f"{model}.json").write_text(text)
    for fault in found:
        console.print(f"[red]{fault}")
    console.print(f"{asked} compilations, {len(found)} faults")
    return 1 if found or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
