"""Tables and pictures of `benchmarks.real_models`, made from the outcomes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_mass.errors import CheckpointError
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.store.markdown import markdown_table
from hf_mass.store.storage import replace_text

TUNING = (
    *("extractive/choose_middle_of_3", "extractive/alphabetically_first_3", "abstractive/present-past"),
    *("abstractive/country-capital", "abstractive/sentiment"),
)
"""Tasks that settings were chosen on."""
KNOWLEDGE = (
    *("ag_news", "antonym", "country-capital", "english-french", "english-spanish", "national_parks"),
    *("person-occupation", "person-sport", "sentiment", "conll2003_location", "conll2003_person"),
    *("adjective_v_verb_3", "adjective_v_verb_5", "animal_v_object_3", "animal_v_object_5"),
    *("color_v_animal_3", "color_v_animal_5"),
)
"""Tasks that need to know what words mean or what is so in the world; the others follow a rule of form."""
STRENGTHS = ("ttt", "low", "long")
"""Rows with one strength for all tasks."""
LABELS = {
    "base": "few-shot prompt",
    "vote": "few-shot prompt, majority vote at equal tokens",
    "ttt": "TTT",
    "low": "TTT at a third of the rate",
    "long": "TTT, twice the steps",
    "guarded": "TTT, guarded",
    "direct": "TTT on single pairs",
    "query-loss": "TTT, loss on the query alone",
    "shared": "TTT, one adapter for all tasks",
    "mass-uniform": "MASS, equal weights",
    "mass": "MASS, by attribution",
    "both": "TTT, then MASS by attribution",
}
"""Row → what tables call it."""


class Outcomes:
    """Outcomes by task, seed and row, in a file.

    Args:
        file: The file.
        about: What they depend on; empty to take what the file says.

    Raises:
        CheckpointError: If the file is of a run that differs in it.
    """

    def __init__(self, file: Path, about: dict[str, Any] | None = None) -> None:
        empty: dict[str, Any] = {"about": about or {}, "answers": {}, "tasks": {}}
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else empty
        if about and content["about"] != about:
            raise CheckpointError(
                f"{file} is of a run with {content['about']}, this one has {about}. Give another --output."
            )
        self.file, self.about, self.tasks = file, content["about"], content["tasks"]
        self.answers: dict[str, str] = content["answers"]  # task → what its answers are like

    def get(self, task: str, seed: int, row: str) -> dict[str, Any] | None:
        """One outcome; None where it is not there."""
        return self.tasks.get(task, {}).get(str(seed), {}).get(row)

    def put(self, task: str, seed: int, row: str, outcome: dict[str, Any]) -> None:
        """Keep one, at once."""
        self.tasks.setdefault(task, {}).setdefault(str(seed), {})[row] = outcome
        content = {"about": self.about, "answers": self.answers, "tasks": self.tasks}
        replace_text(self.file, json.dumps(content, indent=0) + "\n")

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return sorted({int(seed) for seeds in self.tasks.values() for seed in seeds})


def accuracies(outcomes: Outcomes, row: str, names: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """[seeds, tasks]: the share of queries that are right; NaN where it was not run."""
    cells = [[outcomes.get(name, seed, row) for name in names] for seed in seeds]
    return np.array([[np.nan if cell is None else np.mean(cell["right"]) for cell in line] for line in cells])


def complete_seeds(outcomes: Outcomes, names: Sequence[str], *rows: str) -> list[int]:
    """Seeds for which all tasks have all rows."""
    return [s for s in outcomes.seeds if all(outcomes.get(name, s, row) for name in names for row in rows)]


# -- tables ------------------------------------------------------------------------------------------------------------


def summary(outcomes: Outcomes, names: Sequence[str]) -> str:
    """All rows: the mean over tasks, against the prompt alone, and what it costs."""
    lines = []
    for row, label in LABELS.items():
        seeds = complete_seeds(outcomes, names, row, "base")
        if not seeds:
            continue
        values, base = (accuracies(outcomes, each, names, seeds) for each in (row, "base"))
        cells = [cell for s in seeds for name in names if (cell := outcomes.get(name, s, row)) is not None]
        apart = str(paired_difference(values, base)) if row != "base" and len(names) > 1 else "–"
        costs = (np.mean([cell[key] for cell in cells]) for key in ("cpu_seconds", "sampled_tokens", "trained_tokens"))
        numbers = (str(mean_interval(values)), apart, *(f"{cost:.0f}" for cost in costs))
        lines.append((label, *numbers, ", ".join(map(str, seeds))))
    header = ("method", "accuracy", "against the prompt", "CPU s a task", "tokens sampled", "tokens trained", "seeds")
    return markdown_table(header, lines)


def by_task(outcomes: Outcomes, names: Sequence[str], seed: int) -> str:
    """Each task: every row's accuracy, what the guard chose, and its paired difference to the prompt."""
    rows = [row for row in LABELS if any(outcomes.get(name, seed, row) for name in names)]
    lines = []
    for name in names:
        cells = {row: outcomes.get(name, seed, row) for row in rows}
        line = [name, *(f"{np.mean(cell['right']):.2f}" if cell else "–" for cell in cells.values())]
        guarded, base = cells.get("guarded"), cells["base"]
        if guarded and base:
            entries = guarded["guard"]
            chosen = next((f"{e['strength']}, {e['share']:.0%} of the steps" for e in entries if e["chosen"]), "none")
            line += [chosen, f"{left_out_gain(guarded):+.2f}", str(paired_difference(guarded["right"], base["right"]))]
        else:
            line += ["–"] * 3
        lines.append(tuple(line))
    more = ("guard's choice", "left-out gain", "guarded − prompt")
    return markdown_table(("task", *(LABELS[row] for row in rows), *more), lines)


