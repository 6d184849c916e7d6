import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lic.codec.bundle import (
    DECODER,
    ENCODER,
    MANIFEST,
    TABLES,
    WEIGHTS,
    Bundle,
    Manifest,
    fingerprint,
    safetensors_index,
    tables_to_npz,
    write_bundle,
)
from lic.codec.entropy import Tables, build_tables
from lic.codec.errors import ConfigError, ModelMismatchError, OutputError

FILES = (WEIGHTS, TABLES, ENCODER, DECODER)


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def contents(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in FILES}


def zipped(bundle: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
    return target


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# The manifest.


def test_a_manifest_reads_back_as_it_was_written(tiny_bundle: Path) -> None:
    written = Manifest(
        name="family",
        rate_point=255,
        architecture="bmshj2018-factorized",
        config={"N": 8},
        stride=16,
        lmbda=0.0130001,
        metric="ms-ssim",
        training={"note": "grün\n", "nested": [1, None, {"a": 0.1}]},
        source="https://example.org",
        graphs={"encoder": {"file": "encoder.onnx"}},
        fingerprint="0123456789abcdef",
        files={"a": {"bytes": 1, "sha256": "00"}},
    )
    assert Manifest.from_bytes(written.to_bytes(), "here") == written
    data = (tiny_bundle / MANIFEST).read_bytes()
    assert Manifest.from_bytes(data, "here").to_bytes() == data


def test_a_manifest_of_a_newer_format_says_to_update(copied: Path) -> None:
    values = json.loads((copied / MANIFEST).read_text())
    values["format"] = 2
    (copied / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ModelMismatchError, match="bundle format 2, this lic knows 1; update lic"):
        Bundle.open(copied)


def resealed(**changes: Any) -> bytes:
    """Return a manifest with other values and a hash that fits, as only intent makes it."""
    manifest = Manifest(
        name="family",
        rate_point=1,
        architecture="bmshj2018-factorized",
        config={"N": 8, "M": 12},
        stride=16,
        fingerprint="0123456789abcdef",
        files={WEIGHTS: {"bytes": 1, "sha256": "00"}},
    )
    for name, value in changes.items():
        object.__setattr__(manifest, name, value)
    return manifest.to_bytes()


SHA = "0" * 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 3),
        ("rate_point", 0),
        ("rate_point", 256),
        ("rate_point", "1"),
        ("rate_point", True),
        ("architecture", "unknown"),
        ("architecture", ["bmshj2018-factorized"]),
        ("config", None),
        ("stride", 0),
        ("stride", -16),
        ("lmbda", "0.1"),
        ("training", []),
        ("graphs", 1),
        ("fingerprint", ""),
        ("fingerprint", "not hexadecimal!"),
        ("files", []),
        ("files", {WEIGHTS: None}),
        ("files", {WEIGHTS: {"sha256": SHA}}),
        ("files", {WEIGHTS: {"bytes": 1}}),
        ("files", {WEIGHTS: {"bytes": -1, "sha256": SHA}}),
        ("files", {WEIGHTS: {"bytes": 1.5, "sha256": SHA}}),
        ("files", {WEIGHTS: {"bytes": True, "sha256": SHA}}),
    ],
)
def test_a_manifest_of_other_kinds_is_refused_although_its_hash_fits(name: str, value: Any) -> None:
    with pytest.raises(ModelMismatchError, match=f"here: .*{name}|here: the entry of"):
        Manifest.from_bytes(resealed(**{name: value}), "here")


@pytest.mark.parametrize(
    "name",
    ["../weights", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "C:weights", "a\0b", "a b", "ä"],
)
def test_a_file_name_that_leads_elsewhere_is_refused(name: str) -> None:
    data = resealed(files={name: {"bytes": 1, "sha256": SHA}})
    with pytest.raises(ModelMismatchError, match="could leave the bundle"):
        Manifest.from_bytes(data, "here")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"sha256": "", "format": 1}'],
)
def test_what_is_no_manifest_is_refused(copied: Path, data: bytes) -> None:
    (copied / MANIFEST).write_bytes(data)
    with pytest.raises(ModelMismatchError, match=r"manifest\.json"):
        Bundle.open(copied)


def test_an_odd_entry_is_named() -> None:
    values = json.loads(resealed())
    del values["sha256"]
    values["colour"] = values.pop("metric")
    from lic.codec.manifest import canonical_hash

    values["sha256"] = canonical_hash(values)
    with pytest.raises(ModelMismatchError, match="unknown or missing entries: colour, metric"):
        Manifest.from_bytes(json.dumps(values).encode(), "here")


@pytest.mark.parametrize("rate", [0, 256, -1])
def test_a_rate_point_beyond_a_byte_is_refused(rate: int) -> None:
    with pytest.raises(ConfigError, match=f"rate_point is {rate}"):
        Manifest(
            name="x", rate_point=rate, architecture="bmshj2018-factorized", config={}, stride=16
        )


# Damage.


