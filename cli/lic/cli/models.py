"""lic models: which bundles are there, what is in one, and how to make one from a checkpoint."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.extras import require
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle

# A name becomes a folder and part of every file: no separators of any platform, nothing hidden.
SEPARATORS = frozenset("/\\:")
NAME_LENGTH = 100

app = typer.Typer(no_args_is_help=True, help="List, show and import models.")


@app.command("list")
def list_models(as_json: options.AsJson = False) -> None:
    """List the installed bundles."""
    from lic.codec.library import all_bundles, search_path

    out = Output(as_json=as_json)
    bundles = all_bundles()
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
        cells = (m.name, str(m.rate_point), lmbda, m.metric, m.fingerprint, str(bundle.path))
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
        Path, typer.Argument(help="CompressAI's .pth.tar, a state dict, or lic's checkpoint.pt.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Family name. Default: from the weights.")
    ] = None,
    rate: Annotated[
        int, typer.Option("-q", "--rate", min=1, max=255, help="Rate point within the family.")
    ] = 1,
    lmbda: Annotated[float | None, typer.Option(help="Lambda it was trained with.")] = None,
    metric: Annotated[str, typer.Option(help="mse or ms-ssim.")] = "mse",
    activation: Annotated[
        str, typer.Option(help="gdn or igdn1: which of the two the weights' beta and gamma mean.")
    ] = "gdn",
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
    """Turn a checkpoint into a bundle: tables frozen, graphs exported and checked."""
    if name is not None:
        _check_name(name)
    require("export", "torch", "onnxscript")
    from lic.codec.library import user_folder
    from lic.export.make_bundle import Description, make_bundle

    if metric not in ("mse", "ms-ssim"):
        raise ConfigError(f"--metric is {metric!r}; expected mse or ms-ssim")
    model, training = load_any(checkpoint, activation)
    family = name or default_name(model.config)
    target = output or user_folder() / family / str(rate)
    description = Description(
        name=family,
        rate_point=rate,
        lmbda=_lmbda(lmbda, training.get("lmbda"), checkpoint),
        metric=cast(Any, metric),
        training=training,
        source=source,
    )
    bundle = make_bundle(model, target, description, dtype=cast(Any, dtype), overwrite=force)
    Output(as_json=as_json).result(_values(bundle), f"{bundle.label} -> {target}")


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


def load_any(source: Path, activation: str = "gdn") -> tuple[Any, dict[str, Any]]:
    """Return a model and its provenance from a run's folder, a bundle or a foreign checkpoint."""
    from lic.codec.bundle import MANIFEST, Bundle
    from lic.codec.models import ACTIVATIONS
    from lic.codec.models.adapters import factorized_from_state_dict, read_state_dict

    if activation not in ACTIVATIONS:
        raise ConfigError(f"--activation is {activation!r}; expected {', '.join(ACTIVATIONS)}")
    if (source / MANIFEST).is_file() or source.suffix == ".zip":
        from lic.codec.backends.torch_backend import load_model as load_bundle

        bundle = Bundle.open(source)
        own = {} if bundle.manifest.lmbda is None else {"lmbda": bundle.manifest.lmbda}
        provenance = {"started_from": bundle.label, **own, **bundle.manifest.training}
        return load_bundle(bundle), provenance
    if source.is_dir() or source.name == "checkpoint.pt":
        from lic.trainers.checkpoints import NAME, load_model

        return load_model(source / NAME if source.is_dir() else source)
    state = read_state_dict(source)
    model = factorized_from_state_dict(state, normalisation=cast(Any, activation))
    return model, {"imported_from": source.name}


def default_name(config: Any) -> str:
    """Return a family name such as bmshj2018-factorized-relu-lite or -gdn-128-192."""
    sides = list(dict.fromkeys((config.encoder_activation, config.decoder_activation)))
    size = "lite" if (config.N, config.M) == (64, 96) else f"{config.N}-{config.M}"
    return f"bmshj2018-factorized-{'-'.join(sides)}-{size}"


def _values(bundle: "Bundle") -> dict[str, Any]:
    from dataclasses import asdict

    return {"path": str(bundle.path), **asdict(bundle.manifest)}