def left_out_gain(outcome: dict[str, Any]) -> float:
    """The best one that the guard read, in nats per answer token."""
    return max((float(e["gain"]) for e in outcome["guard"]), default=float("nan"))


def goals(outcomes: Outcomes, names: Sequence[str]) -> str:
    """What was aimed at, and what it came to."""
    seeds = complete_seeds(outcomes, names, "base", "guarded")
    if not seeds or len(names) < 2:
        return "No seed has all tasks yet."
    base, guarded = (accuracies(outcomes, row, names, seeds) for row in ("base", "guarded"))
    gain, ratio = paired_difference(guarded, base), f"{guarded.mean() / base.mean():.2f}" if base.any() else "–"
    lines = [
        ("guarded TTT over the prompt, ratio of means", "at least 1.45", ratio),
        ("lower end of the paired interval of the difference", "above .10", str(gain)),
    ]
    strengths = [row for row in STRENGTHS if complete_seeds(outcomes, names, "guarded", row)]
    if (rated := complete_seeds(outcomes, names, "guarded", *strengths)) and len(strengths) > 1:
        best = max(strengths, key=lambda row: accuracies(outcomes, row, names, rated).mean())
        ours, theirs = (accuracies(outcomes, row, names, rated) for row in ("guarded", best))
        which = f"guarded − the best single strength in hindsight ({LABELS[best]})"
        lines.append((which, "at least −.01", str(paired_difference(ours, theirs))))
    cells = [
        (name, s, outcomes.get(name, s, "guarded"), outcomes.get(name, s, "base")) for name in names for s in seeds
    ]
    apart = [(paired_difference(a["right"], b["right"]), name, s) for name, s, a, b in cells if a and b]
    harmed = [f"{name} (seed {s}): {interval}" for interval, name, s in apart if interval.high < -0.03]
    lines.append(("tasks with a paired interval wholly below −.03", "none", "; ".join(harmed) or "none"))
    worst, name, s = min(apart, key=lambda each: each[0].mean)
    lines.append(("the largest loss on a task", "–", f"{name} (seed {s}): {worst}"))
    return markdown_table(("measure", "goal", f"seeds {', '.join(map(str, seeds))}"), lines)


def kinds(outcomes: Outcomes, names: Sequence[str]) -> str:
    """What kind of task gains: the mean gain of each group of tasks."""
    seeds = complete_seeds(outcomes, names, "base", "guarded")
    if not seeds:
        return ""
    base, guarded = (accuracies(outcomes, row, names, seeds).mean(0) for row in ("base", "guarded"))
    gains = np.array([[left_out_gain(outcomes.get(n, s, "guarded") or {}) for n in names] for s in seeds]).mean(0)
    lines = []
    for title, inside in groups(outcomes, names, base, gains).items():
        chosen = np.array([name in inside for name in names])
        if chosen.any():
            apart = str(paired_difference(guarded[chosen], base[chosen])) if chosen.sum() > 1 else "–"
            lines.append((title, chosen.sum(), f"{base[chosen].mean():.2f}", f"{guarded[chosen].mean():.2f}", apart))
    return markdown_table(("tasks", "n", "few-shot prompt", "TTT, guarded", "difference"), lines)


