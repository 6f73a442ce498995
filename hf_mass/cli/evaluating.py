"""`hf-mass evaluate`: run the methods, keep every outcome, and report."""

from __future__ import annotations

import datetime
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from hf_mass.cli.deferred import deferred
from hf_mass.cli.options import ModelChoice
from hf_mass.cli.progress import watched
from hf_mass.cli.reading import read_set
from hf_mass.cli.showing import plain, stdout_console
from hf_mass.cli.solving import load_chosen, look_here
from hf_mass.cli.streams import json_text
from hf_mass.engine.models import default_model
from hf_mass.errors import VerifierError
from hf_mass.evaluation.compare import ROWS, Comparator, Comparison, fitting_rows, mean_cost
from hf_mass.evaluation.outcomes import OUTCOMES, Outcomes, digest, model_digest
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.registry import METHODS
from hf_mass.methods.ttt import sharing_data
from hf_mass.store.card import without_tokens
from hf_mass.store.markdown import markdown_table
from hf_mass.tasks.reading import TaskSet

NO_GOLD = "Their tasks have no gold answer."
PACKAGES = ("torch", "transformers", "peft", "hf_mass")
_accuracy_plot = deferred("hf_mass.evaluation.plots", "accuracy_plot")  # matplotlib is an extra


def evaluate_methods(
    name: str,
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    sizes: Mapping[str, Any],
    choice: ModelChoice,
    *,
    reading: Mapping[str, Any],
    command: str,
    output: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """`hf-mass evaluate`; `settings` are those of methods, `sizes` of `Comparison`, `reading` of `read_set`.

    Raises:
        HFMassError: If tasks or model cannot be read, a method is none for them, or no answer could be judged.
    """
    names = [row_name(word) for word in methods or ()]
    look_here(names)
    tasks = read_set(name, **reading)
    with watched(quiet) as watch:
        default = tasks.model or default_model(tasks.kind)
        lm = load_chosen(choice, default, watch)
        about = {
            "model": lm.name,
            "weights": output and model_digest(lm),
            "tasks": digest(tasks.tasks),
            "settings": {**settings, **sizes},
        }
        comparison = Comparison(
            lm,
            tasks.tasks,
            names or fitting_rows(lm, tasks.kind, tasks.tasks),
            settings,
            Outcomes(output and output / OUTCOMES, about, resume),
            **sizes,
            say=watch.count,
            on_event=watch,
        )
        outcomes = comparison.run(seeds)
    require_judged(outcomes)
    table = build_table(tasks, lm, comparison.rows, outcomes, seeds, without_tokens(command), {**settings, **sizes})
    notes = [*differences(comparison.rows, outcomes, sets_of(tasks)), *remarks(comparison.rows, outcomes)]
    notes += interval_note(tasks)
    paths = [] if output is None else write_report(output, table, notes, by_domain(comparison.rows, outcomes))
    show(table, notes, paths, as_json)


def show(table: ResultTable, notes: Sequence[str], paths: Sequence[Path], as_json: bool) -> None:
    """The table and what is to be said of it, on stdout."""
    if as_json:
        print(json_text({**json.loads(table.to_json()), "notes": notes}))
        return
    lines = [
        table.to_text(),
        "",
        f"answered by {answerer(table)}",
        *notes,
        *(f"written: {path}" for path in paths),
        f"by: {table.meta['command']}",
    ]
    stdout_console().print(plain("\n".join(lines)), markup=False, soft_wrap=True)


def answerer(table: ResultTable) -> str:
    """Name, size and precision of the model of a table."""
    meta = table.meta
    return f"{meta['model']}, {meta['parameters'] / 1e6:.1f}M parameters, {meta['precision']}"


def row_name(word: str) -> str:
    """The row that somebody names, with "-" or "_"; or a method, registered or as package.module:Class."""
    if (name := word.replace("_", "-")) in ROWS:
        return name
    if word not in METHODS and ":" not in word:
        choices = ", ".join([*ROWS, *(name for name in METHODS if name not in ROWS)])
        raise typer.BadParameter(
            f"{word!r:.100} is none of {choices}, nor package.module:Class.", param_hint="--methods"
        )
    return word


# -- reporting ---------------------------------------------------------------------------------------------------------

Rows = Mapping[str, Comparator]
ByName = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Name of a row → seed → outcome of each task."""


def results(outcomes: Sequence[Sequence[Mapping[str, Any]]]) -> np.ndarray:
    """[seeds, tasks], from 0 to 1; None where no verifier could judge."""
    return np.array([[row["right"] for row in rows] for rows in outcomes])


def unjudged(outcomes: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
    """Numbers of the tasks that are left out, since with some seed it is not known whether they were solved."""
    return [n for n, of_task in enumerate(zip(*outcomes, strict=True)) if any(row["right"] is None for row in of_task)]


def require_judged(outcomes: ByName) -> None:
    """Raises VerifierError, with the most frequent reason, if no answer of any row could be judged."""
    rows = [row for by_seed in outcomes.values() for some in by_seed for row in some]
    if all(row["right"] is None for row in rows):
        ((reason, _),) = Counter(row["reason"] for row in rows).most_common(1)
        raise VerifierError(f"None of {len(rows)} answers could be judged. {reason or NO_GOLD}")


def sets_of(tasks: TaskSet) -> list[int]:
    """For each task the number of its set of demonstrations: the inputs of one puzzle are no independent draws."""
    numbers = [0] * len(tasks.tasks)
    for number, members in enumerate(sharing_data(tasks.tasks)):
        for member in members:
            numbers[member] = number
    return numbers


def interval_note(tasks: TaskSet) -> list[str]:
    """What the intervals speak of, where that is not each task by itself."""
    sets = len(set(sets_of(tasks)))
    if sets == len(tasks.tasks):
        return []
    if sets == 1:
        return ["intervals: over the questions of this one set of examples, not over other examples"]
    return [f"intervals: over {sets} sets of examples, whose questions are drawn together"]


def build_table(
    tasks: TaskSet,
    lm: LanguageModel,
    rows: Rows,
    outcomes: ByName,
    seeds: Sequence[int],
    command: str,
    settings: Mapping[str, Any],
) -> ResultTable:
    """A line for each row, intervals over tasks and seeds."""
    lines, clusters = [], sets_of(tasks)
    for name, by_seed in outcomes.items():
        cost = mean_cost([row for some in by_seed for row in some])
        accuracy = {}
        if len(unjudged(by_seed)) < len(tasks.tasks):
            accuracy[tasks.name] = mean_interval(results(by_seed), clusters=clusters)
        lines.append(ResultRow(rows[name].label, accuracy, cost.sampled_tokens, cost.seconds))
    device = lm.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    meta = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine}, {torch.get_num_threads()} thread(s)",
        **lm.facts(),
        "seeds": list(seeds),
        "settings": {key: value for key, value in settings.items() if value is not None},
        **{package: version(package) for package in PACKAGES},
    }
    return ResultTable(f"{tasks.name}: {lm.name}", (tasks.name,), tuple(lines), meta)


def differences(rows: Rows, outcomes: ByName, clusters: Sequence[int]) -> list[str]:
    """Every row against its baseline, task by task."""
    lines = []
    for name, row in rows.items():
        if row.baseline is None or row.baseline not in rows:
            continue
        pair = outcomes[name], outcomes[row.baseline]
        if len(clusters) - len({n for each in pair for n in unjudged(each)}) > 1:
            apart = paired_difference(*map(results, pair), clusters=clusters)
            lines.append(f"{row.label} − {rows[row.baseline].label}: {apart}")
    return lines


def remarks(rows: Rows, outcomes: ByName) -> list[str]:
    """What a reader of the table must know besides."""
    lines = []
    for name, by_seed in outcomes.items():
        if left_out := unjudged(by_seed):
            reason = next(row["reason"] for some in by_seed for row in some if row["right"] is None)
            count = f"{len(left_out)} of {len(by_seed[0])} tasks are left out, since no verifier could judge them"
            lines.append(f"{rows[name].label}: {count}; first: {reason or NO_GOLD}")
        judged = [row for some in by_seed for row in some if row["right"] is not None]
        if reasons := Counter(row["reason"] for row in judged if row["reason"]):
            reason, _ = reasons.most_common(1)[0]
            lines.append(f"{rows[name].label}: {reasons.total()} times not all went well; most often: {reason}")
        if notes := [row["guard"] for some in by_seed for row in some if "guard" in row]:
            counts = Counter(note.partition(":")[0] for note in notes)
            lines.append(f"{rows[name].label}: " + "; ".join(f"{note} {n} times" for note, n in counts.most_common()))
    return lines


def by_domain(rows: Rows, outcomes: ByName) -> list[str]:
    """A table of the domains, where there are several; in Markdown."""
    counts = Counter(row["domain"] for row in next(iter(outcomes.values()))[0])
    if len(counts) < 2:
        return []
    lines = []
    for domain, count in counts.items():
        cells = []
        for by_seed in outcomes.values():
            left_out = set(unjudged(by_seed))
            judged = [r for some in by_seed for n, r in enumerate(some) if n not in left_out and r["domain"] == domain]
            n, mean = len(judged) // len(by_seed), np.mean([r["right"] for r in judged]) if judged else 0
            cells.append(f"{mean:.3f}" + ("" if n == count else f" (n = {n})") if judged else "–")
        lines.append((domain or "–", count, *cells))
    header = ("domain", "n", *(rows[name].label for name in outcomes))
    return ["## By domain", "", markdown_table(header, lines), ""]


def write_report(output: Path, table: ResultTable, notes: Sequence[str], domains: Sequence[str]) -> list[Path]:
    """results.json, results.md and results.png; where they are, with the outcomes.

    Raises:
        ConfigError: If the figure cannot be drawn for want of matplotlib; the other files are written.
    """
    paths = [output / name for name in ("results.json", "results.md", "results.png", OUTCOMES)]
    table.save(paths[0])
    about = ", ".join(f"{name} {table.meta[name]}" for name in ("date", "machine", *PACKAGES))
    seeds = ", ".join(map(str, table.meta["seeds"]))
    lines = [
        f"# {table.title}",
        "",
        f"    {table.meta['command']}",
        "",
        f"Answered by {answerer(table)}.",
        "",
        f"Mean with a 95% interval (bootstrap over tasks and seeds). Seeds: {seeds}. {about}.",
        "",
        table.to_markdown(),
        "",
        *(f"- {note}" for note in notes),
        "",
        *domains,
        "![accuracies](results.png)",
    ]
    paths[1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    _accuracy_plot(table, paths[2])
    return paths
