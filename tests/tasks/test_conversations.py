"""Chats as rows: of solved examples, and of problems with what came before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_mass.errors import DataError
from hf_mass.tasks.problems import read_problem
from hf_mass.tasks.reading import read_set
from hf_mass.tasks.rows import load_few_shot_file
from hf_mass.tasks.sources import Columns, load_tasks, task_from_row


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_solved_examples(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "e <|im_end|>"}]}]
    text = lines({"messages": chat("a", "b")}, {"messages": sharegpt}, {"messages": parts})
    (task,) = read_problem(text).tasks
    assert [(d.question, d.answer) for d in task.demonstrations] == [("a", "b"), ("c", "d")]
    assert (task.problem, task.fields) == ("e <|im_end|>", {})
    (tmp_path / "a.jsonl").write_text(lines(*({"messages": chat(f"{n}", f"{n}!", system="s")} for n in range(4))))
    for tasks in (
        load_few_shot_file(tmp_path / "a.jsonl", demonstrations=3),
        read_set(f"{tmp_path}/a.jsonl", None, 3).tasks,
    ):
        assert tasks[0].answer == f"{tasks[0].problem}!" and tasks[0].fields["instruction"] == "s"


def test_problems_with_a_reply(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"messages": chat("a", "b", "c", "so #### 4", system="s")}))
    (task,) = load_tasks(tmp_path / "a.jsonl")
    assert (task.problem, task.solution, task.answer, task.conversational) == ("c", "so #### 4", "4", True)
    assert [role for role, _ in task.history] == ["system", "user", "assistant"]
    row = {"prompt": chat("q"), "completion": [{"role": "assistant", "content": "7"}]}
    assert task_from_row(row, Columns(problem="prompt", solution="completion")).answer == "7"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"messages": chat("a", "b", "c")}], r"row 0 .*'messages': a solved example is one message of the user"),
        ([{"messages": chat("a", "b")}, {"messages": "x"}], "row 1 .*a list of messages, found 'x'"),
        ([{"messages": chat("a", "b")}, {"messages": [{"role": "user"}]}], "row 1 .*a text role and content"),
        (
            [{"messages": chat("a", "b", system="s")}, {"messages": chat("a")}],
            "different instructions, or system messages",
        ),
    ],
)
def test_chats_that_are_refused(rows: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_problem(lines(*rows), kind=".jsonl")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tools": [{"name": "f"}]}, "the row has 'tools'"),
        (
            {"messages": [*chat("a"), {"role": "assistant", "content": "b", "tool_calls": [1]}]},
            "a message has 'tool_calls'",
        ),
        (
            {"messages": [*chat("a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}]},
            "'reasoning_content'",
        ),
        ({"system": "t", "messages": chat("a", "b", system="s")}, "the row has 'system' 't' as well"),
        ({"system": 3}, "the row has 'system' 3"),
    ],
)
def test_what_would_be_lost_of_a_chat_is_refused(more: dict[str, Any], told: str) -> None:
    row = {"messages": chat("a", "b"), **more}
    with pytest.raises(DataError, match=told):
        read_problem(lines(row, row))
    with pytest.raises(DataError, match=told):
        task_from_row(row)


def test_a_system_column() -> None:
    row = {
        "system": "s",
        "tools": [],
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }
    assert read_problem(lines(row, row)).tasks[0].fields == {"instruction": "s"}
    assert task_from_row(row).history == (("system", "s"),)
    assert task_from_row({**row, "system": None}).history == ()
