"""Choices that a question lists: their words choose, too, and words of another letter do not."""

from __future__ import annotations

import pytest

from hf_mass.tasks.options import options
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import verify_batch

CITIES = "What is the capital of France?\nA) Paris\nB) London\nC) Rome"
NUMBERS = "Which?\n(A) 12\n(B) 15\n(C) 18"
DOGS = "Pick:\nA. a dog\nB. dog\nC. the dog"
DIGITS = "Find the degree.\nA. 0\nB. 4\nC. 2"
QUOTES = "Which is meant?\nA) I love it. So classy.\nB) I hate it. So rude."
LETTERS = "Pick:\nA) B\nB) A"

CASES = [
    (CITIES, "A", ("A Paris", "Answer: A Paris", "A: Paris", "**A — Paris**", "Paris", "The answer is Paris.", "A"), 1),
    (
        CITIES,
        "A",
        ("A) London", "A London", "(A) Rome", "B Paris", "B) Paris", "London", "Not Paris", "Paris or Rome"),
        0,
    ),
    (NUMBERS, "B", ("15", "B 15", "B. 15", r"\boxed{15}", "The answer is 15."), 1),
    (NUMBERS, "B", ("12", "B 12", "A 15", "(A) 15", "150", "-15", "15 or 18", "Answer: A 15"), 0),
    (DOGS, "B", ("dog", "B dog", "Dog."), 1),
    (DOGS, "B", ("a dog", "A dog", "the dog", "dogs"), 0),
    (DOGS, "A", ("a dog", "A a dog"), 1),
    (DIGITS, "B", ("4", "The answer is 4.", r"\boxed{4}", "B. 4", "B"), 1),
    (DIGITS, "B", ("2", "B. 2", "C. 4", "14", "C"), 0),
    (CITIES, "A", ("A) Paris is correct.", "A) Paris, which is not in Italy"), 1),
    (CITIES, "A", ("A) Paris is incorrect", "A) Paris is not the capital.", "A) Paris can be eliminated."), 0),
    (CITIES, "A", ("A) Paris, which is wrong.",), 0),
    (CITIES, "A", ("A) Paris, because it is the capital.", "The answer is (A) Paris, since it is."), 1),
    (CITIES, "A", ("A) London, because it is big.", "The answer is (A) Rome, since it is old.", "A) Rome is it."), 0),
    (CITIES, "A", ("A) London. Wait, no, it is B.", "The answer is A) Paris. Wait, no, it's B."), 0),
    (QUOTES, "A", ("The answer is (A) I love it. So classy.", "A) I love it. So classy."), 1),
    (QUOTES, "A", ("The answer is (A) I hate it. So rude.", "The answer is (A) I hate it. So rude"), 0),
    (LETTERS, "A", ("A", "A) B"), 1),
    (LETTERS, "A", ("B", "B) A"), 0),
]


@pytest.mark.parametrize(("problem", "gold", "texts", "reward"), CASES)
def test_words_of_choices(problem: str, gold: str, texts: tuple[str, ...], reward: int) -> None:
    task = Task(problem, answer=gold, verifier="multiple_choice")
    assert dict(zip(texts, verify_batch([task] * len(texts), texts), strict=True)) == dict.fromkeys(texts, reward)


@pytest.mark.parametrize(
    "problem", ["What is the capital of France?", "A) one", "A) one\nC) two", "A) same\nB) same", "B) one\nC) two"]
)
def test_what_lists_no_choices(problem: str) -> None:
    assert options(problem) == {}
    task = Task(problem, answer="A", verifier="multiple_choice")
    assert verify_batch([task] * 2, ["A", "one"]) == [1.0, 0.0]
