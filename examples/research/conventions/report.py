"""From the outcomes of one or more seeds to the table, its goals and its plot."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hf_mass.errors import DataError
from hf_mass.evaluation.cards import write_card
from hf_mass.evaluation.plots import accuracy_plot
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.lab.conventions import ConventionsWorld
from research.conventions.experiment import M_TRAIN, load_world
from research.conventions.experiment import rows as experiment_rows
from research.conventions.figures import training_plot
from research.conventions.protocol import Outcome

Found = Mapping[str, Mapping[str, tuple[Outcome, float | None]]]
SPLITS = {"test_families": "families held out", "test_conventions": "conventions held out"}
FAMILIES, CONVENTIONS = SPLITS.values()
PANELS = {
    "reward at the adapted weights": ("reward/adapted", "reward/unadapted"),
    "outer loss": ("outer_loss",),
    "inner loss": ("inner_loss/before", "inner_loss/after"),
    "weights and parsing": ("weights/entropy", "samples/parse_rate"),
}
BASE_ATTRIBUTION = "attribution to demonstrations, base generator, m = 24"
MASS_ATTRIBUTION = "MASS, attribution to demonstrations, m = 24"


@dataclass(frozen=True, slots=True)
class Goal:
    """A claim about a table and whether it holds.

    Args:
        text: The claim in words.
        met: Whether the numbers support it.
        numbers: The numbers.
    """

    text: str
    met: bool
    numbers: str

    def __str__(self) -> str:
        return f"{'met' if self.met else 'MISSED'}: {self.text} ({self.numbers})"


def above(table: ResultTable, method: str, baseline: str, split: str, factor: float = 1.0) -> Goal:
    """Whether a method's mean is at least `factor` times a baseline's on a split, and higher, with intervals apart."""
    mine, other = table.interval(method, split), table.interval(baseline, split)
    claim = f"{method} above {baseline}" if factor == 1.0 else f"{method} at least {factor:g} times {baseline}"
    met = mine.mean >= factor * other.mean and mine.low > other.high
    return Goal(f"{claim} on {split}, intervals apart", met, f"{mine} against {other}")


def results(found: Sequence[Found], method: str, split: str) -> np.ndarray:
    """0/1 results, [seeds, tasks]."""
    return np.stack([seed[method][split][0].correct for seed in found])


def build_table(found: Sequence[Found], command: str, **meta: Any) -> ResultTable:
    """One row per method, intervals over tasks and seeds."""
    rows = []
    order = [row.name for row in experiment_rows(load_world(), 0)]
    for method in sorted(found[0], key=order.index):
        outcomes = found[0][method]
        accuracy = {SPLITS[split]: mean_interval(results(found, method, split)) for split in outcomes}
        every = [seed[method][split][0] for seed in found for split in outcomes]
        rates = {
            f"inner rate, {SPLITS[split]}, seed {number}": float(rate)
            for number, seed in enumerate(found)
            for split, (_, rate) in seed[method].items()
            if rate is not None
        }
        rows.append(
            ResultRow(
                method,
                accuracy,
                float(np.mean([outcome.sampled_tokens for outcome in every])),
                float(np.median([outcome.latency_s for outcome in every])),
                rates,
            )
        )
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "hf_mass")}
    made = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()} CPU, one thread",
        **packages,
        **meta,
    }
    return ResultTable("Conventions world: greedy accuracy", tuple(SPLITS.values()), tuple(rows), made)


def goals(table: ResultTable, found: Sequence[Found]) -> list[Goal]:
    """The claims that the experiment set out to test; rows that were not run are left out."""
    scored, wall = "MASS, scored", "solver GRPO, equal wall time"
    claims = [
        (scored, "base", FAMILIES, 1.5),
        (scored, "MASS, uniform", FAMILIES, 1.0),
        (scored, "TT-SS (raw self-generated)", FAMILIES, 1.0),
        (scored, "hand-written filter (equal tokens)", FAMILIES, 1.0),
        (scored, "solver GRPO, equal steps", FAMILIES, 1.0),
        (scored, wall, FAMILIES, 1.0),
        (BASE_ATTRIBUTION, "base", CONVENTIONS, 2.5),
        (BASE_ATTRIBUTION, "solver GRPO, equal steps", CONVENTIONS, 1.0),
        (BASE_ATTRIBUTION, wall, CONVENTIONS, 1.0),
        (BASE_ATTRIBUTION, "TTT: one step on the demonstrations", CONVENTIONS, 1.0),
        (scored, "MASS, uniform", CONVENTIONS, 1.0),
        (scored, "attribution to demonstrations, base generator, m = 8", FAMILIES, 1.0),
        (scored, "attribution to demonstrations, base generator, m = 8", CONVENTIONS, 1.0),
    ]
    names = {row.method for row in table}
    checked = []
    for method, baseline, split, factor in claims:
        if method not in names or baseline not in names:
            continue
        goal = above(table, method, baseline, split, factor)
        key = next(name for name, shown in SPLITS.items() if shown == split)
        difference = paired_difference(results(found, method, key), results(found, baseline, key))
        checked.append(Goal(goal.text, goal.met, f"{goal.numbers}; paired difference {difference}"))
    return checked


def per_domain(found: Sequence[Found], world: ConventionsWorld, method: str, split: str) -> dict[str, float]:
    """Accuracy by family, over all seeds."""
    values = results(found, method, split).mean(0)
    tasks = world.tasks(split, values.size, seed=100)
    domains = sorted({task.domain for task in tasks})
    return {d: float(np.mean([v for v, task in zip(values, tasks, strict=True) if task.domain == d])) for d in domains}


def plot_training(history: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The metrics of `PANELS` that were logged."""
    logged = {name for entry in history for name, value in entry.items() if value is not None}
    panels = {title: [n for n in names if n in logged] for title, names in PANELS.items()}
    return training_plot(history, path, {title: names for title, names in panels.items() if names})


