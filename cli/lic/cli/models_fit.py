"""lic models fit: contexts for a factorized prior, from pictures."""

from pathlib import Path
from typing import Annotated

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.extras import require
from lic.cli.measuring import progress_bar
from lic.codec.errors import ConfigError, OutputError


def fit(
    model: Annotated[str, typer.Argument(help="Name or path of a bundle of a factorized prior.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new bundle: folder or .zip.")],
    rate: options.RatePoint = None,
    count: Annotated[int, typer.Option(min=2, help="Take so many pictures at most.")] = 400,
    tables: Annotated[int, typer.Option(min=1, max=256, help="At most so many tables.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 600,
    seed: Annotated[int, typer.Option(help="Same pictures, same seed: the same bundle.")] = 0,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit what chooses entropy tables from known symbols, and write a bundle that uses it.

    The networks stay as they are, and pictures decode to the same pixels from fewer bytes. Every
    tenth picture is left out of the fit and tells what is saved. Takes a few minutes.
    """
    require("export", "torch")
    import torch

    from lic.codec.architectures import FACTORIZED
    from lic.codec.bundle import CONTEXTS, MANIFEST, tables_to_npz, write_bundle
    from lic.codec.library import select
    from lic.codec.pipeline import Codec
    from lic.trainers.context_data import HELD_OUT, saving, symbols_of
    from lic.trainers.context_fit import FitOptions, fit_contexts

    settings = FitOptions(tables=tables, steps=steps, seed=seed)
    bundle = select(model, rate)
    if bundle.manifest.architecture != FACTORIZED:
        raise ConfigError(
            f"{bundle.label} is a {bundle.manifest.architecture}; contexts are for {FACTORIZED}, "
            "whose tables no network chooses"
        )
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; -f overwrites it")
    paths = _evenly(_pictures(pictures), count)
    if len(paths) < 2:
        raise ConfigError(f"found {len(paths)} picture; expected 2 or more, better some hundreds")
    out = Output(as_json=as_json)
    codec = Codec(bundle)
    with progress_bar(len(paths) + steps, out) as (now, advance):
        now("symbols")
        latents = []
        for symbols in symbols_of(codec, paths):
            latents.append(symbols)
            advance(1)
        held = latents[HELD_OUT - 1 :: HELD_OUT] or latents[-1:]
        used = [each for i, each in enumerate(latents) if (i + 1) % HELD_OUT] or latents
        now("weights")
        threads = torch.get_num_threads()
        # Sums over several threads depend on their number; a bundle must not.
        torch.set_num_threads(1)
        try:
            contexts = fit_contexts(used, settings, lambda _: advance(1))
        finally:
            torch.set_num_threads(threads)
    told = saving(held, bundle.tables, contexts)
    files = {name: bundle.read(name) for name in bundle.manifest.files if name != MANIFEST}
    files[CONTEXTS] = tables_to_npz(contexts)
    made = write_bundle(output, bundle.manifest, files, overwrite=force)
    values = {
        "path": str(made.path),
        "fingerprint": made.manifest.fingerprint,
        "contexts": made.manifest.contexts,
        "pictures": len(latents),
        "held_out": len(held),
        "plain_bytes": told.plain,
        "bytes": told.contexts,
        "tables": len(contexts.tables),
        "predicted": len(contexts.predicted),
    }
    out.result(
        values,
        f"{made.label} -> {made.path}: {told.percent:.1f} % fewer bytes on {len(held)} pictures "
        f"that were left out of the fit",
    )


def _pictures(places: list[Path]) -> list[Path]:
    from lic.codec.benchmark.datasets import find_pictures

    return sorted(path for place in places for path in find_pictures(place))


def _evenly(paths: list[Path], count: int) -> list[Path]:
    """Return at most so many paths, from everywhere in the list."""
    if len(paths) <= count:
        return paths
    return [paths[i * len(paths) // count] for i in range(count)]
