"""Votes over predictions, against cases worked out by hand, and the metrics."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grid_transformations import Identity
from hf_mass.tasks.grids import Grid, grid_text, parse_grid
from hf_mass.tasks.voting import (
    IDENTITY,
    Prediction,
    cell_accuracy,
    flat_vote,
    hierarchical_vote,
    majority_columns,
    majority_rows,
    rescore,
    self_consistency,
)

predictions = st.lists(
    st.builds(
        Prediction,
        st.sampled_from([None, "1 2\n3 4", "1 2\n3 0", "1 0\n3 4", "9 9 9", "5", "a word"]),
        st.sampled_from([IDENTITY, "transpose", "flip rows"]),
        st.integers(0, 2),
    ),
    max_size=12,
)


def by(transformation: str, *answers: str | None) -> list[Prediction]:
    return [Prediction(answer, transformation, number) for number, answer in enumerate(answers)]


def grid(text: str) -> Grid:
    found = parse_grid(text)
    assert found is not None
    return found


def test_the_name_of_the_identity() -> None:
    assert Identity().name == IDENTITY == Prediction("1").transformation


# Hierarchical voting


def test_agreement_across_transformations_beats_frequency_within_one() -> None:
    # Words, so that no rows or columns are added: w has 6 of 9 predictions, but r is put forward by three.
    given = [*by(IDENTITY, "r"), *by("transpose", "w", "w", "w", "w", "w", "w"), *by("flip rows", "r")]
    given += by("rotate 90", "r")
    assert hierarchical_vote(given) == ["r", "w"]
    assert flat_vote(given) == ["w", "r"]


def test_only_the_most_frequent_of_a_transformation_are_put_forward() -> None:
    given = [*by(IDENTITY, "a", "a", "b", "b", "c", "c", "d"), *by("transpose", "d")]
    # The identity puts forward a, b and c; d has the transposition's vote only. Among equals the identity's come first.
    assert hierarchical_vote(given, within=3, top=9) == ["a", "b", "c", "d"]
    assert hierarchical_vote(given, within=4, top=9) == ["d", "a", "b", "c"]
    assert hierarchical_vote(given, within=1, top=9) == ["a", "d"]


# One wrong row each, in different places: the most frequent rows are those of ONE_TO_THREE.
WRONG_ROWS = ["1 1\n2 2\n9 9", "1 1\n8 8\n3 3", "7 7\n2 2\n3 3"]
ONE_TO_THREE = "1 1\n2 2\n3 3"


def test_rows_that_most_predictions_share_fill_a_missing_place() -> None:
    assert hierarchical_vote(by("transpose", *WRONG_ROWS), within=3, top=9) == WRONG_ROWS  # no place is missing
    assert hierarchical_vote(by("transpose", *WRONG_ROWS), within=4, top=9) == [*WRONG_ROWS, ONE_TO_THREE]
    # What the rows make counts as much as what was predicted: two votes for it, one for everything else.
    given = [*by("transpose", *WRONG_ROWS), *by("flip rows", ONE_TO_THREE)]
    assert hierarchical_vote(given, within=4, top=1) == [ONE_TO_THREE]
    assert hierarchical_vote(given, within=3, top=1) == WRONG_ROWS[:1]


def test_columns_that_most_predictions_share_fill_a_missing_place() -> None:
    # Rows: 0 9 over 5 9, each twice, which was predicted. Columns: 0 over 5 (twice) beside 1 over 6 (three times).
    given = ["0 9\n5 9", "0 9\n5 9", "8 1\n8 6", "7 1\n7 6", "6 1\n4 6"]
    assert grid_text(majority_rows([grid(text) for text in given])) == "0 9\n5 9"
    assert grid_text(majority_columns([grid(text) for text in given])) == "0 1\n5 6"
    assert hierarchical_vote(by("transpose", *given), within=4, top=9) == given[1:]
    assert hierarchical_vote(by("transpose", *given), within=5, top=9) == [*given[1:], "0 1\n5 6"]


def test_one_missing_place_is_the_rows_and_a_second_one_the_columns() -> None:
    # Most frequent rows: 1 2 over 3 4, three times each. Most frequent columns: 5 over 6 and 7 over 8, four times each.
    given = ["1 2\n0 0", "1 2\n9 9", "1 2\n8 8", "0 0\n3 4", "9 9\n3 4", "8 8\n3 4", "5 0\n6 7", "5 0\n6 7"]
    given += ["5 1\n6 3", "5 3\n6 3", "4 7\n4 8", "3 7\n3 8", "2 7\n2 8", "1 7\n0 8"]
    rows, columns = "1 2\n3 4", "5 7\n6 8"
    assert (rows in given, columns in given) == (False, False)
    kinds = len(set(given))
    assert set(hierarchical_vote(by("transpose", *given), within=kinds, top=99)) == set(given)
    assert hierarchical_vote(by("transpose", *given), within=kinds + 1, top=99)[kinds:] == [rows]
    assert hierarchical_vote(by("transpose", *given), within=kinds + 2, top=99)[kinds:] == [rows, columns]
    assert hierarchical_vote(by("transpose", *given), within=kinds + 9, top=99)[kinds:] == [rows, columns]


def test_rows_and_columns_take_the_most_frequent_shape() -> None:
    texts = ["1 2\n3 4", "1 2\n3 4", "7 7 7\n7 7 7", "1 0\n3 4\n5 6"]
    # The 3×2 grid is as wide, so its rows count, but it does not make the result higher.
    assert majority_rows([grid(text) for text in texts]) == ((1, 2), (3, 4))
    assert majority_columns([grid(text) for text in texts]) == ((1, 2), (3, 4))
    assert majority_rows([grid(text) for text in texts[2:]]) == ((7, 7, 7), (7, 7, 7))
    assert majority_rows([grid(text) for text in ["1 2", "3 4", "3 4\n0 0", "5 6 7"]]) == ((3, 4),)
    # 5 6 7 is the most frequent first row, but of another width.
    assert majority_rows([grid(text) for text in ["1 2", "3 4", "5 6 7\n0 0 0", "5 6 7\n0 0 0\n1 1 1"]]) == ((1, 2),)


def test_texts_that_are_no_grids_are_counted_only() -> None:
    # "12" reads as a grid of two cells, but is not how a grid is written: no "1 2" may appear.
    assert hierarchical_vote(by(IDENTITY, "12", "12", "yes"), top=9) == ["12", "yes"]


def test_ties_go_to_the_identity_then_to_first_choices_then_to_the_first_seen() -> None:
    assert hierarchical_vote([*by("transpose", "t"), *by(IDENTITY, "i")], top=9) == ["i", "t"]
    given = [*by("transpose", "x", "y", "y"), *by("flip rows", "z")]
    assert hierarchical_vote(given, top=9) == ["y", "z", "x"]
    # As many votes for a and b, but the identity predicted b more often.
    given = [*by("transpose", "a", "b"), *by(IDENTITY, "a", "b", "b")]
    assert hierarchical_vote(given) == ["b", "a"]


def test_predictions_without_an_answer_have_no_vote() -> None:
    assert hierarchical_vote([]) == hierarchical_vote(by(IDENTITY, None, None)) == []
    assert hierarchical_vote([*by(IDENTITY, None, None, "a"), *by("transpose", None)]) == ["a"]
    assert flat_vote(by(IDENTITY, None, None, "a")) == self_consistency(by(IDENTITY, None, None, "a")) == ["a"]


# The other votes


def test_flat_vote_counts_predictions() -> None:
    given = [*by("transpose", "b", "a"), *by(IDENTITY, "a", "c"), *by("flip rows", "b")]
    assert flat_vote(given, top=9) == ["a", "b", "c"]  # a and b tie, and only a was predicted without a transformation
    assert flat_vote(by("transpose", "b", "a")) == ["b", "a"]


def test_self_consistency_hears_untransformed_predictions_only() -> None:
    given = [*by("transpose", "w", "w", "w"), *by(IDENTITY, "a", "b", "b")]
    assert self_consistency(given) == ["b", "a"]
    assert self_consistency(by("transpose", "w")) == []


@given(predictions, st.integers(1, 4), st.integers(1, 4))
def test_votes_are_short_distinct_and_depend_on_order_in_ties_alone(
    given: list[Prediction], within: int, top: int
) -> None:
    answers = Counter(each.answer for each in given if each.answer is not None)
    for ranked in (hierarchical_vote(given, within, top), flat_vote(given, top), self_consistency(given, top)):
        assert len(set(ranked)) == len(ranked) <= top
    flat = flat_vote(given, 99)
    assert sorted(flat) == sorted(answers)
    assert [answers[answer] for answer in flat] == sorted(answers.values(), reverse=True)
    if not flat:
        return
    # One more vote than any other, from every transformation there is: that answer wins every vote.
    for transformation in sorted({each.transformation for each in given} | {IDENTITY}):
        given = [*given, *by(transformation, *["won"] * (max(answers.values()) + 1))]
    for ranked in (hierarchical_vote(given, within, top), flat_vote(given, top), self_consistency(given, top)):
        assert ranked[0] == "won"


def test_rescore_ranks_by_mean_log_probability() -> None:
    # The first is likeliest under one transformation and hopeless under the other.
    assert rescore({"spiky": [-0.1, -9.0], "even": [-3.0, -3.0], "never": [-1.0, -math.inf]}) == [
        "even",
        "spiky",
        "never",
    ]
    assert rescore({"first": [-1.0, -2.0], "second": [-2.0, -1.0]}) == ["first", "second"]
    assert rescore({}) == []


@pytest.mark.parametrize("bad", [{"a": []}, {"a": [-1.0], "b": [-1.0, -2.0]}, {"a": [math.nan]}, {"a": [math.inf]}])
def test_rescore_refuses_what_cannot_be_compared(bad: dict[str, list[float]]) -> None:
    with pytest.raises(DataError, match="rescore"):
        rescore(bad)


# Metrics


def test_cell_accuracy() -> None:
    assert cell_accuracy("1 2\n3 4", "1 2\n3 4") == 1.0
    assert cell_accuracy("1 2\n3 4", "1 2\n3 0") == 0.75
    assert cell_accuracy("1 2 3 4", "1 2\n3 4") == cell_accuracy("1 2\n3 4\n0 0", "1 2\n3 4") == 0.0
    assert cell_accuracy(None, "1 2") == cell_accuracy("no grid", "1 2") == 0.0
    with pytest.raises(DataError, match="gold answer is no grid: 'yes'"):
        cell_accuracy("1", "yes")


@pytest.mark.parametrize("bad", [0, -1, True, 1.0])
def test_numbers_out_of_range_are_refused(bad: int) -> None:
    for call in (
        lambda: hierarchical_vote([], within=bad),
        lambda: hierarchical_vote([], top=bad),
        lambda: flat_vote([], top=bad),
        lambda: self_consistency([], top=bad),
    ):
        with pytest.raises(ConfigError, match="whole number of at least 1"):
            call()
