r"""A world of procedurally generated few-shot tasks on strips (grids of one row) and small grids.

A task is a list of (input grid, output grid) pairs that follow one hidden rule, the last of them the query. The rule
comes from a table of small named families (`rules_1d*.py`, `rules_2d*.py`), or is one of them followed by a
simple transformation; colours and orientation are random. No benchmark is read. Some families are held out of training
(`HELD_OUT`), so that experiments can measure the distance from pretraining.

Text form, one token a cell: the rows of a grid are digits, "\n" between rows; ">" ends an input, ";" an output:

    012\n340>111\n111;000\n340>111\n111;220\n340>

`render_task` writes it, `parse_grid` reads one grid back (spaces between the digits are allowed).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grids import grid_text
from hf_mass.tasks.task import Demonstration, Task
from research.grids import rules_1d_drawing, rules_2d_drawing  # noqa: F401  (registers families)
from research.grids.parts import Grid, Hidden, Redraw
from research.grids.rules_1d import STRIP_RULES
from research.grids.rules_2d import GRID_RULES, fallen, flipped, transposed

ROW_END, PAIR_SEPARATOR, PAIR_END = "\n", ">", ";"

FAMILIES = {
    **{f"strip/{name}": (1, name) for name in STRIP_RULES},
    **{f"grid/{name}": (2, name) for name in GRID_RULES},
}
"""Name → (dimension, name of the rule)."""

HELD_OUT = (
    *("strip/cap_ends", "strip/rotate", "strip/sort_colours", "strip/mark_nearest"),
    *("grid/diagonals", "grid/outline_shape", "grid/tile_mirrored", "grid/keep_largest"),
)
"""Families that training never draws."""

TRANSFORMATIONS: dict[str, Callable[[Grid, Hidden], Grid]] = {
    "flip": lambda grid, hidden: flipped(grid),
    "upside_down": lambda grid, hidden: flipped(grid) if len(grid) == 1 else grid[::-1],
    "fall": lambda grid, hidden: fallen(grid),
    "recolour": lambda grid, hidden: [[hidden.table[c] for c in row] for row in grid],
    "ground": lambda grid, hidden: [[c or hidden.table[1] for c in row] for row in grid],
}
"""What may follow a rule in a composed task."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large scenes are.

    Args:
        strip: Shortest and longest strip.
        side: Smallest and largest side of a grid.
        share_2d: Share of two-dimensional tasks.
        demonstrations: Fewest and most demonstrations.
        composed: Share of rules followed by a further transformation.
        longest: Tokens at most in a task; demonstrations are dropped to keep to it.
    """

    strip: tuple[int, int] = (6, 36)
    side: tuple[int, int] = (2, 7)
    share_2d: float = 0.45
    demonstrations: tuple[int, int] = (3, 5)
    composed: float = 0.1
    longest: int = 512


def curriculum(progress: float) -> Sizes:
    """Sizes at a point of pretraining, 0 ≤ progress ≤ 1: short first, at full size from two thirds on."""
    grown = min(1.0, progress * 1.5)
    return Sizes(
        strip=(5 if progress < 0.3 else 6, round(10 + 26 * grown)),
        side=(2 if progress < 0.3 else 3, round(4 + 3 * grown)),
        share_2d=0.25 + 0.2 * grown,
        demonstrations=(3, 3 + round(2 * min(1.0, progress * 3))),
        composed=0.12 * grown,
    )


@dataclass(frozen=True, slots=True)
class GridTask:
    """Pairs of one hidden rule, the last one the query; `family` is a key of `FAMILIES`, "+name" added if composed."""

    family: str
    pairs: tuple[tuple[Grid, Grid], ...]

    @property
    def dimension(self) -> int:
        """1 for strips, 2 for grids."""
        return FAMILIES[self.family.partition("+")[0]][0]


def draw_task(draw: random.Random, sizes: Sizes, families: Sequence[str] | None = None) -> GridTask:
    """A task of a random family.

    Args:
        draw: The random stream; the same state gives the same task.
        sizes: How large it is.
        families: Keys of `FAMILIES` to draw from, evenly; without it the trained ones, with `sizes.share_2d`.

    Raises:
        ConfigError: If no scene of a family fits the sizes.
    """
    if families is None:
        dimension = 2 if draw.random() < sizes.share_2d else 1
        families = TRAINED[dimension]
    family = draw.choice(families)
    for _ in range(2000):
        try:
            return _attempt(draw, sizes, family)
        except Redraw:
            continue
    raise ConfigError(f"draw_task: no scene of {family!r} fits {sizes}; give larger sizes.")


def few_shot_tasks(families: Sequence[str], per_family: int, seed: str, sizes: Sizes) -> list[Task]:
    """As many tasks of each family, for the package: their last pair is the problem with its answer."""
    tasks = []
    for family in families:
        draw = random.Random(f"{seed}-{family}")
        for number in range(per_family):
            drawn = draw_task(draw, sizes, [family])
            pairs = [tuple(grid_text(tuple(map(tuple, grid))) for grid in pair) for pair in drawn.pairs]
            shown = tuple(Demonstration(*pair) for pair in pairs[:-1])
            tasks.append(Task(pairs[-1][0], shown, answer=pairs[-1][1], domain=family, id=f"{family}-{number}"))
    return tasks


def of_each_type(tasks: Sequence[Task], per_type: int) -> list[Task]:
    """So many tasks of each domain, evenly over those that there are."""
    types: dict[str, list[Task]] = {}
    for task in tasks:
        types.setdefault(task.domain, []).append(task)
    return [t for found in types.values() for t in found[:: max(1, len(found) // per_type)][:per_type]]


TRAINED = {d: [name for name, (e, _) in FAMILIES.items() if d == e and name not in HELD_OUT] for d in (1, 2)}
"""Dimension → the families that training draws."""


def _attempt(draw: random.Random, sizes: Sizes, family: str) -> GridTask:
    """One task, or `Redraw`."""
    dimension, name = FAMILIES[family]
    hidden, count = Hidden.drawn(draw), draw.randint(*sizes.demonstrations) + 1
    scene = _strip_scene(draw, sizes) if dimension == 1 else _grid_scene(draw, sizes)
    pairs = [_pair(lambda: scene(name, hidden)) for _ in range(count)]
    if draw.random() < sizes.composed:
        further, then = draw.choice(list(TRANSFORMATIONS)), Hidden.drawn(draw)
        pairs = [(a, TRANSFORMATIONS[further](b, then)) for a, b in pairs]
        family = f"{family}+{further}"
    pairs = _oriented(draw, dimension, pairs)
    while len(render_task(pairs)) + 1 > sizes.longest:
        pairs.pop()
        if len(pairs) <= sizes.demonstrations[0]:
            raise Redraw
    changed = sum(a != b for a, b in pairs)
    repeated = any(pairs[-1][0] == a for a, _ in pairs[:-1])
    if 2 * changed < len(pairs) or repeated or all(b == pairs[0][1] for _, b in pairs):
        raise Redraw
    return GridTask(family, tuple(pairs))


def _pair(scene: Callable[[], tuple[Grid, Grid]]) -> tuple[Grid, Grid]:
    """One pair; a hidden rule that finds no scene in twenty trials is given up."""
    for _ in range(20):
        try:
            return scene()
        except Redraw:
            continue
    raise Redraw


def _strip_scene(draw: random.Random, sizes: Sizes) -> Callable[[str, Hidden], tuple[Grid, Grid]]:
    """Draws strips of one length (half of the tasks) or of several."""
    low, high = sizes.strip
    length, same = draw.randint(low, high), draw.random() < 0.5

    def scene(name: str, hidden: Hidden) -> tuple[Grid, Grid]:
        a, b = STRIP_RULES[name](draw, length if same else draw.randint(low, high), hidden)
        return [a], [b]

    return scene


def _grid_scene(draw: random.Random, sizes: Sizes) -> Callable[[str, Hidden], tuple[Grid, Grid]]:
    """Draws grids of one shape (two thirds of the tasks) or of several; half of the shapes are square."""
    low, high = sizes.side

    def shape() -> tuple[int, int]:
        rows = draw.randint(low, high)
        return rows, rows if draw.random() < 0.5 else draw.randint(low, high)

    fixed, same = shape(), draw.random() < 0.67

    def scene(name: str, hidden: Hidden) -> tuple[Grid, Grid]:
        return GRID_RULES[name](draw, *(fixed if same else shape()), hidden)

    return scene


def _oriented(draw: random.Random, dimension: int, pairs: list[tuple[Grid, Grid]]) -> list[tuple[Grid, Grid]]:
    """All grids of a task flipped or (two-dimensional ones) transposed alike; one task in twenty trades the ground."""
    if draw.random() < 0.5:
        pairs = [(flipped(a), flipped(b)) for a, b in pairs]
    if dimension == 2 and draw.random() < 0.5:
        pairs = [(a[::-1], b[::-1]) for a, b in pairs]
    if dimension == 2 and draw.random() < 0.5:
        pairs = [(transposed(a), transposed(b)) for a, b in pairs]
    if draw.random() < 0.05:
        new = draw.randint(1, 9)
        trade = [new, *(0 if c == new else c for c in range(1, 10))]
        pairs = [([[trade[c] for c in r] for r in a], [[trade[c] for c in r] for r in b]) for a, b in pairs]
    return pairs


# Text


def render_grid(grid: Grid) -> str:
    """The rows of a grid as lines of digits."""
    return ROW_END.join("".join(map(str, row)) for row in grid)


def render_task(pairs: Sequence[tuple[Grid, Grid]]) -> str:
    """All pairs in the text form of this module, the query's output included."""
    return "".join(render_grid(a) + PAIR_SEPARATOR + render_grid(b) + PAIR_END for a, b in pairs)


def parse_grid(text: str) -> Grid:
    """The grid that a text shows; one ">" or ";" after it is allowed.

    Raises:
        DataError: If the text is no rectangle of digits.
    """
    body = text.removesuffix(PAIR_END).removesuffix(PAIR_SEPARATOR).replace(" ", "")
    rows = body.split(ROW_END)
    if not all(row.isascii() and row.isdigit() for row in rows) or len({len(row) for row in rows}) != 1:
        raise DataError(f"parse_grid: {text[:80]!r} is no rectangle of digits; give rows of equal length.")
    return [[int(c) for c in row] for row in rows]
