"""Tasks built by hand: from solved pairs, and with another query."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from hf_mass.errors import DataError
from hf_mass.tasks.task import INSTRUCTION, Demonstration, Task

PAIRS = [("cat", "cats"), ("box", "boxes")]


def test_a_task_from_pairs() -> None:
    task = Task.from_pairs(PAIRS, "fox", answer="foxes")
    assert task == Task("fox", (Demonstration("cat", "cats"), Demonstration("box", "boxes")), answer="foxes")
    assert Task.from_pairs((list(pair) for pair in PAIRS), "fox", "foxes") == task  # type: ignore[misc]
    named = Task.from_pairs(PAIRS, "fox", instruction="Give the plural.", id="plurals", verifier="identical")
    assert (named.fields, named.id, named.verifier, named.answer) == (
        {INSTRUCTION: "Give the plural."},
        "plurals",
        "identical",
        None,
    )
    assert Task.from_pairs([], "What is 1 + 1?").demonstrations == ()


@pytest.mark.parametrize(
    ("pairs", "query", "answer", "message"),
    [
        ([*PAIRS, ("dog",)], "fox", None, r"pairs\[2\] is \('dog',\)\. Give two texts"),
        ([("cat", "cats", "x")], "fox", None, r"pairs\[0\] is \('cat'"),
        ([("cat", 3)], "fox", None, r"pairs\[0\] is \('cat', 3\)"),
        ([("cat", " ")], "fox", None, r"pairs\[0\] is \('cat', ' '\)"),
        (["ab"], "fox", None, r"pairs\[0\] is 'ab'"),
        ({"cat": "cats"}, "fox", None, r"pairs\[0\] is 'cat'"),
        (PAIRS, "", None, r"Task\.from_pairs: query is ''\. Give a text"),
        (PAIRS, None, None, r"query is None\. Give a text"),
        (PAIRS, "fox", "", r"answer is ''\. Give a text"),
        (PAIRS, "fox", 3, r"answer is 3\. Give a text"),
    ],
)
def test_pairs_that_are_refused(pairs: Any, query: Any, answer: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task.from_pairs(pairs, query, answer)


def test_another_query() -> None:
    task = Task("fox", (Demonstration("cat", "cats"),), solution="s", answer="foxes", id="t", fields={"a": "b"})
    other = task.with_query("dish\n of  fish", "dishes")
    assert (other.problem, other.answer, other.solution) == ("dish\n of  fish", "dishes", None)
    assert (other.demonstrations, other.fields, other.id) == (task.demonstrations, task.fields, "t#dish of fish")
    assert task.with_query("x" * 99).id == "t#" + "x" * 40
    assert task.with_query("dish").answer is None
    with pytest.raises(DataError, match=r"Task\.with_query: query is ' '\. Give a text"):
        task.with_query(" ")


def test_tasks_import_nothing_heavy() -> None:
    program = """
import sys, hf_mass.tasks.task, hf_mass.tasks.verifiers
sys.exit(", ".join({"datasets", "numpy", "math_verify", "torch"} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
