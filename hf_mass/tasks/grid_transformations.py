"""Invertible transformations of grids, each a small object of its own.

Every transformation t keeps `t.invert(t.apply(grid)) == grid`. Those that make a grid larger (`Enlarge`, `Stretch`,
`Repeat`, `Reflect`) do not reach every grid: `invert` answers None for one that they cannot have made, so that a
prediction is either mapped back exactly or known to be of no use.

Two axes name directions: "rows" changes how rows follow one another, from top to bottom, and "columns" how columns do,
from left to right. Settings out of range raise ConfigError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass
from random import Random
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from hf_mass.errors import ConfigError
from hf_mass.tasks.checks import require_one_of, require_whole, shown
from hf_mass.tasks.grids import COLOURS, Grid, transposed

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


def _along(axis: str, change: Callable[[Grid], Grid], grid: Grid) -> Grid:
    """Applies a change of the sequence of rows to the rows, or to the columns."""
    return change(grid) if axis == "rows" else transposed(change(transposed(grid)))


class _Transformation(ABC):
    """What the transformations below share: each says how it changes a grid, and how to undo that."""

    __slots__ = ()
    verb: ClassVar[str]

    @property
    def name(self) -> str:
        """The verb and the settings."""
        return " ".join(map(str, (self.verb, *self._settings())))

    def apply(self, grid: Grid) -> Grid:
        """The transformed grid."""
        return self._changed(grid)

    def invert(self, grid: Grid) -> Grid | None:
        """The grid that `apply` turns into this one; None if there is none."""
        original = self._undone(grid)
        return original if self._changed(original) == grid else None

    def _settings(self) -> tuple[Any, ...]:
        return astuple(self)  # type: ignore[call-overload]

    @abstractmethod
    def _changed(self, grid: Grid) -> Grid: ...

    def _undone(self, grid: Grid) -> Grid:
        """The only grid that could have been turned into this one; here, of transformations that undo themselves."""
        return self._changed(grid)


@dataclass(frozen=True, slots=True)
class Identity(_Transformation):
    """Changes nothing."""

    verb: ClassVar[str] = "identity"

    def _changed(self, grid: Grid) -> Grid:
        return grid


@dataclass(frozen=True, slots=True)
class Rotate(_Transformation):
    """Turns a grid anticlockwise."""

    verb: ClassVar[str] = "rotate"
    quarter_turns: int

    def __post_init__(self) -> None:
        if self.quarter_turns not in (1, 2, 3):
            raise ConfigError(f"Rotate.quarter_turns must be 1, 2 or 3, got {shown(self.quarter_turns)}.")

    def _settings(self) -> tuple[Any, ...]:
        return (90 * self.quarter_turns,)

    def _changed(self, grid: Grid) -> Grid:
        for _ in range(self.quarter_turns):
            grid = transposed(grid)[::-1]
        return grid

    def _undone(self, grid: Grid) -> Grid:
        return Rotate(4 - self.quarter_turns).apply(grid)


@dataclass(frozen=True, slots=True)
class FlipRows(_Transformation):
    """Reverses the order of the rows: turns a grid upside down."""

    verb: ClassVar[str] = "flip rows"

    def _changed(self, grid: Grid) -> Grid:
        return grid[::-1]


@dataclass(frozen=True, slots=True)
class FlipColumns(_Transformation):
    """Reverses the order of the columns: swaps left and right, as a mirror does."""

    verb: ClassVar[str] = "flip columns"

    def _changed(self, grid: Grid) -> Grid:
        return tuple(row[::-1] for row in grid)


@dataclass(frozen=True, slots=True)
class Transpose(_Transformation):
    """Swaps rows and columns: mirrors a grid at the diagonal from its top left corner."""

    verb: ClassVar[str] = "transpose"

    def _changed(self, grid: Grid) -> Grid:
        return transposed(grid)


@dataclass(frozen=True, slots=True)
class AntiTranspose(_Transformation):
    """Mirrors a grid at the diagonal from its top right corner."""

    verb: ClassVar[str] = "anti-transpose"

    def _changed(self, grid: Grid) -> Grid:
        return tuple(row[::-1] for row in transposed(grid))[::-1]


@dataclass(frozen=True, slots=True)
class Translate(_Transformation):
    """Shifts a grid down and to the right; what leaves it comes in at the other side."""

    verb: ClassVar[str] = "translate"
    rows: int
    columns: int

    def __post_init__(self) -> None:
        require_whole("Translate.rows", self.rows)
        require_whole("Translate.columns", self.columns)

    @classmethod
    def random(cls, rng: Random, most: int) -> Translate:
        """A shift by 0 to `most` cells down and as many to the right, drawn from `rng`, each as likely."""
        return cls(rng.randint(0, most), rng.randint(0, most))

    def _changed(self, grid: Grid) -> Grid:
        down, right = -self.rows % len(grid), -self.columns % len(grid[0])
        return tuple(row[right:] + row[:right] for row in grid[down:] + grid[:down])

    def _undone(self, grid: Grid) -> Grid:
        return Translate(-self.rows, -self.columns).apply(grid)


@dataclass(frozen=True, slots=True)
class Stretch(_Transformation):
    """Writes every row, or every column, `factor` times: a grid grows higher, or wider."""

    verb: ClassVar[str] = "stretch"
    axis: Axis
    factor: int

    def __post_init__(self) -> None:
        require_one_of("Stretch.axis", self.axis, AXES)
        require_whole("Stretch.factor", self.factor, 2)

    def _changed(self, grid: Grid) -> Grid:
        return _along(self.axis, lambda rows: tuple(row for row in rows for _ in range(self.factor)), grid)

    def _undone(self, grid: Grid) -> Grid:
        return _along(self.axis, lambda rows: rows[:: self.factor], grid)


@dataclass(frozen=True, slots=True)
class Enlarge(_Transformation):
    """Turns every cell into a block of `factor` × `factor` cells."""

    verb: ClassVar[str] = "enlarge"
    factor: int

    def __post_init__(self) -> None:
        require_whole("Enlarge.factor", self.factor, 2)

    def _changed(self, grid: Grid) -> Grid:
        return Stretch("columns", self.factor).apply(Stretch("rows", self.factor).apply(grid))

    def _undone(self, grid: Grid) -> Grid:
        return tuple(row[:: self.factor] for row in grid[:: self.factor])


@dataclass(frozen=True, slots=True)
class Repeat(_Transformation):
    """Puts `count` copies of a grid below each other ("rows"), side by side ("columns"), or both."""

    verb: ClassVar[str] = "repeat"
    axis: Axis | Literal["both"]
    count: int

    def __post_init__(self) -> None:
        require_one_of("Repeat.axis", self.axis, (*AXES, "both"))
        require_whole("Repeat.count", self.count, 2)

    def _copies(self) -> tuple[int, int]:
        return self.count if self.axis != "columns" else 1, self.count if self.axis != "rows" else 1

    def _changed(self, grid: Grid) -> Grid:
        down, across = self._copies()
        return tuple(row * across for row in grid) * down

    def _undone(self, grid: Grid) -> Grid:
        down, across = self._copies()
        return tuple(row[: len(row) // across] for row in grid[: len(grid) // down])


@dataclass(frozen=True, slots=True)
class Reflect(_Transformation):
    """Appends a grid's mirror image: below it ("rows") or to its right ("columns"), or above or left if `before`."""

    verb: ClassVar[str] = "reflect"
    axis: Axis
    before: bool = False

    def __post_init__(self) -> None:
        require_one_of("Reflect.axis", self.axis, AXES)

    def _settings(self) -> tuple[Any, ...]:
        return (self.axis, "before") if self.before else (self.axis,)

    def _changed(self, grid: Grid) -> Grid:
        return _along(self.axis, lambda rows: rows[::-1] + rows if self.before else rows + rows[::-1], grid)

    def _undone(self, grid: Grid) -> Grid:
        return _along(self.axis, lambda rows: rows[len(rows) // 2 :] if self.before else rows[: len(rows) // 2], grid)


@dataclass(frozen=True, slots=True)
class PermuteColours(_Transformation):
    """Replaces colour c by `mapping[c]`."""

    verb: ClassVar[str] = "colours"
    mapping: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = isinstance(self.mapping, tuple) and all(type(colour) is int for colour in self.mapping)
        if not whole or sorted(self.mapping) != list(range(COLOURS)):
            raise ConfigError(
                f"PermuteColours.mapping must be a tuple of 0 to 9, each once; got {shown(self.mapping)}."
            )

    @classmethod
    def random(cls, rng: Random, keep_background: bool = True) -> PermuteColours:
        """A permutation drawn from `rng`, every one as likely; with `keep_background`, 0 stays 0."""
        background = [0] if keep_background else []
        others = range(len(background), COLOURS)
        return cls((*background, *rng.sample(others, len(others))))

    @classmethod
    def to_unused(cls, used: Collection[int], rng: Random, keep_background: bool = True) -> PermuteColours:
        """A permutation drawn from `rng` that turns the `used` colours into others, as far as there are others.

        With `keep_background`, 0 stays 0, and neither counts.
        """
        free = range(1 if keep_background else 0, COLOURS)
        shown, unused = ([c for c in free if c in used], [c for c in free if c not in used])
        old = [*rng.sample(shown, len(shown)), *unused]
        new = [*rng.sample(unused, len(unused)), *rng.sample(shown, len(shown))]
        mapping = dict(zip(old, new, strict=True))
        return cls(tuple(mapping.get(colour, colour) for colour in range(COLOURS)))

    def _settings(self) -> tuple[Any, ...]:
        return ("".join(map(str, self.mapping)),)

    def _changed(self, grid: Grid) -> Grid:
        return tuple(tuple(self.mapping[cell] for cell in row) for row in grid)

    def _undone(self, grid: Grid) -> Grid:
        return tuple(tuple(self.mapping.index(cell) for cell in row) for row in grid)


@dataclass(frozen=True, slots=True)
class Chain:
    """Applies several transformations, the first one first; the inverse takes them back, the last one first."""

    parts: tuple[Transformation, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or len(self.parts) < 2:
            raise ConfigError(f"Chain.parts must be a tuple of at least two transformations, got {shown(self.parts)}.")

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
