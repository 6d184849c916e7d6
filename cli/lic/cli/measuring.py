"""What the commands that measure models share: their bundles, a bar, numbers in tables."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lic.cli.console import Output
from lic.cli.extras import require
from lic.cli.weights import default_name, is_checkpoint, load_any, rate_of
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle

NONE = "none"


def chosen(given: list[str] | None, default: Sequence[Any], option: str) -> list[Any]:
    """Return what was named as often as wanted, the default, or nothing for "none"."""
    if not given:
        return list(default)
    if NONE in given and len(given) > 1:
        raise ConfigError(f"{option} is {', '.join(given)}; 'none' stands alone")
    for name in given:
        if given.count(name) > 1:
            raise ConfigError(f"{option} names {name} {given.count(name)} times; once is enough")
    return [] if given == [NONE] else list(given)


def named(models: Sequence[str | None]) -> list[str]:
    """Return what models are asked for by; None is lic's own."""
    from lic.codec.library import DEFAULT_MODEL

    return [model or DEFAULT_MODEL for model in models]


@contextlib.contextmanager
def bundles_of(model: str | None, rates: list[int] | None) -> Iterator[list["Bundle"]]:
    """Give a family's bundles; of a run or a checkpoint make one for as long as this is open."""
    from lic.codec.library import family

    source = Path(model or "")
    if model is None or not is_checkpoint(source):
        yield family(model, rates)
        return
    if rates:
        raise ConfigError(f"--rate is for bundles; leave it out with {model}")
    require("export", "torch", "onnxscript")
    from lic.export.make_bundle import Description, make_bundle

    loaded, training = load_any(source)
    name = default_name(loaded.config)
    with tempfile.TemporaryDirectory() as folder:
        description = Description(name=name, rate_point=rate_of(training), training=training)
        yield [make_bundle(loaded, Path(folder) / "bundle", description)]


@contextlib.contextmanager
def progress_bar(
    total: int, out: Output
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Give what names the present work and what counts steps: a bar, on a terminal only."""
    if out.verbosity < 0 or not sys.stderr.isatty():
        yield lambda _: None, lambda _: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output is for results, whatever else shows on the terminal.
    with Progress(*columns, console=out.err, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield (
            lambda now: bar.update(task, description=now),
            lambda steps: bar.advance(task, steps),
        )


def number(value: float | None, form: str) -> str:
    """Return a number for a table, nothing for None."""
    return "" if value is None else format(value, form)
