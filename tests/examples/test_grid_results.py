"""The results script of test-time training: every row from one run a variant, resumed, reported from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from hf_mass.evaluation.statistics import mean_interval
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.voting import Prediction
from hf_mass.training.ttt_results import TaskResult
from hf_mass.training.ttt_trainer import TTTTrainer
from research.grids import report as ttt_report
from research.grids import results as results_ttt

SMALL = ROOT / "hf_mass" / "assets" / "grids-small"
REPORTS = ROOT / "examples" / "results" / "ttt"


def arguments(folder: Path, *further: str) -> Any:
    words = ["--base", str(SMALL), "--runs", str(folder / "runs"), "--output", str(folder / "out"), *further]
    return results_ttt.parse(words)


def puzzle(folder: Path, name: str, text: str) -> None:
    pair = {"input": [[int(c) for c in text]], "output": [[int(c) for c in reversed(text)]]}
    other = {"input": [[1, 0, 2]], "output": [[2, 0, 1]]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"train": [pair, other, pair], "test": [other]}))


def test_every_variant_runs_and_its_rows_are_in_the_report(tmp_path: Path) -> None:
    for number in range(2):
        puzzle(tmp_path / "1d-arc" / "1d_mirror", f"m{number}", "1203")
    few = arguments(tmp_path, "--data", str(tmp_path), "--sets", "1d-arc", "--set", "max_examples=4")
    results_ttt.run_set(few, "1d-arc")
    found = json.loads(results_ttt.file_of(few, "1d-arc").read_text())
    assert set(found["variants"]) == set(results_ttt.VARIANTS)
    text = ttt_report.write_report(few.output)
    assert all(name in text for name, _, _ in ttt_report.ROWS)
    assert (few.output / "report-grids-small.md").is_file() and (few.output / "report-grids-small.png").is_file()


def test_a_second_run_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puzzle(tmp_path / "1d-arc" / "1d_mirror", "m", "1203")
    few = arguments(tmp_path, "--data", str(tmp_path), "--variants", "ttt", "--set", "max_examples=4")
    results_ttt.run_set(few, "1d-arc")
    first = results_ttt.file_of(few, "1d-arc").read_text()
    monkeypatch.setattr(TTTTrainer, "adapt", lambda *_: pytest.fail("trained again"))
    results_ttt.run_set(few, "1d-arc")
    assert results_ttt.file_of(few, "1d-arc").read_text() == first


def test_outcomes_rank_the_same_predictions_by_each_vote() -> None:
    """Two wrong answers under a flip outvote the right one, unless votes are counted within transformations first."""
    task = Task("1 2", (Demonstration("1", "1"),), answer="2 1", id="t")
    given = [("2 1", "identity")] * 2 + [("1 1", "flip rows")] * 3 + [("2 1", "flip columns")]
    result = TaskResult(task, ("1 1",), tuple(Prediction(a, t) for a, t in given))
    (row,) = results_ttt.outcomes([result])
    assert [row[v]["pass_1"] for v in ("first", "hierarchical", "flat", "rescore")] == [True, True, True, False]
    assert row["flat"]["pass_2"] and row["first"]["cells"] == 1.0 and row["rescore"]["cells"] == 0.5


def test_goals_are_read_off_the_outcomes(tmp_path: Path) -> None:
    def rows(right: int) -> dict[str, Any]:
        vote = [{"pass_1": n < right, "pass_2": True, "oracle": True, "cells": 0.5} for n in range(20)]
        return {"0": {"rows": [{"id": str(n), "first": v, "hierarchical": v} for n, v in enumerate(vote)]}}

    content = {"set": "1d-arc", "base": "b", "command": "c", "variants": {"base": rows(1), "ttt": rows(6)}}
    (tmp_path / "1d-arc-b.json").write_text(json.dumps(content))
    six, share = ttt_report.goals(ttt_report.Results([tmp_path / "1d-arc-b.json"]))
    assert six.startswith("- met: TTT + voting at least 6 times the base on 1D-ARC (0.300")
    assert share.startswith("- met: at least 30% of 1D-ARC")
    content["variants"]["ttt"] = rows(5)
    (tmp_path / "1d-arc-b.json").write_text(json.dumps(content))
    assert all(
        line.startswith("- MISSED") for line in ttt_report.goals(ttt_report.Results([tmp_path / "1d-arc-b.json"]))
    )


def test_the_stored_reports_are_those_of_the_stored_outcomes(tmp_path: Path) -> None:
    for file in REPORTS.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    ttt_report.write_report(tmp_path)
    stored = sorted(REPORTS.glob("report-*.md"))
    assert stored, "no report is stored"
    for file in stored:
        assert file.read_text() == (tmp_path / file.name).read_text()


@pytest.mark.parametrize("name", ["tuning", "trained", "held-out"])
def test_made_up_tasks_are_the_same_each_time_and_differ_between_sets(name: str) -> None:
    first, again = (results_ttt.load_tasks(name, Path("."), 1, None, 512) for _ in range(2))
    assert first == again and all(task.answer for task in first)
    assert {task.domain for task in first} & set(results_ttt.HELD_OUT) == (
        set() if name == "trained" else set(results_ttt.HELD_OUT)
    )
    other = results_ttt.load_tasks("tuning" if name != "tuning" else "held-out", Path("."), 1, None, 512)
    assert not {task.problem for task in first} & {task.problem for task in other}


def test_arc_tasks_are_the_short_ones(tmp_path: Path) -> None:
    puzzle(tmp_path / "arc-agi-1" / "evaluation", "short", "12")
    puzzle(tmp_path / "arc-agi-1" / "evaluation", "long", "1" * 40)
    tasks = results_ttt.load_tasks("arc", tmp_path, None, None, 100)
    assert [task.id for task in tasks] == ["short"] and results_ttt.cells(tasks[0]) == 4 + 4 + 6 + 6 - 0


def test_test_inputs_of_one_arc_puzzle_are_one_draw(tmp_path: Path) -> None:
    votes = {name: {"pass_1": name[0] == "a", "oracle": name[0] == "a"} for name in ("a_0", "a_1", "b", "c")}
    rows = [{"id": name, "first": vote, "hierarchical": vote} for name, vote in votes.items()]
    content = {"set": "arc", "base": "b", "command": "c", "variants": {"base": {"0": {"rows": rows}}}}
    (tmp_path / "arc-b.json").write_text(json.dumps(content))
    results = ttt_report.Results([tmp_path / "arc-b.json"])
    values = results.values("arc", "base", "first")
    assert results.puzzles("arc") == ["a", "a", "b", "c"]
    assert results.interval("arc", values) == mean_interval(values, clusters=["a", "a", "b", "c"])
    assert ttt_report.results_table(results, "pass_1", "t").rows[0].accuracy[ttt_report.NAMES["arc"]].n == 4


def test_tasks_that_could_not_be_trained_on_are_told_and_can_be_done_again(tmp_path: Path) -> None:
    puzzle(tmp_path / "1d-arc" / "1d_mirror", "short", "1203")
    puzzle(tmp_path / "1d-arc" / "1d_mirror", "long", "12030405")
    few = ("--data", str(tmp_path), "--variants", "base", "ttt", "--set", "max_examples=4", "max_grid_side=6")
    first = arguments(tmp_path, *few)
    results_ttt.run_set(first, "1d-arc")
    file = results_ttt.file_of(first, "1d-arc")
    old = {row["id"]: row for row in json.loads(file.read_text())["variants"]["ttt"]["0"]["rows"]}
    assert "max_side = 6" in old["long"]["reason"] and old["short"]["reason"] is None
    assert "Tasks that could not be trained on: 1 of 1D-ARC by 'ttt'." in report_of(first)
    mending = arguments(tmp_path, *few[:-1], "--mend")
    results_ttt.run_set(mending, "1d-arc")
    new = {row["id"]: row for row in json.loads(file.read_text())["variants"]["ttt"]["0"]["rows"]}
    assert new["long"]["reason"] is None and new["long"]["examples"] == 4 and new["short"] == old["short"]
    assert "Tasks that could not be trained on: none." in report_of(first)


def report_of(arguments: Any) -> str:
    ttt_report.write_report(arguments.output)
    return (arguments.output / "report-grids-small.md").read_text()
