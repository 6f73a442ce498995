"""From predictions to ranked answers and metrics: every vote and every kind of answer on cases worked out by hand."""

from __future__ import annotations

import pytest

from hf_mass.errors import ConfigError, VerifierError
from hf_mass.tasks.answers import VOTES, TaskScore, candidates, mean_scores, rank_answers, score_answers, try_scoring
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS
from hf_mass.tasks.voting import Prediction

# Each grid on one row, so that the majority of rows or columns of a group is easily seen.
A, B, C, D = "1 1", "2 2", "3 3", "4 4"


def predictions(**by_transformation: str) -> list[Prediction]:
    """identity="AAB" stands for three predictions without a transformation; "-" for one that could not be read."""
    grids = {"A": A, "B": B, "C": C, "D": D, "-": None}
    return [Prediction(grids[letter], name) for name, letters in by_transformation.items() for letter in letters]


def grid_task(answer: str | None = "1 2\n3 4") -> Task:
    return Task("0", answer=answer, id="grid")


# -- votes -------------------------------------------------------------------------------------------------------------

# Within groups: identity → A, B; flip → B, C; turn → B, D. Across: B has 3 votes, A, C and D one each; of these A was
# predicted without a transformation. Of all predictions A has 4 and B 5; without a transformation A has 3 and B 1.
MIXED = {"identity": "AAAB", "flip": "BBC", "turn": "BBDA"}


@pytest.mark.parametrize(
    ("vote", "within", "expected"),
    [
        ("hierarchical", 2, [B, A]),
        ("flat", 2, [B, A]),
        ("self_consistency", 2, [A, B]),
        ("first", 2, [A, B]),
    ],
)
def test_each_vote_on_the_same_predictions(vote: str, within: int, expected: list[str]) -> None:
    assert rank_answers(predictions(**MIXED), vote, within) == expected


def test_the_hierarchical_vote_counts_transformations_and_the_flat_one_predictions() -> None:
    found = predictions(identity="AB", flip="B", turn="CCCCC")
    assert rank_answers(found, "flat", top=1) == [C]
    assert rank_answers(found, "hierarchical", within=1, top=3) == [A, B, C]  # one vote each, A without transformation
    assert rank_answers(found, "hierarchical", within=2, top=3)[0] == B  # in two groups


def test_how_many_each_transformation_puts_forward_decides() -> None:
    """turn's third choice D is another group's first one."""
    found = predictions(identity="AAB", flip="D", turn="BBBAAD")
    assert rank_answers(found, "hierarchical", within=1, top=1) == [A]
    assert rank_answers(found, "hierarchical", within=3, top=3) == [A, B, D]


def test_ties_go_to_the_untransformed_and_then_to_the_first_seen() -> None:
    assert rank_answers(predictions(flip="BA", identity="A", turn="B"), "flat") == [A, B]
    assert rank_answers(predictions(flip="DC"), "flat") == [D, C]
    assert rank_answers(predictions(identity="CB"), "self_consistency") == [C, B]


def test_first_takes_what_comes_first_without_a_transformation() -> None:
    assert rank_answers(predictions(flip="D", identity="-CCBBBA"), "first") == [C, B]
    assert rank_answers(predictions(flip="D"), "first") == []


def test_what_could_not_be_read_has_no_vote() -> None:
    found = predictions(identity="---A", flip="--")
    for vote in ("hierarchical", "flat", "self_consistency", "first"):
        assert rank_answers(found, vote) == [A]
        assert rank_answers(predictions(identity="--"), vote) == []


def test_rescoring_ranks_by_the_sum_of_log_probabilities_whatever_the_predictions() -> None:
    scores = {A: [-1.0, -9.0], B: [-4.0, -4.5], C: [-20.0, -0.1]}
    assert rank_answers(predictions(identity="AAA"), "rescore", scores=scores) == [B, A]
    assert rank_answers([], "rescore", top=3, scores=scores) == [B, A, C]
    assert rank_answers([], "rescore", scores={}) == []


def test_the_number_of_answers_is_limited() -> None:
    scores = {A: [-1.0], B: [-2.0], C: [-3.0]}
    for vote in VOTES:
        assert len(rank_answers(predictions(identity="AABBCD"), vote, top=1, scores=scores)) == 1


