"""The full results table of the conventions experiment: several seeds, every row, both test splits.

In the folder `examples`:

    python -m research.conventions.results --seeds 0 1 2 --tasks 400

Writes examples/results/: one file of raw outcomes per seed (a second run trains and answers only what a file lacks),
then results.json, results.md and results.png. About 20 minutes a seed on one CPU thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from hf_mass.lab.conventions import ConventionsWorld
from paths import OUTPUTS, RESULTS
from research.conventions.experiment import evaluate_rows, load_world, rows, train_models
from research.conventions.report import (
    BASE_ATTRIBUTION,
    SPLITS,
    build_table,
    goals,
    load_outcomes,
    per_domain,
    save_outcomes,
    write_report,
)


def run_seed(world: ConventionsWorld, seed: int, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Train and answer whatever the seed's file lacks, and add it to the file."""
    path = arguments.output / f"seed{seed}.json"
    found, took = load_outcomes(path) if path.is_file() else ({}, {})
    missing = [row for row in rows(world, seed) if row.name not in found]
    say(f"seed {seed}: {len(missing)} rows to answer")
    if not missing:
        return
    wanted = {row.model for row in missing} - {"base"}
    models, took, _ = train_models(world, seed, arguments.work / f"seed{seed}", wanted, say, took)
    added = evaluate_rows(models, world, seed, arguments.tasks, arguments.validation_tasks, say, known=found)
    save_outcomes({**found, **added}, took, path)


def main() -> None:
    """Run the seeds that are missing, then report on all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training and sampling seeds")
    parser.add_argument("--tasks", type=int, default=400, help="test tasks of each split")
    parser.add_argument("--validation_tasks", type=int, default=100, help="tasks on which inner rates are chosen")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=OUTPUTS / "results", help="where trainers write")
    parser.add_argument("--report_only", action="store_true", help="make the table from the files that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = load_world()

    def say(text: str) -> None:
        print(text, flush=True)

    for seed in arguments.seeds:
        if not arguments.report_only:
            run_seed(world, seed, arguments, say)
    every = [load_outcomes(arguments.output / f"seed{seed}.json")[0] for seed in arguments.seeds]
    command = " ".join(["python -m research.conventions.results", *sys.argv[1:]])
    table = build_table(every, command=command, seeds=arguments.seeds, tasks=arguments.tasks)
    checked = goals(table, every)
    write_report(table, arguments.output, checked)
    say(table.to_text())
    for goal in checked:
        say(str(goal))
    for split, shown in SPLITS.items():
        for method in ("base", "MASS, scored", BASE_ATTRIBUTION):
            domains = " ".join(f"{name} {value:.2f}" for name, value in per_domain(every, world, method, split).items())
            say(f"{shown}, {method}, by family: {domains}")


if __name__ == "__main__":
    main()
