"""Frozen bytes: a change here is a change of the .lic format."""

import numpy as np
import pytest

from lic.codec.entropy import KernelName, Reader, Tables, Writer

TABLES = Tables(
    quantized_cdf=np.array([[0, 8192, 12288, 16000, 16384], [0, 16000, 16384, 0, 0]]),
    cdf_length=np.array([5, 3]),
    offset=np.array([-1, 5]),
)
GOLDEN: dict[str, tuple[list[int], list[int], list[str]]] = {
    "one symbol": ([0], [0], ["00200400000001000000010000000100"]),
    "worked example": (
        [6, 1, -1, 0, 6, 0, 0, 0, 4, 0, 0, 0, 6],
        [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
        ["9f7e3500807749000040210000a0420080ff", "00000100"],
    ),
    "escapes": (
        [5, 2, -2, 66, -32768, 32767, 6, 4],
        [1, 0, 0, 0, 0, 1, 1, 1],
        ["00c62b0080ff1f0780ff1f0780ff1f07", "00018001fdff03f2ff030001"],
    ),
    "many words": (
        [1, 0, -1, 1, -1] * 13,
        [0] * 65,
        ["edb6ed11c0e95e085bca6d03067c8307805280f800e100c2"],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_frozen(kernel: KernelName, name: str) -> None:
    symbols, indexes, expected = GOLDEN[name]
    writer = Writer(TABLES, kernel=kernel)
    writer.code(np.array(symbols), np.array(indexes))
    streams = writer.finish()
    assert [stream.hex() for stream in streams] == expected
    reader = Reader(TABLES, streams, kernel=kernel)
    assert reader.code(None, np.array(indexes)).tolist() == symbols
    reader.finish()
