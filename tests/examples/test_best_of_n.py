"""examples/guides/best_of_n.py: a method of one's own, by the call and by the command line."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLIPS, GRIDS, run, write
from repository import ROOT

import hf_mass
from hf_mass.errors import Stopped
from hf_mass.evaluation.tables import ResultTable
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import ASKED_ONCE
from hf_mass.tasks.reading import read_set


@pytest.fixture
def best_of_n(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "guides"))
    yield import_module("best_of_n")
    sys.modules.pop("best_of_n")


@pytest.fixture(scope="module")
def puzzle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sets") / "flips" / "a.json", FLIPS).parent


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return hf_mass.load("grids-small")


def test_the_likeliest_answer_by_the_token_is_taken(best_of_n: Any, puzzle: Path, lm: LanguageModel) -> None:
    (task,) = read_set(str(puzzle)).tasks
    adaptation: Any = hf_mass.adapt(lm, task, best_of_n.BestOfN(6))
    assert len(adaptation.scored) == 6 and adaptation.parts == ()
    best, text = max(adaptation.scored)
    answer = adaptation.answer()
    assert answer.text == text and answer.right == (text == task.answer)
    assert all(score <= best < 0 for score, _ in adaptation.scored)
    assert adaptation.cost.sampled_tokens >= 6 and adaptation.cost.forward_passes > 0  # what scored was counted too
    assert adaptation.scored == hf_mass.adapt(lm, task, best_of_n.BestOfN(6)).scored  # type: ignore[attr-defined]
    greedy = adaptation.before()
    assert greedy.text == hf_mass.adapt(lm, task, TTT(**ASKED_ONCE)).before().text
    other = task.with_query("1 2 3")
    assert adaptation.answer("1 2 3").task == other and adaptation.answer("1 2 3").text != text
    assert best_of_n.BestOfN().answer(lm, [task], [replace(adaptation, scored=((-1.0, None),))], 0)[0].right is False


def test_it_stops_between_two_samples(best_of_n: Any, puzzle: Path, lm: LanguageModel) -> None:
    (task,), stop, steps = read_set(str(puzzle)).tasks, threading.Event(), []

    class Counted(best_of_n.BestOfN):
        def step(self, lm: Any, state: Any) -> Any:
            steps.append(len(state[0].scored))
            stop.set() if len(steps) == 2 else None
            return super().step(lm, state)

    with pytest.raises(Stopped):
        hf_mass.adapt(lm, task, Counted(50), stop=stop)
    assert steps == [0, 1]


def test_it_solves_by_its_name(best_of_n: Any, puzzle: Path) -> None:
    words = ("solve", puzzle / "a.json", "--model", "grids-small", "--method", "best_of_n:BestOfN", "--json")
    solution = json.loads(run(*words).stdout)
    (task,) = read_set(str(puzzle)).tasks
    assert solution["method"] == "best of n" and solution["reason"] is None
    expected = hf_mass.solve("grids-small", task, best_of_n.BestOfN())
    assert [solution[when][0]["answer"] for when in ("before", "after")] == [
        expected.before[0].text,
        expected.after[0].text,
    ]


def test_it_is_a_row_by_its_name(best_of_n: Any, puzzle: Path, tmp_path: Path) -> None:
    words = (puzzle, *GRIDS, "--methods", "few-shot,best_of_n:BestOfN", "--output", tmp_path)
    text = run("evaluate", *words).stdout
    table = ResultTable.load(tmp_path / "results.json")
    assert [row.method for row in table] == ["base, few-shot prompt", "best of n"] and "best of n" in text
    assert table["best of n"].sampled_tokens >= 4 * table["base, few-shot prompt"].sampled_tokens  # type: ignore[operator]
