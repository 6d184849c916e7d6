"""The deployable model: one folder, or one .zip of it, with everything that coding needs.

    manifest.json         what the model is, which graphs it has, hashes of all files and of itself
    weights.safetensors   every tensor, once; the graphs point into this file
    encoder.onnx          x -> symbols
    decoder.onnx          symbols -> x_hat
    tables.npz            integer entropy tables
    contexts.npz          what chooses among tables of its own (factorized priors; optional)

Nothing here needs torch or ONNX Runtime, and nothing is ever unpickled.
"""

import hashlib
import io
import json
import operator
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from lic.codec.architectures import ARCHITECTURES
from lic.codec.container import Coder
from lic.codec.entropy import Contexts, Tables
from lic.codec.errors import ConfigError, ModelMismatchError, OutputError
from lic.codec.manifest import Manifest

T = TypeVar("T")
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
TABLES = "tables.npz"
CONTEXTS = "contexts.npz"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
EMBEDDED = Path(__file__).parent / "bundles"
MANIFEST_LIMIT = 2**20
# What files and zip archives raise; RuntimeError stands for encryption and unknown compression.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)


class Bundle:
    """A bundle on disk. Files are read on demand, and their hashes checked then."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder or a .zip; reads the manifest only.

        Raises:
            ModelMismatchError: there is no bundle, or its manifest was changed.
        """
        data = _read_file(path, MANIFEST, MANIFEST_LIMIT)
        return cls(path, Manifest.from_bytes(data, f"{path / MANIFEST}"))

    @property
    def fingerprint(self) -> bytes:
        """The 8 bytes that .lic files of the plain coder carry."""
        return bytes.fromhex(self.manifest.fingerprint)

    @property
    def fingerprints(self) -> dict[Coder, bytes]:
        """What .lic files carry that this can decode, by their coder."""
        found = {Coder.RANS: self.fingerprint}
        if self.manifest.contexts:
            found[Coder.CONTEXTS] = bytes.fromhex(self.manifest.contexts)
        return found

    @property
    def file_fingerprint(self) -> bytes:
        """What new files carry: that of the contexts, where there are some."""
        return self.fingerprints.get(Coder.CONTEXTS, self.fingerprint)

    @property
    def embedded(self) -> bool:
        """Whether this is one of lic's own, which every decoder has."""
        return self.path.resolve().is_relative_to(EMBEDDED.resolve())

    @property
    def has_graphs(self) -> bool:
        """Whether ONNX Runtime can run it, in both directions."""
        return {ENCODER, DECODER} <= self.manifest.files.keys()

    @property
    def label(self) -> str:
        """Family name and rate point, for people."""
        return f"{self.manifest.name} q{self.manifest.rate_point}"

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            ModelMismatchError: missing, or changed since the bundle was made; names the file.
        """
        if name not in self.manifest.files:
            raise ModelMismatchError(f"{self.path}: the bundle has no {name}")
        entry = self.manifest.files[name]
        data = _read_file(self.path, name, int(entry["bytes"]))
        found = hashlib.sha256(data).hexdigest()
        if found != entry["sha256"]:
            raise ModelMismatchError(
                f"{self.path / name}: was changed after the bundle was made (SHA-256 {found[:16]}, "
                f"expected {entry['sha256'][:16]}, {len(data)} of {entry['bytes']} bytes); "
                "get the bundle again"
            )
        return data

    @cached_property
    def tables(self) -> Tables:
        """The integer entropy tables."""
        return self._arrays(TABLES, Tables.from_arrays)

    @cached_property
    def contexts(self) -> Contexts | None:
        """What chooses among tables of its own, None where the bundle has no such thing."""
        return self._arrays(CONTEXTS, Contexts.from_arrays) if self.manifest.contexts else None

    def _arrays(self, name: str, make: Callable[[dict[str, Any]], T]) -> T:
        try:
            with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as arrays:
                return make(dict(arrays))
        except (ConfigError, *UNREADABLE) as error:
            raise ModelMismatchError(f"{self.path / name}: unreadable ({error})") from None

    def check(self) -> None:
        """Read every file, and recompute the fingerprint.

        Raises:
            ModelMismatchError: a file was changed, or the fingerprint is not that of the content.
        """
        for name in self.manifest.files:
            self.read(name)
        found = fingerprint(
            self.manifest.architecture, self.manifest.config, self.read(WEIGHTS), self.tables
        )
        if found != self.manifest.fingerprint:
            raise ModelMismatchError(
                f"{self.path}: the content has fingerprint {found}, the manifest says "
                f"{self.manifest.fingerprint}"
            )
        chosen = contexts_fingerprint(found, self.contexts)
        if chosen != self.manifest.contexts:
            raise ModelMismatchError(
                f"{self.path}: the contexts have fingerprint {chosen}, the manifest says "
                f"{self.manifest.contexts}"
            )


def _read_file(path: Path, name: str, limit: int) -> bytes:
    """Return at most `limit` + 1 bytes of a file of the bundle: an odd size fails its hash."""
    try:
        if path.is_dir():
            with (path / name).open("rb") as file:
                # The limit comes from the manifest, and a read of n bytes asks for n bytes at once.
                return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return member.read(limit + 1)
    except (FileNotFoundError, KeyError):
        raise ModelMismatchError(f"{path}: no bundle here (found no {name})") from None
    except UNREADABLE as error:
        raise ModelMismatchError(f"{path}: {name} cannot be read ({error})") from None


def safetensors_index(data: bytes) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Return dtype, shape, first and last byte in the file of every tensor of a safetensors file.

    Raises:
        ModelMismatchError: not a safetensors file.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > len(data) - 8:
            raise ValueError(f"header of {length} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + length])
        base = 8 + length
        index = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = map(operator.index, entry["data_offsets"])
                if not 0 <= begin <= end <= len(data) - base:
                    raise ValueError(f"{name} lies at {begin} to {end}")
                shape = tuple(map(operator.index, entry["shape"]))
                if min(shape, default=0) < 0:
                    raise ValueError(f"{name} has shape {shape}")
                index[name] = (entry["dtype"], shape, base + begin, base + end)
        return index
    except (
        struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise ModelMismatchError(f"{WEIGHTS}: not a safetensors file ({error!r})") from None


def fingerprint(architecture: str, config: dict[str, Any], weights: bytes, tables: Tables) -> str:
    """Return the 16 hexadecimal digits that name all that decides decoding.

    Architecture, config, and of the decoding tensors name, dtype, shape and bytes, then the
    tables' digest. Encoder weights do not count: files of a better encoder decode with the old one.
    """
    digest = hashlib.sha256()

    def feed(part: bytes) -> None:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)

    feed(architecture.encode())
    feed(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    index = safetensors_index(weights)
    for name in sorted(n for n in index if n.startswith(ARCHITECTURES[architecture].decoding)):
        dtype, shape, begin, end = index[name]
        feed(json.dumps([name, dtype, shape], separators=(",", ":")).encode())
        feed(weights[begin:end])
    feed(tables.digest())
    return digest.hexdigest()[:16]


def contexts_fingerprint(plain: str, contexts: Contexts | None) -> str:
    """Return the 16 hexadecimal digits of files coded with contexts, "" without any.

    Args:
        plain: the fingerprint of all else. It stays what it is when contexts come or change, so
            that older files of the model keep theirs.
        contexts: of the bundle.
    """
    if contexts is None:
        return ""
    return hashlib.sha256(bytes.fromhex(plain) + contexts.digest()).hexdigest()[:16]


def write_bundle(
    target: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    overwrite: bool = False,
    check: Callable[[Bundle], object] | None = None,
) -> Bundle:
    """Write a bundle, complete or not at all; `target` ending in .zip gives one file.

    `files` holds weights and graphs; tables come as their npz. Fingerprint and hashes
    are filled in here. `check` is given the bundle before it takes its place; what it raises
    keeps it from there.

    Raises:
        OutputError: the target exists, is no bundle that could be replaced, or cannot be written;
            then whatever was there still is.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another name or overwrite")
    if target.is_dir() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise OutputError(f"{target}: is a folder of other things and will not be replaced")
    with np.load(io.BytesIO(files[TABLES]), allow_pickle=False) as arrays:
        tables = Tables.from_arrays(dict(arrays))
    values = {f.name: getattr(manifest, f.name) for f in fields(manifest)}
    values["fingerprint"] = fingerprint(
        manifest.architecture, manifest.config, files[WEIGHTS], tables
    )
    contexts = None
    if CONTEXTS in files:
        with np.load(io.BytesIO(files[CONTEXTS]), allow_pickle=False) as arrays:
            contexts = Contexts.from_arrays(dict(arrays))
    values["contexts"] = contexts_fingerprint(values["fingerprint"], contexts)
    values["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    }
    content = {MANIFEST: Manifest(**values).to_bytes(), **files}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, content, check)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return Bundle.open(target)


def _write_whole(
    target: Path, content: Mapping[str, bytes], check: Callable[[Bundle], object] | None
) -> None:
    """Write beside the target, then rename."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        fresh = scratch / target.name
        if target.suffix == ".zip":
            with zipfile.ZipFile(fresh, "w") as archive:
                for name, data in content.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
        else:
            fresh.mkdir()
            for name, data in content.items():
                (fresh / name).write_bytes(data)
        if check:
            check(Bundle.open(fresh))
        previous = scratch / "previous"
        if target.exists():
            target.rename(previous)
        try:
            fresh.rename(target)
        except BaseException:
            if previous.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tables_to_npz(tables: Tables | Contexts) -> bytes:
    """Return the bytes of tables.npz, or of contexts.npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **tables.to_arrays())
    return buffer.getvalue()


__all__ = [
    "CONTEXTS",
    "DECODER",
    "ENCODER",
    "MANIFEST",
    "TABLES",
    "UNREADABLE",
    "WEIGHTS",
    "Bundle",
    "Manifest",
    "fingerprint",
    "safetensors_index",
    "tables_to_npz",
    "write_bundle",
]
