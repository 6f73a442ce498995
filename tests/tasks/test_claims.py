"""Whether a text stands by its answer, for every verifier alike."""

from __future__ import annotations

import time

import pytest

from hf_mass.tasks.claims import denies, disowns, supposes, taken_back
from hf_mass.tasks.final_answers import final_answer
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier

ANSWERS = {"numeric": ("18", "20"), "multiple_choice": ("B", "C"), "exact_match": ("Paris", "Rome")}
SAID = [
    "The answer is {}.",
    "Answer: {}\n\nLet me know if you have other questions.",
    "The answer is {}. It is not {other}, since that is too small.",
    "The answer is {other}. Wait, no. The answer is {}.",
    "I first thought it was {other}, but the answer is {}.",
    "It isn't {other}, so the answer is {}.",
    "Although many people think it's {other}, the answer is {}.",
    "Based on the text, which says that cats sleep, the answer is {}.",
    "I think the answer is {}.",
    "The answer has to be {}.",
    "\\boxed{{{}}}. I hope it is correct.",
    "#### {}\n\nIf not clear, ask.",
    "ANS: {}",
    "答案：{}",
    "Answer：{}",
]
NOT_SAID = [
    "Bob says the answer is {}.",
    "Bob said, “the answer is {}”.",
    "Some may think that the answer is {}, but it is {other}.",
    "I doubt that the answer is {}.",
    "I don't believe the answer is {}.",
    "It is unlikely that the answer is {}.",
    "It is false that the answer is {}.",
    "Nobody would say the answer is {}.",
    "Unless it rains, the answer is {}.",
    "Assume the answer is {}.",
    "The answer may be {}.",
    "The old answer is {}.",
    "Bob's answer is {}.",
    "The least likely answer is {}.",
    "I thought the answer is {}, but it is {other}.",
    "The answer is {}. No wait, it is {other}.",
    "The answer is {}. Actually, {other}.",
    "The answer is {}. Or {other}.",
    "The answer is {}. Alternatively {other}.",
    "The answer is {}. That is wrong.",
    "The answer is {}. This isn't right.",
    "The answer is {}. It should be {other}.",
    "The answer is {}. Sorry, {other}.",
    "The answer is {}? No.",
    "The answer is anything but {}.",
    "\\boxed{{{}}}. Wait, I made a mistake: {other}.",
    "\\boxed{{{}}} is wrong",
    "\\boxed{{{}}}? No.",
    "The answer is not \\boxed{{{}}}",
    "#### {}\nNo, that's wrong.",
    "<answer>{}</answer> Wait, no.",
    "<answer>{} or {other}</answer>",
]


@pytest.mark.parametrize("verifier", ANSWERS)
@pytest.mark.parametrize("text", SAID)
def test_an_answer_that_a_text_stands_by_counts(verifier: str, text: str) -> None:
    gold, other = ANSWERS[verifier]
    assert get_verifier(verifier)(Task("p", answer=gold), text.format(gold, other=other)) == 1.0


@pytest.mark.parametrize("verifier", ANSWERS)
@pytest.mark.parametrize("text", NOT_SAID)
def test_an_answer_that_a_text_does_not_stand_by_does_not_count(verifier: str, text: str) -> None:
    gold, other = ANSWERS[verifier]
    assert get_verifier(verifier)(Task("p", answer=gold), text.format(gold, other=other)) == 0.0


def test_what_is_stated_after_an_answer_was_taken_back_counts() -> None:
    assert final_answer("\\boxed{40}. That's incorrect. The answer is 43.") == "43"
    assert final_answer("\\boxed{40}. That's incorrect. It is 43.") == ""
    assert final_answer("The answer is not 5. \\boxed{6}") == "6"


def test_each_question_by_itself() -> None:
    assert denies("it is hardly 5") and denies("They say 5") and not denies("She has 5 because she can")
    assert supposes("5 if it rains") and supposes("it may be 5") and not supposes("on 5 May")
    assert disowns("I doubt that ") and not disowns("I doubt it, but ") and not disowns("It is not 3. So ")
    assert taken_back(". Oh no, wait: 6") and not taken_back(". No other is left. Waiting is over")


def test_long_text_is_read_quickly() -> None:
    begun = time.process_time()
    for part in (
        "wait ",
        "((",
        ", ",
        "oh but ",
        "many ",
        "it is ",
        "no, ",
        "of the answer is ",
        "if ",
        "“",
        "he really ",
    ):
        final_answer(part * 8000)
        taken_back(part * 8000)
    assert time.process_time() - begun < 10
