"""Letters: the one that a text states or affirms."""

from __future__ import annotations

import time

import pytest

from hf_mass.tasks.choices import choice

CHOSEN = [
    ("B is correct, A is wrong", "B"),
    ("The correct answer is option B because A is false.", "B"),
    ("option (b)", "B"),
    ("The answer is option (b).", "B"),
    ("b", "B"),
    ("The answer is (B) Paris.", "B"),
    ("B. Paris", "B"),
    ("(A) is wrong, so I choose (B)", "B"),
    ("The answer is (C) because (A) is wrong", "C"),
    (r"$\boxed{\text{D}}$", "D"),
    ("I think that it must be C", "C"),
    ("A is right", "A"),
    ("A", "A"),
    ("**B**", "B"),
    ("**(B)**", "B"),
    ("Answer: **B**", "B"),
    ("Answer: B\n\nExplanation: A is wrong, C too.", "B"),
    ("Answer: B\nC is wrong", "B"),
    ("A is wrong and B is correct.", "B"),
    ("Not A but B", "B"),
    ("B, because A is false", "B"),
    ("The answer is A because B is wrong", "A"),
    ("A is incorrect; the right choice is C.", "C"),
    ("(B)", "B"),
    ("b)", "B"),
    ("b) Paris", "B"),
    ("Option B", "B"),
    ("option b", "B"),
    ("Choice (C) is correct", "C"),
    ("The correct option is D.", "D"),
    ("I would pick C over A", "C"),
    ("Between A and B, B is correct", "B"),
    ("The answer is B. A is the wrong one.", "B"),
    (r"\boxed{B}", "B"),
    (r"\textbf{(B)}", "B"),
    ("#### B", "B"),
    ("The answer is: B", "B"),
    ("B: Paris", "B"),
    ("B) A town in France", "B"),
    ("All are wrong except... so the answer is C", "C"),
    ("The answer is a.", "A"),
    ("The final answer is $\\boxed{(C)}$", "C"),
    ("A cannot be true, so B.", "B"),
    ("It is (b).", "B"),
    ("[B]", "B"),
    ("A isn't right. B is right.", "B"),
    ("Answer: (B) or so", "B"),
    ("Therefore, C.", "C"),
    ("We choose B, not A.", "B"),
    ("B, not A", "B"),
    ("B (not A)", "B"),
    ("A is false, B is true, C is false", "B"),
    ("The answer is B, A is wrong", "B"),
    ("B is the correct answer because A and C are wrong", "B"),
    ("Answer: B - Paris", "B"),
]
UNCLEAR = [
    "Because of it",
    "A dog and nothing else",
    "I do not know",
    "A or B",
    "A and B are both correct",
    "A, B",
    "B or C",
    "(A) or (B)",
    "not B",
    "The answer is not B",
    "neither A nor B",
    "B is wrong",
    "A. B. C.",
    "",
    "I am",
    "It is B or C",
    "The answer is either A or B",
    "Both (A) and (B)",
    "B is not correct",
    "A) Paris\nB) London",
    "B is incorrect",
    "(A), (B) and (C)",
    "The options are A, B, C",
    "A is correct and B is correct",
]


@pytest.mark.parametrize(("text", "letter"), CHOSEN)
def test_the_chosen_letter(text: str, letter: str) -> None:
    assert choice(text) == letter


@pytest.mark.parametrize("text", UNCLEAR)
def test_no_letter_is_chosen(text: str) -> None:
    assert choice(text) is None


def test_long_text_is_read_quickly() -> None:
    start = time.perf_counter()
    for part in ("A ", "(A) ", "A, ", "*", "A is ", "the answer is ", "not A ", "is the the "):
        choice(part * 20_000)
    assert time.perf_counter() - start < 10
