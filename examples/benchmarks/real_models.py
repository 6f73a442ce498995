"""Few-shot tasks of a word or a short phrase on a real language model: prompting, test-time training, the guard.

    python -m benchmarks.real_models --model ~/.cache/hf_mass/smollm2-135m-instruct            # runs, resumes, reports
    python -m benchmarks.real_models --model ... --tasks tuning --rows base ttt --set learning_rate=3e-4
    python -m benchmarks.real_models --report                                                  # from the outcomes alone

Run in `examples`. A task has ten demonstrations and 100 queries, drawn from its file by the seed; an answer is right if
it is the known one to the letter. Settings were chosen on `TUNING`, whose tasks are reported apart. Every outcome goes
to `<output>/outcomes.json` as soon as it is there, so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import hf_mass
from hf_mass import MASS, TTT, LanguageModel, Method, NoAdaptation, Task
from hf_mass.engine.session import Session
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.methods.guard import Guard
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.ttt_settings import ASKED_ONCE
from hf_mass.store.markdown import markdown_table
from hf_mass.store.storage import replace_text
from paths import DATA, RESULTS

TUNING = (
    *("extractive/choose_middle_of_3", "extractive/alphabetically_first_3", "abstractive/present-past"),
    *("abstractive/country-capital", "abstractive/sentiment"),
)
"""Tasks that settings were chosen on."""
LONGEST = 300
"""Characters of an input."""

Made = Callable[[dict[str, Any]], Method[Any]]
ROWS: dict[str, tuple[str, Made]] = {
    "base": ("few-shot prompt", lambda s: NoAdaptation(TTT(**s))),
    "ttt": ("TTT", lambda s: TTT(**s)),
    "guarded": ("TTT, guarded", lambda s: Guard(TTT(**s))),
    "low": ("TTT at a third of the rate", lambda s: TTT(**s).scaled(0.3)),
    "query-loss": ("TTT, loss on the query alone", lambda s: TTT(**s, loss_on="query")),
    "direct": ("TTT on single pairs", lambda s: TTT(**s, direct=True)),
    "mass-uniform": ("MASS, equal weights", lambda s: MASS(weigh_by="uniform", samples=12)),
    "mass": ("MASS, by attribution", lambda s: MASS(weigh_by="demonstrations", samples=12)),
    "both": ("TTT, then MASS by attribution", lambda s: TTTThenMASS(TTT(**s), MASS(samples=12))),
}
"""Row → (label, the method from settings of TTT)."""


def task_names(data: Path) -> list[str]:
    """All tasks, as folder/name."""
    return sorted(f"{file.parent.name}/{file.stem}" for file in data.glob("*/*.jsonl"))


def load_task(file: Path, shots: int, queries: int, seed: int) -> list[Task]:
    """The queries of one task, all with the same demonstrations."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [(str(row["input"]).strip(), str(row["output"]).strip()) for row in rows]
    pairs = [(x, y) for x, y in dict(pairs).items() if x and y and len(x) < LONGEST]
    random.Random(seed).shuffle(pairs)
    if len(pairs) <= shots:
        raise SystemExit(f"{file} has {len(pairs)} rows, too few for {shots} demonstrations.")
    shown = pairs[:shots]
    return [Task.from_pairs(shown, x, y, id=f"{file.stem}-{n}") for n, (x, y) in enumerate(pairs[shots:][:queries])]


def run(lm: LanguageModel, method: Method[Any], tasks: Sequence[Task], seed: int) -> dict[str, Any]:
    """What a method comes to on the queries of one task."""
    begun, session = time.process_time(), Session(lm, method, seed)
    adaptations = session.adapt(tasks)
    answers, cost = session.answer(tasks, adaptations)
    first = adaptations[0]
    return {
        "right": [int(answer.text == task.answer) for task, answer in zip(tasks, answers, strict=True)],
        "cpu_seconds": round(time.process_time() - begun, 1),
        "trained_tokens": round(first.cost.trained_tokens * len(tasks)),
        "sampled_tokens": round((first.cost.sampled_tokens + cost.sampled_tokens) * len(tasks)),
        "losses": [round(value, 4) for value in first.losses],
        "guard": [
            {"strength": e.strength, "share": e.share, "gain": round(e.gain, 4), "chosen": e.chosen}
            for e in first.guard
        ],
        "reason": first.reason,
    }


