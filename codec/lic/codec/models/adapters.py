"""Foreign state dicts -> lic models.

CompressAI's files come in three generations of names, sometimes with a `module.` prefix, and with
or without the integer tables of `update()`; all of them load. Nothing is ever unpickled beyond
tensors and plain values.
"""

import codecs
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models.blocks import Activation
from lic.codec.models.bmshj2018 import FactorizedPrior
from lic.codec.models.gdnish import decoder_gain_of, encoder_gain_of
from lic.codec.models.hyperprior import ScaleHyperprior
from lic.codec.models.names import difference, listed
from lic.codec.models.parameter_counts import check_size

_Model = TypeVar("_Model", FactorizedPrior, ScaleHyperprior)

# lic freezes tables of its own; these buffers only say whether `update()` was called.
_TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length")
# Older names of the bottleneck's tensors: `_matrix0`, and before that `_matrices.0`.
_OLD_NAMES = (
    (re.compile(r"_(?:matrix|matrices\.)(\d+)$"), r"matrices.\1"),
    (re.compile(r"_(?:bias|biases\.)(\d+)$"), r"biases.\1"),
    (re.compile(r"_(?:factor|factors\.)(\d+)$"), r"factors.\1"),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a .pth, .pth.tar or .safetensors file; unwraps {"state_dict": ...}.

    Raises:
        ModelMismatchError: missing, damaged, no checkpoint at all, holding more than tensors and
            plain values, or tensors of more bytes than the file.
    """
    size = _check_start(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Its warnings are of pickle's versions; what matters of them becomes an error.
        with warnings.catch_warnings(action="ignore"):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelMismatchError(f"{path}: {_unpickling(str(error))}") from None
    except Exception:  # torch and safetensors raise a dozen kinds on damaged files.
        raise ModelMismatchError(
            f"{path}: is damaged or cut short ({size:,} bytes); download it again"
        ) from None
    # Not for ever: a mapping may contain itself.
    for _ in range(4):
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    if not _is_state_dict(content):
        raise ModelMismatchError(f"{path}: expected a state dict of tensors")
    _check_bytes(path, size, content)
    return dict(content)


def _check_start(path: Path) -> int:
    """Refuse what is no checkpoint by its first bytes, and return the file's size in bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelMismatchError(f"{path}: no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise ModelMismatchError(f"{path}: cannot be read as weights ({reason})") from None
    if not start:
        raise ModelMismatchError(f"{path}: is empty; download it again")
    # Eight bytes of any length, then the header's JSON; else zip, or a pickle with its protocol.
    named = path.suffix == ".safetensors"
    good = start[8:9] == b"{" if named else start.startswith((b"PK", b"\x80"))
    if good:
        return size
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        raise ModelMismatchError(
            f"{path}: is a web page, not weights: the download was not the file itself; download "
            "it again"
        )
    raise ModelMismatchError(
        f"{path}: starts with {start[:8]!r}, which is no checkpoint; expected a file of torch.save "
        "or .safetensors"
    )


def _unpickling(text: str) -> str:
    """Say why a pickle was refused, without torch's advice to load it unsafely."""
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found:
        return (
            f"holds more than tensors and was not loaded ({found[1]}); save its state dict alone "
            "and try again"
        )
    return (
        "is damaged or holds more than tensors, and was not loaded; download it again, or save its "
        "state dict alone with torch.save"
    )


def _check_bytes(path: Path, size: int, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that repeat or share their memory: with strides of nought, four bytes do."""
    found = sum(value.numel() * value.element_size() for value in state.values())
    if found > size:
        raise ModelMismatchError(
            f"{path}: names tensors of {found:,} bytes in a file of {size:,}; save tensors that "
            "have memory of their own"
        )


def _is_state_dict(content: object) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def detect_architecture(state: Mapping[str, Tensor]) -> str:
    """Return the key of `lic.codec.models.MODELS` whose tensors a state dict has, by their names.

    Whether all of them are there and fit is for the conversion to find out.

    Raises:
        ModelMismatchError: not the names of any architecture; names what was found.
    """
    names = {name.removeprefix("module.") for name in state}
    # One of two, so that a file that lacks the other is told so by name.
    if "means_hyper" in names or any(name.startswith("y_spatial_prior_") for name in names):
        return "hpcm"
    if {"g_a.0.weight", "g_a.6.weight"} <= names:
        conditional = any(name.startswith(("h_a.", "h_s.")) for name in names)
        return ScaleHyperprior.name if conditional else FactorizedPrior.name
    raise ModelMismatchError(
        f"no known architecture: found {listed(sorted(names))}; expected g_a.0.weight and "
        f"g_a.6.weight for {FactorizedPrior.name}, h_a.0.weight beside them for "
        f"{ScaleHyperprior.name}, or means_hyper for hpcm"
    )


def factorized_from_state_dict(
    state: Mapping[str, Tensor], *, normalisation: Activation = "gdn"
) -> FactorizedPrior:
    """Return the bmshj2018-factorized model of a state dict; widths are read off its shapes.

    A side with the convolutions of GDN-ish blocks has those, one without beta and gamma ReLU;
    `normalisation` says whether those of the other side are GDN or GDN1, which have the same
    tensors.

    Raises:
        ModelMismatchError: tensors are missing, unexpected or of the wrong shape; names them.
    """
    return _model(FactorizedPrior, state, normalisation)


def hyperprior_from_state_dict(
    state: Mapping[str, Tensor], *, normalisation: Activation = "gdn"
) -> ScaleHyperprior:
    """Return the bmshj2018-hyperprior model of a state dict, as `factorized_from_state_dict`.

    Its scale table comes along; without one, or with an empty one, the model has the standard's.

    Raises:
        ModelMismatchError: tensors are missing, unexpected or of the wrong shape, or the scales
            cannot have tables; names them.
    """
    return _model(ScaleHyperprior, state, normalisation)


def _model(
    architecture: type[_Model], state: Mapping[str, Tensor], normalisation: Activation
) -> _Model:
    renamed = _rename(state)
    config = _config(architecture.name, renamed, normalisation)
    try:
        check_size(architecture.name, config, renamed, f"{architecture.name} by its outer layers")
        # Not on the meta device: that imports torch's compiler, two seconds for nothing.
        model = architecture.from_dict(config)
    except ConfigError as error:
        raise ModelMismatchError(f"not a state dict of {error}") from None
    wanted = model.state_dict()
    for name, value in renamed.items():
        # A scale table may have any length.
        if (
            name in wanted
            and wanted[name].shape != value.shape
            and not name.endswith(".scale_table")
        ):
            raise ModelMismatchError(
                f"{name} has shape {tuple(value.shape)}; expected {tuple(wanted[name].shape)}"
            )
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    lacking = [name for name in missing if not name.endswith((*_TABLE_BUFFERS, ".scale_table"))]
    if lacking or unexpected:
        raise ModelMismatchError(
            f"not a {architecture.name} state dict: {difference(lacking, unexpected)}"
        )
    return model.eval()


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if name.startswith("entropy_bottleneck."):
            for pattern, replacement in _OLD_NAMES:
                name = pattern.sub(replacement, name)
        if not name.endswith(_TABLE_BUFFERS):
            renamed[name] = value.float()
    return renamed


def _config(
    architecture: str, state: Mapping[str, Tensor], normalisation: Activation
) -> dict[str, Any]:
    first, last = state.get("g_a.0.weight"), state.get("g_a.6.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        raise ModelMismatchError(
            f"not a {architecture} state dict: found "
            f"{listed(sorted(state))}; expected g_a.0.weight and g_a.6.weight among them"
        )
    config: dict[str, Any] = {"N": first.shape[0], "M": last.shape[0]}
    for side, name, read in (
        ("encoder", "g_a.1", encoder_gain_of),
        ("decoder", "g_s.1", decoder_gain_of),
    ):
        kind = normalisation if f"{name}.beta" in state else "relu"
        if f"{name}.depthwise.weight" in state:
            kind = "gdnish"
            try:
                config[f"{side}_gain"] = read(state, name).to_dict()
            except ConfigError as error:
                raise ModelMismatchError(f"not a {architecture} state dict: {error}") from None
        config[f"{side}_activation"] = kind
    return config
