"""Whether a further pair of grids follows the rule of a task: for the world's families that held-out tasks come from.

The world draws inputs and outputs together, so a rule is written here once more, as a function of the input alone. What
is hidden (a colour, a distance, a direction) is every choice under which the function explains all known pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from research.grids.parts import COLOURS, Grid
from research.grids.rules_2d import around, components, flipped, put

Rule = Callable[[Grid], Grid | None]
"""The output of an input; None where the rule does not say."""
Pairs = Sequence[tuple[Grid, Grid]]


def explaining(family: str, pairs: Pairs) -> list[Rule]:
    """The variants of a family's rule that explain every pair; none for a family that is not written here."""
    variants = _VARIANTS.get(family)
    return [] if variants is None else [rule for rule in variants(pairs) if all(rule(a) == b for a, b in pairs)]


def follows(rules: Sequence[Rule], pair: tuple[Grid, Grid]) -> bool:
    """Whether any of the rules leads from the pair's input to its output."""
    return any(rule(pair[0]) == pair[1] for rule in rules)


def _cap_ends(pairs: Pairs) -> Iterator[Rule]:
    def capped(colour: int) -> Rule:
        def rule(grid: Grid) -> Grid:
            (row,) = grid[:1]
            ends = [i for i, c in enumerate(row) if not c and any(row[max(0, i - 1) : i + 2])]
            return put(grid, [(0, i) for i in ends], colour)

        return rule

    yield from map(capped, COLOURS)


def _rotate(pairs: Pairs) -> Iterator[Rule]:
    def rotated(step: int) -> Rule:
        return lambda grid: [row[-step % len(row) :] + row[: -step % len(row)] for row in grid]

    yield from (rotated(step) for step in range(-4, 5) if step)


def _sort_colours(pairs: Pairs) -> Iterator[Rule]:
    order: list[int] = []
    for _, output in pairs:
        order += [c for c in output[0] if c not in order]

    def ordered(grid: Grid) -> Grid | None:
        known = all(c in order for c in grid[0])
        return [sorted(grid[0], key=order.index)] if known else None

    yield ordered


def _mark_nearest(pairs: Pairs) -> Iterator[Rule]:
    def marked(marker: int, colour: int) -> Rule:
        def rule(grid: Grid) -> Grid | None:
            row = grid[0]
            points = [i for i, c in enumerate(row) if c not in (0, marker)]
            if row.count(marker) != 1 or not points:
                return None
            place = row.index(marker)
            nearest = min(abs(i - place) for i in points)
            return put(grid, [(0, i) for i in points if abs(i - place) == nearest], colour)

        return rule

    yield from (marked(*colours) for colours in product(COLOURS, repeat=2))


def _diagonals(pairs: Pairs) -> Iterator[Rule]:
    def drawn(falling: bool, rising: bool) -> Rule:
        def rule(grid: Grid) -> Grid | None:
            points = [(y, x) for y, row in enumerate(grid) for x, c in enumerate(row) if c]
            if len(points) != 1:
                return None
            ((y, x),) = points
            cells = [(v, u) for v in range(len(grid)) for u in range(len(grid[0]))]
            on = [(v, u) for v, u in cells if (falling and v - y == u - x) or (rising and v - y == x - u)]
            return put(grid, on, grid[y][x])

        return rule

    yield from (drawn(*ways) for ways in ((True, False), (False, True), (True, True)))


def _outline_shape(pairs: Pairs) -> Iterator[Rule]:
    def outlined(colour: int, diagonal: bool) -> Rule:
        def rule(grid: Grid) -> Grid:
            shape = [(y, x) for y, row in enumerate(grid) for x, c in enumerate(row) if c]
            near = {c for y, x in shape for c in around(y, x, len(grid), len(grid[0]), diagonal=diagonal)}
            return put(grid, sorted(near - set(shape)), colour)

        return rule

    yield from (outlined(*choice) for choice in product(COLOURS, (False, True)))


def _tile_mirrored(pairs: Pairs) -> Iterator[Rule]:
    def wide(grid: Grid, first: bool) -> Grid:
        return [row + back if first else back + row for row, back in zip(grid, flipped(grid), strict=True)]

    def tiled(left: bool, top: bool) -> Rule:
        return lambda grid: (
            wide(grid, left) + wide(grid, left)[::-1] if top else wide(grid, left)[::-1] + wide(grid, left)
        )

    yield from (tiled(*order) for order in product((False, True), repeat=2))


def _keep_largest(pairs: Pairs) -> Iterator[Rule]:
    def kept(grid: Grid) -> Grid | None:
        shapes = sorted(components(grid), key=len)
        if not shapes or (len(shapes) > 1 and len(shapes[-1]) == len(shapes[-2])):
            return None
        return put(grid, [cell for shape in shapes[:-1] for cell in shape], 0)

    yield kept


_VARIANTS: dict[str, Callable[[Pairs], Iterator[Rule]]] = {
    "strip/cap_ends": _cap_ends,
    "strip/rotate": _rotate,
    "strip/sort_colours": _sort_colours,
    "strip/mark_nearest": _mark_nearest,
    "grid/diagonals": _diagonals,
    "grid/outline_shape": _outline_shape,
    "grid/tile_mirrored": _tile_mirrored,
    "grid/keep_largest": _keep_largest,
}
