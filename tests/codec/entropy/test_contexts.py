"""Tables chosen from known symbols: the kernel and the oracle agree, whatever the integers."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lic.codec.entropy import (
    ContextReader,
    Contexts,
    ContextWriter,
    KernelName,
    Meter,
    Reader,
    Tables,
    Writer,
    build_tables,
    context_symbols,
)
from lic.codec.entropy.contexts import BESIDE_LIMIT, BIAS_LIMIT, CLASSES, LEVELS
from lic.codec.errors import BitstreamError, ConfigError, ModelMismatchError, NumericsError

Symbols = NDArray[np.int16]


def made_contexts(rng: np.random.Generator, channels: int, tables: Tables) -> Contexts:
    """Return contexts whose integers use the ranges that they may have."""

    def drawn(low: int, high: int, shape: Any, dtype: type[Any]) -> NDArray[Any]:
        found: NDArray[Any] = rng.integers(low, high, shape).astype(dtype)
        return found

    predicted = min(channels, 2)
    return Contexts(
        levels=np.sort(drawn(0, 256, LEVELS, np.uint8)),
        order=rng.permutation(channels).astype(np.uint16),
        mean=drawn(0, 256, channels, np.uint8),
        beside=drawn(-BESIDE_LIMIT // 6 + 1, BESIDE_LIMIT // 6, (channels, 6), np.int8),
        into=drawn(-128, 128, (channels, 4), np.int8),
        from_sums=drawn(-128, 128, (channels, 4), np.int8),
        bias=drawn(-(2**17), 2**17, channels, np.int32),
        table_map=drawn(0, len(tables), (channels, CLASSES), np.uint8),
        predicted=rng.permutation(channels)[:predicted].astype(np.uint16),
        weights=drawn(-128, 128, (predicted, 6), np.int8),
        tables=tables,
    )


def grid_of(symbols: Symbols) -> NDArray[np.uint16]:
    return np.broadcast_to(np.zeros((symbols.shape[0], 1, 1), np.uint16), symbols.shape)


def written(
    contexts: Contexts, symbols: Symbols, kernel: KernelName | None = None
) -> tuple[bytes, ...]:
    writer = ContextWriter(contexts, kernel=kernel)
    assert np.array_equal(writer.code(symbols, grid_of(symbols)), symbols)
    return writer.finish()


def read(
    contexts: Contexts,
    streams: tuple[bytes, ...],
    like: Symbols,
    kernel: KernelName | None = None,
) -> Symbols:
    reader = ContextReader(contexts, streams, kernel=kernel)
    found = reader.code(None, grid_of(like))
    reader.finish()
    return found


shapes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))


@pytest.mark.usefixtures("c_kernel")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(shapes, st.sampled_from([0.2, 3, 300, 40_000]), st.integers(0, 2**32 - 1))
def test_kernel_and_oracle_write_the_same_bytes_and_read_them_back(
    mixed_tables: Tables, shape: tuple[int, int, int], size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    contexts = made_contexts(rng, shape[0], mixed_tables)
    symbols = np.clip(np.round(rng.laplace(size=shape) * size), -32768, 32767).astype(np.int16)
    streams = written(contexts, symbols, "c")
    assert written(contexts, symbols, "python") == streams
    kernels: tuple[KernelName, ...] = ("c", "python")
    for kernel in kernels:
        assert np.array_equal(read(contexts, streams, symbols, kernel), symbols)


def test_extreme_symbols_and_weights_survive(kernel: KernelName, mixed_tables: Tables) -> None:
    """Every sum at the end of its range: what overflows would differ between the kernels."""
    channels = 8
    contexts = replace(
        made_contexts(np.random.default_rng(1), channels, mixed_tables),
        levels=np.full(LEVELS, 255, np.uint8),
        mean=np.zeros(channels, np.uint8),
        beside=np.tile(np.array([[-128, 0, 0, 0, 0, 0]], np.int8), (channels, 1)),
        into=np.full((channels, 4), -128, np.int8),
        from_sums=np.full((channels, 4), -128, np.int8),
        bias=np.full(channels, BIAS_LIMIT, np.int32),
        weights=np.full((2, 6), -128, np.int8),
    )
    values = np.array([-32768, 32767], np.int16)
    symbols = values[np.random.default_rng(2).integers(0, 2, (channels, 5, 7))]
    streams = written(contexts, symbols, kernel)
    assert streams == written(contexts, symbols)
    assert np.array_equal(read(contexts, streams, symbols, kernel), symbols)


def laplace_tables(sizes: list[float]) -> Tables:
    pmfs, offsets = [], []
    for size in sizes:
        reach = int(12 * size) + 2
        mass = np.exp(-np.abs(np.arange(-reach, reach + 1)) / size)
        pmfs.append(np.append(mass, 1e-7))
        offsets.append(-reach)
    return build_tables(pmfs, offsets)


def test_a_neighbour_chooses_the_table(kernel: KernelName) -> None:
    """By hand: one channel, the left neighbour's activity is the class, two tables."""
    contexts = Contexts(
        levels=np.minimum(np.arange(LEVELS), 255).astype(np.uint8),
        order=np.zeros(1, np.uint16),
        mean=np.zeros(1, np.uint8),
        beside=np.array([[127, 0, 0, 0, 0, 0]], np.int8),
        into=np.zeros((1, 4), np.int8),
        from_sums=np.zeros((1, 4), np.int8),
        bias=np.zeros(1, np.int32),
        table_map=np.array([[0] + [1] * 63], np.uint8),
        predicted=np.zeros(0, np.uint16),
        weights=np.zeros((0, 6), np.int8),
        tables=laplace_tables([1, 9]),
    )
    symbols = np.array([[[0, 3, 9, 4, 5, 0], [7, 0, 0, -5, 0, 0]]], np.int16)
    assert np.array_equal(read(
        contexts, written(contexts, symbols, kernel), symbols, kernel
    ), symbols)  # fmt: skip
    coded, indexes = context_symbols(contexts, symbols)
    assert np.array_equal(coded[:, :, 0], symbols[0])
    # 127 * activity // 512 is at least 1 from activity 5 on.
    assert indexes[:, :, 0].tolist() == [[0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0]]


