"""Rules of strips, drawing, cleaning, copying, counting and change of length."""

from __future__ import annotations

import random

from research.grids.parts import Hidden, Redraw, between
from research.grids.rules_1d import Pair, bars, one_bar, paint, painted, recoloured, rule, scattered


@rule
def fill(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=3)
    b = painted(n, [(start, length)], [hidden.colour(draw)])
    a = [0] * n
    a[start] = a[start + length - 1] = b[start]
    return a, b


@rule
def fill_pairs(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans, own = bars(draw, n, shortest=3, longest=max(4, n // 3)), hidden.colour(draw)
    a, b = [0] * n, painted(n, spans, [own] * len(spans))
    for start, length in spans:
        a[start] = a[start + length - 1] = own
        if hidden.flag:
            paint(b, start + 1, length - 2, hidden.second)
    return a, b


@rule
def fill_like_colours(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a, b = [0] * n, [0] * n
    for start, length in bars(draw, n, shortest=3, longest=max(4, n // 3)):
        left, right = hidden.any_colour(draw), hidden.any_colour(draw)
        right = left if draw.random() < 0.5 else right
        paint(b, start, length, left if left == right else 0)
        a[start] = b[start] = left
        a[start + length - 1] = b[start + length - 1] = right
    return a, b


@rule
def fill_gaps(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, least=2)
    a = painted(n, spans, [hidden.colour(draw)] * len(spans))
    first, last = spans[0][0], spans[-1][0]
    return a, [c or (hidden.second if first < i < last else 0) for i, c in enumerate(a)]


@rule
def hollow(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=3)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    b = list(a)
    paint(b, start + 1, length - 2, hidden.second if hidden.flag else 0)
    return a, b


@rule
def cap_ends(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=2, room=1, edge=1)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    b = list(a)
    b[start - 1] = b[start + length] = hidden.second
    return a, b


@rule
def tip_ends(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, shortest=2, longest=6)
    a, b = recoloured(draw, n, hidden, spans, [0] * len(spans))
    for start, length in spans:
        b[start] = hidden.second
        b[start + length - 1] = hidden.third if hidden.flag else hidden.second
    return a, b


@rule
def extend(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=hidden.step)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    b = list(a)
    paint(b, start + length, hidden.step, hidden.second if hidden.flag else a[start])
    return a, b


@rule
def tail_points(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a, b, colour = [0] * n, [0] * n, hidden.colour(draw)
    for start, _ in bars(draw, n - 1, longest=1):
        a[start] = b[start] = colour
        b[start + 1] = hidden.second
    return a, b


@rule
def grow(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans, colour = bars(draw, n - 2, longest=3, gap=2), hidden.colour(draw)
    count = len(spans)
    b = painted(n, [(start, length + 2) for start, length in spans], [hidden.second if hidden.flag else colour] * count)
    inner = [(start + 1, length) for start, length in spans]
    for start, length in inner:
        paint(b, start, length, colour)
    return painted(n, inner, [colour] * count), b


@rule
def shrink(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans, colour = bars(draw, n, shortest=3, longest=7), hidden.colour(draw)
    inner = [(start + 1, length - 2) for start, length in spans]
    return painted(n, spans, [colour] * len(spans)), painted(n, inner, [colour] * len(spans))


@rule
def ray(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=1)
    a = painted(n, [(start, length)], [hidden.colour(draw)])
    return a, a[:start] + [c or (hidden.second if hidden.flag else a[start]) for c in a[start:]]


@rule
def ray_to_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 1, min(3, n - 2))
    start = between(draw, 0, n - length - 2)
    marker = between(draw, start + length + 1, n - 1)
    a = painted(n, [(start, length), (marker, 1)], [hidden.colour(draw), hidden.second])
    return a, [c or (a[start] if start < i < marker else 0) for i, c in enumerate(a)]


@rule
def rays_until_next(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.3)
    b = list(a)
    for i in range(1, n):
        b[i] = b[i] or b[i - 1]
    return a, b


@rule
def continue_period(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    period = between(draw, 2, min(4, n // 2))
    unit = [hidden.any_colour(draw) for _ in range(period)]
    if len(set(unit)) == 1:
        raise Redraw
    b = (unit * n)[:n]
    shown = between(draw, 2 * period if 2 * period < n else period, n - 1)
    return b[:shown] + [0] * (n - shown), b


@rule
def restore_period(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    period = between(draw, 2, min(4, n // 2))
    unit = [hidden.any_colour(draw) for _ in range(period)]
    b = (unit * n)[:n]
    length = between(draw, 1, max(1, n // 3))
    start = between(draw, 0, n - length)
    return b[:start] + [0] * length + b[start + length :], b


@rule
def stripe_cells(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.4)
    return a, [c or hidden.second * (i % 2 == hidden.flag) for i, c in enumerate(a)]


@rule
def mark_borders(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n, gap=2)
    a = painted(n, spans, [hidden.colour(draw)] * len(spans))
    near = [any(a[max(0, i - 1) : i + 2]) for i in range(n)]
    return a, [c or hidden.second * beside for c, beside in zip(a, near, strict=True)]


# Cleaning and choosing


@rule
def denoise(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=2)
    b = painted(n, [(start, length)], [hidden.colour(draw)])
    a = list(b)
    far = [i for i in range(n) if i < start - 1 or i > start + length]
    if not far:
        raise Redraw
    for i in draw.sample(far, min(len(far), draw.randint(1, max(3, n // 6)))):
        if not (a[max(0, i - 1)] or a[min(n - 1, i + 1)]):
            a[i] = hidden.second if hidden.flag else b[start]
    return a, b


@rule
def repair_object(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, shortest=3)
    b = painted(n, [(start, length)], [hidden.colour(draw)])
    a = list(b)
    for i in draw.sample(range(1, length - 1), min(length - 2, draw.randint(1, 2))):
        a[start + i] = 0 if hidden.flag else hidden.second
    return a, b


@rule
def keep_longest(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans, colour = bars(draw, n, longest=max(4, n // 4), least=2), hidden.colour(draw)
    longest = max(length for _, length in spans)
    kept = [span for span in spans if span[1] == longest]
    if len(kept) > 1:
        raise Redraw
    return painted(n, spans, [colour] * len(spans)), painted(n, kept, [colour])


@rule
def remove_colour(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.7)
    return a, [0 if c == hidden.second else c for c in a]


@rule
def keep_colour(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden, 0.7)
    return a, [c if c == hidden.second else 0 for c in a]


# Copying


@rule
def mirror_at_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 1, max(1, min((n - 1) // 2, n // 3)))
    start = between(draw, 0, n - 2 * length - 1)
    body = [draw.choice((hidden.second, hidden.third, hidden.main)) for _ in range(length)]
    marker = start + length
    a = [0] * n
    a[start : marker + 1] = [*body, hidden.fourth]
    b = list(a)
    b[marker + 1 : marker + 1 + length] = body[::-1]
    return a, b


@rule
def mirror_over_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 1, max(1, n // 3))
    gap = between(draw, 1, max(1, min(4, n // 2 - length - 1)))
    start = between(draw, 0, n - 2 * (length + gap) - 1)
    marker, colour = start + length + gap, hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(marker, 1), (marker + gap + 1, length)], [hidden.second, colour])


@rule
def scale_to_marker(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n, room=2)
    marker, colour = between(draw, start + length + 1, n - 1), hidden.colour(draw)
    a = painted(n, [(start, length), (marker, 1)], [colour, hidden.second])
    return a, painted(n, [(start, marker - start), (marker, 1)], [colour, hidden.second])


def copies(draw: random.Random, n: int, hidden: Hidden, colourful: bool) -> Pair:
    """A bar on the left and single cells further on, each the centre of a copy."""
    length = draw.choice((3, 3, 5)) if n >= 10 else 3
    spans = [(start + length + 1, length) for start, _ in bars(draw, n - length - 1, shortest=length, longest=length)]
    own = hidden.colour(draw)
    colours = [hidden.any_colour(draw) if colourful else own for _ in spans]
    points = [(start + length // 2, 1) for start, _ in spans]
    first = (0, length)
    return painted(n, [first, *points], [own, *colours]), painted(n, [first, *spans], [own, *colours])


@rule
def copy_at_points(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    return copies(draw, max(n, 7), hidden, colourful=False)


@rule
def copy_at_coloured_points(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    return copies(draw, max(n, 7), hidden, colourful=True)


@rule
def copy_pattern(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    length = between(draw, 2, max(2, n // 4))
    body = [hidden.any_colour(draw) for _ in range(length)]
    if hidden.fourth in body:
        raise Redraw
    at = between(draw, length + 1, n - length)
    a = body + [0] * (n - length)
    b = list(a)
    a[at], b[at : at + length] = hidden.fourth, body
    return a, b


@rule
def mirror_half(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    half = scattered(draw, n // 2, hidden, 0.7)
    middle = [hidden.any_colour(draw)] * (n % 2)
    return half + middle + [0] * len(half), half + middle + half[::-1]


# Counting, order and length


@rule
def count_bar(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = [hidden.colour(draw) if draw.random() < 0.4 else 0 for _ in range(n)]
    count = sum(map(bool, a))
    return a, [hidden.second if hidden.flag else hidden.main] * count + [0] * (n - count)


@rule
def count_objects(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    spans = bars(draw, n)
    a = painted(n, spans, [hidden.colour(draw)] * len(spans))
    return a, [hidden.second] * len(spans)


@rule
def sort_colours(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    ranks = {hidden.second: 0, hidden.third: 1, 0: 2}
    a = [draw.choice((hidden.second, hidden.third, 0)) for _ in range(n)]
    return a, sorted(a, key=ranks.__getitem__)


@rule
def sort_bars(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    lengths = [length for _, length in bars(draw, n, least=2)]
    gaps, colours = draw.randint(1, 2), [hidden.any_colour(draw) for _ in lengths]
    pairs = list(zip(lengths, colours, strict=True))

    def lay(order: list[tuple[int, int]]) -> list[int]:
        cells = [cell for length, colour in order for cell in [colour] * length + [0] * gaps][:-gaps]
        if len(cells) > n:
            raise Redraw
        return cells + [0] * (n - len(cells))

    return lay(pairs), lay(sorted(pairs, key=lambda pair: pair[0]))


@rule
def crop(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    start, length = one_bar(draw, n)
    body, a = [hidden.any_colour(draw) for _ in range(length)], [0] * n
    a[start : start + length] = body
    return a, body


@rule
def compress(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n, hidden)
    if not any(a):
        raise Redraw
    return a, [c for c in a if c]


@rule
def runs(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a: list[int] = []
    while len(a) < n:
        a += [hidden.any_colour(draw)] * draw.randint(1, 4)
    a = a[:n]
    return a, [c for i, c in enumerate(a) if i == 0 or a[i - 1] != c]


@rule
def stretch(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, max(2, n // 2), hidden, 0.7)
    return a, [c for c in a for _ in range(2)]


@rule
def tile(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, max(2, n // 2), hidden, 0.7)
    return a, a + (a[::-1] if hidden.flag else a)


@rule
def half_of(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    a = scattered(draw, n - n % 2, hidden, 0.7)
    return a, a[: len(a) // 2]


@rule
def combine_halves(draw: random.Random, n: int, hidden: Hidden) -> Pair:
    half = max(2, (n - 1) // 2)
    left = [hidden.second if draw.random() < 0.5 else 0 for _ in range(half)]
    right = [hidden.third if draw.random() < 0.5 else 0 for _ in range(half)]
    joined = [bool(x) and bool(y) if hidden.flag else bool(x) or bool(y) for x, y in zip(left, right, strict=True)]
    return [*left, hidden.fourth, *right], [hidden.main * met for met in joined]
