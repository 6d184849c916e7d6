import math

import numpy as np
import pytest

from lic.codec.benchmark.bd_rate import METHODS, Method, bd_quality, bd_rate
from lic.codec.errors import ConfigError

Curve = list[tuple[float, float]]

# Published points on Kodak, bpp and PSNR: CompressAI's of bmshj2018, VTM, and every third of JPEG
# and WebP; the HPCM repository's of its Base model.
FACTORIZED = [(0.12262, 26.9088), (0.18853, 28.2179), (0.28781, 29.6169), (0.44038, 31.2771),
              (0.64814, 32.9561), (0.96698, 35.3809)]  # fmt: skip
HYPERPRIOR = [(0.13129, 27.5815), (0.20889, 29.1967), (0.31986, 30.9722), (0.47836, 32.8382),
              (0.66869, 34.5263), (0.93883, 36.7433)]  # fmt: skip
VTM = [(0.04824, 26.1448), (0.1125, 28.493), (0.24582, 31.1999), (0.49055, 34.2615),
       (0.87481, 37.4198), (1.43085, 40.4244), (2.32461, 43.5058),
       (3.63261, 46.5918)]  # fmt: skip
HPCM_BASE = [(0.1211, 29.4022), (0.1757, 30.7547), (0.2729, 32.4012), (0.4125, 34.2063),
             (0.5898, 36.0145), (0.8209, 37.7525)]  # fmt: skip
JPEG = [(0.22115, 23.7799), (0.50839, 29.0418), (0.72895, 30.9032), (0.906, 32.0587),
        (1.1274, 33.2347), (1.57181, 35.239), (3.40134, 40.5567)]  # fmt: skip
WEBP = [(0.23442, 28.3284), (0.40705, 30.407), (0.56741, 31.936), (0.72182, 33.2376),
        (0.87403, 34.3282), (1.21631, 36.369), (2.92848, 41.7592)]  # fmt: skip
# BD-rate in percent and BD-PSNR in dB by bjontegaard 1.3.0 with scipy 1.17.1.
RECORDED: list[tuple[Curve, Curve, Method, float, float]] = [
    (FACTORIZED, HYPERPRIOR, "pchip", -20.902976927905648, 1.0097725138583902),
    (FACTORIZED, HYPERPRIOR, "akima", -20.931974594951896, 1.0098362705014068),
    (FACTORIZED, HYPERPRIOR, "cubic", -20.95385863476089, 1.011340593973696),
    (VTM, HPCM_BASE, "pchip", -16.02415831920365, 0.7770150179870468),
    (VTM, HPCM_BASE, "akima", -16.053788817229766, 0.7807837457047607),
    (VTM, HPCM_BASE, "cubic", -16.139254672008928, 0.7419753185861808),
    (JPEG, WEBP, "pchip", -36.06635931301129, 2.6911884160052217),
    (JPEG, WEBP, "akima", -36.0200344363038, 2.688323795440416),
    (JPEG, WEBP, "cubic", -37.13964583143399, 2.7055342393020085),
    (FACTORIZED[:4], HYPERPRIOR[:4], "pchip", -18.615123946528588, 0.7767476349310602),
    (FACTORIZED[:4], HYPERPRIOR[:4], "akima", -18.606481274582986, 0.7765793066461514),
    (FACTORIZED[:4], HYPERPRIOR[:4], "cubic", -18.603128040071603, 0.77611138767022),
]  # fmt: skip


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
    assert there.overlap == pytest.approx((35.3809 - 27.5815) / (35.3809 - 26.9088))


def test_a_known_difference() -> None:
    """By scipy 1.17's PchipInterpolator, integrated exactly, and by bjontegaard 1.3.0."""
    assert bd_rate(FACTORIZED, HYPERPRIOR).percent == pytest.approx(-20.9029769279056, abs=1e-9)


