"""The benchmark on real models: what is run, kept and reported, with a tiny model in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import byte_base, byte_tokenizer

import hf_mass
from benchmarks import real_models
from benchmarks.real_models import ROWS, answers_like, guarded, load_task, main, run
from benchmarks.real_models_report import Outcomes, goals, kinds, report
from hf_mass.errors import CheckpointError
from hf_mass.evaluation.statistics import wilson_interval
from hf_mass.tasks.task import Task


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    byte_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("abstractive/upper", "extractive/first"):
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        rows = [{"input": f"{a}{b}", "output": a.upper() if "upper" in name else a} for a in "abcd" for b in "xyz"]
        file.write_text("\n".join(map(json.dumps, rows)))
    return folder


def arguments(model: Path, data: Path, output: Path, *rows: str) -> list[str]:
    small = ["--shots", "4", "--queries", "3", "--dtype", "float32", "--set", "max_examples=8", "lora_r=2"]
    return ["--model", str(model), "--data", str(data), "--output", str(output), *small, "--rows", *rows]


def test_every_row_is_run_once_and_reported(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    main(arguments(model, data, output, "base", "ttt", "guarded", "vote", "shared"))
    outcomes = Outcomes(output / "outcomes.json")
    assert outcomes.answers == {"abstractive/upper": "open", "extractive/first": "copied"}
    for task in outcomes.tasks.values():
        cells = task["0"]
        assert set(cells) == {"base", "ttt", "guarded", "vote", "shared"}
        assert all(len(cell["right"]) == 3 and cell["cpu_seconds"] >= 0 for cell in cells.values())
        assert (
            cells["base"]["trained_tokens"] == 0 < cells["ttt"]["trained_tokens"] < cells["guarded"]["trained_tokens"]
        )
        budget = cells["ttt"]["trained_tokens"]
        assert cells["vote"]["sampled_tokens"] == pytest.approx(budget, rel=0.5)
        assert cells["shared"]["losses"] and cells["base"]["losses"] == []
        assert {entry["strength"] for entry in cells["guarded"]["guard"]} <= {"the rate", "0.4 × the rate"}
    text = (output / "results.md").read_text()
    assert "Tasks that no setting was chosen on (n = 2)" in text and "TTT, one adapter for all tasks" in text
    assert (output / "before-after.png").stat().st_size > 1000 and (output / "gains.png").stat().st_size > 1000

    def never(*_: Any) -> Any:
        raise AssertionError("run again")

    monkeypatch.setattr(real_models, "run", never)
    main(arguments(model, data, output, "base", "ttt", "guarded", "vote", "shared"))
    with pytest.raises(CheckpointError, match="Give another --output"):
        main([*arguments(model, data, output, "base"), "--queries", "2"])


@pytest.mark.parametrize("rate", [1e-3, 10.0])  # the second ruins it, so that the guard does not take the default
def test_the_training_that_guard_and_ttt_share_is_run_once(data: Path, rate: float) -> None:
    lm = hf_mass.load(byte_base(), byte_tokenizer())
    tasks, settings = load_task(data / "extractive/first.jsonl", 6, 3, 0), {"max_examples": 8, "learning_rate": rate}
    trained = run(lm, ROWS["ttt"](settings), tasks, 0)
    shared, whole = guarded(lm, settings, tasks, 0, trained), run(lm, ROWS["guarded"](settings), tasks, 0)
    taken = next(entry["chosen"] for entry in whole["guard"] if entry["share"] == 1.0)
    assert taken is (rate == 1e-3)
    assert {**shared, "cpu_seconds": 0} == {**whole, "cpu_seconds": 0}


def test_vote_needs_the_rows_that_it_follows(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Run them first"):
        main(arguments(model, data, tmp_path / "out", "vote"))


def test_queries_are_no_demonstrations(data: Path) -> None:
    first, again, other = (load_task(data / "extractive/first.jsonl", 4, 100, seed) for seed in (0, 0, 1))
    assert first == again != other and len(first) == 8
    shown = {pair.question for pair in first[0].demonstrations}
    assert len(shown) == 4 and shown.isdisjoint(task.problem for task in first)
    with pytest.raises(SystemExit, match="too few for 12"):
        load_task(data / "extractive/first.jsonl", 12, 1, 0)


def test_kinds_of_answers() -> None:
    labels = [Task.from_pairs([("x", "yes")], str(n), "yes" if n % 2 else "no") for n in range(20)]
    assert answers_like(labels) == "closed"


def outcome(right: int, gain: float | None = None, n: int = 100) -> dict[str, Any]:
    guard = [] if gain is None else [{"strength": "the rate", "share": 1.0, "gain": gain, "chosen": gain > 0}]
    cost = {"cpu_seconds": 1.0, "trained_tokens": 10, "sampled_tokens": 20}
    return {"right": [1] * right + [0] * (n - right), **cost, "losses": [], "guard": guard, "reason": None}


def test_goals_and_kinds_are_computed_from_the_outcomes(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "outcomes.json", {"command": "as tested"})
    accuracies = {"a/capitalize": (20, 60, 0.9), "a/antonym": (40, 70, 1.5), "a/word_length": (60, 50, 0.1)}
    for name, (base, after, gain) in accuracies.items():
        outcomes.answers[name] = "open"
        for row, cell in (("base", outcome(base)), ("guarded", outcome(after, gain))):
            outcomes.put(name, 0, row, cell)
        outcomes.put(name, 0, "ttt", outcome(after - 5))
        outcomes.put(name, 0, "low", outcome(base))
    table = goals(outcomes, list(accuracies))
    assert "| 1.50 |" in table  # (60 + 70 + 50) / (20 + 40 + 60)
    _, unseen = wilson_interval(0, 3)  # what three equal differences leave open
    low, high = (0.05 * (1 - unseen) + sign * unseen for sign in (-1, 1))
    assert f"in hindsight (TTT) | at least −.01 | 0.050 [{low:.3f}, {high:.3f}] |" in table
    assert "a/word_length (seed 0): -0.100 [" in table.splitlines()[-1]
    assert "a/word_length (seed 0)" in table.splitlines()[-2]  # its interval is wholly below −.03
    by_kind = kinds(outcomes, list(accuracies))
    assert "| needs knowledge | 1 | 0.40 | 0.70 | – |" in by_kind
    assert "| follows a rule of form | 2 | 0.40 | 0.55 | 0.150 [-0.100, 0.400] |" in by_kind
    assert "| left-out gain below .3 nats | 1 | 0.60 | 0.50 | – |" in by_kind
    assert report(outcomes, tmp_path) == (tmp_path / "results.md").read_text()
