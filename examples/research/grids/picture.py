"""A picture of test-time training at work: a task, the base's answer, and the answer after training on the task.

In the folder `examples`:

    python -m research.grids.picture --sets arc --ids 66e6c45b be03b35f 2072aba6 5783df64

Trains on the tasks anew, with the settings of `results.py`; takes half a minute for four.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hf_mass import Task
from hf_mass.methods.base import Adaptation
from hf_mass.tasks.grids import parse_grid
from hf_mass.training.ttt_results import TaskResult
from paths import RESULTS
from research.grids.results import build_trainer, load_tasks, parse

PALETTE = ListedColormap(
    ["#111111", "#1e78d2", "#e03a2f", "#37b24d", "#f2c037", "#9a9a9a", "#d6409f", "#f2802a", "#74c7ec", "#7b1e2b"]
)


def draw(axis: Axes, text: str | None, title: str, right: bool | None = None) -> None:
    """One grid, framed in green or red where it is an answer."""
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    grid = None if text is None else parse_grid(text)
    if grid is None:
        axis.text(0.5, 0.5, "no grid", ha="center", va="center", fontsize=8)
        return
    axis.imshow(np.array(grid), cmap=PALETTE, vmin=0, vmax=9, interpolation="nearest")
    axis.set_xticks(np.arange(-0.5, len(grid[0])), minor=True)
    axis.set_yticks(np.arange(-0.5, len(grid)), minor=True)
    axis.grid(which="minor", color="#555555", linewidth=0.4)
    axis.tick_params(which="both", length=0)
    for spine in axis.spines.values():
        spine.set_linewidth(0.8 if right is None else 3)
        spine.set_color("#555555" if right is None else "#1a9850" if right else "#d73027")


def picture(tasks: list[Task], before: list[TaskResult], after: list[TaskResult], path: Path) -> None:
    """A row a task: two demonstrations, the problem, both answers, the gold answer."""
    figure = Figure(figsize=(13, 1.75 * len(tasks)), layout="constrained", dpi=110)
    axes = figure.subplots(len(tasks), 8, squeeze=False)
    for row, task, old, new in zip(axes, tasks, before, after, strict=True):
        for n, shown in enumerate(task.demonstrations[:2]):
            draw(row[2 * n], shown.question, f"demonstration {n + 1}")
            draw(row[2 * n + 1], shown.answer, "→")
        draw(row[4], task.problem, "problem")
        draw(row[5], old.answer, "base", old.answer == task.answer)
        draw(row[6], new.answer, "test-time trained", new.answer == task.answer)
        draw(row[7], task.answer, "gold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--ids", nargs="+", required=True)
    own.add_argument("--picture", type=Path, default=RESULTS / "ttt" / "arc.png")
    mine, rest = own.parse_known_args()
    arguments = parse(rest)
    torch.set_num_threads(1)
    name = arguments.sets[0]
    tasks = [t for t in load_tasks(name, arguments.data, None, None, arguments.longest) if t.id in mine.ids]
    found = []
    for variant in ("base", "ttt"):
        trainer = build_trainer(arguments, name, variant, vote="first" if variant == "base" else "hierarchical")
        # Records are not saved: the runs that the tables are made of stay as they are.
        records = trainer.adapt(tasks) if variant == "ttt" else [Adaptation(task) for task in tasks]
        assert isinstance(records, list)
        found.append(trainer.predict(tasks, records=records))
    picture(tasks, found[0], found[1], mine.picture)


if __name__ == "__main__":
    main()
