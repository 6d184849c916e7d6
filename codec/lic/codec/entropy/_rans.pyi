"""The C kernel. `_rans_py` has the same three functions with the same results."""

from typing_extensions import Buffer

def prepare(quantized_cdf: Buffer, cdf_length: Buffer, offset: Buffer, /) -> object: ...
def encode(
    tables: object,
    state: Buffer,
    words: Buffer,
    escapes: Buffer,
    symbols: Buffer,
    indexes: Buffer,
    run: int,
    /,
) -> int: ...
def decode(
    tables: object,
    state: Buffer,
    words: Buffer,
    escapes: Buffer,
    symbols: Buffer,
    indexes: Buffer,
    run: int,
    /,
) -> int: ...
