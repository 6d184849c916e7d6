import math

import pytest

from lic.codec.benchmark.bd_rate import bd_rate
from lic.codec.errors import ConfigError

# Published points of CompressAI: bmshj2018 on Kodak, bpp and PSNR.
FACTORIZED = [(0.12262, 26.9088), (0.18853, 28.2179), (0.28781, 29.6169), (0.44038, 31.2771),
              (0.64814, 32.9561), (0.96698, 35.3809)]  # fmt: skip
HYPERPRIOR = [(0.13129, 27.5815), (0.20889, 29.1967), (0.31986, 30.9722), (0.47836, 32.8382),
              (0.66869, 34.5263), (0.93883, 36.7433)]  # fmt: skip


def test_a_curve_against_itself_is_nought() -> None:
    assert bd_rate(FACTORIZED, FACTORIZED).percent == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_a_constant_factor_of_the_rate_is_what_comes_out(factor: float) -> None:
    scaled = [(rate * factor, quality) for rate, quality in FACTORIZED]
    found = bd_rate(FACTORIZED, scaled)
    assert found.percent == pytest.approx(100 * (factor - 1), rel=1e-9)
    assert found.overlap == 1


def test_the_order_of_points_does_not_matter() -> None:
    assert bd_rate(FACTORIZED[::-1], HYPERPRIOR) == bd_rate(FACTORIZED, HYPERPRIOR[::-1])


def test_back_and_forth_is_where_one_began() -> None:
    there = bd_rate(FACTORIZED, HYPERPRIOR)
    back = bd_rate(HYPERPRIOR, FACTORIZED)
    assert (1 + there.percent / 100) * (1 + back.percent / 100) == pytest.approx(1)
    assert (there.low, there.high) == (27.5815, 35.3809)
    assert there.overlap == pytest.approx((35.3809 - 27.5815) / (36.7433 - 26.9088))


def test_a_known_difference() -> None:
    """By scipy 1.17's PchipInterpolator, integrated exactly, and by bjontegaard 1.3.0."""
    assert bd_rate(FACTORIZED, HYPERPRIOR).percent == pytest.approx(-20.9029769279056, abs=1e-9)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (FACTORIZED[:3], "3 points; expected 4"),
        ([*FACTORIZED, (2.0, 30.0)], "does not rise"),
        ([(1.0, 60.0), (2.0, 61.0), (3.0, 62.0), (4.0, 63.0)], "no quality in common"),
        ([(1.0, 30.0), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "all different"),
        ([(0.0, 30.0), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "above 0"),
        ([(0.5, math.nan), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "not finite"),
    ],
)
def test_what_says_nothing_is_refused(points: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bd_rate(FACTORIZED, points)
