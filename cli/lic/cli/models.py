"""lic models: which bundles are there, what is in one, and how to make one from a checkpoint."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.extras import require
from lic.cli.models_fit import fit
from lic.cli.weights import (
    ARCH_CHOICES,
    TORCH_ONLY,
    check_activation,
    default_name,
    load_any,
    rate_of,
)
from lic.codec.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle

# A name becomes a folder and part of every file: no separators of any platform, nothing hidden.
SEPARATORS = frozenset("/\\:")
NAME_LENGTH = 100

app = typer.Typer(no_args_is_help=True, help="List, show, import and fit models.")
app.command()(fit)


@app.command("list")
def list_models(as_json: options.AsJson = False) -> None:
    """List the installed bundles."""
    from lic.codec.library import all_bundles, search_path, unreadable_bundles

    out = Output(as_json=as_json)
    bundles = all_bundles()
    for skipped in unreadable_bundles():
        out.note(f"skipped: {skipped}")
    if as_json:
        for bundle in bundles:
            out.result(_values(bundle), "")
        return
    from rich.markup import escape
    from rich.table import Column, Table

    # A path that is cut off is of no use.
    path = Column("path", overflow="fold")
    table = Table("name", "rate", "lambda", "metric", "fingerprint", path, box=None)
    for bundle in bundles:
        m = bundle.manifest
        lmbda = "" if m.lmbda is None else f"{m.lmbda:g}"
        files = bundle.file_fingerprint.hex()
        cells = (m.name, str(m.rate_point), lmbda, m.metric, files, str(bundle.path))
        table.add_row(*map(escape, cells))
    out.out.print(table)
    if not bundles:
        out.note(f"no bundles in {', '.join(str(p) for p in search_path())}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Name or path of a bundle.")],
    rate: options.RatePoint = None,
    as_json: options.AsJson = False,
) -> None:
    """Show one bundle, after checking every file of it."""
    from lic.codec.library import select

    bundle = select(model, rate)
    bundle.check()
    values = _values(bundle)
    out = Output(as_json=as_json)
    if as_json:
        out.result(values, "")
        return
    import json

    for key, value in values.items():
        shown = json.dumps(value) if isinstance(value, dict) else value
        typer.echo(f"{key.replace('_', ' '):<13} {shown}")
    typer.echo("all hashes and the fingerprint are right")


@app.command("import")
def import_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="CompressAI's or HPCM's .pth.tar, a state dict, or lic's checkpoint.pt."
        ),
    ],
    arch: Annotated[
        str, typer.Option(help=f"auto, or what it must be: {', '.join(ARCH_CHOICES)}.")
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(help="Family name. Default: from the weights.")
    ] = None,
    rate: Annotated[
        int | None,
        typer.Option(
            "-q",
            "--rate",
            min=1,
            max=255,
            help="Rate point within the family. Default: 1; of a run its own; for HPCM by its "
            "lambda.",
        ),
    ] = None,
    lmbda: Annotated[float | None, typer.Option(help="Lambda it was trained with.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="mse or ms-ssim. Default: mse, but of HPCM what has this lambda."),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="bmshj2018: gdn or igdn1, which of the two the weights' beta and gamma mean. "
            "Default: gdn, but what a bundle or a run says."
        ),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="HPCM: upstream as the published files, or corrected for models trained so. "
            "Default: upstream."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16: precision of weights.")] = (
        "float32"
    ),
    source: Annotated[
        str, typer.Option(help="Where people get the model; compressed files will say so.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder or .zip. Default: user's bundles.")
    ] = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn a checkpoint into a bundle: tables frozen, and what a decoder runs checked."""
    if name is not None:
        _check_name(name)
    if metric not in (None, "mse", "ms-ssim"):
        raise ConfigError(f"--metric is {metric!r}; expected mse or ms-ssim")
    _check_arch(arch, placement)
    require("export", "torch", "onnxscript")
    from lic.codec.library import user_folder
    from lic.export.make_bundle import Description, make_bundle

    model, training = load_any(checkpoint, activation or "gdn", arch=arch, placement=placement)
    check_activation(activation, model, checkpoint)
    lmbda = _lmbda(lmbda, training.get("lmbda"), checkpoint)
    out = Output(as_json=as_json)
    if model.name == "hpcm":
        for note in _lambda_notes(lmbda, metric, rate):
            out.note(note)
    metric, point = _rate_point(model.name, metric, lmbda)
    rate = rate or rate_of(training, point)
    family = name or default_name(model.config, metric)
    target = output or user_folder() / family / str(rate)
    if target.exists() and not force:
        other = "-o chooses" if output else "--name or -q choose"
        raise OutputError(f"{target}: exists already; -f overwrites it, {other} another")
    description = Description(
        name=family,
        rate_point=rate,
        lmbda=lmbda,
        metric=cast(Any, metric),
        training=training,
        source=source,
    )
    bundle = make_bundle(model, target, description, dtype=cast(Any, dtype), overwrite=force)
    out.result(_values(bundle), f"{bundle.label} -> {target}")
    if not bundle.has_graphs:
        out.note(TORCH_ONLY.format(source=target))


