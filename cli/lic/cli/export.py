"""lic export: graphs and bundles from whatever holds a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from lic.cli import options
from lic.cli.batch import check_target, write_output
from lic.cli.console import Output
from lic.cli.extras import require
from lic.cli.weights import default_name, is_checkpoint, load_any, rate_of
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle
    from lic.export.make_bundle import Description
    from lic.export.parts import GraphOptions

BUNDLE = "bundle"
PARTS = ("full", "encoder", "decoder", BUNDLE)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="lic export check tells what the NPU of a target will run.")
def export(
    source: Annotated[
        str,
        typer.Argument(help="Name or path of a bundle, a training run, or a checkpoint."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Bundle (folder or .zip), or folder of the graphs."),
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="bundle, which codes pictures with ONNX Runtime; or full, encoder, decoder: "
            "single ONNX files with their weights inside. Repeatable. Default: bundle.",
        ),
    ] = None,
    rate: options.RatePoint = None,
    input_size: Annotated[
        str,
        typer.Option(
            "--input-size",
            metavar="H,W",
            help="Graphs of one size of pictures, in pixels, which most NPUs want.",
        ),
    ] = "",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Graphs of any size of pictures; the default.")
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX opset of single graphs, 13 to 20. Default: 20."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32 or float16: precision of a bundle's weights.")
    ] = "float32",
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Make ONNX graphs, each compared with torch before it is written."""
    parts = tuple(dict.fromkeys(part or (BUNDLE,)))
    unknown = [each for each in parts if each not in PARTS]
    if unknown:
        raise ConfigError(f"--part is {unknown[0]!r}; expected {', '.join(PARTS)}")
    if BUNDLE in parts:
        _check_bundle_options(parts, input_size, opset)
    if dynamic and input_size:
        raise ConfigError("--dynamic contradicts --input-size; take one of them")
    require("export", "torch", "onnxscript")
    out = Output(as_json=as_json)
    model, description = _model(source, rate)
    if BUNDLE in parts:
        _export_bundle(model, description, output, dtype, force=force, out=out)
        return
    if dtype != "float32":
        raise ConfigError(f"--dtype is {dtype!r}; single graphs are float32, leave it out")
    from lic.export.parts import GraphOptions

    asked = {} if opset is None else {"opset": opset}
    graph_options = GraphOptions(size=_size(input_size), **asked)
    _export_graphs(model, description, output, parts, graph_options, force=force, out=out)


def _check_bundle_options(parts: tuple[str, ...], input_size: str, opset: int | None) -> None:
    """Refuse what is of no use to a bundle, which codes pictures of all sizes."""
    if len(parts) > 1:
        raise ConfigError("--part bundle is a folder of its own; export single graphs separately")
    if input_size or opset is not None:
        name = "--input-size" if input_size else "--opset"
        raise ConfigError(f"{name} is for single graphs; leave it out, or take another --part")


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        height, width = (int(side) for side in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--input-size is {text!r}; expected height and width, such as 512,768"
        ) from None
    return height, width


def _model(source: str, rate: int | None) -> tuple[Any, "Description"]:
    """Return a model, and what its bundle or its training says of it."""
    from lic.codec.library import select
    from lic.export.make_bundle import Description

    path = Path(source)
    if is_checkpoint(path):
        if rate is not None:
            raise ConfigError(f"--rate chooses among bundles; leave it out with {source}")
        model, training = load_any(path)
        return model, Description(
            name=default_name(model.config),
            rate_point=rate_of(training),
            lmbda=training.get("lmbda"),
            training=training,
        )
    from lic.codec.backends.torch_backend import load_model

    bundle: Bundle = select(source, rate)
    manifest = bundle.manifest
    return load_model(bundle), Description(
        name=manifest.name,
        rate_point=manifest.rate_point,
        lmbda=manifest.lmbda,
        metric=cast(Any, manifest.metric),
        training=manifest.training,
        source=manifest.source,
    )


def _export_bundle(
    model: Any, description: "Description", target: Path, dtype: str, *, force: bool, out: Output
) -> None:
    from lic.export.make_bundle import make_bundle

    bundle = make_bundle(
        model, target, description, dtype=cast(Any, dtype), graphs=True, overwrite=force
    )
    size = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    values = {
        "path": str(bundle.path),
        "model": bundle.label,
        "fingerprint": bundle.manifest.fingerprint,
        "bytes": size,
        "files": {name: entry["bytes"] for name, entry in bundle.manifest.files.items()},
    }
    out.result(values, f"{bundle.label} -> {bundle.path} ({size:,} bytes)")


def _export_graphs(
    model: Any,
    description: "Description",
    folder: Path,
    parts: tuple[str, ...],
    graph_options: "GraphOptions",
    *,
    force: bool,
    out: Output,
) -> None:
    from lic.export.make_bundle import freeze
    from lic.export.parts import Part, export_part, with_facts

    label = f"{description.name} q{description.rate_point}"
    targets = {part: folder / f"{part}.onnx" for part in parts}
    for target in targets.values():
        check_target(target, force=force)
    frozen = freeze(model)
    for part, target in targets.items():
        assert part in get_args(Part)
        exported = export_part(frozen.model, cast(Any, part), graph_options)
        facts = {"model": label, "part": part, "fingerprint": frozen.fingerprint}
        data = with_facts(exported, facts).SerializeToString()
        write_output(data, target, force=force)
        agreement = exported.agreement
        values = {
            "path": str(target),
            **facts,
            "bytes": len(data),
            "opset": graph_options.opset,
            "error": agreement.error,
            "flips": agreement.flips,
            "symbols": agreement.symbols,
        }
        out.result(values, f"{label} {part} -> {target} ({len(data):,} bytes; {agreement})")
