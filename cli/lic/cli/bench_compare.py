"""lic bench compare, import and export: curves against each other, and in others' formats."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.measuring import number
from lic.cli.outputs import check_target, write_output
from lic.codec.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from lic.codec.benchmark.comparison import Comparison
    from lic.codec.benchmark.schema import Curve, Dataset, RdResults

PUBLISHED = "published"
_SIDE = "FILE[:SYSTEM]"


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one argument stands for: curves, and the data set that they are of."""

    told: str
    curves: tuple["Curve", ...]
    dataset: "Dataset"


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar=f"{_SIDE} {_SIDE}...",
            help="Results of 'lic bench rd', the reference first; or published:NAME.",
        ),
    ],
    anchor: Annotated[
        str | None,
        typer.Option(help="Published curve as the reference; 'lic bench anchors' lists them."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="psnr, psnr_y, ms_ssim, which is taken in dB, or lpips.")
    ] = "psnr",
    method: Annotated[
        str, typer.Option(help="How points are joined: pchip, akima or cubic.")
    ] = "pchip",
    dataset: Annotated[
        str,
        typer.Option(help="Whose published curves. Default: the data set of the results."),
    ] = "",
    as_json: options.AsJson = False,
) -> None:
    """Tell BD-rate and BD-quality of curves against a reference, and how far they overlap.

    A reference of several curves is taken by name: each is compared with those called the same.
    """
    from lic.codec.benchmark import comparison, quality
    from lic.codec.benchmark.bd_rate import METHODS, Method

    psnr, psnr_y, ms_ssim, lpips = quality.METRICS
    metrics = {"psnr": psnr, "psnr_y": psnr_y, "ms_ssim": ms_ssim, "lpips": lpips}
    for name, value, known in (("metric", metric, metrics), ("method", method, METHODS)):
        if value not in known:
            raise ConfigError(f"--{name} is {value!r}; expected {', '.join(known)}")
    out = Output(as_json=as_json)
    reference, tested = _sides(sides, anchor, dataset, out)
    pairs = _pairs(reference, tested)
    found = [comparison.compare(a, b, metrics[metric], cast(Method, method)) for a, b in pairs]
    for each in found:
        for text in each.left_out:
            out.note(f"note: left out {text}")
        if as_json:
            out.result({**asdict(each), "metric": metric, "method": method}, "")
    if not as_json:
        _print(found, metric, method, reference.dataset.name, out)
    if all(each.rate is None and each.quality is None for each in found):
        raise ConfigError(f"nothing could be compared: {found[0].reason}")


def _sides(
    texts: Sequence[str], anchor: str | None, dataset: str, out: Output
) -> tuple[Side, list[Side]]:
    """Return the reference and what is tested against it.

    Raises:
        ConfigError: too few of them, or they are of different pictures.
    """
    texts = [*([f"{PUBLISHED}:{anchor}"] if anchor else []), *texts]
    if len(texts) < 2:
        raise ConfigError(f"found {texts[0]}; expected a reference, or --anchor, and what to test")
    measured = [_measured(text) for text in texts if not _is_published(text)]
    names = {side.dataset.name for side in measured}
    if not dataset and len(measured) < len(texts):
        if len(names) != 1:
            raise ConfigError("--dataset is missing; name the one whose published curves are meant")
        (dataset,) = names
    elif dataset and measured and {dataset.casefold()} != {name.casefold() for name in names}:
        out.note(
            f"warning: {', '.join(sorted(names))} held against published curves of {dataset}: "
            "other pictures, so these are not comparable numbers"
        )
        measured = [_renamed(side, dataset) for side in measured]
    left = iter(measured)
    sides = [_published(text, dataset) if _is_published(text) else next(left) for text in texts]
    from lic.codec.benchmark.comparison import check_same_pictures

    for side in sides[1:]:
        check_same_pictures(sides[0].dataset, side.dataset)
    return sides[0], sides[1:]


def _is_published(text: str) -> bool:
    return text.startswith(f"{PUBLISHED}:")


def _renamed(side: Side, dataset: str) -> Side:
    from dataclasses import replace

    return replace(side, dataset=replace(side.dataset, name=dataset))


def _published(text: str, dataset: str) -> Side:
    from lic.codec.benchmark.anchors import published_curve
    from lic.codec.benchmark.schema import Dataset

    curve = published_curve(dataset, text.removeprefix(f"{PUBLISHED}:"))
    return Side(told=text, curves=(curve,), dataset=Dataset(name=dataset, known=True, pictures=()))


def _measured(text: str) -> Side:
    """Return the curves of FILE or FILE:SYSTEM; either may have colons of its own."""
    ends = [i for i, letter in enumerate(text) if letter == ":"]
    for end in (len(text), *reversed(ends)):
        path = Path(text[:end])
        if path.is_file():
            return _selected(text, path, text[end + 1 :])
    raise ImageError(f"{text}: no such file; expected {_SIDE} or {PUBLISHED}:NAME")


def _selected(text: str, path: Path, system: str) -> Side:
    results = read_rd(path)
    curves = results.curves
    if system:
        curves = tuple(c for c in curves if c.system.casefold() == system.casefold())
    if not curves:
        known = ", ".join(curve.system for curve in results.curves) or "none"
        raise ConfigError(f"{path} has no system {system!r}; it has {known}")
    return Side(told=text, curves=curves, dataset=results.dataset)


def read_rd(path: Path) -> "RdResults":
    """Read results of rate and distortion.

    Raises:
        ImageError: the file cannot be read.
        ConfigError: it is none of lic bench rd.
    """
    from lic.codec.benchmark.schema import RdResults

    return RdResults.from_bytes(_bytes(path), str(path))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None