def test_a_predicted_value_is_subtracted(kernel: KernelName, mixed_tables: Tables) -> None:
    contexts = replace(
        made_contexts(np.random.default_rng(0), 1, mixed_tables),
        predicted=np.zeros(1, np.uint16),
        weights=np.array([[64, 0, 0, 0, 0, 0]], np.int8),
    )
    symbols = np.array([[[5, 7, 7], [-20, 1, 1]]], np.int16)
    coded, _ = context_symbols(contexts, symbols)
    # From the left; at the start of a row from above.
    assert coded[:, :, 0].tolist() == [[5, 2, 0], [-25, 21, 0]]
    streams = written(contexts, symbols, kernel)
    assert np.array_equal(read(contexts, streams, symbols, kernel), symbols)


def test_the_plain_coder_reads_what_contexts_wrote_if_it_knows_them(
    mixed_tables: Tables,
) -> None:
    """The stream is the plain one, symbols position by position."""
    rng = np.random.default_rng(3)
    contexts = made_contexts(rng, 7, mixed_tables)
    symbols = rng.integers(-9, 9, (7, 4, 5)).astype(np.int16)
    coded, indexes = context_symbols(contexts, symbols)
    plain = Writer(mixed_tables)
    plain.code(coded, indexes)
    assert plain.finish() == written(contexts, symbols)


def test_several_tiles_share_a_stream(kernel: KernelName, mixed_tables: Tables) -> None:
    rng = np.random.default_rng(4)
    contexts = made_contexts(rng, 5, mixed_tables)
    tiles = [rng.integers(-9, 9, (5, h, w)).astype(np.int16) for h, w in ((2, 3), (4, 1))]
    writer = ContextWriter(contexts, kernel=kernel)
    for tile in tiles:
        writer.code(tile, grid_of(tile))
    reader = ContextReader(contexts, writer.finish(), kernel=kernel)
    for tile in tiles:
        assert np.array_equal(reader.code(None, grid_of(tile)), tile)
    reader.finish()


def test_truncation_at_every_byte_is_found(kernel: KernelName, mixed_tables: Tables) -> None:
    rng = np.random.default_rng(5)
    contexts = made_contexts(rng, 6, mixed_tables)
    symbols = (rng.laplace(size=(6, 5, 4)) * 90).astype(np.int16)
    streams = written(contexts, symbols)
    assert len(streams) == 2
    for which in (0, 1):
        for size in range(len(streams[which])):
            damaged = list(streams)
            damaged[which] = damaged[which][:size]
            with pytest.raises(BitstreamError):
                read(contexts, tuple(damaged), symbols, kernel)


