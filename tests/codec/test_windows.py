"""Windows keep each latent once, with its whole margin, and see little more than they keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lic.codec.architectures import Margin
from lic.codec.windows import Span, cut


@st.composite
def spans(draw: st.DrawFn) -> Span:
    length = draw(st.integers(1, 80))
    start = draw(st.integers(0, length - 1))
    return Span(start, draw(st.integers(start + 1, length)), length)


@given(
    spans(), spans(), st.builds(Margin, st.integers(0, 5), st.integers(0, 5)), st.integers(1, 2000)
)
def test_all_that_is_wanted_is_kept_once_with_its_margin(
    rows: Span, columns: Span, margin: Margin, most: int
) -> None:
    windows = cut(rows, columns, margin, most)
    shapes = set()
    for side, strips in zip((rows, columns), windows, strict=True):
        position = side.start
        for strip in strips:
            assert strip.start == position < strip.stop
            position = strip.stop
            assert 0 <= strip.outer_start <= max(0, strip.start - margin.before)
            assert min(side.length, strip.stop + margin.after) <= strip.outer_stop <= side.length
        assert position == side.stop
        shapes.add(len({strip.outer_stop - strip.outer_start for strip in strips}))
    assert shapes == {1}, "windows of several sizes"
    area = 1
    for strips in windows:
        area *= strips[0].outer_stop - strips[0].outer_start
    assert area <= max(most, (sum(margin) + 1) ** 2)


@pytest.mark.parametrize(
    ("width", "height", "most"), [(3888, 2592, 1.08), (12000, 8400, 1.11), (24000, 16800, 1.11)]
)
def test_little_is_seen_twice(width: int, height: int, most: float) -> None:
    """As the synthesis does it: a tenth of the work at the most."""
    rows, columns = height // 16, width // 16
    windows = cut(Span(0, rows, rows), Span(0, columns, columns), Margin(1, 2), 2**20 // 256)
    seen = [sum(s.outer_stop - s.outer_start for s in strips) for strips in windows]
    assert seen[0] * seen[1] < most * rows * columns


def test_a_network_that_must_see_all_sees_all() -> None:
    ((rows,), (columns,)) = cut(Span(3, 5, 90), Span(0, 70, 70), None, 1)
    assert rows == (3, 5, 0, 90) and columns == (0, 70, 0, 70)
