"""Columns that are not read are told, once a file; those about a row are not, nor where columns were named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from hf_mass.errors import DataWarning
from hf_mass.tasks.problems import read_problem_file
from hf_mass.tasks.reading import read_set
from hf_mass.tasks.rows import load_few_shot_file
from hf_mass.tasks.sources import Columns, load_tasks
from hf_mass.tasks.tables import TableForm

PAIR = {"question": "2 + 2", "answer": "4"}
TOLD = "columns that are not read: 'hint'; read: 'question', 'answer'"


def told(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in seen if issubclass(each.category, DataWarning)]


def rows_file(folder: Path, row: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "question": f"{n} + 2"}) + "\n" for n in range(4)))
    return file


def test_a_column_that_is_not_read_is_told_once(tmp_path: Path) -> None:
    file = rows_file(tmp_path, {**PAIR, "hint": "add"})
    for call in (lambda: read_problem_file(file), lambda: read_set(str(file), demonstrations=2)):
        (line,) = told(call)
        assert TOLD in line
    named = TableForm(input_column="question", output_column="answer")
    assert told(lambda: read_set(str(file), demonstrations=2, form=named)) == []
    assert TOLD in told(lambda: read_problem_file(file, form=TableForm(input_column="question")))[0]
    assert told(lambda: load_few_shot_file(file, "question", "answer", demonstrations=2)) == []


def test_of_default_columns_in_python(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"problem": "2 + 2", "answer": "4", "input": "a", "output": "b", "context": "sums"}
    file.write_text((json.dumps(row) + "\n") * 3)
    (line,) = told(lambda: load_tasks(file))
    assert "columns that are not read: 'input', 'output', 'context'; read: 'problem', 'answer'" in line
    assert told(lambda: load_tasks(file, columns=Columns(solution=None))) == []
    (line,) = told(lambda: load_few_shot_file(file, demonstrations=1))
    assert "'problem', 'answer', 'context'; read: 'input', 'output'" in line


@pytest.mark.parametrize(
    "column", ["id", "task_id", "Index", "unique_id", "split", "Source", "Unnamed: 0", "instruction"]
)
def test_columns_about_a_row_are_not_told(column: str, tmp_path: Path) -> None:
    file = rows_file(tmp_path, {**PAIR, column: "x"})
    assert told(lambda: read_problem_file(file)) == told(lambda: read_set(str(file), demonstrations=2)) == []


def test_empty_columns_and_conversations(tmp_path: Path) -> None:
    assert told(lambda: read_problem_file(rows_file(tmp_path, {**PAIR, "hint": None}))) == []
    file, chat = tmp_path / "chat.jsonl", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file.write_text((json.dumps({"messages": chat, "system": "Be brief.", "hint": "b"}) + "\n") * 3)
    (line,) = told(lambda: read_problem_file(file))
    assert "columns that are not read: 'hint'; read: 'messages', 'system'" in line
