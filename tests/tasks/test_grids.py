"""Grids: what is refused, and every text form read back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grids import GRID_FORMS, Grid, as_grid, grid_text, parse_grid

GRID: Grid = ((0, 1), (2, 3))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    row = st.tuples(*[st.integers(0, 9)] * width)
    return draw(st.tuples(*[row] * height))


@pytest.mark.parametrize(
    "value",
    [
        [[0, 1], [2, 3]],
        ((0, 1), (2, 3)),
        [(0, 1), [2, 3]],
        np.array([[0, 1], [2, 3]], dtype=np.int8),
        [np.array([0, 1]), np.array([2, 3], dtype=np.uint8)],
        [[np.int64(0), 1], [2, 3]],
    ],
)
def test_as_grid_takes_lists_tuples_and_arrays(value: Any) -> None:
    grid = as_grid(value)
    assert grid == GRID
    assert hash(grid) == hash(GRID)
    assert {type(cell) for row in grid for cell in row} == {int}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "is empty"),
        (np.zeros((0, 3), dtype=int), "is empty"),
        ([[]], "row 0 is empty"),
        ([[1], []], "row 1 is empty"),
        ([[1, 2], [3, 4], [5]], "ragged: row 0 has 2 cells and row 2 has 1"),
        ([[0, 1], [2, 10]], "row 1, column 1 holds 10"),
        ([[0, -1]], "row 0, column 1 holds -1"),
        ([[0, 1.0]], "row 0, column 1 holds 1.0"),
        (np.zeros((1, 1)), "row 0, column 0 holds 0.0"),
        ([[True]], "row 0, column 0 holds True"),
        (np.array([[True]]), "row 0, column 0 holds True"),
        ([["1"]], "row 0, column 0 holds '1'"),
        ([[None]], "row 0, column 0 holds None"),
        ([[[1]]], "row 0, column 0 holds [1]"),
        ([1, 2], "row 0 is no list of colours: 1"),
        (["01"], "row 0 is no list of colours: '01'"),
        ("0 1", "is no list of rows: '0 1'"),
        (None, "is no list of rows: None"),
        ({"input": [[1]]}, "is no list of rows"),
        (np.array(3), "is no list of rows: array(3)"),
    ],
)
def test_bad_grids_are_refused(value: Any, fault: str) -> None:
    with pytest.raises(
        DataError, match=f"^a.json, test 2:? .*{re.escape(fault)}.*Give|{re.escape(fault)}.*Colours are"
    ):
        as_grid(value, "a.json, test 2")


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(DataError, match="no list of rows") as caught:
        as_grid("0 1 2 3 4 5 6 7 8 9 " * 50)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("spaced", "0 1\n2 3"),
        ("compact", "01\n23"),
        ("list", "[[0, 1], [2, 3]]"),
        ("array", "[[0 1]\n [2 3]]"),
    ],
)
def test_forms(form: str, text: str) -> None:
    assert grid_text(GRID, form) == text


def test_the_canonical_form_is_the_default() -> None:
    assert grid_text(GRID) == grid_text(GRID, "spaced")


def test_the_array_form_is_that_of_numpy() -> None:
    grid = tuple(tuple((row * 7 + column) % 10 for column in range(30)) for row in range(30))
    assert grid_text(grid, "array") == str(np.array(grid))


@pytest.mark.parametrize("form", ["", "Spaced", "json"])
def test_unknown_forms_are_refused(form: str) -> None:
    with pytest.raises(ConfigError, match=r"form .* is unknown\. Known: spaced, compact, list, array\."):
        grid_text(GRID, form)


@given(grids(), st.sampled_from(GRID_FORMS))
def test_every_form_is_read_back(grid: Grid, form: str) -> None:
    assert parse_grid(grid_text(grid, form)) == grid
    assert parse_grid(f" \n{grid_text(grid, form)}\n ") == grid


@pytest.mark.parametrize(
    "text",
    ["0\t1\n2  3", "0 1 \n  2 3", "0 1\r\n2 3", "01\n2 3", "[[0,1],[2,3]]", "[ [0, 1] ,\n [2 , 3] ]", "[[0 1] [2 3]]"],
)
def test_other_spellings_are_read(text: str) -> None:
    assert parse_grid(text) == GRID


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "0 1\n2",
        "01\n234",
        "0 1\n\n2 3",
        "10 2",
        "0 1\n2 x",
        "0, 1",
        "0-1",
        "0.1",
        "١٢",
        "0 1\n2 3\nOutput:",
        "[]",
        "[[]]",
        "[0, 1]",
        "[[0, 1], [2]]",
        "[[0, 1], [2, 3]",
        "[[0, 1], [2, 3]] and more",
        "[[0, 1][2, 3]]",
        "[[0,, 1]]",
        "[[10, 1]]",
        "[[-1, 1]]",
        "[[0.0, 1]]",
        "[[[0]]]",
        "[[true]]",
        "[" * 100_000,
        "[[0" + " " * 2000 + "x",
    ],
)
def test_what_is_no_grid_is_not_read(text: str) -> None:
    assert parse_grid(text) is None


@given(st.text(alphabet="019 [],\n\tx", max_size=24))
def test_whatever_is_read_is_a_grid(text: str) -> None:
    grid = parse_grid(text)
    assert grid is None or as_grid(grid) == grid
