"""`hf-mass evaluate`: every method, what is written, and going on with a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLIPS, GRIDS, run, write

from hf_mass.cli.options import ROWS
from hf_mass.evaluation import compare
from hf_mass.evaluation.cards import make_card
from hf_mass.evaluation.tables import ResultTable
from hf_mass.store.card import NOT_MEASURED

CONVENTIONS = ("conventions:test_families", "--limit", "6", "--samples", "3")


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of puzzles, a folder each."""
    folder = tmp_path_factory.mktemp("sets") / "puzzles"
    write(folder / "flips" / "a.json", FLIPS)
    write(folder / "flips" / "b.json", {**FLIPS, "train": FLIPS["train"][:2]})
    write(
        folder / "same" / "c.json", {"train": [{"input": [[1, 2]], "output": [[1, 2]]}] * 2, "test": FLIPS["test"][:1]}
    )
    return folder


@pytest.fixture(scope="module")
def report(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of every method that a model without a trained scorer has: its folder, and what it printed."""
    output = tmp_path_factory.mktemp("report")
    names = ",".join(name for name in ROWS if name != "mass-scorer")
    words = (puzzles, *GRIDS, "--samples", "2", "--methods", names, "--output", output)
    return output, run("evaluate", *words).stdout


def test_every_method_has_a_row(report: tuple[Path, str]) -> None:
    output, text = report
    table = ResultTable.load(output / "results.json")
    assert [row.method for row in table] == [ROWS[name] for name in ROWS if name != "mass-scorer"]
    assert table.splits == ("puzzles",) and all(row.accuracy["puzzles"].n == 3 for row in table)
    for row in table:
        assert row.method in text and str(row.accuracy["puzzles"]) in text
    of_a_vote = {ROWS["few-shot"], ROWS["ttt"]}  # whose run is the vote's
    assert {row.method for row in table if row.latency_s is None} == of_a_vote
    assert {row.method for row in table if not row.sampled_tokens} == {*of_a_vote, ROWS["both"]}


def test_the_report_tells_how_it_was_made(report: tuple[Path, str]) -> None:
    output, text = report
    markdown = (output / "results.md").read_text()
    command = ResultTable.load(output / "results.json").meta["command"]
    assert command.startswith("hf-mass evaluate /") and command in markdown and command in text
    for told in ("Seeds: 0", "95% interval", "## By domain", "| flips | 2 |", "| same | 1 |", "torch", "TTT − base"):
        assert told in markdown
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")


def test_every_single_outcome_is_kept(report: tuple[Path, str]) -> None:
    output, _ = report
    table = ResultTable.load(output / "results.json")
    found = json.loads((output / "outcomes.json").read_text())["methods"]
    for name, seeds in found.items():
        rows = seeds["0"]["rows"]
        assert [row["task"] for row in rows] == ["a", "b", "c"] and all("answer" in row for row in rows)
        assert table.interval(ROWS[name], "puzzles").mean == pytest.approx(sum(row["right"] for row in rows) / 3)


def test_adapting_to_one_task_leaves_nothing_for_the_next(report: tuple[Path, str], puzzles: Path) -> None:
    """Answers are those that `solve` gives to each problem alone, though all methods share a model."""
    output, _ = report
    found = json.loads((output / "outcomes.json").read_text())["methods"]
    for name, method, vote in (("ttt-voting", "ttt", "--vote"), ("none", "mass", "--vote"), ("both", "both", "--vote")):
        words = ("solve", puzzles, "--each", *GRIDS, "--samples", "2", "--method", method, vote, "--json")
        outcomes = [json.loads(line) for line in run(*words).stdout.splitlines()]
        alone = [outcome["before" if name == "none" else "after"][0]["answer"] for outcome in outcomes]
        assert [row["answer"] for row in found[name]["0"]["rows"]] == alone, name


def test_the_saved_table_makes_a_card(report: tuple[Path, str], puzzles: Path, tmp_path: Path) -> None:
    run("adapt", puzzles / "flips" / "a.json", "-o", tmp_path / "adapter", *GRIDS)
    card = str(make_card(tmp_path / "adapter", report[0] / "results.json"))
    assert "| TTT + voting |" in card and NOT_MEASURED not in card


def test_a_model_that_was_trained_to_weigh() -> None:
    result = run("evaluate", *CONVENTIONS, "--seeds", "0,1", "--json")
    table = ResultTable.from_json(result.stdout)
    names = ("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations")
    assert [row.method for row in table] == [ROWS[name] for name in names]
    assert table.meta["seeds"] == [0, 1] and table.meta["model"] == "conventions-mass"
    interval = table.interval(ROWS["mass-scorer"], "conventions:test_families")
    assert interval.n == 6 and interval.seeds == 2
    dearest = max(table[ROWS[name]].sampled_tokens or 0 for name in names[2:])
    assert table[ROWS["majority"]].sampled_tokens == pytest.approx(dearest, rel=0.25)


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*CONVENTIONS, "--output", tmp_path, "--json")
    once = run("evaluate", *words, "--methods", "none,mass-uniform").stdout
    asked: list[str] = []
    original = compare.Methods.run

    def seen(self: Any, name: str, *rest: Any) -> Any:
        asked.append(name)
        return original(self, name, *rest)

    monkeypatch.setattr(compare.Methods, "run", seen)
    again = run("evaluate", *words, "--methods", "none,mass-uniform,majority", "--resume").stdout
    assert asked == ["majority"]  # whose budget is that of a row which was not run again
    assert json.loads(again)["rows"][:2] == json.loads(once)["rows"]
    told = run("evaluate", *words, "--methods", "none", "--resume", "--limit", "5", code=1).stderr
    assert "is of a run with tasks" in told
    assert "settings" in run("evaluate", *words, "--resume", "--inner_steps", "3", code=1).stderr
    (tmp_path / "outcomes.json").write_text("[]")
    assert "cannot be read" in run("evaluate", *words, "--resume", code=1).stderr


def test_test_time_training_goes_on_task_by_task(puzzles: Path, tmp_path: Path) -> None:
    words = (puzzles, *GRIDS, "--methods", "ttt", "--output", tmp_path, "--json")
    once = json.loads(run("evaluate", *words).stdout)
    (tmp_path / "outcomes.json").unlink()  # as if it had been stopped before the end
    folders = sorted((tmp_path / "runs" / "ttt-seed-0" / "tasks").iterdir())
    kept = [(folder / "result.json").stat().st_mtime_ns for folder in folders]
    again = json.loads(run("evaluate", *words, "--resume").stdout)
    assert [(folder / "result.json").stat().st_mtime_ns for folder in folders] == kept
    assert again["rows"][0]["accuracy"] == once["rows"][0]["accuracy"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--methods", "majority"), "--token_budget"),
        (("--methods", "ttt"), "cannot be trained"),
        (("--verifier", "magic"), "magic"),
    ],
)
def test_what_does_not_fit_is_told(words: tuple[str, ...], told: str) -> None:
    assert re.match(rf"hf-mass: .*{told}", run("evaluate", *CONVENTIONS, *words, code=1).stderr)


def test_a_budget_for_the_majority_vote() -> None:
    words = (*CONVENTIONS, "--methods", "majority", "--token_budget", "30", "--json")
    (row,) = ResultTable.from_json(run("evaluate", *words).stdout)
    assert row.sampled_tokens == pytest.approx(30, rel=0.25)


def test_a_token_is_not_written_down(tmp_path: Path) -> None:
    for token in (("--token", "hf_secret"), ("--token=hf_secret",)):
        run("evaluate", *CONVENTIONS, "--methods", "none", *token, "--output", tmp_path)
        assert not any(b"hf_secret" in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
