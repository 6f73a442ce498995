"""Rules of strips, movement and colour: each draws a scene of n cells and what its hidden rule makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable

from research.grids.parts import Hidden, Redraw, Strip, between

Pair = tuple[Strip, Strip]
StripRule = Callable[[random.Random, int, Hidden], Pair]
Bar = tuple[int, int]

STRIP_RULES: dict[str, StripRule] = {}
"""Name → rule: every family of strips."""


def rule(function: StripRule) -> StripRule:
    """Registers a family under its function's name."""
    STRIP_RULES[function.__name__] = function
    return function


def paint(cells: Strip, start: int, length: int, colour: int) -> None:
    """Colours a bar that lies inside the strip; `Redraw` if it does not."""
    if start < 0 or length < 0 or start + length > len(cells):
        raise Redraw
    cells[start : start + length] = [colour] * length


def one_bar(draw: random.Random, n: int, shortest: int = 1, room: int = 0, edge: int = 0) -> Bar:
    """(start, length) of a bar with `edge` free cells on its left and `room` on its right."""
    longest = min(n - room - edge, max(shortest + 2, n // 2))
    length = between(draw, shortest, longest)
    return between(draw, edge, n - length - room), length


def bars(draw: random.Random, n: int, shortest: int = 1, longest: int = 4, gap: int = 1, least: int = 1) -> list[Bar]:
    """(start, length) of bars with at least `gap` free cells between them, from left to right."""
    found, at = [], draw.randint(0, 2)
    while at + shortest <= n:
        length = draw.randint(shortest, min(longest, n - at))
        found.append((at, length))
        at += length + gap + draw.randint(0, 1 + n // 8)
    if len(found) < least:
        raise Redraw
    return found


def painted(n: int, spans: list[Bar], colours: list[int]) -> Strip:
    """A strip with the bars in the colours."""
    cells = [0] * n
    for (start, length), colour in zip(spans, colours, strict=True):
        paint(cells, start, length, colour)
    return cells


def scattered(draw: random.Random, n: int, hidden: Hidden, density: float = 0.5) -> Strip:
    """Random cells of the rule's colours."""
    return [hidden.any_colour(draw) if draw.random() < density else 0 for _ in range(n)]


def pattern(draw: random.Random, length: int, hidden: Hidden) -> Strip:
    """An object of one colour, or (where the rule says so) of several."""
    if hidden.flag:
        return [hidden.any_colour(draw) for _ in range(length)]
    return [hidden.colour(draw)] * length


# Movement


@rule
def shift(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=hidden.step)
    body, a, b = pattern(draw, length, hidden), [0] * n, [0] * n
    a[start : start + length] = body
    b[start + hidden.step : start + hidden.step + length] = body
    return a, b


@rule
def shift_scene(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n - hidden.step, hidden, 0.4) + [0] * hidden.step
    return a, a[-hidden.step :] + a[: -hidden.step]


@rule
def rotate(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden)
    return a, a[-hidden.step :] + a[: -hidden.step]


@rule
def to_wall(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=1)
    body, a = pattern(draw, length, hidden), [0] * n
    a[start : start + length] = body
    return a, [0] * (n - length) + body


@rule
def to_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=2)
    marker, colour = between(draw, start + length + 1, n - 1), hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(marker - length, length), (marker, 1)], [colour, hidden.second])


@rule
def near_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    gap = 1 + hidden.flag
    start, length = one_bar(draw, n, room=gap + 2)
    marker, colour = between(draw, start + length + gap + 1, n - 1), hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(marker - gap - length, length), (marker, 1)], [colour, hidden.second])


@rule
def past_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 1, max(1, (n - 1) // 3))
    start = between(draw, 0, n - 2 * length - 1)
    marker, colour = between(draw, start + length, n - length - 1), hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(marker, 1), (marker + 1, length)], [hidden.second, colour])


@rule
def marker_comes(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=2)
    marker, colour = between(draw, start + length + 1, n - 1), hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(start, length), (start + length, 1)], [colour, hidden.second])


@rule
def both_to_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    marker = between(draw, 1, n - 2)
    left, right = scattered(draw, marker, hidden, 0.3), scattered(draw, n - marker - 1, hidden, 0.3)
    left, right = ([0 if c == hidden.fourth else c for c in side] for side in (left, right))
    near_left, near_right = [c for c in left if c], [c for c in right if c]
    packed = [0] * (len(left) - len(near_left)) + near_left + [hidden.fourth]
    return [*left, hidden.fourth, *right], [*packed, *near_right, *([0] * (len(right) - len(near_right)))]