def write_report(table: ResultTable, folder: Path, checked: Sequence[Goal]) -> dict[str, Path]:
    """results.json, results.md and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [table.to_markdown(), "", *(f"- {goal}" for goal in checked), ""]
    (folder / "results.md").write_text("\n".join(lines))
    highlight = [row.method for row in table if "attribution" in row.method or row.method == "MASS, scored"]
    plot = accuracy_plot(table, folder / "results.png", highlight=highlight)
    return {"json": table.save(folder / "results.json"), "markdown": folder / "results.md", "plot": plot}


def write_adapter_card(adapters: Path, results: Path, repo_id: str | None = None) -> Path:
    """The README.md of the main job's adapters; for those that ship: `repo_id="conventions-mass"`."""
    return write_card(
        adapters,
        results,
        repo_id=repo_id,
        title="conventions-mass",
        license="apache-2.0",
        tags=["synthetic"],
        dataset="conventions",
        training_data="Made-up few-shot tasks of the designed world in `hf_mass.lab.conventions`, drawn by code: "
        "families and conventions of its training split. Nobody's data. Rewards came from the verifier, on answers at "
        "the adapted weights (`examples/train.py`, preset `conventions_settings`).",
        example=load_world().tasks("test_conventions", 2, seed=100)[1],
        limits=[
            "A laboratory model of a designed world: it knows a few fruits, colours, rules and names, and nothing of "
            "language. Its results say how adaptation works, not how well a language model does.",
            "Its base is trained to ignore demonstrations when it answers and to use them when it writes. That gap is "
            "what adaptation closes here; another model's gap may be elsewhere, smaller, or absent.",
            "Every adapting row of the table has its own inner rate, chosen on validation tasks, and rows without a "
            f"number of samples in their name have m = {M_TRAIN}. The saved settings are one rate and one m for all.",
        ],
    )


def save_outcomes(found: Found, training: Mapping[str, Any], path: Path) -> None:
    """Every single result, so that a table can be made again without running anything, and what training took."""
    values = {
        method: {
            split: {
                "correct": outcome.correct.astype(int).tolist(),
                "sampled_tokens": outcome.sampled_tokens,
                "latency_s": outcome.latency_s,
                "inner_rate": rate,
            }
            for split, (outcome, rate) in splits.items()
        }
        for method, splits in found.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"training": dict(training), "rows": values}) + "\n")


def load_outcomes(path: Path) -> tuple[Found, dict[str, Any]]:
    """What `save_outcomes` wrote: (rows, training).

    Raises:
        DataError: If the file is no such thing.
    """
    try:
        values = json.loads(path.read_text())
        found = {
            method: {
                split: (
                    Outcome(np.array(v["correct"], float), v["sampled_tokens"], v["latency_s"], []),
                    v["inner_rate"],
                )
                for split, v in splits.items()
            }
            for method, splits in values["rows"].items()
        }
        return found, values["training"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} holds no saved outcomes: {error}. Run results.py without --report_only.") from error