class Outcomes:
    """Outcomes by task, seed and row, in a file.

    Args:
        file: The file.
        about: What they depend on; a file of another run is refused.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file, self.about = file, about
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"about": about, "tasks": {}}
        if about and content["about"] != about:
            raise SystemExit(
                f"{file} is of a run with {content['about']}, this one has {about}. Give another --output."
            )
        self.about, self.tasks = content["about"], content["tasks"]

    def get(self, task: str, seed: int, row: str) -> dict[str, Any] | None:
        return self.tasks.get(task, {}).get(str(seed), {}).get(row)

    def put(self, task: str, seed: int, row: str, outcome: dict[str, Any]) -> None:
        self.tasks.setdefault(task, {}).setdefault(str(seed), {})[row] = outcome
        replace_text(self.file, json.dumps({"about": self.about, "tasks": self.tasks}, indent=0) + "\n")


# -- the report --------------------------------------------------------------------------------------------------------


def accuracies(outcomes: Outcomes, row: str, names: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """[seeds, tasks]: the share of queries that are right; NaN where it was not run."""
    cells = [[outcomes.get(name, seed, row) for name in names] for seed in seeds]
    return np.array([[np.nan if cell is None else np.mean(cell["right"]) for cell in line] for line in cells])


def summary(outcomes: Outcomes, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A table of all rows: the mean over tasks, against the prompt alone, and what it costs."""
    base, lines = accuracies(outcomes, "base", names, seeds), []
    for row, (label, _) in ROWS.items():
        values = accuracies(outcomes, row, names, seeds)
        done = [n for n, _ in enumerate(seeds) if not np.isnan(values[n]).any() and not np.isnan(base[n]).any()]
        if not done:
            continue
        cells = [c for n in done for name in names if (c := outcomes.get(name, seeds[n], row)) is not None]
        apart = str(paired_difference(values[done], base[done])) if row != "base" else "–"
        seconds, trained = (np.mean([cell[key] for cell in cells]) for key in ("cpu_seconds", "trained_tokens"))
        numbers = (str(mean_interval(values[done])), apart, f"{seconds:.0f}", f"{trained:.0f}")
        lines.append((label, *numbers, ", ".join(str(seeds[n]) for n in done)))
    header = ("method", "accuracy", "against the prompt", "CPU s a task", "tokens trained on", "seeds")
    return [markdown_table(header, lines)]


def by_task(outcomes: Outcomes, names: Sequence[str], seed: int) -> list[str]:
    """A table of the tasks: each row's accuracy, what the guard chose, and its paired difference to the prompt."""
    rows = [row for row in ROWS if all(outcomes.get(name, seed, row) for name in names)]
    lines = []
    for name in names:
        cells = {row: outcomes.get(name, seed, row) or {} for row in rows}
        line = [name, *(f"{np.mean(cells[row]['right']):.2f}" for row in rows)]
        if "guarded" in rows:
            entries = cells["guarded"]["guard"]
            chosen = next((f"{e['strength']}, {e['share']:.0%} of the steps" for e in entries if e["chosen"]), "none")
            gain = max((e["gain"] for e in entries), default=float("nan"))
            line += [chosen, f"{gain:+.2f}", str(paired_difference(cells["guarded"]["right"], cells["base"]["right"]))]
        lines.append(tuple(line))
    more = ("guard's choice", "left-out gain", "guarded − prompt") if "guarded" in rows else ()
    return [markdown_table(("task", *(ROWS[row][0] for row in rows), *more), lines)]


