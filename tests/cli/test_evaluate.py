"""`hf-mass evaluate`: every method, what is written, and going on with a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLIPS, GRIDS, run, write

from hf_mass.cli import evaluating, options
from hf_mass.evaluation.cards import make_card
from hf_mass.evaluation.compare import ROWS, Comparison
from hf_mass.evaluation.tables import ResultTable
from hf_mass.methods.ttt import TTT
from hf_mass.store.card import NOT_MEASURED
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS

LABELS = {name: row.label for name, row in ROWS.items()}
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
    assert tuple(ROWS) == options.ROWS
    assert [row.method for row in table] == [LABELS[name] for name in ROWS if name != "mass-scorer"]
    assert table.splits == ("puzzles",) and all(row.accuracy["puzzles"].n == 3 for row in table)
    for row in table:
        assert row.method in text and str(row.accuracy["puzzles"]) in text
    assert all(row.latency_s and row.sampled_tokens for row in table)
    assert re.search(r"^method +puzzles +n +seeds +tokens / problem +s / problem$", text, re.MULTILINE)
    assert table[LABELS["few-shot-voting"]].sampled_tokens > 5 * table[LABELS["few-shot"]].sampled_tokens  # type: ignore[operator]


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
    outcomes = json.loads((output / "outcomes.json").read_text())["methods"]
    for name, seeds in outcomes.items():
        rows = seeds["0"]
        assert [row["task"] for row in rows] == ["a", "b", "c"] and all("answer" in row for row in rows)
        assert table.interval(LABELS[name], "puzzles").mean == pytest.approx(sum(row["right"] for row in rows) / 3)
        costs = [row["cost"] for row in rows]
        assert table[LABELS[name]].sampled_tokens == pytest.approx(sum(cost["sampled_tokens"] for cost in costs) / 3)
        trains = name.startswith(("mass", "ttt", "both"))
        assert all((cost["trained_tokens"] > 0) == (cost["backward_passes"] > 0) == trains for cost in costs)


def test_adapting_to_one_task_leaves_nothing_for_the_next(report: tuple[Path, str], puzzles: Path) -> None:
    """Answers are those that `solve` gives to each problem alone, though all methods share a model."""
    output, _ = report
    rows = json.loads((output / "outcomes.json").read_text())["methods"]
    for name, method, vote in (("ttt-voting", "ttt", "--vote"), ("none", "mass", "--vote"), ("both", "both", "--vote")):
        words = ("solve", puzzles, "--each", *GRIDS, "--samples", "2", "--method", method, vote, "--json")
        outcomes = [json.loads(line) for line in run(*words).stdout.splitlines()]
        alone = [outcome["before" if name == "none" else "after"][0]["answer"] for outcome in outcomes]
        assert [row["answer"] for row in rows[name]["0"]] == alone, name


def test_the_saved_table_makes_a_card(report: tuple[Path, str], puzzles: Path, tmp_path: Path) -> None:
    run("adapt", puzzles / "flips" / "a.json", "-o", tmp_path / "adapter", *GRIDS)
    card = str(make_card(tmp_path / "adapter", report[0] / "results.json"))
    assert "| TTT + voting |" in card and NOT_MEASURED not in card


def test_a_model_that_was_trained_to_weigh() -> None:
    result = run("evaluate", *CONVENTIONS, "--seeds", "0,1", "--json")
    table = ResultTable.from_json(result.stdout)
    names = ("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations")
    assert [row.method for row in table] == [LABELS[name] for name in names]
    assert table.meta["seeds"] == [0, 1] and table.meta["model"] == "conventions-mass"
    interval = table.interval(LABELS["mass-scorer"], "conventions:test_families")
    assert interval.n == 6 and interval.seeds == 2
    dearest = max(table[LABELS[name]].sampled_tokens or 0 for name in names[2:])
    assert table[LABELS["majority"]].sampled_tokens == pytest.approx(dearest, rel=0.25)


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*CONVENTIONS, "--output", tmp_path, "--json")
    once = run("evaluate", *words, "--methods", "none,mass-uniform").stdout
    runs = batches(monkeypatch)
    again = run("evaluate", *words, "--methods", "none,mass-uniform,majority", "--resume").stdout
    assert runs == [(["majority"], [0, 1, 2, 3, 4, 5])]  # whose budget is that of a row which was not run again
    assert json.loads(again)["rows"][:2] == json.loads(once)["rows"]
    told = run("evaluate", *words, "--methods", "none", "--resume", "--limit", "5", code=1).stderr
    assert "is of a run with tasks" in told
    assert "settings" in run("evaluate", *words, "--resume", "--inner_steps", "3", code=1).stderr
    (tmp_path / "outcomes.json").write_text("[]")
    assert "cannot be read" in run("evaluate", *words, "--resume", code=1).stderr


def test_outcomes_of_other_types_are_not_gone_on_from(tmp_path: Path) -> None:
    words = (*CONVENTIONS, "--methods", "none", "--output", tmp_path)
    run("evaluate", *words)
    file = tmp_path / "outcomes.json"
    whole = json.loads(file.read_text())
    first, *others = whole["methods"]["none"]["0"]
    changes: list[Any] = [{"right": "x"}, {"right": True}, {"right": 7}, {"cost": {}}, {"domain": 3}, {"reason": [1]}]
    changes += [{"task": 5}, *({"cost": {**first["cost"], "seconds": seconds}} for seconds in (-1, 10**400))]
    rows: list[Any] = [[{**first, **change}, *others] for change in changes]
    for bad in (*rows, "abc", [5] * 6):
        file.write_text(json.dumps({**whole, "methods": {"none": {"0": bad}}}))
        assert "outcomes.json cannot be read" in run("evaluate", *words, "--resume", code=1).stderr, bad
    file.write_text(json.dumps({**whole, "methods": {"none": {"0": others}}}))
    told = run("evaluate", *words, "--resume", code=1).stderr
    assert "holds 5 outcomes of 'none', seed 0, and there are 6 tasks. Evaluate again without --resume." in told
    for bad in ([others[0], first, *others[1:]], [{**first, "domain": "another"}, *others]):
        file.write_text(json.dumps({**whole, "methods": {"none": {"0": bad}}}))
        told = run("evaluate", *words, "--resume", code=1).stderr
        assert (
            f"holds an outcome of task '{bad[0]['task']}'" in told and f"its place is that of '{first['task']}'" in told
        )


def test_a_vote_with_another_budget_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may spend what the costliest row does: a costlier one that comes later raises that."""
    words = ("evaluate", *CONVENTIONS, "--output", tmp_path, "--json")
    run(*words, "--methods", "mass-uniform,majority")
    file = tmp_path / "outcomes.json"
    content = json.loads(file.read_text())
    for row in content["methods"]["mass-uniform"]["0"]:
        row["cost"]["sampled_tokens"] *= 2
    file.write_text(json.dumps(content))
    runs = batches(monkeypatch)
    run(*words, "--methods", "mass-uniform,majority", "--resume")
    assert runs == [(["majority"], [0, 1, 2, 3, 4, 5])]
    run(*words, "--methods", "mass-uniform,majority", "--resume")
    assert len(runs) == 1


