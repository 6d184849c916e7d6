"""How networks see a picture that is too large for them: through windows that overlap.

Lengths are in latents; the whole picture has h rows and w columns of them.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from lic.codec.architectures import Margin
from lic.codec.tiling import Strip


class Span(NamedTuple):
    """What is wanted of the latents along a side, all of which are `length`."""

    start: int
    stop: int
    length: int

    def seen(self, margin: Margin) -> tuple[int, int]:
        """Return where begins and ends what networks must see of the side."""
        return max(0, self.start - margin.before), min(self.length, self.stop + margin.after)


class Windows(NamedTuple):
    """A grid of windows: together they keep what was wanted, each a part of its own."""

    rows: tuple[Strip, ...]
    columns: tuple[Strip, ...]


@lru_cache(maxsize=64)
def cut(rows: Span, columns: Span, margin: Margin | None, most: int) -> Windows:
    """Return the windows of at most `most` latents through which networks see the least in all.

    Their margins end where the picture does, so that what is kept of each equals what a network
    gives for the whole picture. All have one size: an engine needs memory for no other.

    Args:
        rows: wanted.
        columns: wanted.
        margin: what a network must see around that; None: the whole picture, at once.
        most: latents. A window that is all margin but for a latent may have more.
    """
    if margin is None:
        return Windows((_all(rows),), (_all(columns),))
    least = sum(margin) + 1
    seen_down, seen_across = (
        end - start for start, end in (s.seen(margin) for s in (rows, columns))
    )
    best = None
    for across in range(1, columns.stop - columns.start + 1):
        width = _size(columns, margin, across)
        height = most // width
        # With every window more is seen at the least: none of those to come can be better.
        if best and (seen_across + (across - 1) * sum(margin)) * seen_down > best[0]:
            break
        if height < least:
            continue
        down = _count(rows, margin, height)
        seen = across * width * down * _size(rows, margin, down)
        best = min(best or (seen, down, across), (seen, down, across))
    _, down, across = best or (0, _count(rows, margin, least), _count(columns, margin, least))
    return Windows(tuple(_along(rows, margin, down)), tuple(_along(columns, margin, across)))


def _all(side: Span) -> Strip:
    return Strip(side.start, side.stop, 0, side.length)


def _size(side: Span, margin: Margin, count: int) -> int:
    """Return the length of each of `count` windows along a side."""
    start, stop = side.seen(margin)
    return -(-(stop - start + (count - 1) * sum(margin)) // count)


def _count(side: Span, margin: Margin, size: int) -> int:
    """Return how few windows of at most `size` there can be."""
    start, stop = side.seen(margin)
    return max(1, -(-(stop - start - sum(margin)) // (size - sum(margin))))


def _along(side: Span, margin: Margin, count: int) -> Iterator[Strip]:
    """Yield windows of one size, the last of which ends where the others would go too far."""
    size = _size(side, margin, count)
    first, end = side.seen(margin)
    starts = [min(first + i * (size - sum(margin)), end - size) for i in range(count)]
    borders = [side.start, *(start + margin.before for start in starts[1:]), side.stop]
    for start, kept, stop in zip(starts, borders, borders[1:], strict=False):
        if kept < stop:
            yield Strip(kept, stop, start, start + size)
