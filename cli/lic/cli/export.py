"""lic export: graphs and bundles from whatever holds a model."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.export_source import Source, find_source, is_int8, refuse
from lic.cli.extras import require
from lic.cli.outputs import check_target, write_output
from lic.codec.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle
    from lic.export.int8_bundle import Int8Options
    from lic.export.parts import Exported, GraphOptions

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
    graph_format: Annotated[
        str, typer.Option("--format", help="Of graphs: onnx, the only one so far.")
    ] = "onnx",
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
    upsample: Annotated[
        str,
        typer.Option(
            help="Form of transposed convolutions: k5; k6, the same bits; subpixel, shuffle or "
            "subpixel-reshape, the same sums; blocks, for int8 on CPUs. Default: k5, of int8 "
            "blocks."
        ),
    ] = "",
    external_round: Annotated[
        bool,
        typer.Option(
            "--external-round", help="Leave rounding, casts and clips out of single graphs."
        ),
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Graphs that compute in float16: for GPUs and NPUs.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Graphs that compute in int8; wants --calib.")
    ] = False,
    calib: Annotated[
        str | None,
        typer.Option(metavar="<path>", help="Folder of pictures that int8 ranges are taken from."),
    ] = None,
    calib_method: Annotated[
        str | None,
        typer.Option(
            help="minmax, entropy, percentile, or rd: by rate and distortion. Default: minmax."
        ),
    ] = None,
    calib_count: Annotated[
        int | None, typer.Option(min=1, help="Pictures of it that are looked at. Default: 16.")
    ] = None,
    int8_sides: Annotated[
        str | None, typer.Option(help="encoder, decoder or both. Default: both.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32 or float16: precision of a bundle's stored weights.")
    ] = "float32",
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Make ONNX graphs, each compared with torch before it is written."""
    parts = tuple(dict.fromkeys(part or (BUNDLE,)))
    unknown = [each for each in parts if each not in PARTS]
    if unknown:
        raise ConfigError(f"--part is {unknown[0]!r}; expected {', '.join(PARTS)}")
    if graph_format != "onnx":
        raise ConfigError(f"--format is {graph_format!r}; expected onnx")
    if dynamic and input_size:
        raise ConfigError("--dynamic contradicts --input-size; take one of them")
    if int8 and fp16:
        raise ConfigError("--int8 contradicts --fp16; take one of them")
    of_int8 = {
        "--calib": calib, "--calib-method": calib_method, "--calib-count": calib_count,
        "--int8-sides": int8_sides,
    }  # fmt: skip
    refuse("without --int8", of_int8 if not int8 else {})
    if int8 and not calib:
        raise ConfigError("--int8 needs pictures to take its ranges from: --calib FOLDER")
    out = Output(as_json=as_json)
    if BUNDLE not in parts:
        refuse("for single graphs", {"--int8-sides": int8_sides, "--dtype": dtype != "float32"})
        require("export", "torch", "onnxscript")
        from lic.export.onnx_export import OPSET
        from lic.export.parts import GraphOptions

        graph_options = GraphOptions(
            size=_size(input_size), upsample=upsample or "k5", external_round=external_round,
            half=fp16, opset=OPSET if opset is None else opset,
        )  # fmt: skip
        calibrated = _calibrated(of_int8, upsample) if int8 else None
        if is_int8(Path(source)):
            raise ConfigError(
                f"{source} is int8 already, and comes as a bundle: leave --part out, and take the "
                "graphs from there, which hold their weights"
            )
        found = find_source(source, rate)
        _export_graphs(found, output, parts, graph_options, calibrated, force=force, out=out)
        return
    if len(parts) > 1:
        raise ConfigError("--part bundle is a folder of its own; export single graphs separately")
    of_graphs = {
        "--input-size": input_size, "--opset": opset, "--external-round": external_round
    }  # fmt: skip
    refuse("for a bundle, which codes pictures of all sizes", of_graphs)
    require("export", "torch", "onnxscript")
    make = _bundle_maker(upsample, fp16=fp16, of_int8=of_int8 if int8 else {}, force=force)
    _export_bundle(source, rate, output, dtype, make, int8=int8, force=force, out=out)


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


Make = Callable[["Bundle", Path], "Bundle"]


def _bundle_maker(
    upsample: str, *, fp16: bool, of_int8: dict[str, Any], force: bool
) -> Make | None:
    """Return what turns a bundle into the one asked for, None where it is that already."""
    from lic.export.forms import Form, check_form
    from lic.export.int8_bundle import quantise_bundle
    from lic.export.variants import form_bundle, half_bundle

    form = cast(Form, upsample)
    if upsample:
        check_form(upsample)
    if of_int8:
        folder, settings = _calibrated(of_int8, upsample)
        return lambda bundle, target: quantise_bundle(
            bundle, target, folder, settings, overwrite=force
        )
    if fp16:
        return lambda bundle, target: half_bundle(bundle, target, form or "k5", overwrite=force)
    if upsample not in ("", "k5"):
        return lambda bundle, target: form_bundle(bundle, target, form, overwrite=force)
    return None


