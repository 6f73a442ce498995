"""Few-shot task sets: every layout of the ARC family, a user's own file, and the errors for bad data."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.tasks.arc import load_grid_tasks
from hf_mass.tasks.grids import parse_grid
from hf_mass.tasks.rows import draw_demonstrations, load_few_shot_file, read_rows
from hf_mass.tasks.sources import load_tasks, validate_tasks
from hf_mass.tasks.task import Demonstration

PAIR = {"input": [[0, 1], [2, 3]], "output": [[3, 2], [1, 0]]}


def puzzle(tests: int = 1) -> dict[str, Any]:
    return {"train": [PAIR, PAIR], "test": [{"input": [[n, 5]], "output": [[5, n]]} for n in range(tests)]}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def kaggle(folder: Path, split: str = "evaluation", ids: str = "ab", solved: bool = True) -> Path:
    """A Kaggle pair with one puzzle for each letter of `ids`, which have 1, 2, ... test inputs."""
    puzzles = {key: puzzle(tests) for tests, key in enumerate(ids, start=1)}
    if solved:
        outputs = {key: [pair["output"] for pair in value["test"]] for key, value in puzzles.items()}
        write(folder / f"arc-agi_{split}_solutions.json", outputs)
    hidden = {
        key: {"train": value["train"], "test": [{"input": pair["input"]} for pair in value["test"]]}
        for key, value in puzzles.items()
    }
    return write(folder / f"arc-agi_{split}_challenges.json", hidden)


def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "set" / "Below" / "Below1.json", {"name": "extra keys do not matter", **puzzle(3)})
    write(tmp_path / "set" / "Above" / "Above1.json", puzzle())
    write(tmp_path / "set" / ".cache" / "Above1.json", "half written")
    write(tmp_path / "set" / "LICENSE.md", "free")
    tasks = load_grid_tasks(tmp_path / "set")
    assert [task.id for task in tasks] == ["Above1", "Below1_0", "Below1_1", "Below1_2"]
    assert [task.domain for task in tasks] == ["Above", "Below", "Below", "Below"]
    assert [task.fields["file"] for task in tasks] == ["Above/Above1.json"] + ["Below/Below1.json"] * 3
    assert {task.fields["source"] for task in tasks} == {"set"}
    assert (tasks[2].problem, tasks[2].answer) == ("1 5", "5 1")
    assert tasks[2].demonstrations == (Demonstration("0 1\n2 3", "3 2\n1 0"),) * 2
    assert load_grid_tasks(str(tmp_path / "set"), "Above")[0].id == "Above1"
    (alone,) = load_grid_tasks(tmp_path / "set" / "Above" / "Above1.json")
    assert (alone.id, alone.domain, alone.fields["file"]) == ("Above1", "Above", "Above1.json")


def test_files_of_one_name_do_not_share_demonstrations(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "1.json", puzzle())
    assert len({task.fields["file"] for task in load_grid_tasks(tmp_path)}) == 2


def test_the_splits_of_a_clone(tmp_path: Path) -> None:
    for split in ("training", "evaluation"):
        write(tmp_path / "data" / split / f"{split[0]}.json", puzzle())
    assert [task.id for task in load_grid_tasks(tmp_path, "training")] == ["t"]
    assert [task.id for task in load_grid_tasks(tmp_path / "data", "evaluation")] == ["e"]
    assert [task.domain for task in load_grid_tasks(tmp_path)] == ["evaluation", "training"]
    with pytest.raises(DataError, match=r"no sub-folder for the split 'test'.*one of \['evaluation', 'training'\]"):
        load_grid_tasks(tmp_path / "data", "test")


def test_a_kaggle_pair(tmp_path: Path) -> None:
    file = kaggle(tmp_path)
    write(tmp_path / "sample_submission.json", {})
    tasks = load_grid_tasks(file)
    assert [task.id for task in tasks] == ["a", "b_0", "b_1"]
    assert [task.answer for task in tasks] == ["5 0", "5 0", "5 1"]
    assert {task.domain for task in tasks} == {"evaluation"}
    assert [task.fields["file"].rsplit("#")[-1] for task in tasks] == ["a", "b", "b"]
    assert [(task.id, task.answer) for task in load_grid_tasks(tmp_path)] == [(task.id, task.answer) for task in tasks]
    assert load_grid_tasks(tmp_path, "evaluation") == load_grid_tasks(tmp_path)

    kaggle(tmp_path, "training", "xyz")
    assert load_grid_tasks(tmp_path, "training")[0].id == "x"
    for split in (None, "test"):
        with pytest.raises(DataError, match=rf"for the split {split!r}.*\['evaluation', 'training'\]"):
            load_grid_tasks(tmp_path, split)


def test_one_file_of_puzzles_with_their_outputs(tmp_path: Path) -> None:
    tasks = load_grid_tasks(write(tmp_path / "mine.json", {"a": puzzle(), "b": puzzle()}))
    assert [(task.id, task.domain, task.answer) for task in tasks] == [("a", "mine", "5 0"), ("b", "mine", "5 0")]


def test_missing_solutions(tmp_path: Path) -> None:
    file = kaggle(tmp_path, "test", solved=False)
    cure = r"test_challenges\.json: task 'a': test\[0\] has no output.*'arc-agi_test_solutions\.json'.*answers=False"
    with pytest.raises(DataError, match=cure):
        load_grid_tasks(file)
    assert [task.answer for task in load_grid_tasks(tmp_path, answers=False)] == [None] * 3
    solutions = tmp_path / "arc-agi_test_solutions.json"
    for value, message in (
        ({"a": [[[1]]]}, r"solutions\.json.*no solution for 1 of 2 challenges, the first 'b'"),
        ({"a": [[[1]]], "b": [[[1]]]}, "task 'b' has 2 test inputs but 1 solutions"),
        ({"a": [[[1]], [[1]]], "b": [[[1]]] * 2}, "task 'a' has 1 test inputs but 2 solutions"),
        ({"a": [[[1]]], "b": [[[1]], [[1], []]]}, r"task 'b': solution 1: row 1 is empty"),
        ({"a": 1}, r"no file of solutions.*an object with 1 keys"),
        ([1], r"no file of solutions.*a list of 1"),
    ):
        write(solutions, value)
        with pytest.raises(DataError, match=message):
            load_grid_tasks(file, answers=False)


def test_outputs_that_are_kept_back(tmp_path: Path) -> None:
    content = puzzle(2)
    del content["test"][0]["output"]
    content["test"][1]["output"] = None
    file = write(tmp_path / "t.json", content)
    with pytest.raises(DataError, match=r"t\.json: test\[0\] has no output\. Add it, or set answers=False"):
        load_grid_tasks(file)
    assert [task.answer for task in load_grid_tasks(file, answers=False)] == [None, None]


GRIDS_REFUSED = [[[1], [1, 2]], [[10]], [["1"]], [[True]], [[-1]], [[0.5]], [[]], [], "1", None, [1], {}]


@pytest.mark.parametrize(
    ("grid", "part", "number", "key"),
    [
        (grid, part, number, key)
        for grid in GRIDS_REFUSED
        for part, number in (("train", 1), ("test", 0))
        for key in ("input", "output")
        if (grid, part, key) != (None, "test", "output")  # which is an output that is kept back
    ],
)
def test_grids_that_are_refused(tmp_path: Path, grid: object, part: str, number: int, key: str) -> None:
    content = json.loads(json.dumps(puzzle()))
    content[part][number][key] = grid
    with pytest.raises(DataError) as caught:
        load_grid_tasks(write(tmp_path / "t.json", content))
    assert f"t.json: {part}[{number}] {key}" in str(caught.value)
    assert "Give" in str(caught.value) or "Colours are" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{half", "could not be read as JSON.*Correct or replace"),
        ("", "could not be read as JSON"),
        ([], "no grid puzzle, found a list of 0"),
        ({}, "no grid puzzle, found an empty object"),
        (7, "no grid puzzle, found int 7"),
        ({"train": [PAIR]}, "no grid puzzle, found an object with 1 keys, .'train'"),
        ({"train": {}, "test": []}, "no grid puzzle"),
        ({"a": [[[1]]]}, "no grid puzzle"),  # a file of solutions
        ({"train": [], "test": [PAIR]}, "'train' is empty. Give at least one pair"),
        ({"train": [PAIR], "test": []}, "'test' is empty. Give at least one pair"),
        ({"train": [{"input": [[1]]}], "test": [PAIR]}, r"train\[0\] has no 'output', found \['input'\]"),
        ({"train": [PAIR, [[1]]], "test": [PAIR]}, r"train\[1\] has no 'input', found \[\[1\]\]"),
        ({"train": [PAIR], "test": [{"output": [[1]]}]}, r"test\[0\] has no 'input', found \['output'\]"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    write(tmp_path / "a.json", puzzle())
    write(tmp_path / "bad.json", content)
    with pytest.raises(DataError, match=message) as caught:
        load_grid_tasks(tmp_path)
    assert "bad.json" in str(caught.value)


def test_paths_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder.*nowhere"):
        load_grid_tasks(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.* has no \.json files. Give a folder"):
        load_grid_tasks(tmp_path / "empty")
    with pytest.raises(DataError, match=r"empty.* has no \.json files"):
        load_grid_tasks(tmp_path, "empty")
    with pytest.raises(ConfigError, match="split 'training' is for folders"):
        load_grid_tasks(write(tmp_path / "t.json", puzzle()), "training")


ROWS = [{"input": f"{n}+1", "output": n + 1, "note": "a, b"} for n in range(8)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        return write(path, rows)
    if path.suffix == ".jsonl":
        return write(path, "".join(json.dumps(row) + "\n" for row in rows) + "\n")
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_users_file(tmp_path: Path, kind: str) -> None:
    file = write_rows(tmp_path / f"sums.{kind}", ROWS)
    tasks = load_few_shot_file(file, demonstrations=3, seed=1, verifier="numeric")
    assert len(tasks) == 5
    assert {task.demonstrations for task in tasks} == {tasks[0].demonstrations}
    pairs = [(d.question, d.answer) for d in tasks[0].demonstrations] + [(t.problem, t.answer) for t in tasks]
    assert sorted(pairs) == [(f"{n}+1", str(n + 1)) for n in range(8)]
    numbers = [int(task.id.removeprefix("sums_")) for task in tasks]
    assert numbers == sorted(numbers)
    assert [task.problem for task in tasks] == [f"{n}+1" for n in numbers]
    assert {(t.domain, t.verifier, t.fields["file"]) for t in tasks} == {("sums", "numeric", file.name)}
    validate_tasks(tasks, need_gold=True, need_demonstrations=True)
    assert load_few_shot_file(str(file), demonstrations=3, seed=1, verifier="numeric") == tasks
    draws = {load_few_shot_file(file, demonstrations=3, seed=seed)[0].demonstrations for seed in range(5)}
    assert len(draws) > 1
    (task, *_) = load_few_shot_file(file, "output", "note", demonstrations=7)
    assert (task.problem.isdigit(), task.answer) == (True, "a, b")


def test_a_users_grids(tmp_path: Path) -> None:
    file = write(tmp_path / "grids.jsonl", "\n".join(json.dumps(PAIR) for _ in range(3)))
    tasks = load_few_shot_file(file, demonstrations=2)
    assert (tasks[0].problem, tasks[0].demonstrations[0].answer) == ("0 1\n2 3", "3 2\n1 0")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "unknown kind '.txt'. Convert"),
        ("a.json", {"rows": []}, "an object with 1 keys.*Expected a list"),
        ("a.json", "[{", "could not be read as JSON"),
        ("a.json", [], "has 0 examples"),
        ("a.jsonl", '{"input": 1}\n{oops\n', "could not be read.*one object a line"),
        ("a.jsonl", '[1, 2]\n{"input": 1, "output": 2}\n', "row 0 .*is a list of 2"),
        ("a.json", [{"input": 1, "output": 2}, {"input": 1, "target": 2}], "row 1 .*no column 'output'.*'target'.*set"),
        ("a.json", [{"input": 1, "output": None}], "row 0 .*'output'.*found None"),
        ("a.json", [{"input": " ", "output": 1}], "row 0 .*'input'.*found ' '"),
        ("a.json", [{"input": float("nan"), "output": 1}], "row 0 .*'input'.*found nan"),
        ("a.json", [{"input": {}, "output": 1}], "row 0 .*'input'.*found {}"),
        ("a.json", [{"input": [[1], [1, 2]], "output": [[1]]}], "row 0 .*'input'.*ragged"),
        ("a.json", [{"input": [[1]], "output": [[11]]}], "row 0 .*'output'.*11"),
        ("a.csv", "", "has 0 examples"),
        ("a.csv", "input,output\nx\n", "row 0 .*'output'.*found None"),
        ("a.csv", "input,output\nx,y,z\n", r"row 0 .*more values than.*\['z'\]"),
        ("a.csv", 'input,output\n"x,y\n', "could not be read"),
        ("a.csv", "question,answer\nx,y\n", r"no column 'input'.*\['answer', 'question'\]"),
        ("a.json", [{"input": 1, "output": 2}] * 10, "has 10 examples.*10 demonstrations. Add"),
    ],
)
def test_users_files_that_are_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(DataError, match=f"(?i){message}") as caught:
        load_few_shot_file(write(tmp_path / name, content))
    assert name in str(caught.value)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file.*nowhere\.csv"):
        load_few_shot_file(tmp_path / "nowhere.csv")
    file = write(tmp_path / "a.json", ROWS)
    with pytest.raises(ConfigError, match="demonstrations must be a whole number of at least 1, got 0"):
        load_few_shot_file(file, demonstrations=0)
    with pytest.raises(VerifierError, match="'exact'"):
        load_few_shot_file(file, verifier="exact")
    (tmp_path / "latin.csv").write_bytes(b"input,output\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"latin\.csv.*no text in UTF-8"):
        load_few_shot_file(tmp_path / "latin.csv")


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 10**9))
def test_a_draw_parts_the_rows(total: int, count: int, seed: int) -> None:
    drawn, rest = draw_demonstrations(total, count, seed)
    assert sorted(drawn + rest) == list(range(total))
    assert len(drawn) == min(count, total)
    assert draw_demonstrations(total, count, seed) == (drawn, rest)


def test_every_row_is_drawn_about_as_often() -> None:
    counts = Counter(number for seed in range(2000) for number in draw_demonstrations(8, 2, seed)[0])
    assert all(abs(counts[number] - 500) < 100 for number in range(8))


@pytest.mark.parametrize(
    ("name", "split", "files", "domains"),
    [("1d-arc", None, None, 18), ("mini-arc", None, 75, 1), ("arc-agi-1", "evaluation", 400, 1)],
)
def test_benchmarks(shared_data: Path, name: str, split: str | None, files: int | None, domains: int) -> None:
    tasks = load_grid_tasks(shared_data / name, split)
    validate_tasks(tasks, need_gold=True, need_demonstrations=True)
    within = shared_data / name / (split or "")
    assert len({task.fields["file"] for task in tasks}) == len(list(within.rglob("*.json")))
    assert files is None or len({task.fields["file"] for task in tasks}) == files
    assert len({task.domain for task in tasks}) == domains
    assert all(parse_grid(task.answer or "") for task in tasks)
    assert load_tasks(within) == load_grid_tasks(within)


def test_the_papers_80_tasks_are_found(shared_data: Path) -> None:
    with (shared_data / "arc-agi-1" / "ttt-paper-80-tasks.csv").open() as stream:
        wanted = {row["task_id"] for row in csv.DictReader(stream)}
    stems = {Path(task.fields["file"]).stem for task in load_grid_tasks(shared_data / "arc-agi-1", "evaluation")}
    assert len(wanted) == 80
    assert wanted <= stems


def test_json_lines_are_read_under_either_ending(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS)) + "\n\n"
    (tmp_path / "a.json").write_text(lines)
    (tmp_path / "a.jsonl").write_text(lines)
    assert read_rows(tmp_path / "a.json") == read_rows(tmp_path / "a.jsonl") == ROWS
    (tmp_path / "a.json").write_text(lines + "{half")
    with pytest.raises(DataError, match=r"a\.json' could not be read as JSON: line 10, column 2"):
        read_rows(tmp_path / "a.json")
