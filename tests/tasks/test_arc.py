"""Files of puzzles as they lie around: lists, JSON lines, pairs, and other files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_mass.errors import DataError, DataWarning
from hf_mass.tasks.arc import load_grid_tasks
from hf_mass.tasks.problems import read_problem, read_problem_file
from hf_mass.tasks.reading import read_many, read_one, read_set
from hf_mass.tasks.sources import load_tasks

PAIR = {"input": [[0, 1]], "output": [[1, 0]]}
PUZZLE = {"train": [PAIR], "test": [PAIR]}


def write(path: Path, *contents: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, contents)))
    return path


def test_a_puzzle_in_a_list(tmp_path: Path) -> None:
    for file in (write(tmp_path / "a.json", [PUZZLE]), write(tmp_path / "a.jsonl", PUZZLE)):
        (task,) = read_one([str(file)]).tasks
        assert (task.problem, task.answer) == ("0 1", "1 0")
        assert [task.id for task in load_grid_tasks(file)] == [task.id for task in load_tasks(file)] == ["a"]


def test_lists_of_puzzles(tmp_path: Path) -> None:
    for file in (write(tmp_path / "a.json", [PUZZLE] * 2), write(tmp_path / "a.jsonl", PUZZLE, PUZZLE)):
        assert [problem.name for problem in read_many(str(file))] == ["a-0", "a-1"]
        assert [task.id for task in read_set(str(file)).tasks] == ["a-0", "a-1"] == [t.id for t in load_tasks(file)]
        with pytest.raises(DataError, match=r"holds 2 puzzles.*--each"):
            read_one([str(file)])


def test_a_file_of_kaggle_says_how_it_is_taken(tmp_path: Path) -> None:
    file = write(tmp_path / "arc-agi_test_challenges.json", {"x": PUZZLE, "y": PUZZLE})
    with pytest.raises(DataError, match="one of these puzzles; take all of them by --each"):
        read_problem_file(file)
    assert [problem.name for problem in read_many(str(file))] == ["x", "y"]


def test_pairs_under_examples() -> None:
    (task,) = read_problem(json.dumps({"name": "x", "examples": [PAIR, {"input": [[5, 6]]}]})).tasks
    assert (task.problem, len(task.demonstrations)) == ("5 6", 1)
    (task,) = read_problem(json.dumps({"examples": [{"input": "a", "target": "b"}] * 3})).tasks
    assert (task.answer, len(task.demonstrations)) == ("b", 2)


@pytest.mark.parametrize(
    "other", [{"version": 1, "train": 400}, {"name": "x", "tags": ["a"]}, ["id1", "id2"], [{"id": 1}]]
)
def test_another_file_beside_puzzles(tmp_path: Path, other: Any) -> None:
    write(tmp_path / "set" / "a.json", PUZZLE)
    write(tmp_path / "set" / "_metadata.json", other)
    for load in (load_grid_tasks, load_tasks):
        with pytest.warns(DataWarning, match=r"files without grid puzzles are left out: _metadata\.json"):
            assert [task.id for task in load(tmp_path / "set")] == ["a"]
    if isinstance(other, dict):
        with pytest.warns(DataWarning, match=r"no problem are left out: _metadata\.json"):
            assert [problem.name for problem in read_many(str(tmp_path / "set"))] == ["a"]


@pytest.mark.parametrize("broken", [{"train": [PAIR]}, [PAIR], {"a": [[[1]]]}, {"a": PUZZLE, "b": {"train": []}}])
def test_a_puzzle_gone_wrong_is_never_left_out(tmp_path: Path, broken: Any) -> None:
    write(tmp_path / "a.json", PUZZLE)
    write(tmp_path / "b.json", broken)
    with pytest.raises(DataError, match=r"b\.json.*is no grid puzzle"):
        load_grid_tasks(tmp_path)