def test_a_run_is_not_gone_on_with_under_another_judge(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input": str(n), "output": str(n)}) + "\n" for n in range(5)))
    words = ("evaluate", rows, "--model", "strings-base", "--methods", "few-shot", "--demonstrations", "3")
    run(*words, "--output", tmp_path / "report")
    told = run(*words, "--output", tmp_path / "report", "--resume", "--verifier", "numeric", code=1).stderr
    assert "is of a run with tasks" in told


def raising_on(*problems: str) -> Callable[[Task, str], float]:
    def verifier(task: Task, text: str) -> float:
        if task.problem in problems:
            raise ValueError("no such file")
        return float(text == task.answer)

    return verifier


def test_a_verifier_that_raises_leaves_its_tasks_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input": str(n), "output": str(n)}) + "\n" for n in range(7)))
    words: tuple[object, ...] = (
        "evaluate",
        rows,
        "--model",
        "strings-base",
        "--methods",
        "few-shot,ttt",
        "--verifier",
        "mine",
    )
    words += ("--demonstrations", "3", "--max_examples", "2", "--num_train_epochs", "1")
    words += ("--output", tmp_path / "report")
    monkeypatch.setitem(VERIFIERS, "mine", raising_on("0", "3"))
    text = run(*words).stdout
    table = ResultTable.load(tmp_path / "report" / "results.json")
    assert [row.accuracy["rows"].n for row in table] == [2, 2]  # of the four that are not demonstrations
    told = "2 of 4 tasks are left out, since no verifier could judge them; first: The verifier 'mine' raised ValueError"
    assert f"{LABELS['few-shot']}: {told}" in text and f"{LABELS['ttt']}: {told}" in text
    assert "not all went well" not in text and "TTT − base, few-shot prompt: " in text
    file = tmp_path / "report" / "outcomes.json"
    outcomes = json.loads(file.read_text())["methods"]["few-shot"]["0"]
    assert [row["right"] is None for row in outcomes] == [True, True, False, False]
    assert [row["reason"] is not None for row in outcomes] == [True, True, False, False]

    monkeypatch.setitem(VERIFIERS, "mine", raising_on("3"))  # mended in part: what was not judged is run again
    assert "1 of 4 tasks are left out" in run(*words, "--resume").stdout
    monkeypatch.setitem(VERIFIERS, "mine", raising_on(*map(str, range(7))))
    refused = run(*words, code=1)
    assert "None of 8 answers could be judged. The verifier 'mine' raised ValueError: no such file" in refused.stderr
    assert refused.stdout == ""
    monkeypatch.setitem(VERIFIERS, "mine", lambda task, text: float("nan"))
    assert "The verifier 'mine' returned nan" in run(*words, code=1).stderr


def outcome_of(right: float | None, domain: str = "") -> dict[str, Any]:
    return {"right": right, "reason": None if right is not None else "raised", "domain": domain}


def test_rows_are_compared_on_the_tasks_that_both_are_judged_on() -> None:
    mine = [[outcome_of(1.0, "a"), outcome_of(None, "a"), outcome_of(1.0, "b"), outcome_of(0.0, "b")]]
    base = [[outcome_of(0.0, "a"), outcome_of(1.0, "a"), outcome_of(1.0, "b"), outcome_of(None, "b")]]
    rows = {name: ROWS[name] for name in ("few-shot", "ttt")}
    outcomes = {"few-shot": base, "ttt": mine}
    (line,) = evaluating.differences(rows, outcomes, range(4))
    assert line.startswith("TTT − base, few-shot prompt: 0.500 ")  # of tasks 0 and 2: 1 − 0 and 1 − 1
    cells = [line.split("|")[1:-1] for line in evaluating.by_domain(rows, outcomes)[2].splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["a", "2", "0.500", "1.000 (n = 1)"],
        ["b", "2", "1.000 (n = 1)", "0.500"],
    ]
    none_of_two = [[outcome_of(None), outcome_of(None)]]
    assert evaluating.differences(rows, {"few-shot": none_of_two, "ttt": none_of_two}, range(2)) == []


def test_a_run_goes_on_within_a_row(puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("evaluate", puzzles, *GRIDS, "--methods", "none,ttt", "--batch_size", "1", "--output", tmp_path, "--json")
    once = json.loads(run(*words).stdout)
    file = tmp_path / "outcomes.json"
    outcomes = json.loads(file.read_text())
    whole = json.loads(file.read_text())["methods"]["ttt"]["0"]
    outcomes["methods"]["ttt"]["0"][1:] = [None, None]  # as if it had been stopped after the first batch
    file.write_text(json.dumps(outcomes))
    runs = batches(monkeypatch)
    again = json.loads(run(*words, "--resume").stdout)
    assert runs == [(["ttt"], [1]), (["ttt"], [2])]
    assert again["rows"][1]["accuracy"] == once["rows"][1]["accuracy"]
    rows = json.loads(file.read_text())["methods"]["ttt"]["0"]
    assert rows[0] == whole[0] and [row["answer"] for row in rows] == [row["answer"] for row in whole]


def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[int]]]:
    """Every batch that is run from now on: its rows, and its tasks by number."""
    runs: list[tuple[list[str], list[int]]] = []
    original = Comparison._together

    def noted(self: Any, names: list[str], numbers: list[int], seed: int) -> Any:
        runs.append((names, numbers))
        return original(self, names, numbers, seed)

    monkeypatch.setattr(Comparison, "_together", noted)
    return runs


