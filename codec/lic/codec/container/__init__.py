"""The .lic container: bytes to dataclasses and back; no files, no tensors.

`codec/FORMAT.md` describes every byte. Numbers are little-endian.
"""

from lic.codec.container.file import (
    CHUNK_OVERHEAD,
    HEADER_BYTES,
    MAX_PAYLOAD,
    SIGNATURE,
    Chunk,
    LicFile,
    Tile,
    list_chunks,
    parse,
    parse_header,
    serialize,
)
from lic.codec.container.header import MAX_SIDE, Coder, Header, Limits
from lic.codec.container.metadata import Metadata, read_metadata, read_part
from lic.codec.container.text import Model

__all__ = [
    "CHUNK_OVERHEAD",
    "HEADER_BYTES",
    "MAX_PAYLOAD",
    "MAX_SIDE",
    "SIGNATURE",
    "Chunk",
    "Coder",
    "Header",
    "LicFile",
    "Limits",
    "Metadata",
    "Model",
    "Tile",
    "list_chunks",
    "parse",
    "parse_header",
    "read_metadata",
    "read_part",
    "serialize",
]