def groups(outcomes: Outcomes, names: Sequence[str], base: np.ndarray, gains: np.ndarray) -> dict[str, list[str]]:
    """Name of a group → its tasks."""

    def where(flags: Any) -> list[str]:
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    known = [name.partition("/")[2] in KNOWLEDGE for name in names]
    forms = [outcomes.answers.get(name) for name in names]
    return {
        "the prompt alone is right on less than .15": where(base < 0.15),
        "... on .15 to .6": where((base >= 0.15) & (base < 0.6)),
        "... on .6 or more": where(base >= 0.6),
        "the answer is a part of the input": where(form == "copied" for form in forms),
        "the answer is one of a few": where(form == "closed" for form in forms),
        "the answer is open": where(form == "open" for form in forms),
        "needs knowledge": where(known),
        "follows a rule of form": where(not each for each in known),
        "left-out gain below .3 nats": where(gains < 0.3),
        "... .3 to 1": where((gains >= 0.3) & (gains < 1)),
        "... 1 or more": where(gains >= 1),
    }


# -- pictures ----------------------------------------------------------------------------------------------------------


def dot_plot(outcomes: Outcomes, names: Sequence[str], seed: int, file: Path) -> None:
    """Before and after, task by task."""
    cells = [(name, outcomes.get(name, seed, "base"), outcomes.get(name, seed, "guarded")) for name in names]
    means = sorted((float(np.mean(b["right"])), float(np.mean(a["right"])), name) for name, b, a in cells if b and a)
    if not means:
        return
    figure = Figure(figsize=(7, 0.24 * len(means) + 1.2), layout="constrained")
    axis = figure.subplots()
    for place, (before, after, _) in enumerate(means):
        axis.plot([before, after], [place, place], color="#bbbbbb", zorder=1)
        axis.scatter(before, place, color="#888888", s=22, zorder=2, label="few-shot prompt" if not place else None)
        axis.scatter(after, place, color="#c1440e", s=22, zorder=3, label="guarded TTT" if not place else None)
    axis.set_yticks(range(len(means)), [name.partition("/")[2] for *_, name in means], fontsize=8)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of queries answered right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def gain_plot(outcomes: Outcomes, names: Sequence[str], file: Path) -> None:
    """The gain in accuracy by the prompt's own accuracy, and by the left-out gain."""
    seeds = complete_seeds(outcomes, names, "base", "guarded")
    if not seeds:
        return
    base, guarded = (accuracies(outcomes, row, names, seeds).mean(0) for row in ("base", "guarded"))
    left_out = np.array([[left_out_gain(outcomes.get(n, s, "guarded") or {}) for n in names] for s in seeds]).mean(0)
    known = np.array([name.partition("/")[2] in KNOWLEDGE for name in names])
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("accuracy of the prompt alone", "left-out gain, nats per answer token")
    for axis, values, title in zip(axes, (base, left_out), titles, strict=True):
        for flag, colour, label in ((True, "#3a6ea5", "needs knowledge"), (False, "#c1440e", "a rule of form")):
            axis.scatter(values[known == flag], (guarded - base)[known == flag], s=24, color=colour, label=label)
        axis.axhline(0, color="#bbbbbb", linewidth=1, zorder=0)
        axis.set_xlabel(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gain in accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)


def report(outcomes: Outcomes, output: Path) -> str:
    """Writes results.md, before-after.png and gains.png; returns the text."""
    seed = outcomes.seeds[0]
    done = [name for name in sorted(outcomes.tasks) if outcomes.get(name, seed, "base")]
    reported = [name for name in done if name not in TUNING]
    parts = [f"    {outcomes.about.get('command', '')}", ""]
    for title, names in (
        ("Tasks that no setting was chosen on", reported),
        ("Tuning tasks", [name for name in TUNING if name in done]),
    ):
        if names:
            parts += [f"## {title} (n = {len(names)})", "", summary(outcomes, names), ""]
            if names is reported:
                parts += ["### Goals", "", goals(outcomes, names), ""]
                parts += ["### What kind of task gains", "", kinds(outcomes, names), ""]
            parts += [f"### Task by task, seed {seed}", "", by_task(outcomes, names, seed), ""]
    output.mkdir(parents=True, exist_ok=True)
    dot_plot(outcomes, reported, seed, output / "before-after.png")
    gain_plot(outcomes, reported, output / "gains.png")
    text = "\n".join(parts)
    (output / "results.md").write_text(text, encoding="utf-8")
    return text
