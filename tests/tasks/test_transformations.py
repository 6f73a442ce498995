"""Transformations by name, in sets, and of whole tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from grid_strategies import ANY, GRID, NEXT_COLOUR, grids
from hypothesis import given

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grid_transformations import (
    Chain,
    Enlarge,
    FlipColumns,
    FlipRows,
    Identity,
    Reflect,
    Rotate,
    Transformation,
    Translate,
)
from hf_mass.tasks.grids import Grid, grid_text, parse_grid
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.transformations import (
    GEOMETRIC,
    INFERENCE,
    STRIP,
    TRAINING,
    TRANSFORMATION_SETS,
    resolve_transformations,
    transform_task,
)

# -- names and sets ----------------------------------------------------------------------------------------------------


@given(ANY)
def test_names_are_read_back(transformation: Transformation) -> None:
    (read,) = resolve_transformations(transformation.name)
    assert read == transformation
    assert resolve_transformations([transformation, transformation.name]) == (transformation,)


@given(ANY, ANY)
def test_names_are_unique(one: Transformation, other: Transformation) -> None:
    assert (one == other) == (one.name == other.name)


@pytest.mark.parametrize("name", TRANSFORMATION_SETS)
def test_sets(name: str) -> None:
    found = resolve_transformations(name)
    assert found == TRANSFORMATION_SETS[name]
    assert found[0] == Identity()
    assert len(set(found)) == len(found)
    assert resolve_transformations([each.name for each in found]) == found


def test_the_symmetries_are_a_group() -> None:
    square: Grid = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    images = {each.apply(square) for each in GEOMETRIC}
    assert len(images) == 8
    assert {each.apply(image) for each in GEOMETRIC for image in images} == images
    assert set(INFERENCE) < set(GEOMETRIC)


def test_strips_stay_strips() -> None:
    strip: Grid = ((1, 2, 3),)
    assert [each.apply(strip) for each in STRIP] == [strip, ((3, 2, 1),)]


def test_the_papers_transformations_differ() -> None:
    # 22 of the 23 in the paper's code, and the identity; the other is a shift that is drawn for each task.
    assert len({each.apply(GRID) for each in TRAINING}) == len(TRAINING) == 23


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["strip", "flip columns", "enlarge 2"], (Identity(), FlipColumns(), Enlarge(2))),
        (["rotate 90"], (Rotate(1),)),
        (Rotate(1), (Rotate(1),)),
        ((Rotate(1), "none"), (Rotate(1), Identity())),
        ("flip rows then enlarge 2", (Chain((FlipRows(), Enlarge(2))),)),
        ("translate -1 2", (Translate(-1, 2),)),
        ("reflect columns before", (Reflect("columns", before=True),)),
    ],
)
def test_lists_of_names(names: Any, expected: tuple[Transformation, ...]) -> None:
    assert resolve_transformations(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("rotate 45", "'rotate 45' is unknown. Known sets: none, geometric"),
        ("rotate 90 ", "is unknown"),
        ("colours 0123", "is unknown"),
        ("flip rows then", "is unknown"),
        ("flip rows then wobble", "'wobble' is unknown"),
        ("", "'' is unknown"),
        (["none", "Geometric"], "'Geometric' is unknown"),
        ("enlarge 1", "Enlarge.factor must be a whole number of at least 2"),
        ("colours 0000000000", "each once"),
        ([], "names none. Give 'none'"),
        ([1], "1 is neither a name nor a transformation"),
        (None, "None is neither a name nor a transformation"),
    ],
)
def test_unknown_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_transformations(names)


# -- tasks -------------------------------------------------------------------------------------------------------------


TASK = Task(
    problem="1 2",
    demonstrations=(Demonstration("1 2\n3 4", "1 2 3"), Demonstration("56", "[[7, 8], [9, 0]]")),
    solution="derived: 3 4",
    answer="3 4",
    id="a",
    domain="d",
    fields={"file": "f"},
)


def test_a_task_is_transformed_on_both_sides() -> None:
    changed = transform_task(TASK, FlipColumns())
    assert changed == replace(
        TASK,
        problem="2 1",
        demonstrations=(Demonstration("2 1\n4 3", "3 2 1"), Demonstration("6 5", "8 7\n0 9")),
        solution=None,
        answer="4 3",
    )


def test_a_task_is_transformed_on_one_side() -> None:
    both = transform_task(TASK, NEXT_COLOUR)
    only_input = transform_task(TASK, NEXT_COLOUR, "input")
    only_output = transform_task(TASK, NEXT_COLOUR, "output")
    assert (only_input.problem, only_input.answer) == (both.problem, TASK.answer)
    assert (only_output.problem, only_output.answer) == (TASK.problem, both.answer)
    pairs = zip(TASK.demonstrations, both.demonstrations, strict=True)
    expected = [
        (Demonstration(new.question, old.answer), Demonstration(old.question, new.answer)) for old, new in pairs
    ]
    assert list(zip(only_input.demonstrations, only_output.demonstrations, strict=True)) == expected


def test_an_unknown_answer_stays_unknown() -> None:
    changed = transform_task(replace(TASK, answer=None), Rotate(1))
    assert changed.answer is None
    assert changed.problem == "2\n1"


@given(ANY, grids(), grids())
def test_a_transformed_task_is_inverted_grid_by_grid(transformation: Transformation, one: Grid, other: Grid) -> None:
    task = Task(grid_text(one), (Demonstration(grid_text(one), grid_text(other)),), answer=grid_text(other))
    changed = transform_task(task, transformation)
    (demonstration,) = changed.demonstrations
    for text, grid in [
        (changed.problem, one),
        (changed.answer, other),
        (demonstration.question, one),
        (demonstration.answer, other),
    ]:
        assert text is not None
        found = parse_grid(text)
        assert found is not None
        assert transformation.invert(found) == grid


def test_the_identity_leaves_tasks_of_text_alone() -> None:
    task = Task("What is 1+1?", (Demonstration("What is 2+2?", "four"),), solution="1+1=2", answer="two")
    assert transform_task(task, Identity()) is task


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (replace(TASK, problem="no grid"), "the problem of task 'a' is no grid, so 'rotate 90' cannot"),
        (replace(TASK, answer="0 1\n2"), "the answer of task 'a' is no grid"),
        (replace(TASK, demonstrations=(Demonstration("1", "1"), Demonstration("", "1"))), "input of demonstration 1"),
        (replace(TASK, demonstrations=(Demonstration("1", "one"),)), "output of demonstration 0"),
    ],
)
def test_tasks_of_text_are_refused(task: Task, what: str) -> None:
    with pytest.raises(DataError, match=what):
        transform_task(task, Rotate(1))


def test_a_side_that_does_not_change_may_be_text() -> None:
    task = Task("1 2", (Demonstration("1 2", "rising"),), answer="falling")
    changed = transform_task(task, FlipColumns(), "input")
    assert (changed.problem, changed.answer) == ("2 1", "falling")


@pytest.mark.parametrize("transformation", [Identity(), Rotate(1)])
def test_unknown_sides_are_refused(transformation: Transformation) -> None:
    with pytest.raises(ConfigError, match=r"side is 'left'; choose one of \['both', 'input', 'output'\]"):
        transform_task(TASK, transformation, "left")
