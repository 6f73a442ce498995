"""The results script for string rules, and the example problems that ship for the demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from demo import problems as demo_problems
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import read_problem_file
from research.pretraining import build_model
from research.strings import results as results_strings
from research.strings.pretrain import build_tokenizer
from research.strings.world import HELD_OUT, TRAINED

ROWS = {"base", "base + voting", "TTT", "TTT + voting", "MASS uniform", "MASS attribution"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with the tokenizer of the strings' base."""
    folder, tokenizer = tmp_path_factory.mktemp("strings"), build_tokenizer()
    torch.manual_seed(0)
    build_model(tokenizer, 32, 1, 1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_row_runs_once_and_is_reported(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--base", str(base), "--output", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--limit", "2"]
    words += ["--sets", "held-out", "trained", "--samples", "2", "--set", "max_examples=4", "max_completion_length=8"]
    found = results_strings.main(words)
    assert {row["method"] for row in found["table"]["rows"]} == ROWS
    text = (tmp_path / "out" / "results.md").read_text()
    assert all(row in text for row in ROWS) and "held-out: TTT − base" in text
    monkeypatch.setattr(results_strings, "run", lambda *_: pytest.fail("run again"))
    again = results_strings.main(words)
    assert again["sets"] == json.loads(json.dumps(found["sets"]))


def test_sets_are_of_their_families_and_apart() -> None:
    sets = {name: results_strings.load_tasks(name, 2) for name in results_strings.SETS}
    assert {task.domain for task in sets["held-out"]} == set(HELD_OUT)
    assert {task.domain for name in ("trained", "composed", "tuning") for task in sets[name]} <= set(TRAINED)
    assert {len(tasks) for tasks in sets.values()} == {16}
    shown = {name: {(t.problem, t.demonstrations) for t in tasks} for name, tasks in sets.items()}
    assert not shown["tuning"] & (shown["trained"] | shown["composed"])


def test_samples_are_judged_by_rules_without_parameters() -> None:
    assert len(results_strings.WITHOUT_PARAMETERS) == 7
    assert results_strings.follows(lambda text: f"{int(text):,}", "1234", "1,234")
    assert not results_strings.follows(lambda text: f"{int(text):,}", "12 4", "1,234")
    assert not results_strings.follows(lambda text: text[0], "", "")


@pytest.mark.parametrize("file", sorted({**demo_problems.GRIDS, **demo_problems.TEXTS}))
def test_example_problems_are_those_of_the_script(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_problems.py", "--output", str(tmp_path)])
    demo_problems.main()
    assert (tmp_path / file).read_bytes() == (ASSETS / "examples" / file).read_bytes()
    problem = read_problem_file(ASSETS / "examples" / file)
    (task,) = problem.tasks
    assert task.answer is not None and 3 <= len(task.demonstrations) <= 9
    texts: list[Any] = [text for pair in task.demonstrations for text in (pair.question, pair.answer)]
    if file.endswith(".json"):
        assert problem.kind == "grids"
        assert all(len(text.split("\n")) <= 8 and len(text.split("\n")[0].split()) <= 8 for text in texts)
    else:
        assert problem.kind == "texts" and task.problem not in texts
