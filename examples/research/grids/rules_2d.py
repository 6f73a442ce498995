"""Rules of grids, movement, colour and symmetry: each draws a scene and what its hidden rule makes of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from research.grids.parts import Grid, Hidden, Redraw, between

Pair = tuple[Grid, Grid]
GridRule = Callable[[random.Random, int, int, Hidden], Pair]
Cell = tuple[int, int]

GRID_RULES: dict[str, GridRule] = {}
"""Name → rule: every family of two-dimensional grids."""


def rule(function: GridRule) -> GridRule:
    """Registers a family under its function's name."""
    GRID_RULES[function.__name__] = function
    return function


# Parts


def blank(rows: int, columns: int, colour: int = 0) -> Grid:
    """A grid of one colour."""
    return [[colour] * columns for _ in range(rows)]


def copied(grid: Grid) -> Grid:
    """A copy that may be changed."""
    return [list(row) for row in grid]


def flipped(grid: Grid) -> Grid:
    """Left and right exchanged."""
    return [row[::-1] for row in grid]


def transposed(grid: Grid) -> Grid:
    """Rows and columns exchanged."""
    return [list(column) for column in zip(*grid, strict=True)]


def turned(grid: Grid) -> Grid:
    """A quarter turn clockwise."""
    return transposed(grid[::-1])


def noise(draw: random.Random, rows: int, columns: int, hidden: Hidden, density: float = 0.5) -> Grid:
    """Random cells of the rule's colours, at least one."""
    grid = [[hidden.any_colour(draw) if draw.random() < density else 0 for _ in range(columns)] for _ in range(rows)]
    grid[draw.randrange(rows)][draw.randrange(columns)] = hidden.any_colour(draw)
    return grid


def cells_of(grid: Grid) -> list[Cell]:
    """Places of the coloured cells."""
    return [(y, x) for y, row in enumerate(grid) for x, c in enumerate(row) if c]


def put(grid: Grid, cells: list[Cell], colour: int) -> Grid:
    """A copy with the cells coloured."""
    out = copied(grid)
    for y, x in cells:
        out[y][x] = colour
    return out


def around(y: int, x: int, rows: int, columns: int, diagonal: bool = False) -> list[Cell]:
    """The neighbours of a cell inside the grid."""
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)] + [(-1, -1), (-1, 1), (1, -1), (1, 1)] * diagonal
    return [(y + dy, x + dx) for dy, dx in steps if 0 <= y + dy < rows and 0 <= x + dx < columns]


def components(grid: Grid) -> list[list[Cell]]:
    """Connected cells of one colour (not 0), in reading order of their first cells."""
    seen: set[Cell] = set()
    found = []
    for start in cells_of(grid):
        if start in seen:
            continue
        seen.add(start)
        part = [start]
        for y, x in part:
            for near in around(y, x, len(grid), len(grid[0])):
                if near not in seen and grid[near[0]][near[1]] == grid[y][x]:
                    seen.add(near)
                    part.append(near)
        found.append(part)
    return found


def blob(draw: random.Random, rows: int, columns: int, size: int) -> list[Cell]:
    """A random connected shape."""
    part = [(draw.randrange(rows), draw.randrange(columns))]
    while len(part) < size:
        near = [c for y, x in part for c in around(y, x, rows, columns) if c not in part]
        if not near:
            break
        part.append(draw.choice(near))
    return part