@pytest.mark.parametrize(("anchor", "tested", "method", "percent", "decibels"), RECORDED)
def test_values_of_the_bjontegaard_package(
    anchor: Curve,
    tested: Curve,
    method: Method,
    percent: float,
    decibels: float,
) -> None:
    """To a ten-thousandth of the rate and of a dB, which is 0.01 %; really to rounding."""
    assert bd_rate(anchor, tested, method).percent == pytest.approx(percent, abs=1e-7)
    assert bd_quality(anchor, tested, method).difference == pytest.approx(decibels, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_against_the_bjontegaard_package_where_it_is_installed(method: Method) -> None:
    """Random curves that rise, some with straight stretches, some that overlap little."""
    package = pytest.importorskip("bjontegaard")
    generator = np.random.default_rng(3)
    for count in (4, 5, 8, 13):
        lists = []
        for _ in range(2):
            rates = np.cumsum(generator.uniform(0.05, 0.4, count)) * generator.uniform(0.8, 1.2)
            steps = generator.choice([0.4, 1.0, 1.0, 2.5], count)
            lists += [rates.tolist(), (26 + np.cumsum(steps)).tolist()]
        anchor = list(zip(lists[0], lists[1], strict=True))
        tested = list(zip(lists[2], lists[3], strict=True))
        options = {"method": method, "require_matching_points": False, "min_overlap": 0}
        expected = package.bd_rate(*lists, **options)
        assert bd_rate(anchor, tested, method).percent == pytest.approx(expected, rel=1e-6)
        expected = package.bd_psnr(*lists, **options)
        assert bd_quality(anchor, tested, method).difference == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_constant_shift_of_the_quality(method: Method) -> None:
    better = [(rate, quality + 0.5) for rate, quality in FACTORIZED]
    found = bd_quality(FACTORIZED, better, method)
    assert found.difference == pytest.approx(0.5, rel=1e-9)
    assert [found.low, found.high, found.overlap] == pytest.approx([0.12262, 0.96698, 1])
    scaled = [(rate * 0.8, quality) for rate, quality in FACTORIZED]
    assert bd_rate(FACTORIZED, scaled, method).percent == pytest.approx(-20, rel=1e-9)


def test_the_overlap_of_rates_is_in_logarithms() -> None:
    found = bd_quality(FACTORIZED, HYPERPRIOR)
    assert [found.low, found.high, found.overlap] == pytest.approx([0.13129, 0.93883, 1])
    doubled = [(2 * rate, quality) for rate, quality in FACTORIZED]
    whole = math.log(0.96698 / 0.12262)
    assert bd_quality(FACTORIZED, doubled).overlap == pytest.approx(1 - math.log(2) / whole)


@pytest.mark.parametrize("method", METHODS)
def test_straight_curves_are_straight_in_every_method(method: Method) -> None:
    """Equal slopes everywhere leave Akima's weights without a say."""
    straight = [(math.exp(0.3 * i), 30.0 + i) for i in range(6)]
    doubled = [(2 * rate, quality) for rate, quality in straight]
    assert bd_rate(straight, doubled, method).percent == pytest.approx(100, rel=1e-9)


def test_no_rate_in_common_is_refused_and_so_is_an_unknown_method() -> None:
    far = [(rate * 100, quality) for rate, quality in FACTORIZED]
    with pytest.raises(ConfigError, match=r"from 0\.12 to 0\.97 and .* have no rate in common"):
        bd_quality(FACTORIZED, far)
    with pytest.raises(ConfigError, match="method is 'spline'; expected pchip, akima, cubic"):
        bd_rate(FACTORIZED, HYPERPRIOR, "spline")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (FACTORIZED[:3], "3 points; expected 4"),
        (
            [*FACTORIZED, (2.0, 30.0)],
            "does not rise with its rate .from 35.38 to 30 between rates of 0.967 and 2.",
        ),
        ([(1.0, 60.0), (2.0, 61.0), (3.0, 62.0), (4.0, 63.0)], "no quality in common"),
        ([(1.0, 30.0), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "all different"),
        ([(0.0, 30.0), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "above 0"),
        ([(0.5, math.nan), (1.0, 31.0), (3.0, 32.0), (4.0, 33.0)], "not finite"),
    ],
)
def test_what_says_nothing_is_refused(points: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bd_rate(FACTORIZED, points)