def test_wrong_votes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vote is 'median'; choose one of \['hierarchical', 'flat'"):
        rank_answers(predictions(identity="A"), "median")
    with pytest.raises(ConfigError, match=r"vote='rescore' needs scores"):
        rank_answers(predictions(identity="A"), "rescore")


def test_candidates_are_the_distinct_answers_as_seen() -> None:
    assert candidates(predictions(flip="B-A", identity="ABC")) == [B, A, C]


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "predicted", "expected"),
    [
        (["1 2\n3 4"], ["1 2\n3 4"], TaskScore(True, True, True, 1.0)),
        (["1 2\n3 0", "1 2\n3 4"], ["1 2\n3 4"], TaskScore(False, True, True, 0.75)),
        (["0 0\n0 4", "1 2\n3 0"], ["1 2\n3 4"], TaskScore(False, False, True, 0.25)),
        (["1 2 0\n3 4 0"], ["1 2 0\n3 4 0", None], TaskScore(False, False, False, 0.0)),
        ([], [None], TaskScore(False, False, False, 0.0)),
        (["5", "6", "1 2\n3 4"], [], TaskScore(False, False, False, 0.0)),  # the third answer does not count
    ],
)
def test_grids_are_right_if_every_cell_is(answers: list[str], predicted: list[str | None], expected: TaskScore) -> None:
    assert score_answers(grid_task(), answers, [Prediction(text) for text in predicted]) == expected


def test_texts_are_judged_by_the_verifier_of_the_task() -> None:
    task = Task("Capital of France?", answer="Paris", id="text")
    found = [Prediction("Lyon"), Prediction("paris.")]
    assert score_answers(task, ["Lyon", "paris."], found) == TaskScore(False, True, True, None)
    numeric = Task("1 + 1?", answer="2.0", verifier="numeric", id="number")
    assert score_answers(numeric, ["2"], []) == TaskScore(True, True, False, None)
    assert score_answers(numeric, ["3"], [Prediction("3")]) == TaskScore(False, False, False, None)


def test_a_number_that_is_no_canonical_grid_is_a_text() -> None:
    """ "12" can be read as a grid of two cells, which would be written "1 2"."""
    task = Task("3 * 4?", answer="12", verifier="numeric", id="product")
    assert score_answers(task, ["12.0"], []) == TaskScore(True, True, False, None)


def test_short_answers_of_big_bench_hard_meet_their_target_up_to_case_and_brackets() -> None:
    task = Task("Which?", answer="(A)", verifier="short_answer", fields={"answer_kind": "letter"}, id="bbh")
    assert score_answers(task, ["(a)"], [Prediction("(a)")]) == TaskScore(True, True, True, None)
    assert score_answers(task, ["A"], []) == TaskScore(True, True, False, None)
    assert score_answers(task, ["(b)", "(a)"], [Prediction("(b)")]) == TaskScore(False, True, False, None)
    with pytest.raises(VerifierError, match="answer_kind"):
        score_answers(Task("Which?", answer="(A)", verifier="short_answer", id="bbh"), ["(a)"], [])


def test_a_task_on_whose_answers_the_verifier_raises_has_the_error_for_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "mine", lambda task, text: 1 / len(text))
    task = Task("p", answer="x", verifier="mine", id="t3")
    error = try_scoring(task, ["x"], [Prediction("")])
    assert isinstance(error, VerifierError) and "'mine' raised ZeroDivisionError" in str(error)
    assert try_scoring(task, ["x"], []) == TaskScore(True, True, False, None)
    with pytest.raises(VerifierError, match="task id 't3'"):
        score_answers(task, [""], [])
    with pytest.raises(VerifierError, match="Unknown verifier"):
        try_scoring(Task("p", answer="x", verifier="nope"), ["x"], [])


def test_a_task_without_an_answer_has_no_score() -> None:
    assert score_answers(grid_task(None), ["1 2"], [Prediction("1 2")]) is None


def test_means_are_over_the_tasks_with_an_answer_and_cells_over_the_grids() -> None:
    grids = [TaskScore(True, True, True, 1.0), None, TaskScore(False, True, True, 0.5)]
    scores = [*grids, TaskScore(False, False, True, None), TaskScore(False, False, False, None)]
    assert mean_scores(scores) == {"pass@1": 0.25, "pass@2": 0.5, "oracle": 0.75, "cell_accuracy": 0.75}
    assert mean_scores([TaskScore(True, True, False, None)]) == {"pass@1": 1.0, "pass@2": 1.0, "oracle": 0.0}
    assert mean_scores([None, None]) == {} and mean_scores([]) == {}
