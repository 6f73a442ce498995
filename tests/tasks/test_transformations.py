"""Transformations of grids: exact inverses, None outside the image, sets by name, and whole tasks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grid_transformations import (
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
from hf_mass.tasks.grids import Grid, as_grid, grid_text, parse_grid
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

GRID: Grid = ((1, 2, 3), (4, 5, 6))
NEXT_COLOUR = PermuteColours((1, 2, 3, 4, 5, 6, 7, 8, 9, 0))


@st.composite
def grids(draw: st.DrawFn, colours: int = 10, side: int = 6) -> Grid:
    height, width = draw(st.integers(1, side)), draw(st.integers(1, side))
    row = st.tuples(*[st.integers(0, colours - 1)] * width)
    return draw(st.tuples(*[row] * height))


AXES = st.sampled_from(["rows", "columns"])
FACTORS = st.integers(2, 3)
KEEPING = st.one_of(
    st.sampled_from(GEOMETRIC),
    st.builds(Translate, st.integers(-8, 8), st.integers(-8, 8)),
    st.permutations(range(10)).map(lambda colours: PermuteColours(tuple(colours))),
)
GROWING = st.one_of(
    st.builds(Enlarge, FACTORS),
    st.builds(Stretch, AXES, FACTORS),
    st.builds(Repeat, st.sampled_from(["rows", "columns", "both"]), FACTORS),
    st.builds(Reflect, AXES, st.booleans()),
)
SINGLE = st.one_of(KEEPING, GROWING)
ANY = st.one_of(SINGLE, st.lists(SINGLE, min_size=2, max_size=3).map(lambda parts: Chain(tuple(parts))))


# -- one transformation ------------------------------------------------------------------------------------------------


@given(ANY, grids())
def test_invert_takes_apply_back(transformation: Transformation, grid: Grid) -> None:
    changed = transformation.apply(grid)
    assert as_grid(changed) == changed
    assert transformation.invert(changed) == grid


@given(KEEPING, grids())
def test_those_that_keep_the_number_of_cells_reach_every_grid(transformation: Transformation, grid: Grid) -> None:
    before = transformation.invert(grid)
    assert before is not None
    assert transformation.apply(before) == grid


# Few colours and small factors, so that random grids are inside the image often enough.
@given(ANY, grids(colours=2, side=4))
def test_invert_never_guesses(transformation: Transformation, grid: Grid) -> None:
    before = transformation.invert(grid)
    if before is not None:
        assert as_grid(before) == before
        assert transformation.apply(before) == grid


@given(GROWING, grids(), st.data())
def test_one_wrong_cell_is_noticed(transformation: Transformation, grid: Grid, data: st.DataObject) -> None:
    changed = [list(row) for row in transformation.apply(grid)]
    row = data.draw(st.integers(0, len(changed) - 1))
    column = data.draw(st.integers(0, len(changed[0]) - 1))
    changed[row][column] = (changed[row][column] + 1) % 10
    assert transformation.invert(as_grid(changed)) is None


@pytest.mark.parametrize(
    ("transformation", "expected"),
    [
        (Identity(), "123\n456"),
        (Rotate(1), "36\n25\n14"),
        (Rotate(2), "654\n321"),
        (Rotate(3), "41\n52\n63"),
        (FlipRows(), "456\n123"),
        (FlipColumns(), "321\n654"),
        (Transpose(), "14\n25\n36"),
        (AntiTranspose(), "63\n52\n41"),
        (Translate(1, 1), "645\n312"),
        (Translate(0, -1), "231\n564"),
        (Translate(3, 7), "645\n312"),
        (Stretch("rows", 2), "123\n123\n456\n456"),
        (Stretch("columns", 2), "112233\n445566"),
        (Enlarge(2), "112233\n112233\n445566\n445566"),
        (Repeat("rows", 2), "123\n456\n123\n456"),
        (Repeat("columns", 2), "123123\n456456"),
        (Repeat("both", 2), "123123\n456456\n123123\n456456"),
        (Reflect("rows"), "123\n456\n456\n123"),
        (Reflect("rows", before=True), "456\n123\n123\n456"),
        (Reflect("columns"), "123321\n456654"),
        (Reflect("columns", before=True), "321123\n654456"),
        (NEXT_COLOUR, "234\n567"),
        (Chain((FlipRows(), Stretch("columns", 2))), "445566\n112233"),
    ],
    ids=lambda value: value.name if isinstance(value, Transformation) else "",
)
def test_what_each_does(transformation: Transformation, expected: str) -> None:
    assert grid_text(transformation.apply(GRID), "compact") == expected
    assert transformation.invert(transformation.apply(GRID)) == GRID


NUMPY: list[tuple[Transformation, Callable[[Any], Any]]] = [
    (Rotate(1), np.rot90),
    (Rotate(3), lambda array: np.rot90(array, 3)),
    (FlipRows(), np.flipud),
    (FlipColumns(), np.fliplr),
    (Transpose(), np.transpose),
    (AntiTranspose(), lambda array: np.rot90(array, 2).T),
    (Translate(2, -1), lambda array: np.roll(array, (2, -1), axis=(0, 1))),
    (Stretch("rows", 3), lambda array: np.repeat(array, 3, axis=0)),
    (Enlarge(2), lambda array: np.kron(array, np.ones((2, 2), dtype=int))),
    (Repeat("both", 2), lambda array: np.tile(array, (2, 2))),
    (Repeat("columns", 3), lambda array: np.tile(array, (1, 3))),
    (Reflect("columns"), lambda array: np.pad(array, ((0, 0), (0, array.shape[1])), mode="symmetric")),
]


@pytest.mark.parametrize(("transformation", "reference"), NUMPY, ids=[each.name for each, _ in NUMPY])
@given(grid=grids())
def test_as_numpy_does(transformation: Transformation, reference: Callable[[Any], Any], grid: Grid) -> None:
    assert transformation.apply(grid) == as_grid(reference(np.array(grid)))


@pytest.mark.parametrize(
    ("transformation", "text"),
    [
        (Enlarge(2), "1"),
        (Enlarge(2), "11"),
        (Enlarge(2), "112\n112"),
        (Enlarge(2), "12\n11"),
        (Stretch("rows", 2), "11\n12"),
        (Stretch("rows", 2), "1\n1\n1"),
        (Stretch("columns", 3), "11"),
        (Repeat("rows", 2), "1"),
        (Repeat("columns", 2), "1"),
        (Repeat("columns", 3), "1212"),
        (Repeat("columns", 2), "1221"),
        (Repeat("both", 2), "1212"),
        (Reflect("rows"), "1"),
        (Reflect("rows", before=True), "1"),
        (Reflect("columns"), "121"),
        (Reflect("columns", before=True), "121"),
        (Reflect("columns"), "1212"),
        (Chain((Enlarge(2), Rotate(1))), "12\n11"),
        (Chain((Reflect("columns"), Enlarge(2))), "1122\n1122"),
    ],
)
def test_none_outside_the_image(transformation: Transformation, text: str) -> None:
    grid = parse_grid(text)
    assert grid is not None
    assert transformation.invert(grid) is None


@given(st.integers(0, 2**32), st.booleans())
def test_random_colours(seed: int, keep_background: bool) -> None:
    colours = PermuteColours.random(random.Random(seed), keep_background)
    assert colours == PermuteColours.random(random.Random(seed), keep_background)
    assert not keep_background or colours.mapping[0] == 0


def test_random_colours_move_every_colour() -> None:
    rng = random.Random(0)
    mappings = [PermuteColours.random(rng, keep_background=False).mapping for _ in range(300)]
    assert all({mapping[colour] for mapping in mappings} == set(range(10)) for colour in range(10))
    mappings = [PermuteColours.random(rng).mapping for _ in range(300)]
    assert all({mapping[colour] for mapping in mappings} == set(range(1, 10)) for colour in range(1, 10))


@given(st.sets(st.integers(0, 9)), st.integers(0, 2**32), st.booleans())
def test_used_colours_become_unused_ones_as_far_as_there_are_any(used: set[int], seed: int, keep: bool) -> None:
    mapping = PermuteColours.to_unused(used, random.Random(seed), keep).mapping
    free = set(range(1 if keep else 0, 10))
    unused = free - used
    new = {mapping[colour] for colour in used & free}
    assert len(new & unused) == min(len(used & free), len(unused))
    assert not keep or mapping[0] == 0


def test_colours_to_unused_ones_are_drawn() -> None:
    rng = random.Random(0)
    mappings = [PermuteColours.to_unused({0, 1, 2}, rng).mapping for _ in range(300)]
    assert {mapping[1] for mapping in mappings} == {mapping[2] for mapping in mappings} == set(range(3, 10))
    mappings = [PermuteColours.to_unused(set(range(10)), rng).mapping for _ in range(300)]
    assert all({mapping[colour] for mapping in mappings} == set(range(1, 10)) for colour in range(1, 10))


def test_random_shifts_are_all_as_likely() -> None:
    rng = random.Random(0)
    shifts = Counter(Translate.random(rng, 3) for _ in range(3200))
    assert shifts.keys() == {Translate(rows, columns) for rows in range(4) for columns in range(4)}
    assert min(shifts.values()) > 140 and max(shifts.values()) < 260  # 200 each, and four standard deviations
    assert Translate.random(rng, 0) == Translate(0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotate(0), "Rotate.quarter_turns must be 1, 2 or 3, got 0"),
        (lambda: Rotate(90), "Rotate.quarter_turns must be 1, 2 or 3, got 90"),
        (lambda: Translate(0.5, 1), "Translate.rows must be a whole number, got 0.5"),
        (lambda: Translate(0, True), "Translate.columns must be a whole number, got True"),
        (lambda: Enlarge(1), "Enlarge.factor must be a whole number of at least 2, got 1"),
        (lambda: Enlarge(2.0), "Enlarge.factor must be a whole number of at least 2, got 2.0"),
        (lambda: Stretch("height", 2), r"Stretch.axis is 'height'; choose one of \['rows', 'columns'\]"),
        (lambda: Stretch("rows", 0), "Stretch.factor must be a whole number of at least 2, got 0"),
        (lambda: Repeat(0, 2), r"Repeat.axis is 0; choose one of \['rows', 'columns', 'both'\]"),
        (lambda: Repeat("rows", 1), "Repeat.count must be a whole number of at least 2, got 1"),
        (lambda: Reflect("both"), r"Reflect.axis is 'both'; choose one of \['rows', 'columns'\]"),
        (lambda: PermuteColours((0,) * 10), "each once"),
        (lambda: PermuteColours(tuple(range(9))), "each once"),
        (lambda: PermuteColours(list(range(10))), "must be a tuple"),
        (lambda: PermuteColours(tuple(map(float, range(10)))), "each once"),
        (lambda: Chain((Identity(),)), "at least two"),
        (lambda: Chain([Identity(), Identity()]), "must be a tuple"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@given(ANY)
def test_frozen_and_hashable(transformation: Transformation) -> None:
    assert isinstance(transformation, Transformation)
    assert {transformation: 1}[transformation] == 1
    for field in fields(cast(Any, transformation)):
        with pytest.raises(FrozenInstanceError):
            setattr(transformation, field.name, None)


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