@pytest.mark.usefixtures("c_kernel")
def test_damaged_streams_give_both_kernels_the_same_answer(mixed_tables: Tables) -> None:
    rng = np.random.default_rng(6)
    contexts = made_contexts(rng, 6, mixed_tables)
    symbols = (rng.laplace(size=(6, 5, 4)) * 30).astype(np.int16)
    streams = written(contexts, symbols)
    found = 0
    for _ in range(300):
        damaged = [bytearray(stream) for stream in streams]
        stream = damaged[int(rng.integers(len(damaged)))]
        stream[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
        answers = []
        kernels: tuple[KernelName, ...] = ("c", "python")
        for kernel in kernels:
            try:
                answers.append(
                    read(contexts, tuple(map(bytes, damaged)), symbols, kernel)
                    .tobytes()
                )  # fmt: skip
            except BitstreamError as error:
                answers.append(str(error).encode())
        assert answers[0] == answers[1]
        found += answers[0] != symbols.tobytes()
    assert found == 300


def test_damaged_streams_never_crash(c_kernel: Any) -> None:  # noqa: ARG001
    tables = laplace_tables([0.3, 1, 4, 16])
    rng = np.random.default_rng(7)
    contexts = made_contexts(rng, 16, tables)
    symbols = np.round(rng.laplace(size=(16, 8, 8)) * 2).astype(np.int16)
    streams = written(contexts, symbols)
    for _ in range(3000):
        damaged = bytearray(streams[0])
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        try:
            found = read(contexts, (bytes(damaged), *streams[1:]), symbols)
        except BitstreamError:
            continue
        assert bytes(damaged) == streams[0] or not np.array_equal(found, symbols)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"order": np.array([0, 0], np.uint16)}, "each channel once"),
        ({"order": np.array([0, 2], np.uint16)}, "each channel once"),
        ({"predicted": np.array([1, 1], np.uint16)}, "predict a channel twice"),
        ({"predicted": np.array([0, 2], np.uint16)}, "one that is not"),
        ({"bias": np.array([0, BIAS_LIMIT + 1], np.int32)}, "a bias of the contexts"),
        ({"beside": np.full((2, 6), 22, np.int8)}, "sum to more than 128"),
        ({"levels": np.zeros(255, np.uint8)}, r"levels of the contexts is \(255,\)"),
        ({"into": np.zeros((2, 5), np.int8)}, r"into of the contexts is \(2, 5\)"),
        ({"weights": np.zeros((1, 6), np.int8)}, "weights of the contexts"),
        ({"mean": np.array([0, 256], np.int32)}, "mean has values outside uint8"),
        ({"tables": build_tables([np.ones(2)], [0])}, "choose among 3 tables, there are 1"),
        ({"mean": np.array([0.0, 1.0])}, "mean must hold integers"),
    ],
)
def test_integers_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    good = made_contexts(np.random.default_rng(0), 2, laplace_tables([1, 2, 3]))
    with pytest.raises((ModelMismatchError, ConfigError), match=reason):
        replace(good, **changes)


def test_contexts_come_back_from_their_arrays() -> None:
    good = made_contexts(np.random.default_rng(0), 5, laplace_tables([1, 2, 3]))
    again = Contexts.from_arrays(good.to_arrays())
    assert again.digest() == good.digest()
    for name, array in good.choice().items():
        changed = array.copy()
        changed.reshape(-1)[[0, -1]] = changed.reshape(-1)[[-1, 0]] ^ (name != "order")
        try:
            arguments: dict[str, Any] = {name: changed}
            other = replace(good, **arguments)
        except ModelMismatchError:
            continue
        assert np.array_equal(changed, array) or other.digest() != good.digest(), name
    with pytest.raises(ModelMismatchError, match="lack bias, weights"):
        arrays = good.to_arrays()
        Contexts.from_arrays({k: v for k, v in arrays.items() if k not in ("bias", "weights")})


