"""lic models fit: a bundle with contexts, which compress then uses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lic.codec.bundle import Bundle
from lic.codec.container import Coder, parse
from tests.cli.conftest import Lic

QUICK = ("--steps", 5, "--tables", 20)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        small = rng.integers(0, 256, (6 + i, 8, 3)).astype(np.uint8)
        Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def test_a_fitted_bundle_codes_with_contexts(
    lic: Lic, tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "fitted"
    done = lic("models", "fit", tiny_bundle, photos, "-o", target, *QUICK, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    bundle, old = Bundle.open(target), Bundle.open(tiny_bundle)
    bundle.check()
    assert told["fingerprint"] == bundle.manifest.fingerprint == old.manifest.fingerprint
    assert told["contexts"] == bundle.manifest.contexts != ""
    assert (told["pictures"], told["held_out"]) == (4, 1)
    assert 0 < told["tables"] <= 20 and told["bytes"] > 0 and told["plain_bytes"] > 0
    coded = tmp_path / "coded.lic"
    assert lic("compress", photos / "0.png", "-m", target, "-o", coded).code == 0
    assert parse(coded.read_bytes()).header.coder is Coder.CONTEXTS
    assert lic("decompress", coded, "-m", target, "-o", tmp_path / "again.png").code == 0
    done = lic("decompress", coded, "-m", tiny_bundle, "-o", tmp_path / "no.png")
    assert done.code == 5 and not (tmp_path / "no.png").exists()


def test_the_same_pictures_give_the_same_bundle(
    lic: Lic, tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    for name in ("one", "two.zip"):
        target = tmp_path / name
        assert lic("models", "fit", tiny_bundle, photos, "-o", target, *QUICK).code == 0
    first, second = (Bundle.open(tmp_path / name) for name in ("one", "two.zip"))
    assert first.manifest == second.manifest
    done = lic("models", "fit", tiny_bundle, photos, "-o", tmp_path / "one", *QUICK)
    assert done.code == 7 and "-f overwrites it" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tables", 0), "--tables"),
        (("--count", 1), "--count"),
        (("-q", 9), "no rate point 9"),
    ],
)
def test_what_makes_no_sense_is_refused(
    lic: Lic,
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    target = tmp_path / "fitted"
    done = lic("models", "fit", tiny_bundle, photos, "-o", target, *arguments)
    assert done.code == 2 and message in done.err
    assert not target.exists()


def test_pictures_and_model_must_be_there(
    lic: Lic, tiny_bundle: Path, tiny_hpcm_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "fitted"
    done = lic("models", "fit", tiny_bundle, photos / "0.png", "-o", target)
    assert done.code == 2 and "found 1 picture" in done.err
    done = lic("models", "fit", tiny_bundle, photos / "none", "-o", target)
    assert done.code == 3
    bad = photos / "broken.png"
    done = lic("models", "fit", tiny_bundle, bad, bad, "-o", target)
    assert done.code == 3 and "no picture could be read" in done.err
    done = lic("models", "fit", tiny_hpcm_bundle, photos, "-o", target)
    assert done.code == 2 and "contexts are for bmshj2018-factorized" in done.err
    assert not target.exists()
