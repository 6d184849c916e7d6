"""The kernel called directly, as no one should: it refuses or survives whatever it is given."""

from typing import Any

import numpy as np
import pytest

CDF = np.array([[0, 9000, 16000, 16384], [0, 5, 16384, 0]], np.uint16)
LENGTH = np.array([4, 3], np.uint16)
OFFSET = np.array([-1, 30], np.int32)


def call(module: Any, name: str, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "tables": module.prepare(CDF, LENGTH, OFFSET),
        "state": np.array([65536] * 4 + [8 if name == "encode" else 0, 0, 0], np.uint64),
        "words": np.zeros(64, np.uint8),
        "escapes": np.zeros(64, np.uint8),
        "symbols": np.zeros(8, np.int16),
        "indexes": np.zeros(8, np.uint16),
        "run": 1,
    }
    if name == "encode":
        arguments["state"][5:] = 64
    arguments.update(changes)
    return getattr(module, name)(*arguments.values())


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_the_plain_call_works(c_kernel: Any, name: str) -> None:
    assert call(c_kernel, name) == 0


@pytest.mark.parametrize("name", ["encode", "decode"])
@pytest.mark.parametrize(
    "changes",
    [
        {"tables": object()},
        {"state": np.zeros(6, np.uint64)},
        {"state": np.array([65536] * 4 + [8, 65, 0], np.uint64)},
        {"state": np.array([65536] * 4 + [8, 0, 65], np.uint64)},
        {"state": np.array([65536] * 4 + [8, 2**63, 2**64 - 1], np.uint64)},
        {"indexes": np.full(8, 2, np.uint16)},
        {"indexes": np.array([0, 0, 0, 0, 0, 0, 0, 65535], np.uint16)},
        {"indexes": np.array([2], np.uint16), "run": 8},
        {"indexes": np.zeros(7, np.uint16)},
        {"indexes": np.zeros(17, np.uint8)[1:], "run": 1},
        {"symbols": np.zeros(17, np.uint8)[1:]},
        {"run": 0},
        {"run": -1},
        {"run": 2**62},
        {"symbols": np.zeros(9, np.int16)},
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    c_kernel: Any, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        call(c_kernel, name, **changes)


def test_an_encoder_without_room_writes_nothing(c_kernel: Any) -> None:
    for state in ([8, 17, 64], [8, 64, 23], [7, 64, 64]):
        words, escapes = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
        with pytest.raises(ValueError, match="too small"):
            call(
                c_kernel,
                "encode",
                state=np.array([65536] * 4 + state, np.uint64),
                words=words,
                escapes=escapes,
            )
        assert not words.any()
        assert not escapes.any()


def test_read_only_output_is_refused(c_kernel: Any) -> None:
    symbols = np.zeros(8, np.int16)
    symbols.flags.writeable = False
    with pytest.raises((BufferError, TypeError, ValueError)):
        call(c_kernel, "decode", symbols=symbols)


@pytest.mark.parametrize(
    ("cdf", "length", "offset"),
    [
        (CDF, np.array([4, 1], np.uint16), OFFSET),
        (CDF, np.array([5, 3], np.uint16), OFFSET),
        (CDF, np.array([4, 65535], np.uint16), OFFSET),
        (CDF + np.uint16(1), LENGTH, OFFSET),
        (CDF[:, ::-1].copy(), LENGTH, OFFSET),
        (CDF, LENGTH, np.array([-1, 2**31 - 1], np.int32)),
        (CDF, LENGTH, np.array([-(2**31), 0], np.int32)),
        (CDF, LENGTH, OFFSET[:1]),
        (CDF.ravel()[:7].copy(), LENGTH, OFFSET),
        (np.zeros((2, 0), np.uint16), LENGTH, OFFSET),
    ],
)
def test_tables_that_cannot_be_coded_with_are_refused(
    c_kernel: Any, cdf: Any, length: Any, offset: Any
) -> None:
    with pytest.raises(ValueError):
        c_kernel.prepare(cdf, length, offset)


def test_no_tables_have_no_index(c_kernel: Any) -> None:
    none = c_kernel.prepare(np.zeros(0, np.uint16), np.zeros(0, np.uint16), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="no table"):
        call(c_kernel, "decode", tables=none)


def test_any_state_and_any_bytes_are_survived(c_kernel: Any) -> None:
    rng = np.random.default_rng(0)
    tables = c_kernel.prepare(CDF, LENGTH, OFFSET)
    for _ in range(3000):
        state = rng.integers(0, 2**64, 7, np.uint64)
        words = rng.bytes(int(rng.integers(40)))
        escapes = rng.bytes(int(rng.integers(10)))
        state[5] = rng.integers(len(words) + 1)
        state[6] = rng.integers(len(escapes) + 1)
        indexes = rng.integers(0, 2, 50).astype(np.uint16)
        status = c_kernel.decode(tables, state, words, escapes, np.empty(50, np.int16), indexes, 1)
        assert status in (0, 1, 2, 3)
        assert state[5] <= len(words)
        assert state[6] <= len(escapes)