def blobs(draw: random.Random, rows: int, columns: int, least: int = 1, most: int = 3) -> list[list[Cell]]:
    """Connected shapes that do not touch, not even at corners."""
    free = {(y, x) for y in range(rows) for x in range(columns)}
    found: list[list[Cell]] = []
    for _ in range(draw.randint(least, most)):
        shape = blob(draw, rows, columns, draw.randint(1, max(2, rows * columns // 6)))
        if free.issuperset(shape):
            found.append(shape)
            free -= set(shape)
            free -= {near for y, x in shape for near in around(y, x, rows, columns, diagonal=True)}
    if len(found) < least:
        raise Redraw
    return found


def box(draw: random.Random, rows: int, columns: int, low: int = 1, margin: int = 0) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a rectangle with sides of at least `low`, `margin` cells from the edges."""
    height = between(draw, low, rows - 2 * margin)
    width = between(draw, low, columns - 2 * margin)
    return (
        between(draw, margin, rows - margin - height),
        between(draw, margin, columns - margin - width),
        height,
        width,
    )


def inside(top: int, left: int, height: int, width: int) -> list[Cell]:
    """The cells of a rectangle."""
    return [(y, x) for y in range(top, top + height) for x in range(left, left + width)]


def fallen(grid: Grid) -> Grid:
    """Every coloured cell moved to the left as far as it goes."""
    return [[c for c in row if c] + [0] * row.count(0) for row in grid]


def ranked_colours(grid: Grid) -> list[int]:
    """Colours but 0 from the most to the least common; `Redraw` where the order is not clear."""
    counts = Counter(c for row in grid for c in row if c).most_common()
    if not counts or len({count for _, count in counts}) < len(counts):
        raise Redraw
    return [colour for colour, _ in counts]


# Symmetry


@rule
def flip(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden)
    return a, flipped(a)


@rule
def half_turn(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden)
    return a, flipped(a[::-1])


@rule
def quarter_turn(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden)
    return a, turned(a)


@rule
def transpose(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden)
    return a, transposed(a)


@rule
def complete_mirror(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    half = noise(draw, rows, columns // 2, hidden, 0.6)
    middle = [[hidden.any_colour(draw)] * (columns % 2) for _ in range(rows)]
    a = [left + mid + [0] * len(left) for left, mid in zip(half, middle, strict=True)]
    return a, [left + mid + left[::-1] for left, mid in zip(half, middle, strict=True)]


@rule
def repair_symmetry(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    half = noise(draw, rows, (columns + 1) // 2, hidden, 0.8)
    b = [row + row[::-1][columns % 2 :] for row in half]
    top, left, height, width = box(draw, rows, max(1, columns // 2))
    return put(b, inside(top, left, min(2, height), min(2, width)), 0), b


@rule
def mirror_beside(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, max(1, columns // 2), hidden)
    return a, [row + row[::-1] for row in a]


@rule
def tile_beside(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, max(1, columns // 2), hidden)
    return a, [row + row for row in a]


@rule
def tile_mirrored(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, max(1, rows // 2), max(1, columns // 2), hidden, 0.7)
    wide = [row + row[::-1] for row in a]
    return a, wide + wide[::-1]


@rule
def enlarge(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, max(1, rows // 2), max(1, columns // 2), hidden, 0.7)
    return a, [[c for c in row for _ in range(2)] for row in a for _ in range(2)]


# Movement


@rule
def gravity(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.4)
    return a, fallen(a)


@rule
def translate(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    right, down = min(hidden.step, columns - 1), int(hidden.flag)
    shape = blob(draw, between(draw, 1, rows - down), columns - right, draw.randint(1, 5))
    colours = {cell: hidden.any_colour(draw) if hidden.fixed else hidden.main for cell in shape}
    a, b = blank(rows, columns), blank(rows, columns)
    for (y, x), colour in colours.items():
        a[y][x] = b[y + down][x + right] = colour
    return a, b


@rule
def roll(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden)
    step = min(hidden.step, 2)
    return a, [row[-step:] + row[:-step] for row in a]


@rule
def shape_to_wall(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shape, colour = blob(draw, rows, columns - 1, draw.randint(1, 5)), hidden.colour(draw)
    step = columns - 1 - max(x for _, x in shape)
    ground = blank(rows, columns)
    return put(ground, shape, colour), put(ground, [(y, x + step) for y, x in shape], colour)


@rule
def move_to_wall_marker(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    walls = blank(rows, columns)
    for row in walls:
        row[-1] = hidden.second
    points = [(y, draw.randrange(columns - 1)) for y in range(rows) if draw.random() < 0.5]
    colour = hidden.colour(draw)
    return put(walls, points, colour), put(walls, [(y, columns - 2) for y, _ in points], colour)


@rule
def shift_rows_by_index(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.6)
    return a, [row[-(i % columns) :] + row[: -(i % columns)] if i % columns else row for i, row in enumerate(a)]


@rule
def sort_rows(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = [[0] * columns for _ in range(rows)]
    for row in a:
        length = draw.randint(0, columns)
        row[:length] = [hidden.any_colour(draw) if hidden.flag else hidden.main] * length
    return a, sorted(a, key=lambda row: row.count(0))


@rule
def swap_outer_columns(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.6)
    return a, [[row[-1], *row[1:-1], row[0]] for row in a]


# Colour


@rule
def recolour(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.6)
    return a, [[hidden.third if c == hidden.second else c for c in row] for row in a]


@rule
def recolour_all(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.6)
    return a, [[hidden.table[c] for c in row] for row in a]


@rule
def swap_colours(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.7)
    trade = {hidden.second: hidden.third, hidden.third: hidden.second}
    return a, [[trade.get(c, c) for c in row] for row in a]


@rule
def invert(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    colour = hidden.colour(draw)
    a = [[colour if draw.random() < 0.5 else 0 for _ in range(columns)] for _ in range(rows)]
    return a, [[0 if c else (hidden.second if hidden.flag else colour) for c in row] for row in a]


@rule
def remove_colour(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.6)
    return a, [[0 if c == hidden.second else c for c in row] for row in a]


@rule
def keep_colour(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.7)
    return a, [[c if c == hidden.second else 0 for c in row] for row in a]


@rule
def fill_with_common(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 1.0)
    return a, blank(rows, columns, ranked_colours(a)[0])


@rule
def keep_common(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.7)
    common = ranked_colours(a)[0 if hidden.flag else -1]
    return a, [[c if c == common else 0 for c in row] for row in a]


@rule
def take_corner_colour(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shape, corner = blob(draw, rows, columns, draw.randint(1, 6)), hidden.table[hidden.any_colour(draw)]
    if (0, 0) in shape or hidden.main == corner:
        raise Redraw
    a = put(blank(rows, columns), shape, hidden.main)
    a[0][0] = corner
    return a, put(a, shape, corner)


@rule
def trade_shape_colours(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes = blobs(draw, rows, columns, 2, 2)
    colours = draw.sample((hidden.main, hidden.second, hidden.third, hidden.fourth), 2)
    ground = blank(rows, columns)
    a = put(put(ground, shapes[0], colours[0]), shapes[1], colours[1])
    return a, put(put(ground, shapes[0], colours[1]), shapes[1], colours[0])


@rule
def recolour_by_size(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    shapes, colour = blobs(draw, rows, columns, 1, 4), hidden.colour(draw)
    a = b = blank(rows, columns)
    for shape in shapes:
        a = put(a, shape, colour)
        b = put(b, shape, hidden.second if len(shape) > 1 + hidden.flag else hidden.third)
    return a, b


@rule
def recolour_columns(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    colour = hidden.colour(draw)
    a = [[colour if draw.random() < 0.5 else 0 for _ in range(columns)] for _ in range(rows)]
    return a, [[(hidden.second, hidden.third)[x % 2] if c else 0 for x, c in enumerate(row)] for row in a]


@rule
def rows_by_colour(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = [[0] * columns for _ in range(rows)]
    for row in a:
        row[draw.randrange(columns)] = hidden.any_colour(draw)
    return a, [[max(row)] * columns for row in a]


@rule
def flip_if_marked(draw: random.Random, rows: int, columns: int, hidden: Hidden) -> Pair:
    a = noise(draw, rows, columns, hidden, 0.5)
    a[0][0] = draw.choice((hidden.second, hidden.third))
    if a[0][0] == hidden.second:
        return a, flipped(a)
    return a, a[::-1] if hidden.flag else a