def test_an_intact_bundle_passes_every_check(tiny_bundle: Path) -> None:
    Bundle.open(tiny_bundle).check()


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_every_changed_byte_is_noticed_and_its_file_named(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    few = len(data) < 4096
    places = (
        range(len(data)) if few else [*range(64), *range(64, len(data) - 64, 97), *range(-64, 0)]
    )
    bundle = Bundle.open(copied)
    unnoticed = []
    for place in places:
        data[place] ^= 1 << (place % 8)
        (copied / name).write_bytes(data)
        try:
            Bundle.open(copied) if name == MANIFEST else bundle.read(name)
            unnoticed.append(place)
        except ModelMismatchError as error:
            assert name in str(error)
        data[place] ^= 1 << (place % 8)
    assert unnoticed == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda _: b""])
def test_a_file_of_another_length_is_noticed(
    copied: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    (copied / name).write_bytes(change((copied / name).read_bytes()))
    with pytest.raises(ModelMismatchError, match=name):
        Bundle.open(copied).check()


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ModelMismatchError, match=name):
        Bundle.open(copied).check()


def test_a_file_that_the_manifest_does_not_list_is_not_read(copied: Path) -> None:
    (copied / "more.bin").write_bytes(b"x")
    with pytest.raises(ModelMismatchError, match=r"has no more\.bin"):
        Bundle.open(copied).read("more.bin")


def test_a_file_claimed_to_be_huge_costs_no_memory(copied: Path) -> None:
    bundle = Bundle.open(copied)
    bundle.manifest.files[WEIGHTS]["bytes"] = 2**62
    assert len(bundle.read(WEIGHTS)) == (copied / WEIGHTS).stat().st_size


def test_a_fingerprint_that_is_not_the_contents_is_noticed(copied: Path) -> None:
    bundle = Bundle.open(copied)
    changed = replace(bundle.manifest, fingerprint="0123456789abcdef")
    (copied / MANIFEST).write_bytes(changed.to_bytes())
    with pytest.raises(ModelMismatchError, match="0123456789abcdef"):
        Bundle.open(copied).check()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_holds_the_same_bundle(tiny_bundle: Path, tmp_path: Path, compression: int) -> None:
    bundle = Bundle.open(zipped(tiny_bundle, tmp_path / "a.zip", compression))
    bundle.check()
    assert bundle.manifest == Bundle.open(tiny_bundle).manifest
    assert all(bundle.read(name) == (tiny_bundle / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_gives_the_right_bytes_or_a_named_error(
    tiny_bundle: Path, tmp_path: Path, compression: int
) -> None:
    path = zipped(tiny_bundle, tmp_path / "a.zip", compression)
    data = bytearray(path.read_bytes())
    expected = contents(tiny_bundle)
    noticed = 0
    for place in [*range(0, len(data) - 512, 257), *range(len(data) - 512, len(data))]:
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        try:
            bundle = Bundle.open(path)
            assert {name: bundle.read(name) for name in FILES} == expected
        except ModelMismatchError:
            noticed += 1
        data[place] ^= 1 << (place % 8)
    assert noticed > 100


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"a photo"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ModelMismatchError, match="cannot be read"):
        Bundle.open(tmp_path / "a.zip")


def test_where_there_is_no_bundle_the_error_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.zip"):
        with pytest.raises(ModelMismatchError, match="no bundle here"):
            Bundle.open(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2).to_bytes(8, "little") + b"{}"[:1],
        *(
            len(header).to_bytes(8, "little") + header + bytes(4)
            for header in (
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,4]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4.0]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}',
                b'{"a":{"dtype":"F32","data_offsets":[0,4]}}',
                b'{"a":1}',
            )
        ),
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(ModelMismatchError, match="not a safetensors file"):
        safetensors_index(data)


