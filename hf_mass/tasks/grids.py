"""Grids of coloured cells, as in ARC: plain tuples of rows, and the texts that stand for them."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any, Literal

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.checks import shown

COLOURS = 10

Grid = tuple[tuple[int, ...], ...]
"""A non-empty rectangle of colours from 0 to 9, row by row."""

GridForm = Literal["spaced", "compact", "list", "array"]
GRID_FORMS: tuple[GridForm, ...] = ("spaced", "compact", "list", "array")

# A row is spaced throughout or not at all: in "10 2" the 10 could be a colour that there is none of. [0-9] instead of
# \d, which takes the digits of every script.
_LINE = re.compile(r"[0-9]+|[0-9](?:[ \t]+[0-9])*")
_GAP = r"(?:\s*,\s*|\s+)"
_LIST_ROW = rf"\[\s*[0-9](?:{_GAP}[0-9])*\s*\]"
_LIST = re.compile(rf"\[\s*{_LIST_ROW}(?:{_GAP}{_LIST_ROW})*\s*\]")


def as_grid(value: Any, where: str = "grid") -> Grid:
    """Rows of colours (lists, tuples or a numpy array) as a tuple of rows; `where` is what an error calls them.

    Raises:
        DataError: If it is no list of rows, is empty or ragged, or holds something other than a colour from 0 to 9.
    """
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, list | tuple):
        raise DataError(f"{where} is no list of rows: {shown(value)}. Give rows of whole numbers from 0 to 9.")
    if not rows:
        raise DataError(f"{where} is empty. Give at least one row with at least one cell.")
    cells = [_row(row, number, where) for number, row in enumerate(rows)]
    for number, row in enumerate(cells):
        if len(row) != len(cells[0]):
            raise DataError(
                f"{where} is ragged: row 0 has {len(cells[0])} cells and row {number} has {len(row)}. Give rows of "
                "equal length."
            )
    return tuple(cells)


def _row(row: Any, number: int, where: str) -> tuple[int, ...]:
    cells = row.tolist() if hasattr(row, "tolist") else row
    if not isinstance(cells, list | tuple):
        raise DataError(
            f"{where}: row {number} is no list of colours: {shown(row)}. Give a list of rows, each a list of whole "
            "numbers from 0 to 9."
        )
    if not cells:
        raise DataError(f"{where}: row {number} is empty. Give every row at least one cell.")
    for place, cell in enumerate(cells):
        if isinstance(cell, bool) or not isinstance(cell, Integral) or not 0 <= int(cell) < COLOURS:
            raise DataError(
                f"{where}: row {number}, column {place} holds {shown(cell)}, which is no colour. "
                "Colours are whole numbers from 0 to 9."
            )
    return tuple(int(cell) for cell in cells)


def parse_grid(text: str) -> Grid | None:
    """The grid in a text that is nothing else, in any form that `grid_text` writes; None if there is none.

    A row is digits, with spaces between all of them or none; a list may have commas or spaces. Space around is ignored.
    """
    text = text.strip()
    if text.startswith("["):
        rows = re.findall(r"\[([^\[\]]+)\]", text) if _LIST.fullmatch(text) else []
    else:
        rows = [line.strip() for line in text.split("\n")]
        if not all(_LINE.fullmatch(row) for row in rows):
            return None
    grid = tuple(tuple(int(cell) for cell in re.findall("[0-9]", row)) for row in rows)
    return grid if grid and len({len(row) for row in grid}) == 1 else None


def grid_text(grid: Grid, form: str = "spaced") -> str:
    r"""Writes a grid as text.

    Args:
        grid: The grid.
        form: "spaced" ("0 1\n2 3", the canonical form that a `Task` holds), "compact" ("01\n23", one character a cell),
            "list" ("[[0, 1], [2, 3]]", as Python and JSON write it) or "array" ("[[0 1]\n [2 3]]", as numpy prints it).
    """
    if form == "spaced":
        return "\n".join(" ".join(map(str, row)) for row in grid)
    if form == "compact":
        return "\n".join("".join(map(str, row)) for row in grid)
    if form == "list":
        return str([list(row) for row in grid])
    if form == "array":
        return "[" + "\n ".join(f"[{' '.join(map(str, row))}]" for row in grid) + "]"
    raise ConfigError(f"grid_text: form {form!r} is unknown. Known: {', '.join(GRID_FORMS)}.")


def rewritten(text: str, form: str = "spaced") -> str | None:
    """The grid in a text, written in this form; None if there is none."""
    grid = parse_grid(text)
    return None if grid is None else grid_text(grid, form)


def canonical_grid(text: str) -> Grid | None:
    """The grid that a text is the canonical form of. A number such as "12" reads as a grid, but is not written so."""
    grid = parse_grid(text)
    return grid if grid is not None and grid_text(grid) == text else None


def transposed(grid: Grid) -> Grid:
    """The grid with rows and columns swapped."""
    return tuple(zip(*grid, strict=True))
