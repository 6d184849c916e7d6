"""Bundles whose every hash is right and whose content is wrong: refused as such, and at once."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lic.codec.backends.torch_backend import load_model, open_torch_backend
from lic.codec.bundle import MANIFEST, TABLES, WEIGHTS, Bundle, tables_to_npz
from lic.codec.entropy import Tables
from lic.codec.errors import ModelMismatchError
from lic.codec.models import MODELS, HyperpriorConfig, ScaleHyperprior

Forge = Callable[..., Bundle]
KINDS = ["bmshj2018-factorized", "bmshj2018-hyperprior", "hpcm"]


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_hpcm_bundle: Path
) -> dict[str, Bundle]:
    """One of each architecture."""
    from lic.export.make_bundle import Description, make_bundle

    target = tmp_path_factory.mktemp("hyperprior") / "1"
    description = Description(name="hyperprior", rate_point=1)
    model = ScaleHyperprior(HyperpriorConfig(N=8, M=12, decoder_activation="relu"))
    hyperprior = make_bundle(model, target, description)
    found = (Bundle.open(tiny_bundle), hyperprior, Bundle.open(tiny_hpcm_bundle))
    return {bundle.manifest.architecture: bundle for bundle in found}


@pytest.fixture
def forge(bundles: dict[str, Bundle], tmp_path: Path) -> Forge:
    """A function: (architecture, files, entries that change) -> a bundle with fitting hashes."""

    def change(kind: str, files: dict[str, bytes] | None = None, **entries: Any) -> Bundle:
        source = bundles[kind]
        target = Path(shutil.copytree(source.path, tmp_path / "forged", dirs_exist_ok=True))
        listed = dict(source.manifest.files)
        for name, data in (files or {}).items():
            (target / name).write_bytes(data)
            listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = replace(source.manifest, files=listed, **entries)
        (target / MANIFEST).write_bytes(manifest.to_bytes())
        return Bundle.open(target)

    return change


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [8, 100, 512])
def test_another_stride_than_the_models_is_refused(forge: Forge, kind: str, stride: int) -> None:
    """The fingerprint says nothing of it, and padding goes by it."""
    with pytest.raises(
        ModelMismatchError, match=rf"stride is {stride}; this {kind} .* multiples of \d+"
    ):
        open_torch_backend(forge(kind, stride=stride))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bmshj2018-factorized", {"N": 4096, "M": 4096}),
        ("bmshj2018-hyperprior", {"N": 4096, "M": 4096}),
        ("hpcm", {"widths": [4096] * 3, "blocks": [4096] * 3}),
        ("hpcm", {"widths": [4] * 3, "blocks": [4096] * 3}),
        ("hpcm", {"M": 1024, "N": 1024}),
        ("hpcm", {"prior_s3": [4096, 4096]}),
    ],
)
def test_a_config_beyond_the_weights_is_refused_before_anything_is_made(
    forge: Forge,
    bundles: dict[str, Bundle],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: dict[str, Any],
) -> None:
    bundle = forge(kind, config=bundles[kind].manifest.config | options)

    def build(_: object) -> None:
        pytest.fail("a model of this size would take gigabytes or minutes")

    monkeypatch.setattr(MODELS[kind], "from_dict", build)
    with pytest.raises(ModelMismatchError, match=r"config asks for [0-9,]+ numbers, the weights"):
        load_model(bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_what_nearly_fits_is_named_by_its_tensors(
    forge: Forge, bundles: dict[str, Bundle], kind: str
) -> None:
    narrower = {"M": 56} if kind == "hpcm" else {"M": 11}
    config = bundles[kind].manifest.config | narrower
    with pytest.raises(ModelMismatchError, match=r"size mismatch for g_a\."):
        load_model(forge(kind, config=config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"N": 0}, {"N": 8.0}, {"colour": "red"}])
def test_a_config_that_cannot_work_is_the_bundles_fault(
    forge: Forge, bundles: dict[str, Bundle], kind: str, options: dict[str, Any]
) -> None:
    config = bundles[kind].manifest.config | options
    with pytest.raises(ModelMismatchError, match=rf"manifest\.json: config of {kind}: .*"):
        load_model(forge(kind, config=config))


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\xff" * 64,
        _safetensors({}, bytes(4)),
        # More numbers than bytes.
        _safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)),
        # The same bytes twice.
        _safetensors(
            {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)
        ),
        _safetensors({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        _safetensors({"a": {"dtype": "F9", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    ],
)
def test_weights_that_are_no_safetensors_are_refused_by_name(forge: Forge, weights: bytes) -> None:
    with pytest.raises(ModelMismatchError, match=r"weights\.safetensors: not a safetensors file"):
        load_model(forge("hpcm", {WEIGHTS: weights}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [1, 10, -1])
def test_another_number_of_tables_than_the_model_needs_is_refused(
    forge: Forge, bundles: dict[str, Bundle], kind: str, missing: int
) -> None:
    # Of one set: how many sets there are is free.
    whole = bundles[kind].tables.of_set(0)
    rows = [min(row, len(whole) - 1) for row in range(len(whole) - missing)]
    fewer = Tables(
        quantized_cdf=whole.quantized_cdf[rows],
        cdf_length=whole.cdf_length[rows],
        offset=whole.offset[rows],
    )
    expected = rf"tables\.npz: holds {len(rows)} .*; this {kind} needs {len(whole)}"
    with pytest.raises(ModelMismatchError, match=expected):
        open_torch_backend(forge(kind, {TABLES: tables_to_npz(fewer)}))
