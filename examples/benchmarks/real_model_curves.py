"""How much test-time training helps a real model by the number of steps, the rank and the number of demonstrations.

    python -m benchmarks.real_model_curves --model ~/.cache/hf_mass/smollm2-135m-instruct     # runs, resumes, reports
    python -m benchmarks.real_model_curves --report                                           # from the outcomes alone

Run in `examples`. One setting is changed at a time, the others are those of `TTTConfig.preset("text")`. The default
follows from the tuning tasks; the sixth task is shown beside them and decides nothing. Every outcome goes to
`<output>/outcomes.json` as soon as it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import hf_mass
from benchmarks.real_models import ROWS, load_task, parser_of, run
from benchmarks.real_models_report import LABELS, TUNING, Outcomes
from hf_mass.evaluation.statistics import mean_interval
from hf_mass.methods.ttt_settings import ASKED_ONCE
from hf_mass.store.markdown import markdown_table

TASKS = (*TUNING, "abstractive/antonym")
SHOTS = 10
DEFAULT_STEPS = 10
Point = tuple[str, int, dict[str, Any]]  # label, demonstrations, settings of TTT


def steps(count: int) -> dict[str, Any]:
    """Settings for a number of steps of two examples each, every example in an order of its own."""
    return {"max_examples": 2 * count, "permutations": max(4, -(-2 * count // SHOTS))}


CURVES: dict[str, tuple[Point, ...]] = {
    "steps": tuple((str(count), SHOTS, steps(count)) for count in (4, 8, DEFAULT_STEPS, 20, 40)),
    "rank": tuple((str(rank), SHOTS, {"lora_r": rank, "lora_alpha": 2 * rank}) for rank in (8, 16, 64)),
    "demonstrations": tuple((str(shots), shots, {}) for shots in (3, 5, 10, 20)),
}
"""Name of a curve → its points; the point of the default is the same in all three."""


def row(curve: str, point: Point) -> str:
    """The name that a point's outcome is kept by: one name for the default, whichever curve it is on."""
    label, shots, settings = point
    default = shots == SHOTS and (not settings or settings in (steps(DEFAULT_STEPS), {"lora_r": 16, "lora_alpha": 32}))
    return "default" if default else f"{curve} {label}"


def measure(outcomes: Outcomes, lm: hf_mass.LanguageModel, data: Path, queries: int) -> None:
    """Every outcome that is not there yet."""
    for name in TASKS:
        for curve, points in CURVES.items():
            for point in points:
                _, shots, settings = point
                tasks = load_task(data / f"{name}.jsonl", shots, queries, seed=0)
                wanted = {row(curve, point): ("ttt", settings), f"base {shots}": ("base", {})}
                for key, (kind, changes) in wanted.items():
                    if outcomes.get(name, 0, key) is None:
                        outcome = run(lm, ROWS[kind]({**ASKED_ONCE, **changes}), tasks, seed=0)
                        outcomes.put(name, 0, key, outcome)
                        right = np.mean(outcome["right"])
                        print(f"{name} {key}: {right:.3f}, {outcome['cpu_seconds']} s", file=sys.stderr, flush=True)


def report(outcomes: Outcomes, output: Path) -> str:
    """Writes results.md and curves.png; returns the text."""
    parts = [f"    {outcomes.about.get('command', '')}", ""]
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, (curve, points) in zip(figure.subplots(1, len(CURVES), sharey=True), CURVES.items(), strict=True):
        lines = []
        for kind in ("base", "ttt"):
            keys = [f"base {point[1]}" if kind == "base" else row(curve, point) for point in points]
            cells = [[outcomes.get(name, 0, key) for key in keys] for name in TASKS]
            right = np.array([[np.nan if c is None else np.mean(c["right"]) for c in line] for line in cells])
            axis.plot(range(len(points)), right[: len(TUNING)].mean(0), "o-", label=LABELS[kind], color=_COLOURS[kind])
            for n, name in enumerate(TASKS):
                lines.append((LABELS[kind], name, *(f"{value:.2f}" for value in right[n])))
            means = (str(mean_interval(right[: len(TUNING), k])) for k in range(len(points)))
            lines.append((LABELS[kind], "**mean of the tuning tasks**", *means))
        seconds = [[c["cpu_seconds"] for name in TUNING if (c := outcomes.get(name, 0, row(curve, p)))] for p in points]
        lines.append(("CPU s of TTT", "mean of the tuning tasks", *(f"{np.mean(s):.0f}" for s in seconds)))
        parts += [f"## By {curve}", "", markdown_table(("method", "task", *(p[0] for p in points)), lines), ""]
        axis.set_xticks(range(len(points)), [point[0] for point in points])
        axis.set_xlabel(curve)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False, loc="center left")
    figure.axes[0].set_ylabel("accuracy, mean of five tasks")
    figure.savefig(output / "curves.png", dpi=130)
    text = "\n".join(parts)
    (output / "results.md").write_text(text, encoding="utf-8")
    return text


_COLOURS = {"base": "#888888", "ttt": "#c1440e"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "real-models/curves", 100)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    file = arguments.output / "outcomes.json"
    if not arguments.report:
        about = {"model": Path(arguments.model).name, "dtype": "bfloat16", "queries": arguments.queries}
        about["command"] = "python -m benchmarks.real_model_curves --model <folder>"
        lm = hf_mass.load(arguments.model, dtype=torch.bfloat16)
        measure(Outcomes(file, about), lm, arguments.data, arguments.queries)
    print(report(Outcomes(file), arguments.output))


if __name__ == "__main__":
    main()