@app.command()
def refit(
    models: Annotated[
        list[str], typer.Argument(help="Names or paths of bundles; a family is all of it.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Make tables and graphs of bundles anew from their weights, in place.

    Where the tables change, so does the fingerprint: files of the old one need the old bundle.
    """
    require("export", "torch", "onnxscript")
    from lic.codec.library import family
    from lic.export.make_bundle import refit as make_anew

    out = Output(as_json=as_json)
    for bundle in [bundle for model in models for bundle in family(model)]:
        before = bundle.manifest.fingerprint
        made = make_anew(bundle, bundle.path, overwrite=True)
        changed = "as before" if made.manifest.fingerprint == before else f"before: {before}"
        out.result(
            {**_values(made), "fingerprint_before": before},
            f"{made.label} -> {made.path}: {made.manifest.fingerprint}, {changed}",
        )


def _check_arch(arch: str, placement: str | None) -> None:
    if arch != "auto" and arch not in ARCH_CHOICES:
        known = ", ".join(("auto", *ARCH_CHOICES))
        raise ConfigError(f"--arch is {arch!r}; expected one of {known}")
    if placement not in (None, "upstream", "corrected"):
        raise ConfigError(f"--placement is {placement!r}; expected upstream or corrected")


def _rate_point(architecture: str, metric: str | None, lmbda: float | None) -> tuple[str, int]:
    """Return the metric and the rate point that a lambda stands for; mse and 1 where for none."""
    from lic.codec.models.hpcm_files import published_rate_point

    known = None
    if architecture == "hpcm" and lmbda is not None:
        known = published_rate_point(lmbda, metric)
    return known or (metric or "mse", 1)


def _lambda_notes(lmbda: float | None, metric: str | None, rate: int | None) -> list[str]:
    """Return what to tell about an HPCM's lambda that says no rate point, or another metric."""
    from lic.codec.models.hpcm_files import LMBDAS, published_rate_point

    known = published_rate_point(lmbda) if lmbda is not None else None
    if known and metric not in (None, known[0]):
        return [f"{lmbda:g} is a published lambda of {known[0]}, but --metric is {metric}"] + (
            [] if rate else ["rate point 1, set it with -q"]
        )
    if known or rate:
        return []
    kind = metric or "mse"
    if lmbda is None:
        return [f"no --lmbda: rate point 1 of {kind}; set them with -q and --metric"]
    lists = "; ".join(f"{k}: {', '.join(f'{v:g}' for v in values)}" for k, values in LMBDAS.items())
    return [f"{lmbda:g} is none of the published lambdas ({lists}); rate point 1, set it with -q"]


def _check_name(name: str) -> None:
    bad = sorted(SEPARATORS.intersection(name))
    if (
        bad
        or not name.isprintable()
        or not 0 < len(name) <= NAME_LENGTH
        or name != name.strip(" .")
    ):
        raise ConfigError(
            f"--name is {name[: NAME_LENGTH + 1]!r}; expected 1 to {NAME_LENGTH} printable "
            f"characters without {' '.join(sorted(SEPARATORS))}, and no space or dot at either end"
        )


def _lmbda(given: float | None, found: float | None, checkpoint: Path) -> float | None:
    """Return lambda as told or as the checkpoint has it."""
    if given is not None and not (math.isfinite(given) and given > 0):
        raise ConfigError(f"--lmbda is {given}; expected a number above 0")
    if given is None or found is None:
        return found if given is None else given
    if not math.isclose(given, found):
        raise ConfigError(
            f"--lmbda is {given}, but {checkpoint} says that it was trained with {found}; leave "
            "out --lmbda"
        )
    return found


def _values(bundle: "Bundle") -> dict[str, Any]:
    from dataclasses import asdict

    return {"path": str(bundle.path), **asdict(bundle.manifest)}