@rule
def move_own_length(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 1, max(1, n // 3))
    start, colour = between(draw, 0, n - 2 * length), hidden.colour(draw)
    return painted(n, [(start, length)], [colour]), painted(n, [(start + length, length)], [colour])


@rule
def gravity(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.4)
    kept = [c for c in a if c]
    return a, kept + [0] * (n - len(kept))


@rule
def split(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n - 2, shortest=2)
    half, colour = length // 2, hidden.colour(draw)
    b = painted(n, [(start, half), (start + length - half + 2, half)], [colour, colour])
    if length % 2:
        b[start + half + 1] = colour
    return painted(n, [(start + 1, length)], [colour]), b


@rule
def reverse(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.6)
    return a, a[::-1]


@rule
def reverse_object(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=2)
    a, b = [0] * n, [0] * n
    body = [hidden.any_colour(draw) for _ in range(length)]
    a[start : start + length], b[start : start + length] = body, body[::-1]
    return a, b


@rule
def flip_ends(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=2)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    b = list(a)
    a[start] = b[start + length - 1] = hidden.second
    return a, b


@rule
def swap_ends(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.6)
    return a, [a[-1], *a[1:-1], a[0]]


# Colour


@rule
def recolour(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.6)
    return a, [hidden.third if c == hidden.second else c for c in a]


@rule
def recolour_all(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.7)
    return a, [hidden.table[c] for c in a]


@rule
def swap_colours(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.6)
    trade = {hidden.second: hidden.third, hidden.third: hidden.second}
    return a, [trade.get(c, c) for c in a]


@rule
def invert(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    colour = hidden.colour(draw)
    a = [colour if draw.random() < 0.5 else 0 for _ in range(n)]
    return a, [0 if c else colour for c in a]


def recoloured(draw: random.Random, n: int, hidden: Hidden, spans: list[Bar], colours: list[int]) -> Pair:
    """Bars of one colour, and the same bars in the colours given; 0 keeps a bar's own."""
    own = hidden.colour(draw)
    return painted(n, spans, [own] * len(spans)), painted(n, spans, [colour or own for colour in colours])


@rule
def recolour_by_length(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n)
    by_length = (0, hidden.second, hidden.third, hidden.fourth, hidden.second)
    return recoloured(draw, n, hidden, spans, [by_length[length] for _, length in spans])


@rule
def recolour_by_parity(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=6)
    return recoloured(draw, n, hidden, spans, [(hidden.second, hidden.third)[length % 2] for _, length in spans])


@rule
def recolour_longest(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=max(4, n // 4), least=2)
    longest = max(length for _, length in spans)
    return recoloured(draw, n, hidden, spans, [hidden.second * (length == longest) for _, length in spans])


@rule
def recolour_shortest(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=max(4, n // 4), least=2)
    shortest = min(length for _, length in spans)
    return recoloured(draw, n, hidden, spans, [hidden.second * (length == shortest) for _, length in spans])


@rule
def recolour_threshold(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=5)
    other = hidden.third * hidden.flag
    return recoloured(draw, n, hidden, spans, [hidden.second if s > hidden.step else other for _, s in spans])


@rule
def recolour_first(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, least=2)
    last = [hidden.third * hidden.flag] if len(spans) > 1 else []
    return recoloured(draw, n, hidden, spans, [hidden.second, *[0] * (len(spans) - 2), *last])


@rule
def recolour_alternate_bars(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=3, least=2)
    return recoloured(draw, n, hidden, spans, [(hidden.second, hidden.third)[i % 2] for i in range(len(spans))])


@rule
def recolour_by_count(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=max(2, n // 3))[: draw.randint(1, 3)]
    colour = (hidden.second, hidden.third, hidden.fourth)[len(spans) - 1]
    return recoloured(draw, n, hidden, spans, [colour] * len(spans))


@rule
def alternate(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=2)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    b = list(a)
    b[start + 1 : start + length : 2] = [hidden.second] * (length // 2)
    return a, b


@rule
def take_marker_colour(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n - 2)
    marker, own = hidden.table[hidden.any_colour(draw)], hidden.main
    shown = [(start + 2, length) for start, length in spans]
    a, b = painted(n, shown, [own] * len(shown)), painted(n, shown, [marker] * len(shown))
    a[0] = b[0] = marker
    return a, b


@rule
def trade_colours(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, longest=max(3, n // 3), least=2)[:2]
    colours = draw.sample((hidden.main, hidden.second, hidden.third, hidden.fourth), 2)
    return painted(n, spans, colours), painted(n, spans, colours[::-1])


@rule
def majority(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = [hidden.any_colour(draw) for _ in range(n)]
    counts = sorted((a.count(c), c) for c in set(a))
    if len(counts) > 1 and counts[-1][0] == counts[-2][0]:
        raise Redraw
    return a, [counts[-1][1]] * n


@rule
def mark_centres(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = [(start, length) for start, length in bars(draw, n, shortest=3, longest=7) if length % 2]
    if not spans:
        raise Redraw
    a, b = recoloured(draw, n, hidden, spans, [0] * len(spans))
    for start, length in spans:
        b[start + length // 2] = hidden.second
    return a, b


@rule
def mark_nearest(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    marker, own = between(draw, 0, n - 1), hidden.colour(draw)
    points = [i for i in range(n) if i != marker and draw.random() < 0.35]
    if len(points) < 2:
        raise Redraw
    nearest = min(abs(i - marker) for i in points)
    a = [own if i in points else 0 for i in range(n)]
    a[marker] = hidden.second
    return a, [hidden.third if c == own and abs(i - marker) == nearest else c for i, c in enumerate(a)]
