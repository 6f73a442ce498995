"""Verifiers: right answers score 1, wrong ones 0, and no text breaks one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import VerifierError
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import (
    VERIFIERS,
    boxed_answer,
    final_answer,
    get_verifier,
    parse_number,
    register_verifier,
    verify_batch,
)


def reward(name: str, gold: str, text: str) -> float:
    return get_verifier(name)(Task("p", answer=gold, verifier=name), text)


@pytest.mark.parametrize(
    ("name", "gold", "text"),
    [
        ("exact_match", "Paris", " paris. "),
        ("exact_match", "Paris", "It is in France.\nAnswer: Paris"),
        ("exact_match", "Paris", "**Final answer:** Paris"),
        ("exact_match", "the lot", "So the answer is The  Lot. I am sure."),
        ("exact_match", "x", r"hence \boxed{x}"),
        ("exact_match", "1 2\n3 4", "1 2 \n\n3 4\n"),
        ("exact_match", "a: the answer is b", "a: the answer is b"),
        ("multiple_choice", "B", "b"),
        ("multiple_choice", "(B)", "The answer is (B) Paris."),
        ("multiple_choice", "B) Paris", "B. Paris"),
        ("multiple_choice", "B", "(A) is wrong, so I choose (B)"),
        ("multiple_choice", "C", "The answer is (C) because (A) is wrong"),
        ("multiple_choice", "D", r"$\boxed{\text{D}}$"),
        ("multiple_choice", "C", "I think that it must be C"),
        ("multiple_choice", "A", "A is right"),
        ("multiple_choice", "A", "A"),
        ("numeric", "18", "9 * 2 = <<9*2=18>>18\n#### 18"),
        ("numeric", "1,000", "$1000.00"),
        ("numeric", "50", "50%"),
        ("numeric", "0.5", "1/2"),
        ("numeric", "1/3", "0.3333333"),
        ("numeric", "-3", "x = - 3"),
        ("numeric", "2.5", r"\frac{5}{2}"),
        ("numeric", "-0.75", r"so \boxed{-\dfrac{3}{4}}"),
        ("numeric", "2000", "2e3 dollars"),
        ("numeric", "7", "The answer is 7. I checked 3 times."),
        ("numeric", "73", "Answer: 73\n\nExplanation: 40 plus 33."),
        ("numeric", "73", "Answer: 73. Explanation: 40 plus 33."),
        ("numeric", "73", "**Answer:** 73\nExplanation: 40 plus 33."),
        ("numeric", "73", "The answer is **73**.\n\nI added 40 and 33."),
        ("numeric", "18", "The answer is 18 cm^3"),
        ("numeric", "12", "The answer is 12 out of 20."),
        ("numeric", "3/5", "The answer is 12 out of 20."),
        ("numeric", "8", r"\boxed{8\text{ cm}^2}"),
        ("numeric", "1234", r"\boxed{1{,}234}"),
        ("numeric", "1.5", r"\boxed{1\frac{1}{2}}"),
        ("numeric", "2000", r"\boxed{2\times10^3}"),
        ("numeric", "0.5", r"\boxed{\dfrac12}"),
        ("numeric", "1/3", r"\frac13"),
        ("numeric", "1000000", "The answer is 1 000 000."),
        ("numeric", "6", "The answer is 5. Wait, no: the answer is 6."),
        ("multiple_choice", "B", "B is correct, A is wrong"),
        ("multiple_choice", "B", "The correct answer is option B because A is false."),
        ("multiple_choice", "B", "option (b)"),
        ("multiple_choice", r"\text{(B)}", "**B**"),
        ("exact_match", "Paris", "**Paris**"),
        ("exact_match", "Paris", "The answer is **Paris**."),
        ("exact_match", "Paris", "Answer: _Paris_\n\nIt is the capital."),
        ("exact_match", "Paris", r"\boxed{\text{Paris}}"),
        ("exact_match", "Paris", "The answer is “Paris”."),
        ("exact_match", "Mr. Smith", "The answer is Mr. Smith."),
        ("exact_match", "Mr. Smith", "The answer is Mr. Smith. He was seen."),
        ("exact_match", "J. R. R. Tolkien", "The answer is J. R. R. Tolkien. He wrote it."),
        ("exact_match", "caf\u00e9", "cafe\u0301"),
        ("exact_match", "cafe\u0301", "The answer is caf\u00e9."),
        ("exact_match", "snake_case_name", "`snake_case_name`"),
        ("exact_match", "a\nb", "Answer: a\nb"),
        ("exact_match", "True", '{"answer": true}'),
        ("exact_match", "Paris", "Answer: Paris<|eot_id|>"),
        ("exact_match", "Paris", "\ufeffParis\u200b"),
        ("exact_match", "Paris", "«Paris»"),
        ("math", r"\frac{1}{2}", r"so we get \boxed{0.5}"),
        ("math", "x^2+2x+1", "(x+1)^2"),
        ("math", r"\left( 3, \frac{\pi}{2} \right)", r"The answer is $(3, \pi/2)$."),
        ("math", r"\text{Evelyn}", "Evelyn"),
        ("math", "2", "4/2"),
        ("math", r"\$36", r"\boxed{36}"),
        ("math", "36", r"\boxed{\$36}"),
        ("math", "73", "The answer is **73**."),
        ("math", r"\frac{2\pi}{3}", "2*pi/3"),
        ("math", r"\sqrt{51}", "√51"),
        ("math", "6-5i", "6-5I"),
        ("math", "3+2i", "3 + 2*I"),
        ("math", "12", "12 dollars"),
        ("math", "18", "18 cm^3"),
        ("math", "3,4", "$3$ and $4$"),
        ("math", "52_8", r"\boxed{52_{8}}"),
        ("math", "52_8", "42"),
        ("math", "52_8", "52 (base 8)"),
    ],
)
def test_right_answers(name: str, gold: str, text: str) -> None:
    assert reward(name, gold, text) == 1.0


@pytest.mark.parametrize(
    ("name", "gold", "text"),
    [
        ("exact_match", "Paris", ""),
        ("exact_match", "Paris", "Not Paris"),
        ("exact_match", ".", ""),
        ("exact_match", "1 2\n3 4", "1 2 3 4"),
        ("multiple_choice", "B", "A"),
        ("multiple_choice", "B", "Because of it"),
        ("multiple_choice", "A", "A dog and nothing else"),
        ("multiple_choice", "I", "I do not know"),
        ("numeric", "18", ""),
        ("numeric", "18", "18 or 19"),
        ("numeric", "3", "-3"),
        ("numeric", "-3", "10-3"),
        ("numeric", "1000000", "1000001"),
        ("numeric", "1", "1/0"),
        ("numeric", "999999999", "1e999999999"),
        ("numeric", "33", "Answer: 73\n\nExplanation: 40 plus 33."),
        ("numeric", "33", "Answer: 73\nExplanation: 40 plus 33."),
        ("numeric", "3", "The answer is 18 cm^3"),
        ("numeric", "20", "12 out of 20"),
        ("numeric", "2", r"\boxed{8\text{ cm}^2}"),
        ("numeric", "234", r"\boxed{1{,}234}"),
        ("numeric", "0.5", r"\boxed{1\frac{1}{2}}"),
        ("numeric", "3", r"\boxed{2\times10^3}"),
        ("numeric", "12", r"\boxed{\dfrac12}"),
        ("numeric", "13", r"\frac13"),
        ("numeric", "19", "18 or 19"),
        ("numeric", "5", "The answer is not 5."),
        ("numeric", "2", r"\boxed{2\pi}"),
        ("numeric", "2", "2 million"),
        ("multiple_choice", "A", "B is correct, A is wrong"),
        ("multiple_choice", "A", "The correct answer is option B because A is false."),
        ("multiple_choice", "B", "The answer is not B."),
        ("multiple_choice", "B", "A or B"),
        ("exact_match", "Mr", "The answer is Mr. Smith."),
        ("exact_match", "Paris", "The answer is not Paris."),
        ("exact_match", "cafe", "caf\u00e9"),
        ("exact_match", "1 2", "Answer: 1 2\n3 4"),
        ("math", "12", "1 2"),
        ("math", "2", r"\frac{1}{2}"),
        ("math", "52_8", "52_9"),
        ("math", "13", "12 or 13"),
        ("math", "20", "12 out of 20"),
        ("math", "5", ""),
        ("math", r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"),
        ("math", "x+1", r"\boxed{"),
    ],
)
def test_wrong_answers(name: str, gold: str, text: str) -> None:
    assert reward(name, gold, text) == 0.0


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("gold", [None, " "])
def test_a_task_without_gold_is_refused(name: str, gold: str | None) -> None:
    with pytest.raises(VerifierError, match=f"{name}.*needs Task.answer.*t3"):
        get_verifier(name)(Task("p", answer=gold, id="t3"), "1")


def test_math_takes_the_solution_where_there_is_no_answer() -> None:
    task = Task("p", solution=r"hence $x = \boxed{\frac{4}{2}}$.", verifier="math")
    assert verify_batch([task, task], ["2", "3"]) == [1.0, 0.0]


def test_gold_that_a_verifier_cannot_use_is_refused() -> None:
    with pytest.raises(VerifierError, match=r"no number.*'many'.*exact_match"):
        reward("numeric", "many", "3")
    with pytest.raises(VerifierError, match=r"needs a letter.*'Paris'"):
        reward("multiple_choice", "Paris", "B")


def test_registry() -> None:
    with pytest.raises(VerifierError, match=r"'nope'\. Known: exact_match, .*math, multiple_choice, numeric"):
        get_verifier("nope")
    with pytest.raises(VerifierError, match="'math' is taken"):
        register_verifier("math")(lambda task, text: 1.0)


def test_a_verifier_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        def __call__(self, task: Task, text: str) -> float:
            raise AssertionError("batch is there")

        def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
            return [len(text) / 10 for text in texts]

    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", dict(VERIFIERS))
    register_verifier("length")(Counting())
    tasks = [Task("p", answer="a", verifier=name) for name in ("length", "exact_match", "length", "exact_match")]
    assert verify_batch(tasks, ["xx", "a", "xxx", "b"]) == [0.2, 1.0, 0.3, 0.0]
    with pytest.raises(ValueError, match="zip"):
        verify_batch(tasks, ["xx"])


@given(st.text(st.sampled_from("0123456789.,-−$%/eE \\frac{}ab\n#:answer is"), max_size=80))
def test_no_text_breaks_a_verifier(text: str) -> None:
    for name, gold in (("exact_match", "a"), ("multiple_choice", "B"), ("numeric", "3")):
        assert reward(name, gold, text) in (0.0, 1.0)


@given(st.integers(-(10**12), 10**12), st.integers(1, 999))
def test_numbers_are_read_as_they_are_written(top: int, bottom: int) -> None:
    assert parse_number(f"so {top}") == top
    assert parse_number(f"= {top:,} eggs") == top
    assert parse_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert parse_number(f"{top / 100:.2f}") == Fraction(f"{top / 100:.2f}")
    assert reward("numeric", str(top), f"{top + 1}") == 0.0


def test_a_number_with_too_many_digits_is_no_number() -> None:
    assert parse_number("9" * 6000) is None
    assert parse_number("7 or " + "9" * 6000) is None


def test_where_the_final_answer_is_found() -> None:
    assert final_answer(r"#### 3, \boxed{4}") == "4"
    assert final_answer("#### 3\n#### 4\n\nmore") == "4"
    assert final_answer("####") == ""
    assert final_answer("the answer is 4. I think.") == "4"
    assert final_answer("the answer is 4. Or not.") == ""
    assert final_answer("Answer: 1 2\n3 4") == "1 2\n3 4"
    assert final_answer(" 4 ") == "4"
    assert final_answer(r"\boxed{3} or \boxed{4}") == "$3$ or $4$"
    assert final_answer(r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$") == "$1$ and $2$ and $3$"
    assert final_answer("<think>Answer: 3</think>4") == "4"
    assert final_answer("The answer is 3</think>") == ""
    assert final_answer("4\n<think>The answer is 3") == "4"
    assert final_answer("<answer>3</answer> or <answer>\n4\n</answer>. The answer is 5") == "4"
    assert final_answer("<answer>3</answer> <answer>4") == "4"
    assert final_answer("```\n4\n```") == "4"
    assert final_answer("Answer:\n```text\n4\n```\n3") == "4"
    assert final_answer("### Answer\n\n4\n\n3") == "4"
    assert final_answer("~~3~~ 4") == "4"
    assert final_answer("The answer is 4. The wrong answer is 3.") == "4"
    assert final_answer("#### Step 2\n40 + 33\nAnswer: 73") == "73"
    assert final_answer("#### Final answer\n73") == "73"
    assert final_answer("#### \\frac{1}{2}\nmore") == "\\frac{1}{2}"
    assert boxed_answer(r"\boxed{1} \boxed{\frac{{1}}{\{2}} \boxed{3") == r"\frac{{1}}{\{2}"
    assert boxed_answer(r"} \boxed{\boxed{3}}") == "3"
    assert boxed_answer("x") is None


def test_degenerate_text_is_judged_quickly() -> None:
    texts = [part * 6000 for part in ("1", " ", "-", "1,", "1/", "$", "* ", r"\boxed{", "answer:", "{}", "A ", "(")]
    start = time.perf_counter()
    for text in texts:
        for name, gold in (("exact_match", "a"), ("multiple_choice", "B"), ("numeric", "3")):
            reward(name, gold, text)
    assert time.perf_counter() - start < 5.0


def test_gsm8k_proves_itself(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k-train.jsonl").read_text().splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    golds = [solution.rsplit("####")[-1].strip() for solution in solutions]
    tasks = [Task("p", answer=gold, verifier="numeric") for gold in golds]
    assert set(verify_batch(tasks, golds)) == {1.0}
    assert set(verify_batch(tasks, solutions)) == {1.0}
    assert set(verify_batch(tasks, [f"The answer is ${gold}." for gold in golds])) == {1.0}
    assert set(verify_batch(tasks, [f"#### {int(gold.replace(',', '')) + 1}" for gold in golds])) == {0.0}
    assert set(verify_batch(tasks, [f"#### {gold}7" for gold in golds])) == {0.0}


def test_math_500_proves_itself(shared_data: Path) -> None:
    rows = json.loads((shared_data / "math-500.json").read_text())
    tasks = [Task(row["problem"], answer=row["answer"], verifier="math") for row in rows]
    answers = [row["answer"] for row in rows]
    assert set(verify_batch(tasks, answers)) == {1.0}
    assert set(verify_batch(tasks, [row["solution"] for row in rows])) == {1.0}
    assert set(verify_batch(tasks, [rf"It is \boxed{{{answer}+1}}" for answer in answers])) == {0.0}
    assert set(verify_batch(tasks, ["10007"] * len(tasks))) == {0.0}
    assert set(verify_batch(tasks, [f"The answer is ${answer}$." for answer in answers])) == {1.0}
    assert set(verify_batch(tasks, [f"The answer is **{answer}**." for answer in answers])) == {1.0}


def test_math_500_is_recognised_in_another_spelling(shared_data: Path) -> None:
    rows = [row for row in json.loads((shared_data / "math-500.json").read_text()) if row["answer"].isdigit()]
    tasks = [Task("p", answer=row["answer"], verifier="math") for row in rows]
    assert len(tasks) > 200
    assert set(verify_batch(tasks, [rf"\boxed{{\frac{{{2 * int(row['answer'])}}}{{2}}}}" for row in rows])) == {1.0}
