"""What `hf-mass` takes for a problem, and for a set of tasks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLIPS, FRUIT, run, two_questions, write

from hf_mass.cli.reading import WORLD_MODEL, read_set
from hf_mass.errors import DataError, VerifierError
from hf_mass.tasks.reading import read_many, read_one

ROWS = [{"input": f"{n}", "output": f"{n + 1}"} for n in range(12)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


# -- one problem -------------------------------------------------------------------------------------------------------


def test_words_are_lines() -> None:
    problem = read_one(["a -> b", "c => d", "e"])
    assert problem.kind == "texts" and problem.tasks[0].problem == "e" and len(problem.tasks[0].demonstrations) == 2
    assert read_one(["a -> b\nc -> d\ne"]).tasks[0].demonstrations == problem.tasks[0].demonstrations
    assert read_one(["What is 1 + 1?"]).tasks[0].demonstrations == ()
    assert read_one(["x" * 2000]).tasks[0].problem == "x" * 2000  # too long for a file's name


def test_files_are_read_by_their_ending(tmp_path: Path) -> None:
    assert read_one([str(write(tmp_path / "a.json", FLIPS))]).kind == "grids"
    assert len(read_one([str(write_lines(tmp_path / "b.jsonl", ROWS))]).tasks[0].demonstrations) == 11
    (tmp_path / "c.csv").write_text("input,output\n1,2\n2,3\n3,\n")
    assert read_one([str(tmp_path / "c.csv")]).tasks[0].problem == "3"
    (tmp_path / "d e.txt").write_text("1 -> 2\n2")
    assert read_one([str(tmp_path / "d e.txt")]).tasks[0].problem == "2"


# -- many problems -----------------------------------------------------------------------------------------------------


def test_a_folder_has_a_problem_a_file(tmp_path: Path) -> None:
    write(tmp_path / "b" / "two.json", two_questions())
    write(tmp_path / ".hidden" / "x.json", FLIPS)
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "README.md").write_text("nothing")
    assert [(p.name, p.kind, len(p.tasks)) for p in read_many(str(tmp_path))] == [
        ("two", "grids", 2),
        ("rows", "texts", 1),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of one of"):
        read_many(str(tmp_path / "empty"))


def test_kaggle_files_with_and_without_solutions(tmp_path: Path) -> None:
    asked = {**FLIPS, "test": [{"input": [[1, 2]]}, {"input": [[3, 4]]}]}
    file = write(tmp_path / "arc_evaluation_challenges.json", {"one": asked, "two": FLIPS})
    for given in (file, tmp_path):
        found = read_many(str(given))
        assert [(p.name, len(p.tasks)) for p in found] == [("one", 2), ("two", 1)]
    assert found[0].tasks[0].answer is None
    write(tmp_path / "arc_evaluation_solutions.json", {"one": [[[2, 1]], [[4, 3]]], "two": [[[2, 1], [4, 3]]]})
    assert [t.answer for t in read_many(str(file))[0].tasks] == ["2 1", "4 3"]


def test_objects_one_a_line_or_in_a_list(tmp_path: Path) -> None:
    rows = [{**FRUIT, "id": "first", "domain": "fruit", "verifier": "numeric"}, FRUIT]
    for file in (write_lines(tmp_path / "t.jsonl", rows), write(tmp_path / "t.json", rows)):
        first, second = read_many(str(file))
        assert (first.name, second.name) == ("first", "t_1")
        task = first.tasks[0]
        assert (task.domain, task.verifier, task.fields) == ("fruit", "numeric", {"family": "sue"})
    grids = {"problem": "1 2", "demonstrations": [{"input": "3 4", "output": "4 3"}]}
    assert read_many(str(write_lines(tmp_path / "g.jsonl", [grids])))[0].kind == "grids"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([FRUIT, {"question": "x"}], "has no 'problem'"),
        ([FRUIT, 3], "row 1 .*is int 3"),
        ([{**FRUIT, "domain": 3}], "domain is 3"),
        ([{**FRUIT, "nothing": 3}], "unknown key 'nothing'"),
    ],
)
def test_bad_objects_are_told_by_number(rows: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        read_many(str(write_lines(tmp_path / "t.jsonl", rows)))


def test_an_unknown_verifier(tmp_path: Path) -> None:
    with pytest.raises(VerifierError):
        read_set(str(write_lines(tmp_path / "t.jsonl", [FRUIT])), verifier="magic")
    with pytest.raises(VerifierError):
        read_many(str(write_lines(tmp_path / "t.jsonl", [{**FRUIT, "verifier": "magic"}])))


# -- sets of tasks -----------------------------------------------------------------------------------------------------


def test_the_designed_world() -> None:
    found = read_set("conventions:test_families", limit=3)
    assert len(found.tasks) == 3 and found.kind == "texts" and found.model == WORLD_MODEL
    assert len(read_set("conventions:test_families").tasks) == 50


def test_grids_without_an_answer_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set" / "two.json", two_questions())
    found = read_set(str(tmp_path / "set"))
    assert found.name == "set" and found.kind == "grids" and [t.answer for t in found.tasks] == ["2 1\n4 3"]
    write(tmp_path / "set" / "two.json", {**FLIPS, "test": [{"input": [[1]]}]})
    with pytest.raises(DataError, match="None of the 1 tasks"):
        read_set(str(tmp_path / "set"))


def test_rows_of_a_few_shot_file(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.json", ROWS)
    found = read_set(str(file), demonstrations=9, verifier="numeric")
    assert found.kind == "texts" and len(found.tasks) == 3 and found.tasks[0].verifier == "numeric"
    grids = [{"input": [[n, 0]], "output": [[0, n]]} for n in range(5)]
    assert read_set(str(write_lines(tmp_path / "g.jsonl", grids)), demonstrations=3).kind == "grids"


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"note": "x", "question": f"{n}", "answer": f"{n + 1}"} for n in range(4)]
    tasks = read_set(str(write(tmp_path / "rows.json", rows)), demonstrations=3).tasks
    assert len(tasks) == 1 and tasks[0].answer == str(int(tasks[0].problem) + 1)
    for bad in ([*rows, {"question": "5"}], [{"a": 1, "b": 2}] * 4):
        with pytest.raises(DataError, match=r"rows\.json.*Columns found: .*Call them input and output\."):
            read_set(str(write(tmp_path / "rows.json", bad)), demonstrations=3)
    with pytest.raises(DataError, match=r"'answer'.*found None\. Fill it"):  # the columns are there, a value is not
        read_set(str(write(tmp_path / "rows.json", [*rows, {**rows[0], "answer": None}])), demonstrations=3)


def test_one_object_is_a_problem(tmp_path: Path) -> None:
    file = str(write(tmp_path / "peach.json", FRUIT))
    (problem,), tasks = read_many(file), read_set(file, verifier="identical").tasks
    assert problem.tasks == tasks and tasks[0].problem == "peach"


def test_no_world_and_no_file() -> None:
    with pytest.raises(DataError, match=r"no file or folder 'nowhere'.*conventions:<split>"):
        read_set("nowhere")


def test_objects_with_their_own_verifier(tmp_path: Path) -> None:
    rows = [{**FRUIT, "verifier": "numeric"}, FRUIT, {**FRUIT, "answer": None}]
    found = read_set(str(write_lines(tmp_path / "t.jsonl", rows)), verifier="multiple_choice")
    assert [task.verifier for task in found.tasks] == ["numeric", "multiple_choice"]


def test_big_bench_hard_in_part(tmp_path: Path) -> None:
    examples = [{"input": f"not {n} is", "target": "True" if n % 2 else "False"} for n in range(14)]
    write(tmp_path / "boolean_expressions.json", {"examples": examples})
    found = read_set(str(tmp_path), demonstrations=10)
    assert found.tasks and found.tasks[0].domain == "boolean_expressions" and len(found.tasks[0].demonstrations) == 10


def test_quiet_is_quiet_about_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("input,output\né,1\n".encode("cp1252"))
    for quiet in (False, True):
        with warnings.catch_warnings(record=True) as told:
            result = run("solve", *["-q"] * quiet, tmp_path / "a.csv", code=1)
        assert "no solved example" in result.stderr
        assert ["read as cp1252" in str(warning.message) for warning in told] == [True] * (not quiet)