def _pairs(reference: Side, tested: Sequence[Side]) -> list[tuple["Curve", "Curve"]]:
    """Return which curve is held against which.

    Raises:
        ConfigError: there are several references, and none is called like what is tested.
    """
    if len(reference.curves) == 1:
        only = reference.curves[0]
        curves = [curve for side in tested for curve in side.curves]
        # Against itself only where that is all that was asked for.
        return [(only, curve) for curve in curves if curve != only] or [(only, only)]
    by_name = {curve.system: curve for curve in reference.curves}
    pairs = [
        (by_name[curve.system], curve)
        for side in tested
        for curve in side.curves
        if curve.system in by_name
    ]
    if not pairs:
        raise ConfigError(
            f"{reference.told} has several systems, and none is called like what is tested; name "
            f"one, as in {reference.told}:{reference.curves[0].system}"
        )
    return pairs


def anchors(
    dataset: Annotated[str, typer.Argument(help="Data set. Default: all.")] = "",
    as_json: options.AsJson = False,
) -> None:
    """List the published curves that results can be compared with."""
    from lic.codec.benchmark.anchors import published, published_datasets

    out = Output(as_json=as_json)
    for name in [dataset] if dataset else published_datasets():
        for curve in published(name):
            values = {"dataset": name, "system": curve.system, "source": curve.source}
            if as_json:
                out.result(values, "")
            else:
                typer.echo(f"{name}: {curve.system} ({curve.source})")


def _print(
    found: Sequence["Comparison"], metric: str, method: str, dataset: str, out: Output
) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    names = [Column(title, overflow="fold") for title in ("reference", "tested")]
    table = Table(
        *names, "BD-rate", "from .. to dB", "overlap", "BD-quality",
        "from .. to bpp", "overlap", box=None, caption_justify="left",
        title=escape(f"{dataset}, {metric}, {method}"),
        caption="BD-rate below 0: the tested needs less; BD-quality above 0: it is better. "
        "Overlap: what both cover, of the narrower range.",
    )  # fmt: skip
    for each in found:
        rate, quality = each.rate, each.quality
        cells = [escape(each.reference), escape(each.tested)]
        cells += (
            [f"{rate.percent:+.2f} %", f"{rate.low:.2f} .. {rate.high:.2f}", f"{rate.overlap:.0%}"]
            if rate else ["refused", "", ""]
        )  # fmt: skip
        cells += (
            [
                f"{number(quality.difference, '+.3f')} dB",
                f"{quality.low:.3f} .. {quality.high:.3f}",
                f"{quality.overlap:.0%}",
            ]
            if quality else ["refused", "", ""]
        )  # fmt: skip
        table.add_row(*cells)
    out.out.print(table)
    for each in found:
        if each.reason:
            out.note(f"{each.tested} against {each.reference}: refused, {each.reason}")


def import_(
    files: Annotated[list[Path], typer.Argument(help="Results of CompressAI's tools, as JSON.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Results as of 'lic bench rd'.")],
    dataset: Annotated[
        str, typer.Option(help="What they were measured on. Default: what the files say.")
    ] = "",
    force: options.Force = False,
) -> None:
    """Turn results files of CompressAI into one of lic bench, a curve each."""
    from lic.codec.benchmark.interchange import import_curve
    from lic.codec.benchmark.schema import Dataset, Machine, RdResults

    check_target(output, force=force)
    out = Output()
    curves: dict[str, Curve] = {}
    told: set[str] = set()
    for path in files:
        curve, unread, said = import_curve(_bytes(path), str(path))
        if curve.system in curves:
            raise ConfigError(f"{path}: is the second curve called {curve.system!r}; rename one")
        curves[curve.system] = curve
        told |= {said} - {""}
        if unread:
            out.note(f"note: {path}: left out {', '.join(unread)}")
    if not dataset and len(told) != 1:
        found = ", ".join(sorted(told)) or "nothing"
        raise ConfigError(f"--dataset is missing; the files name {found}")
    results = RdResults(
        command="",
        machine=Machine(cpu="", cores=0, memory=None, system=""),
        dataset=Dataset(
            name=dataset or told.pop(),
            known=False,
            pictures=(),
            remark="imported: the pictures are not known",
        ),
        curves=tuple(curves.values()),
    )
    write_output(results.to_bytes(), output, force=force)
    out.note(f"{len(curves)} curve{'s' * (len(curves) != 1)} -> {output}")


def export(
    results: Annotated[str, typer.Argument(metavar=_SIDE, help="Results of 'lic bench rd'.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File, or folder for several systems.")
    ],
    force: options.Force = False,
) -> None:
    """Turn results of lic bench into files that CompressAI's tools read, one a system."""
    from lic.codec.benchmark.interchange import export_curve

    side = _measured(results)
    out = Output()
    several = len(side.curves) > 1 or output.is_dir()
    targets = [
        output / f"{_file_name(curve.system)}.json" if several else output for curve in side.curves
    ]
    for target in targets:
        if targets.count(target) > 1:
            raise ConfigError(f"{target} is the file of two systems; name one, as in {_SIDE}")
        check_target(target, force=force)
    for curve, target in zip(side.curves, targets, strict=True):
        write_output(export_curve(curve), target, force=force)
        out.note(f"{curve.system} -> {target}")


def _file_name(system: str) -> str:
    """Return a system's name with nothing that a file system may refuse."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in system).strip("-.").lower()
