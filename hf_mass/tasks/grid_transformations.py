"""Invertible transformations of grids, each a small object of its own.

Every transformation t keeps `t.invert(t.apply(grid)) == grid`. Those that make a grid larger (`Enlarge`, `Stretch`,
`Repeat`, `Reflect`) do not reach every grid: `invert` answers None for one that they cannot have made, so that a
prediction is either mapped back exactly or known to be of no use.

Two axes name directions: "rows" changes how rows follow one another, from top to bottom, and "columns" how columns do,
from left to right.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from hf_mass.errors import ConfigError
from hf_mass.tasks.grids import COLOURS, Grid

Axis = Literal["rows", "columns"]
AXES: tuple[Axis, ...] = ("rows", "columns")

CHAIN_SEPARATOR = " then "
"""What stands between the parts of a chain's name."""


@runtime_checkable
class Transformation(Protocol):
    """A change of a grid that can be taken back."""

    @property
    def name(self) -> str:
        """A readable name, unique among transformations that differ; `resolve_transformations` reads it back."""

    def apply(self, grid: Grid) -> Grid:
        """The transformed grid."""

    def invert(self, grid: Grid) -> Grid | None:
        """The grid that `apply` turns into this one; None if there is none."""


def _transposed(grid: Grid) -> Grid:
    return tuple(zip(*grid, strict=True))


def _along(axis: str, change: Callable[[Grid], Grid], grid: Grid) -> Grid:
    """Applies a change of the sequence of rows to the rows, or to the columns."""
    return change(grid) if axis == "rows" else _transposed(change(_transposed(grid)))


def _checked(transformation: Transformation, candidate: Grid, grid: Grid) -> Grid | None:
    """The candidate, if it is the grid that the transformation turns into `grid`."""
    return candidate if transformation.apply(candidate) == grid else None


