"""Rules of grids, drawing, cleaning, choosing, and change of size."""

from __future__ import annotations

import random

from research.grids.parts import Hidden, Redraw, between
from research.grids.rules_2d import (
    Cell,
    Grid,
    Pair,
    around,
    blank,
    blob,
    blobs,
    box,
    cells_of,
    components,
    copied,
    inside,
    noise,
    put,
    rule,
)


def points(draw: random.Random, rows: int, columns: int, most: int = 3) -> list[Cell]:
    """From 1 to `most` places."""
    everywhere = [(y, x) for y in range(rows) for x in range(columns)]
    return draw.sample(everywhere, min(len(everywhere), draw.randint(1, most)))


def outline(top: int, left: int, height: int, width: int) -> list[Cell]:
    """The border cells of a rectangle."""
    last_y, last_x = top + height - 1, left + width - 1
    return [(y, x) for y, x in inside(top, left, height, width) if y in (top, last_y) or x in (left, last_x)]


def bounds(cells: list[Cell]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the smallest rectangle around cells."""
    top, left = min(y for y, _ in cells), min(x for _, x in cells)
    return top, left, max(y for y, _ in cells) - top + 1, max(x for _, x in cells) - left + 1


def cut(grid: Grid, top: int, left: int, height: int, width: int) -> Grid:
    """A rectangle of the grid."""
    return [row[left : left + width] for row in grid[top : top + height]]


# Lines


@rule
def lines(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = b = blank(rows, columns)
    for y in draw.sample(range(rows), min(rows, draw.randint(1, 2))):
        x, colour = draw.randrange(columns), hidden.colour(draw)
        a, b = put(a, [(y, x)], colour), put(b, inside(y, 0, 1, columns), colour)
    return a, b


@rule
def rays(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = b = blank(rows, columns)
    for y in draw.sample(range(rows), min(rows, draw.randint(1, 2))):
        x, colour = draw.randrange(columns), hidden.colour(draw)
        b = put(b, inside(y, x, 1, columns - x), hidden.second if hidden.flag else colour)
        a, b = put(a, [(y, x)], colour), put(b, [(y, x)], colour)
    return a, b


@rule
def crosses(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    (y, x), colour = points(draw, rows, columns, 1)[0], hidden.colour(draw)
    line = hidden.second if hidden.flag else colour
    a = put(blank(rows, columns), [(y, x)], colour)
    return a, put(put(a, inside(y, 0, 1, columns) + inside(0, x, rows, 1), line), [(y, x)], colour)


@rule
def diagonals(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    (y, x), colour = points(draw, rows, columns, 1)[0], hidden.colour(draw)
    a = put(blank(rows, columns), [(y, x)], colour)
    both = [(v, u) for v, u in inside(0, 0, rows, columns) if v - y == u - x or (hidden.flag and v - y == x - u)]
    return a, put(a, both, colour)


@rule
def diagonal_ray(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    (y, x), colour = points(draw, rows, columns, 1)[0], hidden.colour(draw)
    a = put(blank(rows, columns), [(y, x)], colour)
    return a, put(a, [(y + i, x + i) for i in range(min(rows - y, columns - x))], colour)


@rule
def connect(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = b = blank(rows, columns)
    colour = hidden.colour(draw)
    for y in draw.sample(range(rows), min(rows, draw.randint(1, 2))):
        left = between(draw, 0, columns - 2)
        right = between(draw, min(left + 2, columns - 1), columns - 1)
        b = put(b, inside(y, left, 1, right - left + 1), hidden.second if hidden.flag else colour)
        a, b = put(a, [(y, left), (y, right)], colour), put(b, [(y, left), (y, right)], colour)
    return a, b


@rule
def seeds_to_stripes(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = blank(rows, columns)
    a[0] = [hidden.any_colour(draw) if draw.random() < 0.5 else 0 for _ in range(columns)]
    if not any(a[0]):
        raise Redraw
    return a, [list(a[0]) for _ in range(rows)]


@rule
def continue_rows(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    period = between(draw, 1, max(1, rows // 2))
    unit = noise(draw, period, columns, hidden, 0.7)
    b = [list(unit[y % period]) for y in range(rows)]
    shown = min(rows - 1, 2 * period if hidden.flag else period)
    return b[:shown] + blank(rows - shown, columns), b


@rule
def restore_pattern(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    height, width = min(2, rows), min(2, columns)
    unit = noise(draw, height, width, hidden, 1.0)
    b = [[unit[y % height][x % width] for x in range(columns)] for y in range(rows)]
    top, left, tall, wide = box(draw, rows, columns)
    return put(b, inside(top, left, min(tall, 2), min(wide, 2)), 0), b


# Borders and areas


@rule
def frame(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.4)
    return a, put(a, outline(0, 0, rows, columns), hidden.second)


@rule
def outline_shape(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shape, colour = blob(draw, rows, columns, draw.randint(1, 4)), hidden.colour(draw)
    ground = blank(rows, columns)
    near = [c for y, x in shape for c in around(y, x, rows, columns, diagonal=hidden.flag)]
    return put(ground, shape, colour), put(put(ground, near, hidden.second), shape, colour)


@rule
def bloom(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = b = blank(rows, columns)
    seeds, colour = points(draw, rows, columns, 2), hidden.colour(draw)
    for y, x in seeds:
        b = put(b, around(y, x, rows, columns), hidden.second)
    return put(a, seeds, colour), put(b, seeds, colour)


@rule
def fill_box(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area = box(draw, rows, columns, low=3)
    top, left, height, width = area
    a = put(blank(rows, columns), outline(*area), hidden.colour(draw))
    return a, put(a, inside(top + 1, left + 1, height - 2, width - 2), hidden.second)


@rule
def hollow_box(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area = box(draw, rows, columns, low=3)
    top, left, height, width = area
    a = put(blank(rows, columns), inside(*area), hidden.colour(draw))
    return a, put(a, inside(top + 1, left + 1, height - 2, width - 2), hidden.third if hidden.flag else 0)


@rule
def fill_enclosed(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    colour = hidden.colour(draw)
    a = [[colour if draw.random() < 0.55 else 0 for _ in range(columns)] for _ in range(rows)]
    if draw.random() < 0.7 and rows > 2 and columns > 2:
        y, x = draw.randint(1, rows - 2), draw.randint(1, columns - 2)
        a = put(put(a, around(y, x, rows, columns), colour), [(y, x)], 0)
    grounds = components([[0 if c else 1 for c in row] for row in a])
    shut = [c for part in grounds if all(0 < y < rows - 1 and 0 < x < columns - 1 for y, x in part) for c in part]
    return a, put(a, shut, hidden.second)


@rule
def corners(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    top, left, height, width = box(draw, rows, columns, low=2)
    a = put(blank(rows, columns), inside(top, left, height, width), hidden.colour(draw))
    ends = [(y, x) for y in (top, top + height - 1) for x in (left, left + width - 1)]
    return a, put(a, ends, hidden.second)


@rule
def complete_box(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area, colour = box(draw, rows, columns, low=2), hidden.colour(draw)
    top, left, height, width = area
    ends = [(y, x) for y in (top, top + height - 1) for x in (left, left + width - 1)]
    a = put(blank(rows, columns), ends, colour)
    cells = inside(*area) if hidden.flag else outline(*area)
    return a, put(put(a, cells, colour if hidden.flag else hidden.second), ends, colour)


@rule
def fill_bounds(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shape = blob(draw, rows, columns, draw.randint(2, 6))
    ground, colour = blank(rows, columns), hidden.colour(draw)
    return put(ground, shape, colour), put(put(ground, inside(*bounds(shape)), hidden.second), shape, colour)


@rule
def checker(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area, colour = box(draw, rows, columns, low=2), hidden.colour(draw)
    a = put(blank(rows, columns), inside(*area), colour)
    return a, put(a, [(y, x) for y, x in inside(*area) if (y - area[0] + x - area[1]) % 2], hidden.second)


# Cleaning and choosing


@rule
def denoise(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area, colour = box(draw, rows, columns, low=2), hidden.colour(draw)
    b = put(blank(rows, columns), inside(*area), colour)
    a = copied(b)
    for y, x in points(draw, rows, columns, 4):
        if not b[y][x] and not any(a[v][u] for v, u in around(y, x, rows, columns)):
            a[y][x] = hidden.second if hidden.flag else colour
    return a, b


@rule
def repair_box(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area = box(draw, rows, columns, low=2)
    b = put(blank(rows, columns), inside(*area), hidden.colour(draw))
    broken = draw.sample(inside(*area), min(area[2] * area[3] - 2, draw.randint(1, 3)))
    return put(b, broken, hidden.second), b


@rule
def keep_largest(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes, colour = sorted(blobs(draw, rows, columns, 2, 4), key=len), hidden.colour(draw)
    if len(shapes[-1]) == len(shapes[-2]):
        raise Redraw
    ground = blank(rows, columns)
    return put(ground, [c for shape in shapes for c in shape], colour), put(ground, shapes[-1], colour)


@rule
def mark_largest(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes = sorted(blobs(draw, rows, columns, 2, 4), key=len)
    if len(shapes[-1]) == len(shapes[-2]):
        raise Redraw
    a = put(blank(rows, columns), [c for shape in shapes for c in shape], hidden.colour(draw))
    return a, put(a, shapes[-1], hidden.second)


@rule
def remove_points(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes, colour = blobs(draw, rows, columns, 2, 5), hidden.colour(draw)
    ground = blank(rows, columns)
    a = put(ground, [c for shape in shapes for c in shape], colour)
    return a, put(ground, [c for shape in shapes if len(shape) > 1 for c in shape], colour)


# Change of size


@rule
def crop(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shape = blob(draw, rows, columns, draw.randint(2, 7))
    a = blank(rows, columns)
    for y, x in shape:
        a[y][x] = hidden.any_colour(draw) if hidden.fixed else hidden.main
    return a, cut(a, *bounds(shape))


@rule
def crop_coloured(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    area = box(draw, rows, columns)
    a = noise(draw, rows, columns, hidden, 0.5)
    a = [[c if c != hidden.second else hidden.third for c in row] for row in a]
    a = put(a, inside(*area), hidden.second)
    top, left, height, width = area
    if height > 2 and width > 2:
        a = put(a, [(draw.randint(top + 1, top + height - 2), draw.randint(left + 1, left + width - 2))], hidden.main)
    return a, cut(a, *area)


@rule
def half_of(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns - columns % 2, hidden, 0.6)
    return a, [row[: len(row) // 2] for row in a]


@rule
def combine_halves(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    width = max(1, (columns - 1) // 2)
    left = [[hidden.second * (draw.random() < 0.5) for _ in range(width)] for _ in range(rows)]
    right = [[hidden.third * (draw.random() < 0.5) for _ in range(width)] for _ in range(rows)]
    a = [[*one, hidden.fourth, *two] for one, two in zip(left, right, strict=True)]
    wanted = {1: hidden.flag or hidden.fixed, 2: hidden.flag or not hidden.fixed}
    return a, [
        [hidden.main if wanted.get(bool(c) + bool(d), False) else 0 for c, d in zip(one, two, strict=True)]
        for one, two in zip(left, right, strict=True)
    ]


@rule
def compress(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.25)
    kept = [x for x in range(columns) if any(row[x] for row in a)]
    return a, [[row[x] for x in kept] for row in a if any(row)]


@rule
def count_shapes(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes = blobs(draw, rows, columns, 1, 5)
    a = put(blank(rows, columns), [c for shape in shapes for c in shape], hidden.colour(draw))
    return a, [[hidden.second] * len(shapes)]


@rule
def count_cells(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    colour = hidden.colour(draw)
    places = points(draw, rows, columns, min(7, rows * columns))
    a = put(blank(rows, columns), places, colour)
    return a, [[colour] * len(cells_of(a))]


@rule
def frame_around(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, max(1, rows - 2), max(1, columns - 2), hidden, 0.6)
    b = [[0, *row, 0] for row in a]
    b = [[0] * len(b[0]), *b, [0] * len(b[0])]
    return a, put(b, outline(0, 0, len(b), len(b[0])), hidden.second)