def test_rows_that_differ_in_asking_share_their_adaptations(
    puzzles: Path, report: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    original = TTT.begin

    def noted(self: Any, lm: Any, tasks: Any, seed: int) -> Any:
        begun.append(len(tasks))
        return original(self, lm, tasks, seed)

    monkeypatch.setattr(TTT, "begin", noted)
    result = run("evaluate", puzzles, *GRIDS, "--methods", "ttt,ttt-voting,few-shot", "--json")
    assert begun == [3]
    shared = ResultTable.from_json(result.stdout)
    for row in shared:
        alone = ResultTable.load(report[0] / "results.json")[row.method]
        assert row.accuracy == alone.accuracy and row.sampled_tokens == alone.sampled_tokens


# -- methods of one's own ----------------------------------------------------------------------------------------------

FRAGILE = """
from hf_mass.methods.unadapted import NoAdaptation

class Fragile(NoAdaptation):
    name = "fragile"

    def begin(self, lm, tasks, seed):
        if any(task.id == "a" for task in tasks):
            raise ValueError("no a, please")
        return super().begin(lm, tasks, seed)

    def answer(self, lm, tasks, adaptations, seed):
        if any(task.id == "b" for task in tasks):
            raise RuntimeError("nor b")
        return super().answer(lm, tasks, adaptations, seed)

class Stops(NoAdaptation):
    name = "stops"

    def begin(self, lm, tasks, seed):
        from hf_mass.errors import Stopped
        raise Stopped("stopped by hand")
"""


def test_a_task_that_fails_does_not_end_the_others(
    puzzles: Path, report: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile_methods.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = (puzzles, *GRIDS, "--methods", "few_shot-voting,fragile_methods:Fragile", "--output", tmp_path / "report")
    text = run("evaluate", *words).stdout
    assert "fragile: 2 times not all went well" in text and "fragile − base" not in text
    outcomes = json.loads((tmp_path / "report" / "outcomes.json").read_text())["methods"]
    rows, others = outcomes["fragile_methods:Fragile"]["0"], outcomes["few-shot-voting"]["0"]
    assert [row["reason"] for row in rows] == ["ValueError: no a, please", "RuntimeError: nor b", None]
    assert [row["right"] for row in rows[:2]] == [0, 0] and rows[2]["answer"] == others[2]["answer"]
    assert all(row["reason"] is None for row in others)
    stopped = run("evaluate", puzzles, *GRIDS, "--methods", "fragile_methods:Stops", code=1)
    assert "stopped by hand" in stopped.stderr


def test_methods_that_call_themselves_alike_are_refused(puzzles: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "alike_methods.py").write_text(FRAGILE.replace('"stops"', '"fragile"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = (puzzles, *GRIDS, "--methods", "alike_methods:Fragile,alike_methods:Stops")
    assert "call themselves alike" in run("evaluate", *words, code=1).stderr


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--methods", "majority"), "--token_budget"),
        (("--methods", "ttt"), "cannot be trained"),
        (("--verifier", "magic"), "magic"),
    ],
)
def test_what_does_not_fit_is_told(words: tuple[str, ...], told: str) -> None:
    assert re.search(rf"^hf-mass: .*{told}", run("evaluate", *CONVENTIONS, *words, code=1).stderr, re.MULTILINE)


def test_a_model_made_for_other_problems_is_refused() -> None:
    words = (*CONVENTIONS, "--model", "grids-small", "--methods", "none")
    assert "hf-mass: grids-small is made for grids" in run("evaluate", *words, code=1).stderr


def test_figures_need_an_extra_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, hf_mass.evaluation.compare, hf_mass.evaluation.tables; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert "torch" in modules and not {"matplotlib", "trl", "hf_mass.training"} & set(modules)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "hf_mass.evaluation.plots", raising=False)
    words = ("evaluate", *CONVENTIONS, "--methods", "none", "--output", tmp_path)
    assert 'pip install "hf_mass[plots]"' in run(*words, code=1).stderr
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "results.md", "outcomes.json"}


def test_a_budget_for_the_majority_vote() -> None:
    words = (*CONVENTIONS, "--methods", "majority", "--token_budget", "30", "--json")
    (row,) = ResultTable.from_json(run("evaluate", *words).stdout)
    assert row.sampled_tokens == pytest.approx(30, rel=0.25)


def test_a_token_is_not_written_down(tmp_path: Path) -> None:
    for token in (("--token", "hf_secret"), ("--token=hf_secret",)):
        run("evaluate", *CONVENTIONS, "--methods", "none", *token, "--output", tmp_path)
        assert not any(b"hf_secret" in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
