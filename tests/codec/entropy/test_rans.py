import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lic.codec.entropy import KernelName, Reader, Tables, Writer, kernel_name
from lic.codec.errors import BitstreamError, ConfigError, NumericsError

EXTREMES = [-32768, 32767, 0, -1, 254, 255, 256, -129, -128]


Array = NDArray[Any]


def write(
    tables: Tables, groups: Sequence[tuple[Array, Array]], kernel: KernelName
) -> tuple[bytes, ...]:
    writer = Writer(tables, kernel=kernel)
    for symbols, indexes in groups:
        writer.code(symbols, indexes)
    return writer.finish()


def read(
    tables: Tables, streams: tuple[bytes, ...], indexes: Sequence[Array], kernel: KernelName
) -> list[Array]:
    reader = Reader(tables, streams, kernel=kernel)
    groups = [reader.code(None, each) for each in indexes]
    reader.finish()
    return groups


def array(values: Sequence[int], dtype: type[Any]) -> Array:
    return np.array(values, dtype=dtype)


symbols = st.one_of(st.integers(-40, 40), st.integers(-32768, 32767), st.sampled_from(EXTREMES))
pairs = st.lists(st.tuples(symbols, st.integers(0, 6)), max_size=30)
groups_of_pairs = st.lists(pairs, max_size=8)


@pytest.mark.usefixtures("c_kernel")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups_of_pairs)
def test_kernel_and_oracle_write_the_same_bytes_and_read_them_back(
    mixed_tables: Tables, drawn: list[list[tuple[int, int]]]
) -> None:
    groups = [
        (array([s for s, _ in pair], np.int16), array([i for _, i in pair], np.uint16))
        for pair in drawn
    ]
    streams = write(mixed_tables, groups, "c")
    assert write(mixed_tables, groups, "python") == streams
    kernels: tuple[KernelName, ...] = ("c", "python")
    for kernel in kernels:
        found = read(mixed_tables, streams, [i for _, i in groups], kernel)
        for group, (expected, _) in zip(found, groups, strict=True):
            assert group.dtype == np.int16
            assert np.array_equal(group, expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_reader_may_cut_the_groups_elsewhere(
    kernel: KernelName, mixed_tables: Tables, data: st.DataObject
) -> None:
    total = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(total)
    values = rng.integers(-40, 40, total).astype(np.int16)
    indexes = rng.integers(0, 7, total).astype(np.uint16)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=12)))
    streams = write(mixed_tables, [(values, indexes)], kernel)
    found = read(mixed_tables, streams, np.split(indexes, cuts), kernel)
    assert np.array_equal(np.concatenate(found), values)


@pytest.mark.parametrize("shape", [(7, 1), (7, 5), (7, 4, 3), (1, 7, 2, 3), (7, 1, 1)])
def test_indexes_without_memory_of_their_own_give_the_same_bytes(
    kernel: KernelName, mixed_tables: Tables, shape: tuple[int, ...]
) -> None:
    channels = np.arange(7, dtype=np.uint16).reshape([n if n == 7 else 1 for n in shape])
    view = np.broadcast_to(channels, shape)
    values = np.random.default_rng(1).integers(-40, 40, shape).astype(np.int16)
    head = (values.ravel()[:3], np.zeros(3, np.uint16))
    streams = write(mixed_tables, [head, (values, view)], kernel)
    assert streams == write(mixed_tables, [head, (values, view.copy())], kernel)
    for indexes in (view, view.copy()):
        found = read(mixed_tables, streams, [head[1], indexes], kernel)[1]
        assert found.shape == shape
        assert np.array_equal(found, values)


def test_one_index_for_everything(kernel: KernelName, mixed_tables: Tables) -> None:
    view = np.broadcast_to(np.uint16(3), (3, 5))
    values = np.arange(15, dtype=np.int16).reshape(3, 5)
    streams = write(mixed_tables, [(values, view)], kernel)
    assert np.array_equal(read(mixed_tables, streams, [view], kernel)[0], values)


def test_arrays_need_not_be_contiguous_nor_int16(kernel: KernelName, mixed_tables: Tables) -> None:
    values = np.arange(24, dtype=np.int64).reshape(4, 6)[::2, ::-1]
    indexes = np.full((6, 2), 4, np.int32).T
    streams = write(mixed_tables, [(values, indexes)], kernel)
    assert np.array_equal(read(mixed_tables, streams, [indexes], kernel)[0], values)


def test_the_writer_keeps_copies(kernel: KernelName, mixed_tables: Tables) -> None:
    values, indexes = np.arange(8, dtype=np.int16), np.full(8, 3, np.uint16)
    expected = write(mixed_tables, [(values, indexes)], kernel)
    writer = Writer(mixed_tables, kernel=kernel)
    returned = writer.code(values, indexes)
    assert np.array_equal(returned, values)
    values[:], indexes[:], returned[:] = 9, 0, 9
    assert writer.finish() == expected


def test_no_symbols_are_one_empty_stream(kernel: KernelName, mixed_tables: Tables) -> None:
    none = np.zeros((0, 5), np.uint16)
    assert write(mixed_tables, [], kernel) == (b"",)
    assert write(mixed_tables, [(none.astype(np.int16), none)], kernel) == (b"",)
    assert read(mixed_tables, (b"",), [none], kernel)[0].shape == (0, 5)
    with pytest.raises(BitstreamError, match="empty"):
        read(mixed_tables, (b"",), [np.zeros(1, np.uint16)], kernel)


