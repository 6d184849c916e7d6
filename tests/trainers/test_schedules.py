from itertools import pairwise

import pytest

from lic.trainers.schedules import warmup_cosine


def factors(steps: int, warmup: int, final: float) -> list[float]:
    return [
        warmup_cosine(step, steps=steps, warmup=warmup, final=final) for step in range(steps + 1)
    ]


def test_it_rises_to_one_and_falls_to_the_final_value() -> None:
    values = factors(100, 10, 0.01)
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1
    assert all(a < b for a, b in pairwise(values[:10]))
    assert all(a > b for a, b in pairwise(values[10:]))
    assert values[100] == pytest.approx(0.01)
    assert values[55] == pytest.approx((1 + 0.01) / 2)


def test_without_warm_up_it_starts_at_one() -> None:
    assert factors(10, 0, 0.0)[0] == 1
    assert factors(10, 0, 0.0)[10] == pytest.approx(0, abs=1e-12)


def test_a_final_value_of_one_keeps_the_rate() -> None:
    assert set(factors(10, 0, 1.0)) == {1.0}


@pytest.mark.parametrize("warmup", [10, 50])
def test_a_run_as_short_as_its_warm_up_only_rises(warmup: int) -> None:
    values = factors(10, warmup, 0.1)[:10]
    assert values == pytest.approx([(i + 1) / warmup for i in range(10)])


def test_past_the_end_it_stays() -> None:
    assert warmup_cosine(500, steps=100, warmup=0, final=0.25) == pytest.approx(0.25)
