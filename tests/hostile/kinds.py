"""Good files of every kind that lic writes, made anew by code, and the codecs that decode them.

    python -m tests.hostile.kinds FOLDER [--network]

writes FOLDER/bundles and FOLDER/files. With --network the models with a context have networks, for
which torch must be installed; otherwise they are `stand_ins`. Shapes: H W pixels, C channels.
"""

import argparse
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.architectures import FACTORIZED
from lic.codec.bundle import Bundle
from lic.codec.container import Coder, Model, parse, serialize
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.image_io import Picture
from lic.codec.library import family
from lic.codec.lossless import compress_lossless
from lic.codec.pipeline import Codec
from tests.hostile.damage import Seed
from tests.hostile.stand_ins import PARTS, context_bundle, stand_in, with_contexts

SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"


@dataclass(frozen=True)
class Kinds:
    """Seeds, and the codec of each model by its fingerprint."""

    seeds: tuple[Seed, ...]
    codecs: dict[bytes, Codec]

    def find(self, fingerprint: bytes, _: Model | None = None) -> Codec:
        """Return the codec that a file asks for; what `decompress` wants to know.

        Raises:
            ModelMismatchError: none of the seeds has such a model.
        """
        if fingerprint not in self.codecs:
            raise ModelMismatchError(f"no model {fingerprint.hex()} here")
        return self.codecs[fingerprint]


def _pixels(top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
    with Image.open(SAMPLE) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _pictures() -> Iterator[tuple[str, Picture]]:
    """Yield small pictures of all kinds."""
    photo = _pixels(128, 320, 80, 112)
    rng = np.random.default_rng(0)
    yield "rgb", Picture(pixels=photo)
    yield "gray", Picture(pixels=photo[:50, :33, :1].copy())
    alpha = np.linspace(0, 255, 40 * 48).astype(np.uint8).reshape(40, 48)
    yield "alpha", Picture(pixels=photo[:40, :48].copy(), alpha=alpha)
    yield (
        "metadata",
        Picture(
            pixels=photo[:20, :35].copy(),
            bit_depth=16,
            orientation=6,
            icc=rng.bytes(60),
            exif=b"II*\0" + rng.bytes(40),
            xmp=b"<x:xmpmeta/>",
        ),
    )
    yield "pixel", Picture(pixels=photo[:1, :1].copy())
    # Latents far outside their tables: escapes.
    noise = rng.integers(0, 2, (32, 32, 1)).astype(np.uint8) * 255
    yield "noise", Picture(pixels=np.repeat(np.repeat(noise, 2, 0), 2, 1).repeat(3, 2))


def _files(label: str, codec: Codec) -> Iterator[tuple[str, bytes]]:
    """Yield what a codec makes of all pictures, and a file in tiles and one in each of some steps.

    As far as it has any.
    """
    for name, picture in _pictures():
        yield f"{label}-{name}", codec.compress(picture).data
    picture = Picture(pixels=_pixels(128, 320, 60, 70))
    for step in (0.25, 1.25, 3.5):
        with contextlib.suppress(ConfigError):
            yield f"{label}-step-{step}", codec.compress(picture, step=step).data
    for tile in (288, 320, 512):
        with contextlib.suppress(ConfigError):
            codec.check_tile(tile)
            picture = Picture(pixels=_pixels(0, 0, 300, tile + 30))
            yield f"{label}-tiles", codec.compress(picture, tile=tile).data
            return


def _lossless_files() -> Iterator[tuple[str, bytes]]:
    for name, picture in _pictures():
        yield f"lossless-{name}", compress_lossless(picture).data
    # Neither form is always the smaller one, and both must be there.
    flat = Picture(pixels=_pixels(0, 0, 24, 30) // 64 * 64)
    for form in ("PNG", "WEBP"):
        yield f"lossless-{form}", _stored_as(flat, form)


def _stored_as(picture: Picture, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, format=form, lossless=True)
    file = parse(compress_lossless(picture).data)
    return serialize(replace(file, tiles=(replace(file.tiles[0], streams=(buffer.getvalue(),)),)))


def _with_remarks(data: bytes) -> bytes:
    file = parse(data)
    return serialize(replace(file, meta={"software": "lic", "ä": "ö"}))


def write_kinds(folder: Path, *, network: bool = False) -> None:
    """Write bundles and files."""
    bundles, files = folder / "bundles", folder / "files"
    files.mkdir(parents=True)
    own = family()[1]
    codecs = {
        FACTORIZED: _with_network(own, contexts=False),
        "contexts": _with_network(own),
        "any-contexts": _with_network(with_contexts(own, bundles / "any-contexts")),
    }
    for bundle in (_network_bundles if network else _stand_in_bundles)(bundles):
        codec = _with_network(bundle) if network else stand_in(bundle)
        codecs[bundle.manifest.architecture] = codec
    for label, codec in codecs.items():
        for name, data in _files(label, codec):
            (files / f"{name}.lic").write_bytes(data)
    for name, data in _lossless_files():
        (files / f"{name}.lic").write_bytes(data)
    remarks = _with_remarks((files / f"{FACTORIZED}-rgb.lic").read_bytes())
    (files / "remarks.lic").write_bytes(remarks)


def _with_network(bundle: Bundle, *, contexts: bool = True) -> Codec:
    return Codec(bundle, backend="onnx", threads=1, contexts=contexts)


def _stand_in_bundles(folder: Path) -> list[Bundle]:
    return [context_bundle(name, folder / name) for name in PARTS]


def _network_bundles(folder: Path) -> list[Bundle]:
    """Make bundles with graphs of a small hyperprior and a small HPCM, untrained."""
    from lic.export.make_bundle import Description, make_bundle
    from tests.export.conftest import spread_hyperprior
    from tests.export.test_context_export import hpcm

    description = Description(name="small", rate_point=1)
    return [
        make_bundle(spread_hyperprior(), folder / "bmshj2018-hyperprior", description, graphs=True),
        make_bundle(hpcm(), folder / "hpcm", description, graphs=True),
    ]


def load_kinds(folder: Path, *, network: bool = False) -> Kinds:
    """Return what `write_kinds` wrote, with codecs that are ready to decode.

    Without `network` neither torch nor ONNX Runtime is imported.
    """
    seeds = tuple(
        Seed(path.stem, path.read_bytes()) for path in sorted((folder / "files").glob("*.lic"))
    )
    bundles = [family()[1], *map(Bundle.open, sorted((folder / "bundles").glob("*")))]
    codecs = [(_with_network if network else stand_in)(bundle) for bundle in bundles]
    for codec in codecs:
        codec.backend.load(decoder=True)
    headers = [parse(seed.data).header for seed in seeds]
    found = {
        fingerprint: codec for codec in codecs for fingerprint in codec.bundle.fingerprints.values()
    }
    assert {header.fingerprint for header in headers} - {bytes(8)} == found.keys()
    assert {header.coder for header in headers} == set(Coder)
    return Kinds(seeds, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", action="store_true")
    options = parser.parse_args()
    write_kinds(options.folder, network=options.network)