def test_one_symbol_is_sixteen_bytes(kernel: KernelName, mixed_tables: Tables) -> None:
    one = np.ones(1, np.uint16)
    symbol = mixed_tables.offset[1:2].astype(np.int16)
    (stream,) = write(mixed_tables, [(symbol, one)], kernel)
    assert len(stream) == 16


def test_a_certain_symbol_costs_next_to_nothing(kernel: KernelName) -> None:
    cdf = np.array([[0, 16383, 16384]])
    tables = Tables(quantized_cdf=cdf, cdf_length=np.array([3]), offset=np.array([4]))
    values, indexes = np.full(5000, 4, np.int16), np.zeros(5000, np.uint16)
    streams = write(tables, [(values, indexes)], kernel)
    assert len(streams[0]) == 16
    assert np.array_equal(read(tables, streams, [indexes], kernel)[0], values)


@pytest.mark.parametrize("bad", [7, -1, 65536, 70000])
def test_an_index_without_table_is_refused_before_anything_else(
    kernel: KernelName, mixed_tables: Tables, bad: int
) -> None:
    indexes = np.array([0, bad, 0], np.int64)
    writer = Writer(mixed_tables, kernel=kernel)
    with pytest.raises(ConfigError, match=f"index {bad} selects none of the 7"):
        writer.code(np.zeros(3, np.int16), indexes)
    assert writer.finish() == (b"",)
    reader = Reader(mixed_tables, (b"\0\0\1\0" * 4,), kernel=kernel)
    with pytest.raises(ConfigError, match=f"index {bad}"):
        reader.code(None, indexes)


@pytest.mark.parametrize("bad", [32768, -32769, 1 << 40])
def test_a_symbol_beyond_int16_is_refused(
    kernel: KernelName, mixed_tables: Tables, bad: int
) -> None:
    with pytest.raises(NumericsError, match=f"symbol {bad}"):
        Writer(mixed_tables, kernel=kernel).code(np.array([0, bad]), np.zeros(2, np.uint16))


@pytest.mark.parametrize(
    ("values", "indexes"),
    [
        (np.zeros(3), np.zeros(3, np.uint16)),
        (np.zeros(3, bool), np.zeros(3, np.uint16)),
        (np.zeros(3, np.int16), np.zeros(3)),
        (np.zeros(3, np.int16), np.zeros(4, np.uint16)),
        (np.zeros((3, 1), np.int16), np.zeros(3, np.uint16)),
        (None, np.zeros(3, np.uint16)),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    kernel: KernelName, mixed_tables: Tables, values: Any, indexes: Any
) -> None:
    with pytest.raises(ConfigError):
        Writer(mixed_tables, kernel=kernel).code(values, indexes)


def test_a_coder_used_the_wrong_way_says_so(kernel: KernelName, mixed_tables: Tables) -> None:
    one = np.ones(1, np.uint16)
    writer = Writer(mixed_tables, kernel=kernel)
    writer.code(one, one)
    streams = writer.finish()
    with pytest.raises(ConfigError, match="finished"):
        writer.code(one, one)
    with pytest.raises(ConfigError, match="finished"):
        writer.finish()
    with pytest.raises(ConfigError, match="takes None"):
        Reader(mixed_tables, streams, kernel=kernel).code(one, one)


def test_unknown_kernels_are_refused(mixed_tables: Tables) -> None:
    with pytest.raises(ConfigError, match="'c', 'python' or None"):
        Writer(mixed_tables, kernel="rust")  # type: ignore[arg-type]


@pytest.mark.usefixtures("c_kernel")
def test_the_kernel_is_taken_where_it_is_built() -> None:
    assert kernel_name() == kernel_name("c") == "c"
    assert kernel_name("python") == "python"


WITHOUT_KERNEL = """
import sys
sys.modules["lic.codec.entropy._rans"] = None
import numpy as np
from lic.codec.entropy import KernelName, Reader, Writer, build_tables, kernel_name
from lic.codec.errors import ConfigError
assert kernel_name() == "python"
try:
    kernel_name("c")
except ConfigError as error:
    assert "not built" in str(error)
else:
    raise SystemExit("kernel_name('c') did not fail")
tables = build_tables([np.array([3.0, 2, 1, 1])], [-1])
symbols, indexes = np.array([0, 1, -1, 700], np.int16), np.zeros(4, np.uint16)
writer = Writer(tables)
writer.code(symbols, indexes)
reader = Reader(tables, writer.finish())
assert (reader.code(None, indexes) == symbols).all()
reader.finish()
"""


def test_everything_works_without_the_kernel() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", WITHOUT_KERNEL], check=True, env=environment)


@pytest.mark.usefixtures("c_kernel")
def test_threads_share_tables(mixed_tables: Tables) -> None:
    rng = np.random.default_rng(2)
    indexes = rng.integers(0, 7, 50_000).astype(np.uint16)
    values = rng.integers(-40, 40, 50_000).astype(np.int16)
    expected = write(mixed_tables, [(values, indexes)], "c")
    results: list[tuple[tuple[bytes, ...], Array]] = []

    def work() -> None:
        streams = write(mixed_tables, [(values, indexes)], "c")
        results.append((streams, read(mixed_tables, streams, [indexes], "c")[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for streams, found in results:
        assert streams == expected
        assert np.array_equal(found, values)
