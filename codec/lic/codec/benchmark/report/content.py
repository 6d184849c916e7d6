"""What a report shows: files of results, joined by data set."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from lic.codec.benchmark.quality import METRICS, Metric, points_of
from lic.codec.benchmark.schema import (
    Curve,
    Dataset,
    Machine,
    RdResults,
    Results,
    SpeedRun,
)
from lic.codec.errors import ConfigError

# What was published for a data set; nothing for sets that are not the known ones.
Anchors = Callable[[Dataset], Sequence[Curve]]
# Published curves that are drawn unless others are named; the page offers all of them.
USUAL_ANCHORS = (
    "VVC VTM",
    "HPCM-Base (MSE, published)",
    "BPG 4:4:4 (x265)",
    "AVIF/AV1",
    "bmshj2018-factorized (CompressAI, MSE)",
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A data set and everything known about it.

    Attributes:
        label: the data set's name, unique in a report.
        dataset: its pictures.
        curves: measured ones first, lic before others, then published ones.
        anchors: systems that the others are compared with.
    """

    label: str
    dataset: Dataset
    curves: tuple[Curve, ...]
    anchors: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Curve, ...]:
        """Curves that were not published elsewhere."""
        return tuple(curve for curve in self.curves if curve.kind != "published")

    @property
    def shown(self) -> tuple[Curve, ...]:
        """Measured curves, then published ones that were chosen, as they were chosen."""
        published = {c.system: c for c in self.curves if c.kind == "published"}
        return (*self.measured, *(published[name] for name in self.anchors if name in published))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that a measured curve has; of any curve, where none was measured."""
        curves = self.measured or self.curves
        return tuple(m for m in METRICS if any(points_of(c, m) for c in curves))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of results: what it is called, where it was measured, how to do it again."""

    name: str
    kind: str
    command: str
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything of a report.

    Attributes:
        sections: by data set.
        runs: of speed; each with the number of its source.
        sources: files, in order.
    """

    sections: tuple[Section, ...]
    runs: tuple[tuple[int, SpeedRun], ...]
    sources: tuple[Source, ...]


def curve_of(section: Section, run: SpeedRun) -> Curve | None:
    """Return the measured curve of what was timed, None where there is none.

    It is that of the same model. Where rates were measured on several engines, their curves bear
    the engines' names, and a run belongs to its own.
    """

    def suits(curve: Curve) -> bool:
        fingerprints = curve.details.get("fingerprints")
        model = fingerprints.get(run.setting) if isinstance(fingerprints, dict) else None
        if model and run.fingerprint:
            return bool(model == run.fingerprint)
        return curve.system in (run.system, f"{run.system} ({run.backend})")

    found = [curve for curve in section.measured if suits(curve)]
    found.sort(key=lambda curve: curve.details.get("backend") != run.backend)
    return found[0] if found else None


def gather(
    files: Mapping[str, Results], anchors: Anchors, chosen: Sequence[str] | None = None
) -> Content:
    """Join files of results, by their names.

    Args:
        files: what was read.
        anchors: finds published curves.
        chosen: systems to compare with; None takes classic codecs and the usual published ones.

    Raises:
        ConfigError: a chosen system is in no file, nor published for any of the data sets.
    """
    if not files:
        raise ConfigError("no results; name files that lic bench rd or lic bench speed wrote")
    sources, runs = [], []
    for number, (name, results) in enumerate(files.items()):
        kind = "rd" if isinstance(results, RdResults) else "speed"
        sources.append(
            Source(name=name, kind=kind, command=results.command, machine=results.machine)
        )
        if not isinstance(results, RdResults):
            runs += [(number, run) for run in results.runs]
    rd = {name: found for name, found in files.items() if isinstance(found, RdResults)}
    sections = _labelled(_sections(rd, anchors))
    _check_chosen(sections, chosen)
    sections = [replace(s, anchors=_anchors(s, chosen)) for s in sections]
    return Content(sections=tuple(sections), runs=tuple(runs), sources=tuple(sources))


def _sections(files: Mapping[str, RdResults], anchors: Anchors) -> Iterable[Section]:
    """Yield a section for each set of pictures; files of the same pictures share theirs."""
    groups: dict[tuple[str, ...], list[tuple[str, RdResults]]] = {}
    for name, results in files.items():
        groups.setdefault(_key(results.dataset, files.values()), []).append((name, results))
    order = {"lic": 0, "classic": 1, "published": 2}
    for group in groups.values():
        dataset = next((r.dataset for _, r in group if r.dataset.pictures), group[0][1].dataset)
        measured = list(_distinct(group))
        curves = [*measured, *_told_apart(anchors(dataset), {c.system for c in measured})]
        curves.sort(key=lambda curve: order[curve.kind])
        given = tuple(curve.system for curve in measured if curve.kind == "published")
        # What a user imported is meant to be seen.
        yield Section(label=dataset.name, dataset=dataset, curves=tuple(curves), anchors=given)


def _key(dataset: Dataset, others: Iterable[RdResults]) -> tuple[str, ...]:
    """Return what data sets of one section share: their pictures.

    Imported results have none: they belong to the known set of that name, if it is there.
    """
    if dataset.pictures:
        return tuple(picture.sha256 for picture in dataset.pictures)
    name = dataset.name.casefold()
    known = (r.dataset for r in others if r.dataset.known and r.dataset.name.casefold() == name)
    found = next((each for each in known if each.pictures), None)
    return (name,) if found is None else tuple(picture.sha256 for picture in found.pictures)


def _distinct(group: Iterable[tuple[str, RdResults]]) -> Iterable[Curve]:
    """Yield curves once; another of the same name also gets that of its file."""
    seen: dict[str, Curve] = {}
    for name, results in group:
        for curve in results.curves:
            if seen.get(curve.system) == curve:
                continue
            if curve.system in seen:
                curve = replace(curve, system=f"{curve.system} ({PurePath(name).stem})")
            seen[curve.system] = curve
            yield curve


def _told_apart(curves: Iterable[Curve], taken: Collection[str]) -> Iterable[Curve]:
    """Yield published curves; one that is called as a measured one is says so in its name."""
    for curve in curves:
        clash = curve.system in taken
        yield replace(curve, system=f"{curve.system} (published)") if clash else curve


def _labelled(sections: Iterable[Section]) -> list[Section]:
    found = list(sections)
    names = [section.label for section in found]
    counted = [
        replace(s, label=f"{s.label}, {_counted(len(s.dataset.pictures))}")
        if names.count(s.label) > 1
        else s
        for s in found
    ]
    labels = [section.label for section in counted]
    return [
        replace(s, label=f"{s.label} ({i + 1})") if labels.count(s.label) > 1 else s
        for i, s in enumerate(counted)
    ]


def _counted(pictures: int) -> str:
    return f"{pictures} picture{'' if pictures == 1 else 's'}"


def _check_chosen(sections: Sequence[Section], chosen: Sequence[str] | None) -> None:
    known = list(dict.fromkeys(c.system for section in sections for c in section.curves))
    for name in chosen or ():
        if name not in known:
            raise ConfigError(
                f"--anchor {name}: neither measured nor published for these pictures; there are "
                f"{', '.join(known) or 'no curves'} (published curves are means over a whole known "
                "set, so a part of one has none)"
            )


def _anchors(section: Section, chosen: Sequence[str] | None) -> tuple[str, ...]:
    names = [curve.system for curve in section.curves]
    if chosen is not None:
        return tuple(name for name in dict.fromkeys(chosen) if name in names)
    classic = [curve.system for curve in section.curves if curve.kind == "classic"]
    usual = [name for name in USUAL_ANCHORS if name in names]
    return tuple(dict.fromkeys([*classic, *section.anchors, *usual]))
