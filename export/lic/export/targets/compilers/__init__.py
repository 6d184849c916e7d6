"""Real compilers, each asked once about a graph for all of its targets."""

from collections.abc import Iterable
from dataclasses import replace

from lic.codec.errors import ExportError
from lic.export.targets.compilers.arm import VELA
from lic.export.targets.compilers.qualcomm import QNN
from lic.export.targets.compilers.rockchip import RKNN
from lic.export.targets.compilers.toolkit import TIME_LIMIT, Toolkit
from lic.export.targets.operators import without_ends
from lic.export.targets.report import Compiled, Report
from lic.export.targets.source import DEFAULT_SIZE, Graph, complete, input_names

TOOLKITS: dict[str, Toolkit] = {"qnn": QNN, "rknn": RKNN, "vela": VELA}


def compile_reports(
    graph: Graph,
    reports: Iterable[Report],
    *,
    size: tuple[int, int] = DEFAULT_SIZE,
    time_limit: float = TIME_LIMIT,
) -> list[Report]:
    """Return reports on one graph with what the compilers say that are installed.

    They get the network without the graph's ends, for pictures of one size (H, W). Of several
    inputs a picture's size does not tell the sizes, so such graphs are left out.

    Raises:
        ConfigError: an environment variable names a Python that does not exist.
        ExportError: the graph is not complete, or not valid at this size.
    """
    reports = list(reports)
    inputs = len(input_names(graph.model))
    if inputs != 1:
        return _left_out(reports, inputs)
    names = {r.target.toolkit for r in reports if r.target.toolkit}
    found = {name: TOOLKITS[name].find() for name in sorted(names)}
    network = without_ends(complete(graph, size)) if any(found.values()) else None
    if network is not None and len(network.graph.input) != 1:
        return _left_out(reports, len(network.graph.input))
    answers: dict[str, dict[str, Compiled]] = {}
    for name, python in found.items():
        toolkit = TOOLKITS[name]
        wanted = [c for r in reports for c in toolkit.configurations.get(r.target.name, ())]
        if python is None or network is None:
            continue
        try:
            prepared = toolkit.prepare(network)
        except ExportError as error:
            answers[name] = {
                c: Compiled(toolkit=toolkit.package, configuration=c, error=str(error))
                for c in wanted
            }
        else:
            answers[name] = toolkit.ask(python, prepared, wanted, time_limit=time_limit)
    return [_with(report, answers) for report in reports]


def _left_out(reports: list[Report], inputs: int) -> list[Report]:
    why = f"no compiler was asked: it has {inputs} inputs, and compilers get graphs of one"
    return [replace(report, unasked=why) for report in reports]


def _with(report: Report, answers: dict[str, dict[str, Compiled]]) -> Report:
    name = report.target.toolkit
    if name is None:
        return replace(report, unasked=f"no compiler for {report.target.name} can be asked here")
    if name not in answers:
        return replace(report, unasked=TOOLKITS[name].missing())
    wanted = TOOLKITS[name].configurations[report.target.name]
    return replace(report, compiled=tuple(answers[name][c] for c in wanted))
