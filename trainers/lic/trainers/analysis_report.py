"""The report of a sweep: tables, pictures and the recommended options, in one folder."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from lic.codec.benchmark.bd_rate import LEAST_POINTS
from lic.trainers.analysis import (
    Findings,
    Measure,
    Pick,
    Ranked,
    Result,
    Setting,
    failures,
    state,
)
from lic.trainers.analysis_plots import Axis, Dot, dots, heat_map, rate_distortion
from lic.trainers.files import write_whole, writing
from lic.trainers.recipes import completed
from lic.trainers.search_space import MEASURE, RECIPES, shown, told

REPORT: Final = "report.md"
TABLE: Final = "trials.csv"
CURVES: Final = "rate-distortion.png"
# The options of the heat map: across and up.
HEAT: Final = ("w_lr", "gamma")
# Of one picture; what comes after them is in the tables.
MOST_DOTS: Final = 40
MOST_CURVES: Final = 8

PLAIN: Final = (
    "Warning: ranked by val_loss, the plain R + lambda D, whatever the trials minimised. It "
    "compares settings at one lambda. A setting that moves to another rate, as balanced and "
    "hierarchical objectives do, loses by it even where its curve of rate and distortion is the "
    f"better one; that shows in a BD-rate, over {LEAST_POINTS} lambdas or more (--over "
    "lmbda=...)."
)
ACROSS: Final = (
    "Different lambdas are not ranked against each other: the smallest has the smallest val_loss "
    "and the greatest the best PSNR, whatever the model is worth."
)
ONE_RUN: Final = (
    "Each setting was run once: differences as small as those between two seeds are noise. "
    "--over seed=0,1,2 runs each setting three times, and the tables show means."
)


def write_report(found: Findings, folder: Path) -> list[str]:
    """Write report.md, trials.csv, pictures and recommended.toml.

    Args:
        found: what the study says.
        folder: where to; made if it is not there, files of the same names are replaced.

    Returns:
        What a user should know before believing a ranking.

    Raises:
        OutputError: the folder cannot be written.
    """
    pictures = _pictures(found)
    files = recommended(found)
    texts = {name: text for name, (_, text) in files.items()}
    texts |= {TABLE: _csv(found), REPORT: _report(found, list(pictures), list(files))}
    with writing(folder, ""):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / REPORT).is_file():
            # An earlier report may have recommended more.
            for stale in folder.glob("recommended*.toml"):
                stale.unlink()
    content = {name: _png(image) for name, image in pictures.items()}
    for name, data in {**content, **{name: text.encode() for name, text in texts.items()}}.items():
        _write(folder / name, data)
    return warnings(found)


def warnings(found: Findings) -> list[str]:
    """Return what limits the rankings of a study."""
    rated = {ranked.setting for ranking in found.rankings.values() for ranked in ranking}
    compared = [results for results in found.results.values() if len(results) > 1]
    plain = any(result.setting not in rated for results in compared for result in results)
    every = [result for results in found.results.values() for result in results]
    told_once = len(every) > 1 and all(len(result.numbers) == 1 for result in every)
    wanted = (plain, len(found.results) > 1, told_once)
    return [text for text, said in zip((PLAIN, ACROSS, ONE_RUN), wanted, strict=True) if said]


def recommended(found: Findings) -> dict[str, tuple[Pick, str]]:
    """Return what --config takes, by the name of the file: what was swept, and is no default.

    What would follow from other options if it were left out stands there, too. Where one setting is
    recommended for all lambdas, its file leaves a swept lambda open.
    """
    import tomli_w

    recipe = RECIPES[found.model]().to_dict()
    files = {}
    for pick in found.picks:
        own = pick.measure.options if pick.measure else {}
        wanted = found.base.updated({**dict(pick.setting), **own})
        config, followed = wanted.to_dict(), completed(wanted, ()).by_name()
        left_out = {"seed"} | (MEASURE - own.keys()) if len(found.results) > 1 else {"seed"}
        left_out &= found.over.keys()
        kept = {*own, *dict(pick.setting)}
        kept |= {name for name, value in wanted.by_name().items() if value != followed[name]}
        differing = {
            section: changed
            for section, values in config.items()
            if isinstance(values, dict)
            and (changed := {
                name: value for name, value in values.items()
                if name not in left_out
                and (name in kept or value != recipe[section][name])
            })
        }  # fmt: skip
        single = len(found.picks) == 1
        name = f"recommended{'' if single or not pick.measure else '-' + pick.measure.slug}.toml"
        head = (
            f"# Of the sweep {found.name}: {told(dict(pick.setting))}.\n# {pick.reason}.\n"
            f"# lic train {found.model} PHOTOS -o RUN --config {name}\n"
        )
        files[name] = (pick, head + tomli_w.dumps(differing))
    return files


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _write(path: Path, data: bytes) -> None:
    with writing(path, ""):
        write_whole(path, lambda file: file.write(data))


def _report(found: Findings, pictures: Sequence[str], files: Sequence[str]) -> str:
    states = [state(trial) for trial in found.trials]
    counts = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    swept = "; ".join(f"{name} = {text}" for name, text in found.over.items())
    parts = [
        f"# Sweep {found.name}",
        f"Model {found.model}. Trials: {counts}. Swept: {swept}.",
        *warnings(found),
        "## Recommended",
        *(_recommendation(found, files)),
    ]
    for loss, ranking in found.rankings.items():
        parts += [f"## BD-rate, loss {loss}", _rates(found, ranking)]
    for measure, results in found.results.items():
        parts += [f"## At {measure.label}", _losses(found, measure, results)]
    parts += [f"![{name}]({name})" for name in pictures]
    failed = failures(found.trials)
    if failed:
        rows = [(str(number), reason) for number, reason in failed]
        parts += ["## Failed", _table(("trial", "why"), rows)]
    return "\n\n".join(parts) + "\n"


def _recommendation(found: Findings, files: Sequence[str]) -> list[str]:
    if not found.picks:
        return ["Nothing: there are no two settings to choose from."]
    lines = [
        f"- `{name}`: {_named(pick.setting)} ({pick.reason})"
        for name, pick in zip(files, found.picks, strict=True)
    ]
    some = ["No one setting is best at every lambda."] if len(found.picks) > 1 else []
    return ["\n".join(lines), *some]


def _rates(found: Findings, ranking: Sequence[Ranked]) -> str:
    rows = [
        (
            "" if ranked.percent is None else str(place),
            *_values(found, ranked.setting),
            "none" if ranked.percent is None else f"{ranked.percent:+.2f} %",
            ranked.note,
        )
        for place, ranked in enumerate(ranking, 1)
    ]
    return _table(("rank", *_names(found), "BD-rate", "of"), rows)


def _losses(found: Findings, measure: Measure, results: Sequence[Result]) -> str:
    """Return the table of one measure; settings with a BD-rate have no rank by val_loss."""
    rated = {ranked.setting for ranked in found.rankings.get(measure.loss, [])}
    places = iter(range(1, len(results) + 1))
    rows = [
        (
            "BD-rate" if result.setting in rated else str(next(places)),
            *_values(found, result.setting),
            f"{result.val_loss:.5f}",
            f"{100 * (result.val_loss / results[0].val_loss - 1):+.2f} %",
            f"{result.spread:.5f}" if len(result.numbers) > 1 else "",
            _number(result.bpp, 4),
            _number(result.psnr, 2),
            _number(result.ms_ssim, 4),
            ", ".join(map(str, result.numbers)),
        )
        for result in results
    ]
    measured = ("val_loss", "over the least", "spread", "bpp", "PSNR, dB", "MS-SSIM", "trials")
    return _table(("rank", *_names(found), *measured), rows)


def _names(found: Findings) -> list[str]:
    return [name for name, _ in next(iter(found.results.values()))[0].setting]


def _values(found: Findings, setting: Setting) -> list[str]:
    values = dict(setting)
    return [shown(values[name]) for name in _names(found)]


def _named(setting: Setting) -> str:
    return told(dict(setting)) or "as in the base"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cleaned = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in cleaned)


def _csv(found: Findings) -> str:
    """Return a row for each trial, with all that it was told and measured."""
    rows: list[dict[str, Any]] = []
    for trial in found.trials:
        started, ended = trial.datetime_start, trial.datetime_complete
        seconds = (ended - started).total_seconds() if started and ended else ""
        known = {n: v for n, v in trial.user_attrs.items() if isinstance(v, str | int | float)}
        place = trial.user_attrs.get("place", {})
        times = {"trial": trial.number, "state": state(trial), "seconds": seconds}
        rows.append({**times, **known, **place})
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _pictures(found: Findings) -> dict[str, Image.Image]:
    pictures = {}
    for measure, results in found.results.items():
        if set(HEAT) <= {name for name, _ in results[0].setting}:
            pictures[f"heatmap-{measure.slug}.png"] = _heat(found, measure, results)
        if len(results) > 1:
            rows = [
                Dot(_named(r.setting), r.val_loss, r.val_loss - r.spread / 2,
                    r.val_loss + r.spread / 2)
                for r in results[:MOST_DOTS]
            ]  # fmt: skip
            title = f"val_loss of each setting at {measure.label}"
            pictures[f"val_loss-{measure.slug}.png"] = dots(title, "val_loss, less is better", rows)
    curves = _curves(found)
    if curves:
        metrics = {measure.loss for measure in found.results}
        quality = "MS-SSIM, dB" if metrics == {"ms-ssim"} else "PSNR, dB"
        pictures[CURVES] = rate_distortion(f"{found.name}: validation", quality, curves)
    return pictures


def _heat(found: Findings, measure: Measure, results: Sequence[Result]) -> Image.Image:
    """Return the heat map of gamma and w_lr; of further options, each place shows the best."""
    values: dict[tuple[float, float], float] = {}
    for result in results:
        place = _place(dict(result.setting))
        values[place] = min(values.get(place, math.inf), result.val_loss)
    words = {
        _place(trial.user_attrs): state(trial)
        for trial in found.trials
        if set(HEAT) <= trial.user_attrs.keys() and Measure.of(trial, found.base) == measure
    }
    words = {place: word for place, word in words.items() if place not in values}
    places = [*values, *words]
    across, up = (sorted({place[axis] for place in places}) for axis in (0, 1))
    title = f"val_loss at {measure.label}" + (", best of the rest" * (len(_names(found)) > 2))
    return heat_map(title, Axis(HEAT[0], across), Axis(HEAT[1], up), values, words)


def _place(values: Mapping[str, Any]) -> tuple[float, float]:
    return float(values[HEAT[0]]), float(values[HEAT[1]])


def _curves(found: Findings) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of settings with two lambdas or more, those ranked best first."""
    curves: dict[Setting, list[tuple[float, float]]] = {
        ranked.setting: [] for ranking in found.rankings.values() for ranked in ranking
    }
    for results in found.results.values():
        for result in results:
            if math.isfinite(result.bpp) and math.isfinite(result.quality):
                curves.setdefault(result.setting, []).append((result.bpp, result.quality))
    long = {_named(setting): points for setting, points in curves.items() if len(points) > 1}
    return dict(list(long.items())[:MOST_CURVES])
