import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lic.codec.entropy import PRECISION, Tables, build_tables, pmf_to_quantized_cdf
from lic.codec.entropy.tables import RARE
from lic.codec.errors import ConfigError, ModelMismatchError

TOTAL = 1 << PRECISION


def tables(**changes: Any) -> Tables:
    arrays: dict[str, Any] = {
        "quantized_cdf": np.array([[0, 9000, 16000, 16384], [0, 5, 16384, 0]]),
        "cdf_length": np.array([4, 3]),
        "offset": np.array([-1, 30]),
    }
    return Tables(**(arrays | changes))


def test_arrays_are_read_only_copies_in_the_stated_dtypes() -> None:
    source = np.array([[0, 9000, 16000, 16384], [0, 5, 16384, 0]])
    made = tables(quantized_cdf=source)
    source[0, 1] = 7
    assert made.quantized_cdf[0, 1] == 9000
    assert [made.quantized_cdf.dtype, made.cdf_length.dtype, made.offset.dtype] == [
        np.uint16,
        np.uint16,
        np.int32,
    ]
    with pytest.raises(ValueError, match="read-only"):
        made.quantized_cdf[0, 1] = 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantized_cdf": [[0, 9000, 16000, 16384], [1, 5, 16384, 0]]}, "table 1 does not begin"),
        ({"quantized_cdf": [[0, 9000, 16000, 16383], [0, 5, 16384, 0]]}, "table 0 does not end"),
        ({"quantized_cdf": [[0, 9000, 9000, 16384], [0, 5, 16384, 0]]}, "table 0 does not rise"),
        ({"quantized_cdf": [[0, 9000, 8000, 16384], [0, 5, 16384, 0]]}, "table 0 does not rise"),
        ({"quantized_cdf": [[0, 9000, 16000, 16384], [0, 5, 16384, 9]]}, "table 1 has numbers"),
        ({"cdf_length": [4, 1]}, "table 1 needs 2 to 257"),
        ({"cdf_length": [5, 3]}, "table 0 is longer"),
        ({"offset": [-32769, 0]}, "table 0 has symbols outside"),
        ({"offset": [32767, 0]}, "table 0 has symbols outside"),
        ({"quantized_cdf": [[0, 9000, 16000, 70000], [0, 5, 16384, 0]]}, "outside uint16"),
        ({"quantized_cdf": np.zeros((2, 0), np.uint16)}, "table 0 is longer"),
    ],
)
def test_a_table_that_cannot_be_coded_with_is_refused_by_number(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelMismatchError, match=message):
        tables(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantized_cdf": np.zeros((2, 4), np.float32)},
        {"quantized_cdf": np.zeros(4, np.uint16)},
        {"offset": [0]},
        {"cdf_length": np.zeros((2, 1), np.uint16)},
        {
            "quantized_cdf": np.zeros((0, 2), np.uint16),
            "cdf_length": np.zeros(0, int),
            "offset": np.zeros(0, int),
        },
        {
            "quantized_cdf": np.tile(np.array([0, 16384], np.uint16), (65536, 1)),
            "cdf_length": np.full(65536, 2),
            "offset": np.zeros(65536, int),
        },
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tables(**changes)


def test_a_table_may_have_255_symbols_and_no_more() -> None:
    cdf = np.append(np.arange(256), 16384)[None, :]
    assert len(Tables(quantized_cdf=cdf, cdf_length=np.array([257]), offset=np.array([0]))) == 1
    cdf = np.append(np.arange(257), 16384)[None, :]
    with pytest.raises(ModelMismatchError, match="2 to 257"):
        Tables(quantized_cdf=cdf, cdf_length=np.array([258]), offset=np.array([0]))


def test_npz_round_trip_without_pickle(mixed_tables: Tables) -> None:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **mixed_tables.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert Tables.from_arrays(arrays).digest() == mixed_tables.digest()


def test_a_missing_array_is_named() -> None:
    arrays = tables().to_arrays()
    del arrays["offset"]
    with pytest.raises(ModelMismatchError, match="offset"):
        Tables.from_arrays(arrays)


def test_digest_is_frozen() -> None:
    assert (
        tables().digest().hex()
        == "637023ac95352e024f1a69e65c00288911b2e59a2c53b1a63cffacb3b36cce71"
    )


def test_digest_sees_every_number_but_no_padding() -> None:
    base = tables().digest()
    padded = np.array([[0, 9000, 16000, 16384, 0], [0, 5, 16384, 0, 0]])
    assert tables(quantized_cdf=padded).digest() == base
    assert tables(offset=[-1, 31]).digest() != base
    changed = np.array([[0, 9000, 16000, 16384], [0, 6, 16384, 0]])
    assert tables(quantized_cdf=changed).digest() != base


masses = st.lists(st.floats(0, 1), min_size=1, max_size=256).filter(any).map(np.array)


@given(masses, st.sampled_from([8, 14, 16]))
def test_every_cdf_is_complete(pmf: NDArray[np.float64], precision: int) -> None:
    cdf = pmf_to_quantized_cdf(pmf, precision)
    assert len(cdf) == len(pmf) + 1
    assert cdf[0] == 0
    assert cdf[-1] == 1 << precision
    assert (np.diff(cdf) >= 1).all()


@pytest.mark.parametrize(("precision", "tolerance"), [(6, 2e-3), (14, 1e-7)])
def test_no_unit_moved_between_two_slots_shortens_the_code(
    precision: int, tolerance: float
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        p = rng.random(rng.integers(2, 40)) ** rng.integers(1, 9) + 1e-9
        p /= p.sum()
        slots = np.diff(pmf_to_quantized_cdf(p, precision))
        gain = p * np.log2((slots + 1) / slots)
        loss = np.where(slots > 1, p * np.log2(slots / np.maximum(slots - 1, 0.5)), np.inf)
        assert gain.max() <= loss.min() + tolerance


@given(st.lists(st.floats(1e-6, 1), min_size=3, max_size=3).map(np.array))
def test_small_totals_get_the_best_slots_there_are(pmf: NDArray[np.float64]) -> None:
    p = pmf / pmf.sum()
    total = 16
    possible = [(a, b, total - a - b) for a in range(1, total - 1) for b in range(1, total - a)]
    best = (p * np.log2(np.array(possible))).sum(axis=1).max()
    assert (p * np.log2(np.diff(pmf_to_quantized_cdf(pmf, 4)))).sum() >= best - 1e-3


def test_overhead_of_the_integers_is_below_a_ten_thousandth_of_a_bit() -> None:
    p = np.diff([0.5 * (1 + math.erf(x / 4)) for x in np.arange(-12.5, 13.5)])
    p /= p.sum()
    slots = np.diff(pmf_to_quantized_cdf(p))
    assert 0 <= (p * np.log2(p * TOTAL / slots)).sum() < 3e-4


@pytest.mark.parametrize(
    "pmf",
    [[], [[0.5, 0.5]], [0.0, 0.0], [-0.1, 1.1], [math.nan, 1], [math.inf, 1], np.ones(16385)],
)
def test_what_is_no_distribution_is_refused(pmf: NDArray[np.float64]) -> None:
    with pytest.raises(ConfigError):
        pmf_to_quantized_cdf(np.array(pmf, float))


def test_a_wide_pmf_loses_its_rarer_end_to_the_escape() -> None:
    pmf = np.append(np.linspace(1, 2, 300), 0.5)
    made = build_tables([pmf], [-100])
    assert made.cdf_length[0] == 257
    assert made.offset[0] == -100 + 45
    escape = TOTAL - int(made.quantized_cdf[0, 255])
    assert escape == pytest.approx(TOTAL * (pmf[:45].sum() + 0.5) / pmf.sum(), abs=1)


def test_rare_symbols_at_the_ends_are_cheaper_as_escapes() -> None:
    """The expected cost over the pmf, an escape counted with 16 more bits, falls by pruning."""
    x = np.arange(-40, 41)
    pmf = 0.5 ** (np.abs(x) * 0.8)
    pmf = np.append(pmf / pmf.sum() * (1 - 1e-9), 1e-9)
    made = build_tables([pmf], [-40])
    first, kept = int(made.offset[0]), int(made.cdf_length[0]) - 2
    assert first == -(kept // 2) and 30 < kept < 50
    assert pmf[first + 40] >= RARE > pmf[first + 39]

    def cost(cdf: NDArray[np.int64], start: int) -> float:
        slots = np.diff(cdf)
        bits = -np.log2(slots / TOTAL)
        inside = pmf[start : start + len(slots) - 1]
        return float((inside * bits[:-1]).sum() + (1 - inside.sum()) * (bits[-1] + 16))

    pruned = cost(made.quantized_cdf[0, : kept + 2].astype(np.int64), first + 40)
    assert pruned < cost(pmf_to_quantized_cdf(pmf), 0)


def test_a_pmf_keeps_one_symbol_however_rare() -> None:
    made = build_tables([np.array([1e-9, 1.0])], [5])
    assert (made.offset[0], made.cdf_length[0]) == (5, 3)


def test_build_tables_wants_an_offset_for_each_pmf() -> None:
    with pytest.raises(ConfigError, match="2 pmfs but 1 offsets"):
        build_tables([np.ones(2), np.ones(2)], [0])
