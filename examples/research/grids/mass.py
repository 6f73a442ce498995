"""MASS on grids: does adapting on demonstrations that the model itself writes add to answering, and to TTT?

In the folder `examples`:

    python -m research.grids.mass --sets 1d-arc mini-arc

The base continues a task's demonstrations with new ones of the hidden rule. At test time, with no label and no
training, each of them is weighed by its attribution to the task's own demonstrations, each left out in turn.
Rows: the base, uniform weights, attribution, trained scorers, test-time training (TTT), and the same at each task's TTT
adapter. Inner rate and sampling temperature are chosen per row on made-up tasks of families that the base never saw;
no benchmark task has a part in it. `<output>/results.json` holds every outcome; a second run adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mass import MetaAdaptConfig, MetaAdaptTrainer
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.methods.scorer import Scorer
from hf_mass.store.shipped import ASSETS
from hf_mass.store.storage import replace_text
from paths import DATA, OUTPUTS
from research.grids.mass_study import FORMAT, ROWS, SCORERS, Row, Setting, Study, load_tasks, room, world_tasks
from research.grids.world import TRAINED
from research.ranking import auc

SETS = ("world", "1d-arc", "mini-arc")


# Scorers


def train_scorer(study: Study, name: str, setting: Setting, arguments: argparse.Namespace) -> Scorer:
    """A scorer trained on the answers of made-up tasks of the trained families; the generator stays the base's own."""
    folder = arguments.output / "scorers" / name
    if folder.is_dir():
        return Scorer.load(folder)
    families = [family for names in TRAINED.values() for family in names]
    count = arguments.scorer_steps * 4
    tasks = world_tasks(-(-count // len(families)), "scorer", families)
    random.Random(arguments.seed).shuffle(tasks)
    question, answer = room(tasks[:count])
    args = MetaAdaptConfig(
        output_dir=str(arguments.output / "trainer"),
        outer_loss="gold",
        prompt_format="compact_grid",
        num_generations=8,
        per_device_train_batch_size=32,
        max_steps=arguments.scorer_steps,
        max_completion_length=question + answer + 8,
        max_solution_length=answer + 8,
        max_length=2000,
        temperature=setting.temperature,
        inner_steps=study.steps,
        inference_steps=study.steps,
        inner_learning_rate=setting.rate,
        inner_optimizer=study.optimizer,
        inner_lora_r=16,
        inner_lora_alpha=16,
        scorer_features=list(SCORERS[name]),
        scorer_width=16,
        scorer_learning_rate=arguments.scorer_rate,
        learning_rate=0.0,
        solve_coefficient=0.0,
        beta=0.0,
        seed=arguments.seed,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = MetaAdaptTrainer(
        str(study.base), args, tasks[:count], processing_class=study.mass.tokenizer, prompt_format=FORMAT
    )
    begun = time.perf_counter()
    trainer.train()
    print(f"scorer {name}: {arguments.scorer_steps} steps in {time.perf_counter() - begun:.0f} s", flush=True)
    trainer.mass.scorer.save(folder)
    return trainer.mass.scorer


# Choosing and running


def choose(
    study: Study, row: Row, rates: Sequence[float], temperatures: Sequence[float], per_family: int
) -> tuple[Setting, list[dict[str, float]]]:
    """The setting of most solved validation tasks, of equals that with the least loss on their answers; every trial."""
    grid = [Setting(rate * row.scale, heat) for heat, rate in product(temperatures, rates)]
    if row.weigh_by is None:
        return grid[0], []
    if row.weigh_by == "direct":
        grid = grid[: len(rates)]  # it samples nothing
    trials = []
    tasks = world_tasks(per_family, "validation")
    for setting in grid:
        outcomes = study.answer(row, setting, tasks)
        accuracy, loss = (float(np.mean([o[key] for o in outcomes])) for key in ("right", "loss"))
        trials.append({"rate": setting.rate, "temperature": setting.temperature, "accuracy": accuracy, "loss": loss})
        print(f"  {row.name}: {trials[-1]}", flush=True)
    best = max(range(len(grid)), key=lambda i: (trials[i]["accuracy"], -trials[i]["loss"]))
    return grid[best], trials


def run_row(study: Study, row: Row, found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Settings and outcomes of one row, as far as they are missing."""
    chosen = found["settings"].get(row.name)
    if chosen is None:
        if row.scorer and row.scorer not in study.scorers:
            like = found["settings"].get("MASS attribution, m = 8", {"rate": arguments.rates[0], "temperature": 1.0})
            middle = Setting(like["rate"], like["temperature"])
            study.scorers[row.scorer] = train_scorer(study, row.scorer, middle, arguments)
        setting, trials = choose(study, row, arguments.rates, arguments.temperatures, arguments.validation_per_family)
        chosen = {"rate": setting.rate, "temperature": setting.temperature, "trials": trials}
        found["settings"][row.name] = chosen
    if row.scorer and row.scorer not in study.scorers:
        study.scorers[row.scorer] = Scorer.load(arguments.output / "scorers" / row.scorer)
    setting = Setting(chosen["rate"], chosen["temperature"])
    for name in arguments.sets:
        outcomes = found["outcomes"].setdefault(name, {})
        if row.name in outcomes:
            continue
        begun = time.perf_counter()
        tasks = load_tasks(name, arguments.data, arguments.tasks_per_type, arguments.limit)
        outcomes[row.name] = study.answer(row, setting, tasks)
        share = np.mean([o["right"] for o in outcomes[row.name]])
        print(f"{name}, {row.name}: {share:.3f}, n = {len(tasks)}, {time.perf_counter() - begun:.0f} s", flush=True)


# Reporting


def make_table(found: dict[str, Any]) -> ResultTable:
    """Accuracies with their intervals over tasks."""
    rows: dict[str, dict[str, Any]] = {}
    for name, outcomes in found["outcomes"].items():
        for row, results in outcomes.items():
            rows.setdefault(row, {})[name] = mean_interval([o["right"] for o in results])
    shown = tuple(ResultRow(row, accuracy) for row, accuracy in rows.items())
    return ResultTable("MASS on grids", tuple(found["outcomes"]), shown, {"command": found["command"]})


def differences(found: dict[str, Any]) -> list[str]:
    """Every adapting row against the row that it adapts from, on the same tasks."""
    lines = []
    for name, outcomes in found["outcomes"].items():
        for row, results in outcomes.items():
            plain = "TTT" if row.startswith("TTT,") else "base"
            if row == plain or plain not in outcomes or len(results) < 2:
                continue
            values = [[o["right"] for o in each] for each in (results, outcomes[plain])]
            loss = np.mean([a["loss"] - b["loss"] for a, b in zip(results, outcomes[plain], strict=True)])
            lines.append(f"{name}: {row} − {plain}: {paired_difference(*values)}, loss {loss:+.4f}")
    return lines


def sample_report(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a row's samples are like, and whether those that follow the rule weigh more.

    "auc" is the probability that of two samples of one task the one that follows the rule weighs more; "weight" the
    share of a task's weight on such samples, "follow" their share among the samples, over tasks that have both kinds.
    """
    groups = [result.get("samples", []) for result in results]
    every = [sample for group in groups for sample in group]
    if not every:
        return {}
    report = {"read": float(np.mean([s["read"] for s in every]))}
    report["copied"] = float(np.mean([s.get("copied", False) for s in every]))
    judged = [[s for s in group if "follows" in s] for group in groups]
    known = [s["follows"] for group in judged for s in group]
    if known:
        report["follow, all"] = float(np.mean(known))
    mixed = [group for group in judged if len({s["follows"] for s in group}) == 2]
    if mixed:
        report["mixed tasks"] = len(mixed)
        report["auc"] = float(np.mean([auc([s["weight"] for s in g], [s["follows"] for s in g]) for g in mixed]))
        report["follow"] = float(np.mean([np.mean([s["follows"] for s in g]) for g in mixed]))
        report["weight"] = float(np.mean([sum(s["weight"] for s in g if s["follows"]) for g in mixed]))
    return {key: round(value, 4) for key, value in report.items()}


def report(found: dict[str, Any], output: Path) -> str:
    """Writes results.json and results.md; returns the text."""
    table = make_table(found)
    found["table"] = json.loads(table.to_json())
    found["samples"] = {
        name: {row: line for row, results in outcomes.items() if (line := sample_report(results))}
        for name, outcomes in found["outcomes"].items()
    }
    lines = [f"    {found['command']}", "", table.to_markdown(), "", *(f"- {line}" for line in differences(found)), ""]
    for name, rows in found["samples"].items():
        lines += [f"- {name}, samples of {row}: {json.dumps(values)}" for row, values in rows.items()]
    chosen = {row: [setting["rate"], setting["temperature"]] for row, setting in found["settings"].items()}
    lines.append(f"- inner rate and temperature, chosen on validation tasks: {json.dumps(chosen)}")
    replace_text(output / "results.md", "\n".join(lines) + "\n")
    replace_text(output / "results.json", json.dumps(found, ensure_ascii=False) + "\n")
    return "\n".join([table.to_text(), *lines[4:]])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ASSETS / "grids-base")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets")
    parser.add_argument("--rows", nargs="+", default=[row.name for row in ROWS], choices=[row.name for row in ROWS])
    parser.add_argument(
        "--tasks_per_type", type=int, default=6, help="tasks of each type of 1D-ARC, family of the world"
    )
    parser.add_argument("--limit", type=int, default=None, help="tasks of a set at most")
    parser.add_argument("--validation_per_family", type=int, default=4, help="tasks on which settings are chosen")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 1.0, 3.0], help="inner rates to try")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="sampling temperatures to try")
    parser.add_argument("--optimizer", default="sgd", help="inner optimizer")
    parser.add_argument("--steps", type=int, default=1, help="inner steps")
    parser.add_argument("--sharpness", type=float, default=3.0, help="τ of the weights by attribution")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the weights by attribution")
    parser.add_argument("--recoloured", action="store_true", help="questions are demonstrations' inputs recoloured")
    parser.add_argument("--scorer_steps", type=int, default=40, help="training steps of 4 tasks")
    parser.add_argument("--scorer_rate", type=float, default=1e-2, help="learning rate of the scorers")
    parser.add_argument("--ttt", nargs="*", default=[], metavar="NAME=JSON", help="settings of TTTSettings to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUTS / "grid-mass")
    arguments = parser.parse_args(argv)
    arguments.ttt = {item.partition("=")[0]: json.loads(item.partition("=")[2]) for item in arguments.ttt}
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    torch.set_num_threads(1)
    path = arguments.output / "results.json"
    found: dict[str, Any] = {"settings": {}, "outcomes": {}}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    found["command"] = "python -m research.grids.mass " + " ".join(sys.argv[1:] if argv is None else argv)
    own = ("optimizer", "steps", "sharpness", "rounds", "recoloured", "ttt", "seed")
    study = Study(arguments.base, **{name: getattr(arguments, name) for name in own})
    for row in ROWS:
        if row.name in arguments.rows:
            run_row(study, row, found, arguments)
            report(found, arguments.output)
    print(report(found, arguments.output))
    return found


if __name__ == "__main__":
    main()
