"""Transformations of grids: exact inverses, and None outside the image."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any, cast

import numpy as np
import pytest
from grid_strategies import ANY, GRID, GROWING, KEEPING, NEXT_COLOUR, grids
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError
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