def test_misuse_is_refused(mixed_tables: Tables, kernel: KernelName) -> None:
    contexts = made_contexts(np.random.default_rng(0), 3, mixed_tables)
    tile = np.zeros((3, 2, 2), np.int16)
    writer = ContextWriter(contexts, kernel=kernel)
    with pytest.raises(ConfigError, match=r"a tile is \(2, 2\)"):
        writer.code(tile[0], grid_of(tile)[0])
    with pytest.raises(ConfigError, match="a writer needs symbols"):
        writer.code(None, grid_of(tile))
    with pytest.raises(NumericsError, match="does not fit"):
        writer.code(tile.astype(np.int32) + 40_000, grid_of(tile))
    writer.code(tile, grid_of(tile))
    streams = writer.finish()
    with pytest.raises(ConfigError, match="has finished"):
        writer.code(tile, grid_of(tile))
    reader = ContextReader(contexts, streams, kernel=kernel)
    with pytest.raises(ConfigError, match="a reader takes None"):
        reader.code(tile, grid_of(tile))
    with pytest.raises(ConfigError, match="a tile is"):
        reader.code(None, np.zeros((4, 2, 2), np.uint16))
    assert np.array_equal(reader.code(None, grid_of(tile)), tile)
    reader.finish()


def test_an_empty_tile_costs_nothing(mixed_tables: Tables, kernel: KernelName) -> None:
    contexts = made_contexts(np.random.default_rng(0), 3, mixed_tables)
    tile = np.zeros((3, 0, 4), np.int16)
    assert written(contexts, tile, kernel) == (b"",)
    assert read(contexts, (b"",), tile, kernel).shape == (3, 0, 4)


def test_the_stream_is_hardly_longer_than_its_symbols_cost() -> None:
    tables = laplace_tables([0.2, 0.5, 1, 2, 4])
    rng = np.random.default_rng(8)
    contexts = made_contexts(rng, 96, tables)
    symbols = np.round(rng.laplace(size=(96, 32, 48))).astype(np.int16)
    coded, indexes = context_symbols(contexts, symbols)
    meter = Meter(Writer(tables), tables)
    meter.code(coded, indexes)
    size = sum(map(len, written(contexts, symbols)))
    assert 8 * size < 1.0015 * sum(meter.bits) + 8 * 24


@pytest.mark.parametrize(
    "code",
    [
        "k.prepare_contexts(*[b''] * 10)",
        "k.find_contexts(object(), b'', bytearray(), bytearray(), 1, 1)",
        "k.decode_contexts(object(), object(), bytearray(56), b'', b'', bytearray(2), 1, 1)",
        "k.decode_contexts(t, object(), bytearray(56), b'', b'', bytearray(2), 1, 1)",
        "k.find_contexts(c, bytes(4), bytearray(4), bytearray(4), 2**62, 2**62)",
        "k.find_contexts(c, bytes(4), bytearray(4), bytearray(2), 1, 1)",
        "k.find_contexts(c, bytes(8), bytearray(8), bytearray(8), 1, 1)",
        "k.decode_contexts(t, c, bytearray(56), b'', b'', bytearray(8), 1, 1)",
        "k.decode_contexts(t, c, bytearray(55), b'', b'', bytearray(4), 1, 1)",
        "k.decode_contexts(t, many, bytearray(56), b'', b'', bytearray(4), 1, 1)",
    ],
)
def test_the_kernel_called_directly_refuses(c_kernel: Any, code: str) -> None:  # noqa: ARG001
    """In a process of its own: what goes wrong here would end this one."""
    made = (
        "import numpy as np, importlib\n"
        "k = importlib.import_module('lic.codec.entropy._rans')\n"
        "t = k.prepare(np.array([[0, 9, 16384]], np.uint16), np.array([3], np.uint16),"
        " np.array([0], np.int32))\n"
        "def make(table):\n"
        "    return k.prepare_contexts(bytes(256), np.array([0, 1], np.uint16), bytes(2),"
        " bytes(12), bytes(8), bytes(8), np.zeros(2, np.int32), bytes([table] * 128),"
        " np.zeros(0, np.uint16), b'')\n"
        "c, many = make(0), make(1)\n"
        "try:\n"
        f"    {code}\n"
        "except ValueError as error:\n"
        "    print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", made], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("refused"), (done.returncode, done.stdout, done.stderr)


def test_reading_on_after_an_error_repeats_it(mixed_tables: Tables, kernel: KernelName) -> None:
    contexts = made_contexts(np.random.default_rng(0), 3, mixed_tables)
    tile = np.full((3, 4, 4), 5, np.int16)
    streams = written(contexts, tile)
    reader: Reader = ContextReader(contexts, (streams[0][:18],), kernel=kernel)
    for _ in range(2):
        with pytest.raises(BitstreamError, match="too early"):
            reader.code(None, grid_of(tile))
