"""Chunks of text: modl and meta."""

import re
from dataclasses import dataclass

from lic.codec.errors import BitstreamError

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, kw_only=True)
class Model:
    """For people: what to install when the fingerprint is unknown. It never selects a model."""

    name: str
    source: str = ""


def pack_strings(*texts: str) -> bytes:
    """Return strings one after another, a zero byte behind each.

    Raises:
        BitstreamError: A string has control characters.
    """
    for text in texts:
        _check_printable(text)
    return b"".join(text.encode() + b"\0" for text in texts)


def _unpack_strings(kind: str, payload: bytes) -> list[str]:
    if not payload.endswith(b"\0"):
        raise BitstreamError(f"chunk {kind}: the last string does not end in a zero byte")
    try:
        texts = payload[:-1].decode().split("\0")
    except UnicodeDecodeError as error:
        raise BitstreamError(f"chunk {kind}: not UTF-8 at byte {error.start}") from error
    for text in texts:
        _check_printable(text)
    return texts


def _check_printable(text: str) -> None:
    # These strings reach a terminal, which control characters could drive and marks of direction
    # could make lie. Listed by number: what counts as printable changes with Unicode's versions.
    if _UNSAFE.search(text):
        raise BitstreamError(f"text with control characters: {text[:40]!r}")


def unpack_model(payload: bytes | None) -> Model | None:
    """Return what modl says; None without the chunk."""
    if payload is None:
        return None
    texts = _unpack_strings("modl", payload)
    if len(texts) != 2:
        raise BitstreamError(f"chunk modl: {len(texts)} strings, expected name and source")
    return Model(name=texts[0], source=texts[1])


def unpack_meta(payload: bytes) -> dict[str, str]:
    """Return the remarks of meta by keyword."""
    if not payload:
        return {}
    texts = _unpack_strings("meta", payload)
    keys = texts[::2]
    if len(texts) % 2 or len(set(keys)) != len(keys):
        raise BitstreamError("chunk meta: expected pairs of a keyword, used once, and its text")
    return dict(zip(keys, texts[1::2], strict=True))
