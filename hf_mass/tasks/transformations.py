"""Grid transformations by name, in sets, and applied to whole tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.checks import require_one_of, shown
from hf_mass.tasks.grid_transformations import (
    AXES,
    CHAIN_SEPARATOR,
    AntiTranspose,
    Chain,
    Enlarge,
    FlipColumns,
    FlipRows,
    Identity,
    PermuteColours,
    Reflect,
    Repeat,
    Rotate,
    Stretch,
    Transformation,
    Translate,
    Transpose,
)
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.task import Demonstration, Task

Side = Literal["both", "input", "output"]
SIDES: tuple[Side, ...] = ("both", "input", "output")

_TURNS: tuple[Transformation, ...] = (Rotate(1), Rotate(2), Rotate(3))
_FLIPS: tuple[Transformation, ...] = (FlipRows(), FlipColumns())

GEOMETRIC: tuple[Transformation, ...] = (Identity(), *_TURNS, *_FLIPS, Transpose(), AntiTranspose())
"""The eight symmetries of a square: what inference may use, since a prediction can always be mapped back."""

INFERENCE: tuple[Transformation, ...] = (Identity(), Transpose(), *_FLIPS, Rotate(1), Rotate(2))
"""The symmetries that arXiv 2411.07279 predicts under, those of its published code."""

STRIP: tuple[Transformation, ...] = (Identity(), FlipColumns())
"""The symmetries of grids of one row."""

TRAINING: tuple[Transformation, ...] = (
    Identity(),
    *_TURNS,
    *_FLIPS,
    *(Reflect(axis, before) for axis in AXES for before in (False, True)),
    Transpose(),
    Enlarge(2),
    *(Stretch(axis, 2) for axis in AXES),
    *(Chain((part, Enlarge(2))) for part in (*_TURNS, *_FLIPS, Transpose())),
    Repeat("rows", 2),
    Repeat("columns", 2),
    Repeat("both", 2),
)
"""What arXiv 2411.07279 trains with at test time, each on inputs and outputs alike, as in its published code.

One more is a shift that is drawn for each task: see `DataConfig.random_shift`.
"""

TRANSFORMATION_SETS: dict[str, tuple[Transformation, ...]] = {
    "none": (Identity(),),
    "geometric": GEOMETRIC,
    "inference": INFERENCE,
    "strip": STRIP,
    "paper": TRAINING,
}

# How the name of a transformation is read back.
_AXIS = "(rows|columns)"
_READERS: tuple[tuple[str, Callable[..., Transformation]], ...] = (
    *((each.verb, each) for each in (Identity, FlipRows, FlipColumns, Transpose, AntiTranspose)),
    ("rotate (90|180|270)", lambda degrees: Rotate(int(degrees) // 90)),
    ("translate (-?[0-9]+) (-?[0-9]+)", lambda rows, columns: Translate(int(rows), int(columns))),
    ("enlarge ([0-9]+)", lambda factor: Enlarge(int(factor))),
    (f"stretch {_AXIS} ([0-9]+)", lambda axis, factor: Stretch(axis, int(factor))),
    ("repeat (rows|columns|both) ([0-9]+)", lambda axis, count: Repeat(axis, int(count))),
    (f"reflect {_AXIS}( before)?", lambda axis, before: Reflect(axis, before is not None)),
    ("colours ([0-9]{10})", lambda mapping: PermuteColours(tuple(map(int, mapping)))),
)


def resolve_transformations(names: str | Transformation | Sequence[str | Transformation]) -> tuple[Transformation, ...]:
    """The transformations that a config names.

    Args:
        names: One of `TRANSFORMATION_SETS` ("none" is the identity alone), the name of a transformation ("rotate 90",
            "flip rows then enlarge 2"), a transformation, or several of these.

    Returns:
        The transformations in this order, each once. The identity is there only if it is named or in a set.
    """
    items = [names] if isinstance(names, str) or not isinstance(names, Sequence) else names
    by_name: dict[str, Transformation] = {}
    for item in items:
        if isinstance(item, str):
            parts = TRANSFORMATION_SETS.get(item) or (_read(item),)
        elif isinstance(item, Transformation):
            parts = (item,)
        else:
            raise ConfigError(
                f"transformations: {shown(item)} is neither a name nor a transformation. Give one of them."
            )
        for part in parts:
            by_name.setdefault(part.name, part)
    if not by_name:
        raise ConfigError(f"transformations: got {shown(names)}, which names none. Give 'none' for the identity alone.")
    return tuple(by_name.values())


def _read(name: str) -> Transformation:
    parts = name.split(CHAIN_SEPARATOR)
    if len(parts) > 1:
        return Chain(tuple(_read(part) for part in parts))
    for pattern, make in _READERS:
        if match := re.fullmatch(pattern, name):
            return make(*match.groups())
    raise ConfigError(
        f"transformations: {name!r} is unknown. Known sets: {', '.join(TRANSFORMATION_SETS)}. Known transformations: "
        "identity, rotate 90 (180, 270), flip rows (columns), transpose, anti-transpose, translate 1 2, enlarge 2, "
        "stretch rows 2 (columns), repeat rows 2 (columns, both), reflect rows (columns), reflect rows before "
        "(columns), colours 0213456789; chains with ' then ' between."
    )


def transform_task(task: Task, transformation: Transformation, side: str = "both") -> Task:
    """The task with its grids transformed: those of the demonstrations, the problem's, and the answer's where known.

    Only the "input" or "output" grids change where `side` says so. Changed grids are in canonical text, and there is no
    `solution`, whose derivation would no longer fit; all else stays. The identity takes any task and returns it as it
    is; anything else refuses a text that is no grid with DataError.
    """
    require_one_of("transform_task: side", side, SIDES)
    if isinstance(transformation, Identity):
        return task

    def change(text: str, what: str, where: Side) -> str:
        if side not in (where, "both"):
            return text
        grid = parse_grid(text)
        if grid is None:
            raise DataError(
                f"transform_task: {what} of task {task.id!r} is no grid, so {transformation.name!r} cannot change it: "
                f"{text[:60]!r}. Use the transformations 'none' for tasks of text, or correct the grid."
            )
        return grid_text(transformation.apply(grid))

    demonstrations = tuple(
        Demonstration(
            change(pair.question, f"the input of demonstration {number}", "input"),
            change(pair.answer, f"the output of demonstration {number}", "output"),
        )
        for number, pair in enumerate(task.demonstrations)
    )
    answer = None if task.answer is None else change(task.answer, "the answer", "output")
    problem = change(task.problem, "the problem", "input")
    return replace(task, problem=problem, demonstrations=demonstrations, answer=answer, solution=None)
