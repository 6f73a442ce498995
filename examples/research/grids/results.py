"""Test-time training on grids: every row of the paper's ablation (arXiv 2411.07279, figure 3) on real benchmarks.

In the folder `examples`:

    python -m research.grids.results --sets 1d-arc mini-arc arc     # runs, resumes, reports
    python -m research.grids.results --sets tuning --variants ttt --set learning_rate=1e-3   # on made-up tasks

A *variant* is a way to train (`VARIANTS`); its predictions, made once, are ranked by several votes. Every task's
outcome goes to `<output>/<set>-<base>.json` with the settings; tables and a plot are made from these files alone.
Settings were chosen on `tuning`: tasks of families that the base never saw, from the generator, not from a benchmark.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_mass import Task, TTTConfig, TTTTrainer, load_grid_tasks
from hf_mass.store.shipped import ASSETS
from hf_mass.store.storage import replace_text
from hf_mass.tasks.answers import rank_answers, score_answers
from hf_mass.training.ttt_results import TaskResult
from paths import DATA, OUTPUTS, RESULTS
from research.grids.report import write_report
from research.grids.world import HELD_OUT, TRAINED, Sizes, few_shot_tasks, of_each_type

SETS = ("1d-arc", "mini-arc", "arc", "trained", "held-out", "tuning")

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "ttt": {"vote": "rescore"},
    "shared": {"adapters": "shared"},
    "no transformations": {"transformations": ["none"], "colour_permutations": 0},
    "query loss": {"loss_on": "query"},
    "direct": {"direct": True},
}
"""How to train: what differs from "ttt". "base" does not train."""
VOTES = ("first", "hierarchical", "flat", "self_consistency")


def strip_settings(name: str) -> dict[str, Any]:
    """What differs for grids of one row: their symmetries."""
    if name != "1d-arc":
        return {}
    return {"transformations": ["strip"], "predict_transformations": ["strip"]}


def load_tasks(name: str, data: Path, per_type: int | None, limit: int | None, longest: int) -> list[Task]:
    """The tasks of a set. Of ARC those with fewer than `longest` cells in all; of 1D-ARC `per_type` of each type."""
    if name in ("trained", "held-out", "tuning"):
        families = [f for found in TRAINED.values() for f in found] if name == "trained" else list(HELD_OUT)
        return world_tasks(families, per_type or 1, "tuning" if name == "tuning" else "evaluation")[:limit]
    tasks = load_grid_tasks(data / {"arc": "arc-agi-1/evaluation"}.get(name, name))
    if name == "arc":
        tasks = [task for task in tasks if cells(task) < longest]
    if name == "1d-arc" and per_type is not None:
        tasks = of_each_type(tasks, per_type)
    return tasks[:limit]


def world_tasks(families: Sequence[str], per_family: int, name: str) -> list[Task]:
    """Tasks of the generator, at its full sizes; `name` seeds them."""
    return few_shot_tasks(families, per_family, f"ttt-{name}", Sizes(composed=0.0))


def cells(task: Task) -> int:
    """Cells of all grids of a task."""
    texts = [text for shown in task.demonstrations for text in (shown.question, shown.answer)]
    return sum(len(text.split()) for text in [*texts, task.problem, task.answer or ""])


def paper_tasks(data: Path) -> set[str]:
    """File stems of the 80 evaluation tasks on which the paper reports its ablations."""
    file = data / "arc-agi-1" / "ttt-paper-80-tasks.csv"
    if not file.is_file():
        return set()
    with file.open(encoding="utf-8") as stream:
        return {value.strip().removesuffix(".json") for row in csv.reader(stream) for value in row}


def outcomes(results: Sequence[TaskResult], rescored: bool = True) -> list[dict[str, Any]]:
    """One row a task: how good each vote's answers are; the results' own are those of re-scoring, where they are."""
    rows = []
    for result in results:
        task, row = result.task, dict[str, Any]()
        ranked = {vote: rank_answers(result.predictions, vote) for vote in VOTES}
        if rescored:
            ranked["rescore"] = list(result.answers)
        for vote, answers in ranked.items():
            score = score_answers(task, answers, result.predictions)
            assert score is not None
            row[vote] = {k: v if k != "cells" else round(v, 4) for k, v in asdict(score).items() if v is not None}
        about = {"id": task.id, "domain": task.domain, "cells": cells(task), "seconds": round(result.seconds, 3)}
        rows.append({**about, "examples": result.examples, "reason": result.reason, **row})
    return rows


def build_trainer(arguments: argparse.Namespace, name: str, variant: str, **changes: Any) -> TTTTrainer:
    """The trainer of a variant on a set, whose tasks go to a folder of their own."""
    place = f"{name}-{variant.replace(' ', '-')}-{arguments.seed}"
    settings = {"output_dir": str(arguments.runs / arguments.base.name / place), **strip_settings(name)}
    settings |= {**VARIANTS[variant], **dict(arguments.set), **changes}
    settings |= {"seed": arguments.seed, "use_cpu": not torch.cuda.is_available(), "report_to": "none"}
    return TTTTrainer(str(arguments.base), TTTConfig.preset("grids", **settings))


def run(arguments: argparse.Namespace, name: str, variant: str, tasks: list[Task]) -> dict[str, Any]:
    """One variant on one set, resumed where it was stopped."""
    trainer = build_trainer(arguments, name, variant)
    begun = time.perf_counter()
    results = trainer.predict(tasks, resume=not (arguments.again or arguments.mend), adapt=variant != "base")
    rows = outcomes(results, rescored=trainer.args.vote == "rescore")
    seconds = time.perf_counter() - begun
    mean = {vote: sum(r[vote]["pass_1"] for r in rows) / len(rows) for vote in rows[0] if vote in (*VOTES, "rescore")}
    cell_accuracy = sum(row["first"].get("cells", 0.0) for row in rows) / len(rows)
    told = f"n = {len(rows)}, {seconds:.0f} s, cells {cell_accuracy:.3f}, {json.dumps(mean)}"
    print(f"{name} {variant}: {told}", flush=True)
    return {"settings": trainer.args.result_settings(), "rows": rows}


def file_of(arguments: argparse.Namespace, name: str) -> Path:
    """Where the outcomes of a set are."""
    return arguments.output / f"{name}-{arguments.base.name}.json"


def mended(arguments: argparse.Namespace, name: str, variant: str, tasks: list[Task], old: dict[str, Any]) -> Any:
    """A run in which tasks that could not be trained on are done again. Each trains by itself: no other changes."""
    again = {row["id"] for row in old["rows"] if row["reason"] is not None}
    if not again or VARIANTS[variant].get("adapters") == "shared":
        return run(arguments, name, variant, tasks) if again else old
    new = run(arguments, name, variant, [task for task in tasks if task.id in again])
    by_id = {row["id"]: row for row in new["rows"]}
    return {**new, "rows": [by_id.get(row["id"], row) for row in old["rows"]]}


def run_set(arguments: argparse.Namespace, name: str) -> None:
    """All variants of a set; each is written as soon as it is there."""
    tasks = load_tasks(name, arguments.data, arguments.tasks_per_type, arguments.limit, arguments.longest)
    path = file_of(arguments, name)
    for variant in arguments.variants:
        found = json.loads(path.read_text()) if path.is_file() else {"set": name, "base": arguments.base.name}
        found["paper_80"] = sorted(paper_tasks(arguments.data) & {t.id.split("_")[0] for t in tasks})
        found["command"] = arguments.command
        runs = found.setdefault("variants", {}).setdefault(variant, {})
        seed = str(arguments.seed)
        mend = arguments.mend and seed in runs
        runs[seed] = (
            mended(arguments, name, variant, tasks, runs[seed]) if mend else run(arguments, name, variant, tasks)
        )
        replace_text(path, json.dumps(found) + "\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=["1d-arc", "mini-arc", "arc"], choices=SETS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets")
    parser.add_argument("--base", type=Path, default=ASSETS / "grids-base")
    parser.add_argument(
        "--tasks_per_type", type=int, default=None, help="tasks of each type of 1D-ARC, or of each family"
    )
    parser.add_argument("--longest", type=int, default=512, help="ARC: tasks with fewer cells in all")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of TTTConfig to change")
    parser.add_argument("--runs", type=Path, default=OUTPUTS / "ttt", help="where the runs keep their tasks")
    parser.add_argument("--output", type=Path, default=RESULTS / "ttt")
    parser.add_argument("--again", action="store_true", help="do finished tasks again")
    parser.add_argument("--mend", action="store_true", help="do the tasks again that could not be trained on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--report", action="store_true", help="write tables and plots from the outcomes; nothing is run"
    )
    arguments = parser.parse_args(argv)
    arguments.set = [(item.partition("=")[0], json.loads(item.partition("=")[2])) for item in arguments.set]
    told = {"sets", "variants", "tasks_per_type", "longest", "limit", "seed", "base"}
    shown = {k: v for k, v in vars(arguments).items() if k in told and v not in (None, parser.get_default(k))}
    words = [f"--{k} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in shown.items()]
    arguments.command = " ".join(["python -m research.grids.results", *words])
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if not arguments.report:
        for name in arguments.sets:
            run_set(arguments, name)
    if set(arguments.sets) - {"tuning"}:
        print(write_report(arguments.output))


if __name__ == "__main__":
    main()