def test_onnx_runtime_needs_the_files_of_both_directions(
    tiny_bundle: Path, tiny_hpcm_bundle: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.has_graphs and not Bundle.open(tiny_hpcm_bundle).has_graphs
    for name in (ENCODER, DECODER):
        files = {k: v for k, v in bundle.manifest.files.items() if k != name}
        assert not Bundle(bundle.path, replace(bundle.manifest, files=files)).has_graphs


# The fingerprint.


@pytest.fixture(scope="session")
def parts(tiny_bundle: Path) -> tuple[str, dict[str, Any], bytes, Tables]:
    bundle = Bundle.open(tiny_bundle)
    manifest = bundle.manifest
    return manifest.architecture, manifest.config, bundle.read(WEIGHTS), bundle.tables


Parts = tuple[str, dict[str, Any], bytes, Tables]


def with_byte_changed(weights: bytes, tensor: str) -> bytes:
    _, _, begin, _ = safetensors_index(weights)[tensor]
    changed = bytearray(weights)
    changed[begin] ^= 1
    return bytes(changed)


def test_the_fingerprint_is_that_of_the_manifest(parts: Parts, tiny_bundle: Path) -> None:
    assert fingerprint(*parts) == Bundle.open(tiny_bundle).manifest.fingerprint
    assert Bundle.open(tiny_bundle).fingerprint.hex() == fingerprint(*parts)


def test_every_decoding_tensor_changes_the_fingerprint_and_no_other_does(parts: Parts) -> None:
    architecture, config, weights, tables = parts
    changing = set()
    named = {name for name, (_, _, b, e) in safetensors_index(weights).items() if e > b}
    for name in named:
        changed = with_byte_changed(weights, name)
        if fingerprint(architecture, config, changed, tables) != fingerprint(*parts):
            changing.add(name)
    decoder = {name for name in named if name.startswith("g_s.")}
    assert changing == decoder | {"entropy_bottleneck.quantiles"}
    assert len(decoder) == 8


def test_config_and_tables_change_the_fingerprint(parts: Parts) -> None:
    architecture, config, weights, tables = parts
    arrays = {name: np.array(value) for name, value in tables.to_arrays().items()}
    pmf = [np.array([1.0, 2.0, 1.0, 0.001])]
    others = [
        fingerprint(architecture, {**config, "decoder_activation": "gdn"}, weights, tables),
        fingerprint(architecture, config, weights, build_tables(pmf, [-1])),
        fingerprint(*parts),
    ]
    assert len(set(others)) == 3
    assert fingerprint(architecture, config, weights, Tables.from_arrays(arrays)) == others[2]


def test_the_order_of_config_entries_does_not_matter(parts: Parts) -> None:
    architecture, config, weights, tables = parts
    backwards = dict(reversed(config.items()))
    assert fingerprint(architecture, backwards, weights, tables) == fingerprint(*parts)


def test_two_trainings_have_two_fingerprints(tiny_bundle: Path, tiny_bundle_2: Path) -> None:
    assert Bundle.open(tiny_bundle).fingerprint != Bundle.open(tiny_bundle_2).fingerprint


# Writing.


def test_tables_come_back_from_their_npz(tmp_path: Path, parts: Parts, tiny_bundle: Path) -> None:
    tables = parts[3]
    files = {**contents(tiny_bundle), TABLES: tables_to_npz(tables)}
    bundle = write_bundle(tmp_path / "a", Bundle.open(tiny_bundle).manifest, files)
    assert bundle.tables.digest() == tables.digest()


@pytest.mark.parametrize("name", ["new", "new.zip"])
def test_a_written_bundle_is_whole_and_nothing_else_is_left(
    tmp_path: Path, tiny_bundle: Path, name: str
) -> None:
    target = tmp_path / "not" / "there" / name
    bundle = write_bundle(target, Bundle.open(tiny_bundle).manifest, contents(tiny_bundle))
    bundle.check()
    assert bundle.manifest == Bundle.open(tiny_bundle).manifest
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["old", "old.zip"])
def test_an_existing_bundle_is_replaced_only_on_request(
    tmp_path: Path, tiny_bundle: Path, tiny_bundle_2: Path, name: str
) -> None:
    one, two = Bundle.open(tiny_bundle).manifest, Bundle.open(tiny_bundle_2).manifest
    write_bundle(tmp_path / name, one, contents(tiny_bundle))
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(tmp_path / name, two, contents(tiny_bundle_2))
    assert Bundle.open(tmp_path / name).manifest == one

    write_bundle(tmp_path / name, two, contents(tiny_bundle_2), overwrite=True).check()
    assert Bundle.open(tmp_path / name).manifest == two
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    manifest = Bundle.open(tiny_bundle).manifest
    with pytest.raises(OutputError, match="will not be replaced"):
        write_bundle(tmp_path / "photos", manifest, contents(tiny_bundle), overwrite=True)
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"x"


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize("name", ["old", "old.zip"])
def test_a_failed_replacement_leaves_the_old_bundle(
    tmp_path: Path,
    tiny_bundle: Path,
    tiny_bundle_2: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failing_call: int,
) -> None:
    write_bundle(tmp_path / name, Bundle.open(tiny_bundle).manifest, contents(tiny_bundle))
    before = everything_below(tmp_path)
    calls, real = [0], Path.rename

    def rename(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="No space left on device"):
        write_bundle(
            tmp_path / name,
            Bundle.open(tiny_bundle_2).manifest,
            contents(tiny_bundle_2),
            overwrite=True,
        )
    assert everything_below(tmp_path) == before


def test_a_write_that_fails_midway_leaves_nothing(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def write_bytes(self: Path, data: bytes) -> int:
        if self.name == DECODER:
            raise OSError(28, "No space left on device")
        return real(self, data)

    files = contents(tiny_bundle)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(tmp_path / "new", Bundle.open(tiny_bundle).manifest, files)
    assert list(tmp_path.iterdir()) == []


def test_a_target_below_a_file_cannot_be_written(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle(
            tmp_path / "file" / "new", Bundle.open(tiny_bundle).manifest, contents(tiny_bundle)
        )
