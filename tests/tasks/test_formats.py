"""Prompts of tasks, and reading generated text back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.formats import FORMATS, ParsedSample, ParsedSolution, PromptFormat
from hf_mass.tasks.task import Demonstration, Task

NAMES = sorted(FORMATS)
LATEX = r"Simplify \frac{x}{y} for {problem} and {0} {{}} {"
# Text without the words and signs that a format itself gives a meaning to.
PLAIN = st.text(st.sampled_from("abc xyz 019+-=(){}\\$.,\n"), min_size=1, max_size=60).map(str.strip).filter(bool)
LINE = st.text(st.sampled_from("abcxyz 019+-=,"), min_size=1, max_size=20).map(str.strip).filter(bool)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ask", [PromptFormat.generator_prompt, PromptFormat.solver_prompt])
def test_braces_of_inserted_text_survive(name: str, ask: Callable[[PromptFormat, Task], str]) -> None:
    task = Task(LATEX, demonstrations=(Demonstration("d1 {answer}", "{question}"), Demonstration("d2", r"\boxed{2}")))
    if "{problem}" not in FORMATS[name].generator_template and ask is PromptFormat.generator_prompt:
        task = replace(task, demonstrations=(*task.demonstrations, Demonstration(LATEX, "x")))
    prompt = ask(FORMATS[name], task)
    for text in (LATEX, "d1 {answer}", "{question}", "d2", r"\boxed{2}"):
        assert prompt.count(text) >= 1
    assert prompt.count(LATEX) == 1
    assert prompt.index("d1 {answer}") < prompt.index("d2") < prompt.index(LATEX)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_demonstrations_leaves_no_trace_of_them(name: str) -> None:
    fmt = FORMATS[name]
    bare, shown = Task("P"), Task("P", demonstrations=(Demonstration("Q", "A"),))
    for ask in (fmt.generator_prompt, fmt.solver_prompt):
        assert ask(shown) == fmt.demonstrations_text(shown) + ask(bare)
        assert ask(bare) == ask(bare).lstrip()
    assert fmt.demonstrations_text(bare) == ""


def test_header_separator_and_footer() -> None:
    fmt = PromptFormat(
        solver_template="{demonstrations}{problem}?",
        demonstration_template="{question}>{answer}",
        demonstration_separator="; ",
        demonstrations_header="[",
        demonstrations_footer="] ",
    )
    task = Task("p", demonstrations=(Demonstration("a", "b"), Demonstration("c", "d")))
    assert fmt.solver_prompt(task) == "[a>b; c>d] p?"


@pytest.mark.parametrize("name", NAMES)
def test_inner_prompt_is_the_solver_prompt_of_the_question_by_default(name: str) -> None:
    task = Task("P", demonstrations=(Demonstration("Q", "A"),))
    shown = task if FORMATS[name].inner_template else Task("P")
    expected = FORMATS[name].solver_prompt(replace(shown, problem="q {x}"))
    assert FORMATS[name].inner_prompt("q {x}", task) == expected


def test_inner_template_and_task_fields() -> None:
    fmt = PromptFormat(
        generator_template="{level}:{problem}", solver_template="{unit}{problem}", inner_template="{question}|{hint}"
    )
    assert fmt.task_fields == ("hint", "level", "unit")
    task = Task("p", fields={"level": "{5}", "unit": "cm ", "hint": "h"})
    assert fmt.generator_prompt(task) == "{5}:p"
    assert fmt.solver_prompt(task) == "cm p"
    assert fmt.inner_prompt("q", task) == "q|h"
    with pytest.raises(DataError, match=r"generator_template refers to \{level\}.*t7"):
        fmt.generator_prompt(Task("p", id="t7"))


def test_doubled_braces_are_literal() -> None:
    fmt = PromptFormat(solver_template=r"{problem} in \boxed{{}}")
    assert fmt.solver_prompt(Task("p")) == r"p in \boxed{}"


def test_messages_continue_the_history() -> None:
    task = Task("p", history=(("system", "s"), ("user", "u"), ("assistant", "a")), conversational=True)
    messages = PromptFormat().messages(task, "text")
    assert [(m["role"], m["content"]) for m in messages] == [*task.history, ("user", "text")]


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("Question: What is 2+2?\nAnswer: 2+2=4\n#### 4", "What is 2+2?", "2+2=4\n#### 4"),
        (" What is\n2+2?\n\nAnswer: 4", "What is\n2+2?", "4"),
        ("What?\nAnswer: 4\nQuestion: next?\nAnswer: 5", "What?", "4"),
        ("Sure, here is one:\n\n**Question:** What?\n\n**Answer:** 4\n", "What?", "4"),
        ("Question 1: What?\nAnswer 1: 4", "What?", "4"),
        ("The question is hard. An answer helps.\nAnswer: yes", "The question is hard. An answer helps.", "yes"),
        (r"Let $x \in \{1\}$.\nx?" + "\nAnswer: {x}", r"Let $x \in \{1\}$.\nx?", "{x}"),
    ],
)
def test_samples_that_are_read(text: str, question: str, answer: str) -> None:
    sample = PromptFormat().parse_sample(text)
    assert (sample.question, sample.answer, sample.reason) == (question, answer, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("Question: What is 2+2?", "no_match"),
        ("I cannot answer: sorry", "no_match"),
        ("Question:\nAnswer: 4", "no_question"),
        ("\nAnswer: 4", "no_question"),
        ("Question: What?\nAnswer:  \n", "no_answer"),
    ],
)
def test_samples_that_are_not_read_give_the_reason(text: str, reason: str) -> None:
    assert PromptFormat().parse_sample(text).reason == reason


def test_samples_are_composed_from_named_groups() -> None:
    fmt = PromptFormat(
        sample_pattern=r"(?P<left>\w*),(?P<right>\w*)->(?P<sum>\w*)",
        sample_question_format="{left} + {right}",
        sample_answer_format="= {sum} {{ok}}",
    )
    assert fmt.parse_sample("x: 1,2->3").question == "1 + 2"
    assert fmt.parse_sample("x: 1,2->3").answer == "= 3 {ok}"
    assert fmt.parse_sample(",->3").reason == "no_question"
    assert fmt.parse_sample("1,2->").reason == "no_answer"


def test_grids_are_read() -> None:
    fmt = FORMATS["grid"]
    sample = fmt.parse_sample("0 1\n1 0\nOutput:\n1 0\n0 1\n\nInput:\n5")
    assert (sample.question, sample.answer, sample.reason) == ("0 1\n1 0", "1 0\n0 1", None)
    assert fmt.parse_sample("Input:\n012\nOutput:\n210").answer == "210"
    assert fmt.parse_sample("Input:\nabc\nOutput:\n1").reason == "no_match"
    assert fmt.parse_sample("1 2\nOutput:\n").reason == "no_answer"
    assert fmt.split_solution("1 0\n0 1\n\nInput:\n3\nOutput:\n4").answer == "1 0\n0 1"  # type: ignore[union-attr]
    assert fmt.split_solution("It is mirrored.\nOutput:\n4").answer == "4"  # type: ignore[union-attr]
    assert fmt.split_solution("no idea") is None


@pytest.mark.parametrize("gap", ["", " "])
def test_compact_grids_are_written_closely_and_read_in_canonical_form(gap: str) -> None:
    fmt = FORMATS["compact_grid"]
    a, b, c, d = (text.replace(" ", gap) for text in ("0 1\n2 3", "4 5\n6 7", "1 1 1", "2 2 2"))
    task = Task(a, (Demonstration(b, a), Demonstration(c, d)), answer=d)
    shown = "45\n67>01\n23;111>222;"
    assert fmt.generator_prompt(task) == shown
    assert fmt.solver_prompt(task) == f"{shown}01\n23>"
    assert fmt.inner_prompt(b, task) == fmt.demonstration_prompt(b, task) == f"{shown}45\n67>"
    assert fmt.compose_solution("", a) == "01\n23"
    assert fmt.parse_sample("01\n23>111;") == ParsedSample("0 1\n2 3", "1 1 1")
    assert fmt.split_solution("01\n23;45>6") == ParsedSolution("", "0 1\n2 3")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("01\n2>111", "no_match"),
        ("01>11\n1", "no_match"),
        ("01>1>1", "no_match"),
        ("01;1", "no_match"),
        (">1", "no_question"),
        ("01>;", "no_answer"),
        ("", "empty"),
    ],
)
def test_compact_text_that_shows_no_two_grids_is_no_sample(text: str, reason: str) -> None:
    fmt = FORMATS["compact_grid"]
    assert fmt.parse_sample(text).reason == reason
    assert fmt.split_solution("01\n2") is None and fmt.split_solution("01>2") is None


@pytest.mark.parametrize("name", NAMES)
@given(question=LINE, answer=LINE)
def test_what_the_prompt_asks_for_is_what_is_read(name: str, question: str, answer: str) -> None:
    # Grids hold digits only.
    if "grid" in name:
        question, answer = ("".join(c for c in text if c in "019 ").strip() for text in (question, answer))
        assume(question and answer)
        text = f"{question}\nOutput:\n{answer}"
    if name == "compact_grid":
        text = f"{question.replace(' ', '')}>{answer.replace(' ', '')};"
        question, answer = (" ".join(text.replace(" ", "")) for text in (question, answer))
    elif name != "grid":
        text = f"{question}\n{'Output' if name == 'plain' else 'Answer'}: {answer}"
    sample = FORMATS[name].parse_sample(text)
    assert (sample.question, sample.answer, sample.reason) == (question, answer, None)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("default", "2+2=4\n#### 4", ("2+2=4", "4")),
        ("default", "#### 1,000\n\nProblem: next #### 7", ("", "1,000")),
        ("default", "42", ("", "42")),
        ("default", "two\nlines", ("", "two\nlines")),
        ("default", "unfinished ####", None),
        ("default", " ", None),
        ("gsm8k", "a\n#### 4\nmore", ("a", "4")),
        ("gsm8k", "two\nlines", None),
        ("math", r"\frac{1}{2}", ("", r"\frac{1}{2}")),
        ("math", "two\nlines", None),
        ("math", r"so \boxed{3}, no \boxed{\frac{1}{\{2\}}}.", (r"so \boxed{3}, no \boxed{\frac{1}{\{2\}}}.",) * 2),
        ("math", r"cut off: \boxed{3", None),
    ],
)
def test_solutions_are_split(name: str, text: str, expected: tuple[str, str] | None) -> None:
    parts = FORMATS[name].split_solution(text)
    if expected is None:
        assert parts is None
        return
    assert parts is not None
    assert parts.rationale == expected[0]
    assert parts.answer == (r"\frac{1}{\{2\}}" if "boxed" in expected[1] else expected[1])


@pytest.mark.parametrize("name", ["default", "gsm8k"])
@given(rationale=st.one_of(st.just(""), PLAIN), answer=LINE)
def test_split_undoes_compose(name: str, rationale: str, answer: str) -> None:
    fmt = FORMATS[name]
    parts = fmt.split_solution(fmt.compose_solution(rationale, answer))
    assert parts is not None
    assert (parts.rationale, parts.answer) == (rationale, answer)


@given(rationale=st.one_of(st.just(""), PLAIN), answer=st.sampled_from([r"\frac{1}{2}", "3", r"\{a,b\}", "f(x)"]))
def test_split_undoes_compose_for_mathematics(rationale: str, answer: str) -> None:
    fmt = FORMATS["math"]
    parts = fmt.split_solution(fmt.compose_solution(rationale, answer))
    assert parts is not None
    assert parts.answer == answer
    if rationale:
        assert parts.rationale == rationale


def test_solutions_of_math_500_are_split(shared_data: Path) -> None:
    fmt = FORMATS["math"]
    for row in json.loads((shared_data / "math-500.json").read_text()):
        parts = fmt.split_solution(row["solution"])
        assert parts is not None
        assert parts.answer == row["answer"]
        assert parts.rationale == row["solution"].strip()
        assert fmt.split_solution(fmt.compose_solution(parts.rationale, parts.answer)) == parts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "x" + "\n" * 6000 + "x",
        "Question: a\n" * 1000,
        "* " * 6000,
        "1\n" * 6000,
        r"\boxed{" * 1500,
        "{}" * 5000,
        "#" * 9000,
    ],
    ids=["blank lines", "questions", "stars", "rows", "boxes", "braces", "hashes"],
)
def test_degenerate_text_is_read_quickly(name: str, text: str) -> None:
    start = time.process_time()
    FORMATS[name].parse_sample(text)
    FORMATS[name].split_solution(text)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    fmt = FORMATS[name]
    assert PromptFormat.from_dict(json.loads(json.dumps(fmt.to_dict()))) == fmt
    assert PromptFormat.from_dict({}) == PromptFormat()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("solver_template", "no placeholder", r"lacks the placeholder \{problem\}"),
        ("solver_template", "{problem} {", "Write a literal brace twice"),
        ("solver_template", "{problem} {0}", "no plain name"),
        ("solver_template", "{problem!r}", "no plain name"),
        ("generator_template", "{problem.x}", "no plain name"),
        ("generator_template", "{problem:>5}", "no plain name"),
        ("generator_template", None, "must be a string"),
        ("demonstration_template", "{question}", r"lacks the placeholder \{answer\}"),
        ("demonstration_template", "{question}{answer}{x}", r"unknown placeholder \{x\}"),
        ("inner_template", "{problem}", r"lacks the placeholder \{question\}"),
        ("sample_pattern", "(", "no regular expression"),
        ("sample_question_format", "{nope}", r"unknown placeholder \{nope\}"),
        ("sample_answer_format", "constant", "uses no named group"),
        ("solution_pattern", "(?P<rationale>.*)", r"lacks a group \(\?P<answer>"),
        ("solution_pattern", "(?P<answer>", "no regular expression"),
        ("solution_format", "{rationale}", r"lacks the placeholder \{answer\}"),
        ("solution_format", "{answer}{x}", r"unknown placeholder \{x\}"),
        ("grid_form", "dense", "choose one of"),
    ],
)
def test_bad_settings_name_the_field(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PromptFormat(**{field: value})
    assert f"PromptFormat.{field}" in str(caught.value)


def test_groups_that_the_formats_use_must_be_in_the_pattern() -> None:
    with pytest.raises(ConfigError, match=r"sample_question_format has the unknown placeholder \{question\}"):
        PromptFormat(sample_pattern="(?P<answer>.*)")


def test_unknown_field_in_a_saved_format() -> None:
    with pytest.raises(ConfigError, match=r"no field 'solver'.*solver_template"):
        PromptFormat.from_dict({"solver": "{problem}"})