def _require_one_of(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{field} must be {' or '.join(map(repr, known))}, got {value!r}.")


def _require_whole(field: str, value: int, least: int | None = None) -> None:
    if type(value) is not int or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{field} must be a whole number{bound}, got {value!r}.")


@dataclass(frozen=True, slots=True)
class _Named:
    """A transformation that is called by a verb and its settings."""

    verb: ClassVar[str]

    @property
    def name(self) -> str:
        """The verb and the settings."""
        return " ".join(map(str, (self.verb, *astuple(self))))


@dataclass(frozen=True, slots=True)
class _SelfInverse(_Named, ABC):
    """A transformation that takes itself back."""

    @abstractmethod
    def apply(self, grid: Grid) -> Grid:
        """The transformed grid."""

    def invert(self, grid: Grid) -> Grid | None:
        """The transformed grid: twice is as good as never."""
        return self.apply(grid)


@dataclass(frozen=True, slots=True)
class Identity(_SelfInverse):
    """Changes nothing; its own inverse."""

    verb: ClassVar[str] = "identity"

    def apply(self, grid: Grid) -> Grid:
        """The grid itself."""
        return grid


@dataclass(frozen=True, slots=True)
class Rotate:
    """Turns a grid anticlockwise; the inverse turns it back.

    Raises:
        ConfigError: If `quarter_turns` is not 1, 2 or 3.
    """

    quarter_turns: int

    def __post_init__(self) -> None:
        if self.quarter_turns not in (1, 2, 3):
            raise ConfigError(f"Rotate.quarter_turns must be 1, 2 or 3, got {self.quarter_turns!r}.")

    @property
    def name(self) -> str:
        """The name."""
        return f"rotate {90 * self.quarter_turns}"

    def apply(self, grid: Grid) -> Grid:
        """The turned grid."""
        return self._turned(grid, self.quarter_turns)

    def invert(self, grid: Grid) -> Grid | None:
        """The grid, turned clockwise."""
        return self._turned(grid, 4 - self.quarter_turns)

    @staticmethod
    def _turned(grid: Grid, quarter_turns: int) -> Grid:
        for _ in range(quarter_turns):
            grid = _transposed(grid)[::-1]
        return grid


@dataclass(frozen=True, slots=True)
class FlipRows(_SelfInverse):
    """Reverses the order of the rows: turns a grid upside down; its own inverse."""

    verb: ClassVar[str] = "flip rows"

    def apply(self, grid: Grid) -> Grid:
        """The flipped grid."""
        return grid[::-1]


@dataclass(frozen=True, slots=True)
class FlipColumns(_SelfInverse):
    """Reverses the order of the columns: swaps left and right, as a mirror does; its own inverse."""

    verb: ClassVar[str] = "flip columns"

    def apply(self, grid: Grid) -> Grid:
        """The flipped grid."""
        return tuple(row[::-1] for row in grid)


@dataclass(frozen=True, slots=True)
class Transpose(_SelfInverse):
    """Swaps rows and columns: mirrors a grid at the diagonal from its top left corner; its own inverse."""

    verb: ClassVar[str] = "transpose"

    def apply(self, grid: Grid) -> Grid:
        """The transposed grid."""
        return _transposed(grid)


@dataclass(frozen=True, slots=True)
class AntiTranspose(_SelfInverse):
    """Mirrors a grid at the diagonal from its top right corner; its own inverse."""

    verb: ClassVar[str] = "anti-transpose"

    def apply(self, grid: Grid) -> Grid:
        """The mirrored grid."""
        return tuple(row[::-1] for row in _transposed(grid))[::-1]


@dataclass(frozen=True, slots=True)
class Translate(_Named):
    """Shifts a grid down and to the right; what leaves it comes in at the other side. The inverse shifts it back.

    Raises:
        ConfigError: If a shift is no whole number.
    """

    verb: ClassVar[str] = "translate"
    rows: int
    columns: int

    def __post_init__(self) -> None:
        _require_whole("Translate.rows", self.rows)
        _require_whole("Translate.columns", self.columns)

    def apply(self, grid: Grid) -> Grid:
        """The shifted grid."""
        return self._rolled(grid, self.rows, self.columns)

    def invert(self, grid: Grid) -> Grid | None:
        """The grid, shifted up and to the left."""
        return self._rolled(grid, -self.rows, -self.columns)

    @staticmethod
    def _rolled(grid: Grid, rows: int, columns: int) -> Grid:
        down, right = -rows % len(grid), -columns % len(grid[0])
        return tuple(row[right:] + row[:right] for row in grid[down:] + grid[:down])


@dataclass(frozen=True, slots=True)
class Stretch(_Named):
    """Writes every row, or every column, `factor` times: a grid grows higher, or wider.

    The inverse takes one of each `factor` and is None unless they are equal.

    Raises:
        ConfigError: If the axis is neither "rows" nor "columns", or the factor is below 2.
    """

    verb: ClassVar[str] = "stretch"
    axis: Axis
    factor: int

    def __post_init__(self) -> None:
        _require_one_of("Stretch.axis", self.axis, AXES)
        _require_whole("Stretch.factor", self.factor, 2)

    def apply(self, grid: Grid) -> Grid:
        """The stretched grid."""
        return _along(self.axis, lambda rows: tuple(row for row in rows for _ in range(self.factor)), grid)

    def invert(self, grid: Grid) -> Grid | None:
        """The shrunk grid, None if this transformation cannot have made it."""
        return _checked(self, _along(self.axis, lambda rows: rows[:: self.factor], grid), grid)


@dataclass(frozen=True, slots=True)
class Enlarge(_Named):
    """Turns every cell into a block of `factor` × `factor` cells.

    The inverse turns blocks into cells and is None unless the grid consists of whole blocks of one colour each.

    Raises:
        ConfigError: If the factor is below 2.
    """

    verb: ClassVar[str] = "enlarge"
    factor: int

    def __post_init__(self) -> None:
        _require_whole("Enlarge.factor", self.factor, 2)

    def apply(self, grid: Grid) -> Grid:
        """The enlarged grid."""
        return Stretch("columns", self.factor).apply(Stretch("rows", self.factor).apply(grid))

    def invert(self, grid: Grid) -> Grid | None:
        """The shrunk grid, None if this transformation cannot have made it."""
        return _checked(self, tuple(row[:: self.factor] for row in grid[:: self.factor]), grid)


@dataclass(frozen=True, slots=True)
class Repeat(_Named):
    """Puts `count` copies of a grid below each other ("rows"), side by side ("columns"), or both.

    The inverse is one copy, None unless the grid consists of equal copies.

    Raises:
        ConfigError: If the axis is none of these three, or the count is below 2.
    """

    verb: ClassVar[str] = "repeat"
    axis: Axis | Literal["both"]
    count: int

    def __post_init__(self) -> None:
        _require_one_of("Repeat.axis", self.axis, (*AXES, "both"))
        _require_whole("Repeat.count", self.count, 2)

    def apply(self, grid: Grid) -> Grid:
        """The copies."""
        down = self.count if self.axis != "columns" else 1
        across = self.count if self.axis != "rows" else 1
        return tuple(row * across for row in grid) * down

    def invert(self, grid: Grid) -> Grid | None:
        """One copy, None if this transformation cannot have made the grid."""
        height = len(grid) // self.count if self.axis != "columns" else len(grid)
        width = len(grid[0]) // self.count if self.axis != "rows" else len(grid[0])
        return _checked(self, tuple(row[:width] for row in grid[:height]), grid)


@dataclass(frozen=True, slots=True)
class Reflect:
    """Appends a grid's mirror image: below it ("rows") or to its right ("columns"), or above or left if `before`.

    The inverse is the half that is the original, None unless the other half is its mirror image.

    Raises:
        ConfigError: If the axis is neither "rows" nor "columns".
    """

    axis: Axis
    before: bool = False

    def __post_init__(self) -> None:
        _require_one_of("Reflect.axis", self.axis, AXES)

    @property
    def name(self) -> str:
        """The name."""
        return f"reflect {self.axis}{' before' if self.before else ''}"

    def apply(self, grid: Grid) -> Grid:
        """The grid with its mirror image."""
        return _along(self.axis, lambda rows: rows[::-1] + rows if self.before else rows + rows[::-1], grid)

    def invert(self, grid: Grid) -> Grid | None:
        """The original, None if this transformation cannot have made the grid."""

        def half(rows: Grid) -> Grid:
            middle = len(rows) // 2
            return rows[middle:] if self.before else rows[:middle]

        return _checked(self, _along(self.axis, half, grid), grid)


@dataclass(frozen=True, slots=True)
class PermuteColours:
    """Replaces colour c by `mapping[c]`; the inverse maps the colours back.

    Raises:
        ConfigError: If the mapping is no tuple of the colours 0 to 9, each once.
    """

    mapping: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = isinstance(self.mapping, tuple) and all(type(colour) is int for colour in self.mapping)
        if not whole or sorted(self.mapping) != list(range(COLOURS)):
            raise ConfigError(f"PermuteColours.mapping must be a tuple of 0 to 9, each once; got {self.mapping!r}.")

    @classmethod
    def random(cls, rng: random.Random, keep_background: bool = True) -> PermuteColours:
        """A permutation drawn from `rng`, every one as likely; with `keep_background`, 0 stays 0."""
        background = [0] if keep_background else []
        others = range(len(background), COLOURS)
        return cls((*background, *rng.sample(others, len(others))))

    @property
    def name(self) -> str:
        """The name, with what the colours 0 to 9 become."""
        return f"colours {''.join(map(str, self.mapping))}"

    def apply(self, grid: Grid) -> Grid:
        """The grid in its new colours."""
        return tuple(tuple(self.mapping[cell] for cell in row) for row in grid)

    def invert(self, grid: Grid) -> Grid | None:
        """The grid in its old colours."""
        return tuple(tuple(self.mapping.index(cell) for cell in row) for row in grid)


@dataclass(frozen=True, slots=True)
class Chain:
    """Applies several transformations, the first one first; the inverse takes them back, the last one first.

    Raises:
        ConfigError: If there are fewer than two.
    """

    parts: tuple[Transformation, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or len(self.parts) < 2:
            raise ConfigError(f"Chain.parts must be a tuple of at least two transformations, got {self.parts!r}.")

    @property
    def name(self) -> str:
        """The names of the parts."""
        return CHAIN_SEPARATOR.join(part.name for part in self.parts)

    def apply(self, grid: Grid) -> Grid:
        """The grid after all parts."""
        for part in self.parts:
            grid = part.apply(grid)
        return grid

    def invert(self, grid: Grid) -> Grid | None:
        """The grid before all parts, None if a part cannot be taken back."""
        original: Grid | None = grid
        for part in reversed(self.parts):
            original = part.invert(original) if original is not None else None
        return original
