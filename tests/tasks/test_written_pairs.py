"""Which written pairs are usable: each fault beside a text that has none."""

from __future__ import annotations

import pytest

from hf_mass.tasks.task import Task
from hf_mass.tasks.written_pairs import answer_fault, question_fault

PLURALS = Task.from_pairs([("cat", "cats"), ("baby", "babies"), ("box", "boxes"), ("dog", "dogs")], "city")
REVIEWS = [
    ("A joy from start to end.", "good"),
    ("I left early.", "bad"),
    ("Dull and long.", "bad"),
    ("Lovely!", "good"),
]
LABELS = Task.from_pairs(REVIEWS, "Fine.")
GRIDS = Task.from_pairs([("1 2\n3 4", "2 1\n4 3"), ("0 5\n5 0", "5 0\n0 5")], "7 7\n1 1")
LINES = Task.from_pairs([("a b\nc", "c\na b"), ("d\ne f", "e f\nd")], "g\nh")


@pytest.mark.parametrize(
    ("task", "question", "fault"),
    [
        (PLURALS, "lady", None),
        (PLURALS, "Cat", "not_new"),
        (PLURALS, " city ", "not_new"),
        (PLURALS, "fox", "not_new"),  # written before
        (PLURALS, "...", "placeholder"),
        (PLURALS, "<input>", "placeholder"),
        (PLURALS, "[word]", "placeholder"),
        (PLURALS, "word 3", "placeholder"),
        (PLURALS, "xxx", "placeholder"),
        (PLURALS, "the input", "placeholder"),
        (PLURALS, "inputs that are far too long", "other_form"),
        (PLURALS, "ox\nfly", "other_form"),
        (LABELS, "No", "other_form"),  # less than half as long as the shortest that is shown
        (LABELS, "Word for word dull.", None),
        (LINES, "x\ny", None),
        (LINES, "x y", "other_form"),
        (GRIDS, "9 9\n8 8\n1 1\n1 1\n1 1", None),
        (GRIDS, "nine", "other_form"),
        (Task("What is 2 + 2?"), "What is 3 + 3?", None),
        (Task("What is 2 + 2?"), "The new question", "placeholder"),
        (Task("What is 2 + 2?"), "what is  2 + 2?", "not_new"),
    ],
)
def test_questions(task: Task, question: str, fault: str | None) -> None:
    assert question_fault(question, task, ["Fox"]) == fault


@pytest.mark.parametrize(
    ("task", "answer", "fault"),
    [
        (PLURALS, "ladies", None),
        (PLURALS, "cats", None),  # four answers of four are no labels
        (PLURALS, "output", "placeholder"),
        (PLURALS, "ladies and gentlemen", "other_form"),
        (LABELS, "good", None),
        (LABELS, "Good", "other_form"),
        (LABELS, "fair", "other_form"),
        (GRIDS, "1 1\n7 7", None),
        (GRIDS, "none", "other_form"),
    ],
)
def test_answers(task: Task, answer: str, fault: str | None) -> None:
    assert answer_fault(answer, task) == fault


def test_a_text_that_the_demonstrations_hold_is_no_placeholder() -> None:
    brackets = Task.from_pairs([("<a>", "[a]"), ("<b>", "[b]"), ("<cd>", "[cd]")], "<e>")
    assert question_fault("<f>", brackets) is None and answer_fault("[f]", brackets) is None
    assert question_fault("<f>", PLURALS) == "placeholder"