def _calibrated(of_int8: dict[str, Any], upsample: str) -> tuple[Path, "Int8Options"]:
    """Return the folder of the calibration's pictures, and what is made of them."""
    from lic.export.int8_bundle import Int8Options

    asked = {
        "method": of_int8["--calib-method"], "crops": of_int8["--calib-count"],
        "sides": of_int8["--int8-sides"], "upsample": upsample,
    }  # fmt: skip
    settings = Int8Options(**{name: value for name, value in asked.items() if value})
    return Path(of_int8["--calib"]), settings


def _export_bundle(
    source: str,
    rate: int | None,
    target: Path,
    dtype: str,
    make: Make | None,
    *,
    int8: bool,
    force: bool,
    out: Output,
) -> None:
    if is_int8(Path(source)):
        refuse(
            f"with {source}, which is int8 already",
            {"--int8, --fp16 or --upsample": make, "--rate": rate, "--dtype": dtype != "float32"},
        )
        bundle = _trained_bundle(Path(source), target, force=force)
    else:
        found = find_source(source, rate)
        if make is None:
            bundle = found.whole(target, dtype, force=force)
        else:
            with found.ready(dtype, graphs=not int8) as floating:
                bundle = make(floating, target)
    size = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    values = {
        "path": str(bundle.path),
        "model": bundle.label,
        "fingerprint": bundle.manifest.fingerprint,
        "bytes": size,
        "files": {name: entry["bytes"] for name, entry in bundle.manifest.files.items()},
    }
    out.result(values, f"{bundle.label} -> {bundle.path} ({size:,} bytes)")


def _trained_bundle(path: Path, target: Path, *, force: bool) -> "Bundle":
    from lic.export.int8_bundle import trained_bundle
    from lic.export.make_bundle import Description

    name = f"{path.resolve().parent.name or 'model'}-int8"
    return trained_bundle(path, target, Description(name=name, rate_point=1), overwrite=force)


@contextlib.contextmanager
def _exporter(
    source: Source, graph_options: "GraphOptions", calibrated: "tuple[Path, Int8Options] | None"
) -> Iterator[tuple[str, Callable[[str], "Exported"]]]:
    """Give a model's fingerprint, and what makes a graph of a part."""
    from lic.export.int8_bundle import quantise_part
    from lic.export.parts import export_part

    if calibrated is None:
        model, fingerprint = source.loaded()
        yield fingerprint, lambda part: export_part(model, cast(Any, part), graph_options)
        return
    with source.ready() as bundle:
        yield (
            bundle.manifest.fingerprint,
            lambda part: quantise_part(bundle, cast(Any, part), *calibrated, graph_options),
        )


def _made_by(
    graph_options: "GraphOptions", calibrated: "tuple[Path, Int8Options] | None"
) -> dict[str, Any]:
    """Return what decided how a graph is written, for its metadata."""
    from lic.export.graph_check import TOLERANCE

    made: dict[str, Any] = {
        "upsample": calibrated[1].upsample if calibrated else graph_options.upsample,
        "external_round": graph_options.external_round,
    }
    if calibrated:
        made |= {"calibration": calibrated[1].method, "calibration_pictures": calibrated[1].crops}
    elif not graph_options.half:
        made["tolerance"] = TOLERANCE
    return made


def _export_graphs(
    source: Source,
    folder: Path,
    parts: tuple[str, ...],
    graph_options: "GraphOptions",
    calibrated: "tuple[Path, Int8Options] | None",
    *,
    force: bool,
    out: Output,
) -> None:
    from lic.codec.bundle import MANIFEST
    from lic.export.parts import with_facts

    if (folder / MANIFEST).is_file():
        raise OutputError(
            f"{folder}: is a bundle, which other graphs would break; choose another folder"
        )
    targets = {part: folder / f"{part}.onnx" for part in parts}
    for target in targets.values():
        check_target(target, force=force)
    precision = "int8" if calibrated else "float16" if graph_options.half else "float32"
    with _exporter(source, graph_options, calibrated) as (fingerprint, export_one):
        made = {part: export_one(part) for part in parts}
    for part, target in targets.items():
        exported = made[part]
        facts = {
            "model": source.label, "part": part, "fingerprint": fingerprint, "precision": precision,
            **_made_by(graph_options, calibrated),
        }  # fmt: skip
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
        out.result(values, f"{source.label} {part} -> {target} ({len(data):,} bytes; {agreement})")