def dot_plot(outcomes: Outcomes, names: Sequence[str], seed: int, file: Path) -> None:
    """Before and after, task by task."""
    cells = [(name, outcomes.get(name, seed, "base"), outcomes.get(name, seed, "guarded")) for name in names]
    means = [(float(np.mean(b["right"])), float(np.mean(a["right"])), name) for name, b, a in cells if b and a]
    if not means:
        return
    figure = Figure(figsize=(7, 0.24 * len(means) + 1.2), layout="constrained")
    axis = figure.subplots()
    for place, (before, after, _) in enumerate(sorted(means)):
        axis.plot([before, after], [place, place], color="#bbbbbb", zorder=1)
        axis.scatter(before, place, color="#888888", s=22, zorder=2, label="few-shot prompt" if not place else None)
        axis.scatter(after, place, color="#c1440e", s=22, zorder=3, label="guarded TTT" if not place else None)
    axis.set_yticks(range(len(means)), [name.partition("/")[2] for *_, name in sorted(means)], fontsize=8)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of queries answered right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def report(outcomes: Outcomes, output: Path) -> str:
    """Writes results.md and before-after.png; returns the text."""
    reported = [name for name in sorted(outcomes.tasks) if name not in TUNING]
    seeds = sorted({int(seed) for seeds in outcomes.tasks.values() for seed in seeds})
    parts = [f"    {outcomes.about.get('command', '')}", ""]
    for title, names in (("Tasks that no setting was chosen on", reported), ("Tuning tasks", list(TUNING))):
        names = [name for name in names if name in outcomes.tasks and outcomes.get(name, seeds[0], "base")]
        if names:
            parts += [f"## {title} (n = {len(names)})", "", *summary(outcomes, names, seeds), ""]
            parts += [*by_task(outcomes, names, seeds[0]), ""]
    dot_plot(outcomes, reported, seeds[0], output / "before-after.png")
    text = "\n".join(parts)
    (output / "results.md").write_text(text, encoding="utf-8")
    return text


# -- running -----------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--dtype", default="bfloat16", help="of the base; LoRA and optimizer are float32")
    parser.add_argument("--data", type=Path, default=DATA / "function-vectors")
    parser.add_argument("--tasks", nargs="*", default=[], help="folder/name; 'tuning' for those; default: all")
    parser.add_argument("--rows", nargs="+", default=["base", "ttt", "guarded"], choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shots", type=int, default=10, help="demonstrations")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of TTT to change")
    parser.add_argument("--output", type=Path, default=RESULTS / "real-models")
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    arguments.set = {item.partition("=")[0]: json.loads(item.partition("=")[2]) for item in arguments.set}
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    file = arguments.output / "outcomes.json"
    if arguments.report:
        print(report(Outcomes(file, {}), arguments.output))
        return
    about = {"model": Path(arguments.model).name, "dtype": arguments.dtype, "shots": arguments.shots}
    about |= {"queries": arguments.queries, "set": arguments.set}
    about["command"] = "python -m benchmarks.real_models --model <folder>"
    outcomes = Outcomes(file, about)
    lm = hf_mass.load(arguments.model, dtype=getattr(torch, arguments.dtype))
    settings = {**ASKED_ONCE, **arguments.set}
    names = list(TUNING) if arguments.tasks == ["tuning"] else arguments.tasks or task_names(arguments.data)
    for seed in arguments.seeds:
        for name in names:
            tasks = load_task(arguments.data / f"{name}.jsonl", arguments.shots, arguments.queries, seed)
            for row in arguments.rows:
                if outcomes.get(name, seed, row) is None:
                    outcome = run(lm, ROWS[row][1](settings), tasks, seed)
                    outcomes.put(name, seed, row, outcome)
                    score, spent = np.mean(outcome["right"]), outcome["cpu_seconds"]
                    print(
                        f"{name} seed {seed} {row}: {score:.3f}, n = {len(tasks)}, {spent} s",
                        file=sys.stderr,
                        flush=True,
                    )
    print(report(outcomes, arguments.output))


if __name__ == "__main__":
    main()
