"""The prompt format "plain": its text is that of the few-shot format of the same name, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS
from hf_mass.tasks.formats import FORMATS, ParsedSample, ParsedSolution
from hf_mass.tasks.task import Demonstration, Task

FORMAT = FORMATS["plain"]
SHOWN = (Demonstration("ab", "AB"), Demonstration("c {x}", "C {X}"))
TASK = Task("de", SHOWN, answer="DE")
LINE = st.text(st.sampled_from("abc xyz 019+-=,{}>#:\\"), min_size=1, max_size=20).map(str.strip).filter(bool)


def test_prompts_show_the_demonstrations() -> None:
    shown = "Input: ab\nOutput: AB\n\nInput: c {x}\nOutput: C {X}\n\n"
    assert FORMAT.generator_prompt(TASK) == shown + "Input: "
    assert FORMAT.solver_prompt(TASK) == shown + "Input: de\nOutput: "
    assert FORMAT.inner_prompt("f", TASK) == FORMAT.demonstration_prompt("f", TASK) == shown + "Input: f\nOutput: "


@given(pairs=st.lists(st.tuples(LINE, LINE), min_size=1, max_size=4))
def test_the_text_is_that_of_the_few_shot_format(pairs: list[tuple[str, str]]) -> None:
    plain, task = FEW_SHOT_FORMATS["plain"], Task("query", tuple(Demonstration(*pair) for pair in pairs))
    assert FORMAT.solver_prompt(task) == plain.prompt(task) + plain.answer_prefix
    assert FORMAT.generator_prompt(task) + "query" + plain.output_prefix == plain.prompt(task)


@given(question=LINE, answer=LINE)
def test_a_demonstration_written_by_the_model_is_read(question: str, answer: str) -> None:
    for text in (f"{question}\nOutput: {answer}", f"Input: {question}\nOutput: {answer}\n\nInput: next"):
        assert FORMAT.parse_sample(text) == ParsedSample(question, answer)
    assert FORMAT.split_solution(f"{answer}\n\nInput: {question}") == ParsedSolution("", answer)
    assert FORMAT.compose_solution("", answer) == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("ab", "no_match"),
        ("ab\n\nOutput: AB", "no_match"),
        ("ab\nInput: c\nOutput: C", "no_match"),
        ("ab Output: AB", "no_match"),
        ("Input:  \nOutput: AB", "no_question"),
        ("ab\nOutput:", "no_answer"),
        ("ab\nOutput: \n\nInput: c", "no_answer"),
    ],
)
def test_text_that_shows_no_pair_is_no_sample(text: str, reason: str) -> None:
    assert FORMAT.parse_sample(text).reason == reason


def test_lines_of_one_input_or_output_stay_together() -> None:
    sample = FORMAT.parse_sample("two\nlines\nOutput: TWO\nLINES\n\nInput: x")
    assert (sample.question, sample.answer) == ("two\nlines", "TWO\nLINES")
    assert FORMAT.parse_sample("a\nOutput: b\nOutput: c").answer == "b"
    assert FORMAT.split_solution("\n\n") is None
