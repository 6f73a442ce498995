"""`hf-mass evaluate`: run the methods, keep every outcome, and report."""

from __future__ import annotations

import datetime
import json
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mass.cli.options import ROWS, ModelChoice
from hf_mass.cli.progress import watched
from hf_mass.cli.reading import read_set
from hf_mass.cli.showing import plain, stdout_console
from hf_mass.cli.solving import load_chosen
from hf_mass.engine.models import LiveModel, default_model
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.evaluation.compare import Found, Methods, as_record, fitting_methods, from_record, in_order
from hf_mass.evaluation.plots import accuracy_plot
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.store.card import without_tokens
from hf_mass.store.markdown import markdown_table
from hf_mass.tasks.reading import TaskSet
from hf_mass.training.ttt_results import tasks_digest

BASELINES = {"mass": "none", "maj": "none", "few": "few-shot", "ttt": "few-shot", "both": "few-shot"}
"""Beginning of a method's name → what it is compared with, on the same tasks."""
PACKAGES = ("torch", "transformers", "trl", "peft", "hf_mass")
OUTCOMES = "outcomes.json"


def evaluate_methods(
    name: str,
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    choice: ModelChoice,
    *,
    reading: Mapping[str, Any],
    command: str,
    output: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """`hf-mass evaluate`.

    Args:
        name: The tasks.
        methods: What to compare; None for what fits the model.
        seeds: With which seeds.
        settings: Of `LiveConfig`, and "batch_size" and "token_budget".
        choice: Which model.
        reading: Of `read_set`.
        command: The command line.
        output: Where the report goes.
        resume: Whether to go on with the run there.
        as_json: Whether to write JSON.
        quiet: Whether to show no progress.

    Raises:
        HFMassError: If tasks or model cannot be read, or a method is none for them.
    """
    given = read_set(name, **reading)
    with watched(quiet) as watch, place_of(output) as folder:
        watch.say("Loading the model")
        model = load_chosen(choice, given.model or default_model(given.kind))
        names = list(methods or fitting_methods(model, given))
        runs = Methods(model, given, names, settings, folder / "runs", resume)
        about = {"model": model.name, "tasks": tasks_digest(given.tasks), "settings": dict(settings)}
        done = Outcomes(folder / OUTCOMES, about, resume)
        for seed in seeds:
            for method in in_order(names):
                kept = done.get(method, seed)
                if kept is None:
                    done.put(method, seed, runs.run(method, seed, watch))
                elif kept.sampled_tokens is not None and method.startswith("mass"):
                    runs.spent.append(kept.sampled_tokens)
        outcomes = {method: done.all(method, seeds) for method in names}
    table = build_table(given, model, outcomes, seeds, without_tokens(command), settings)
    notes = [*differences(outcomes), *remarks(outcomes, names)]
    written = [] if output is None else write_report(output, table, notes, outcomes)
    if as_json:
        print(json.dumps({**json.loads(table.to_json()), "notes": notes}, ensure_ascii=False))
        return
    console = stdout_console()
    lines = [table.to_text(), "", *notes, *(f"written: {path}" for path in written), f"by: {table.meta['command']}"]
    console.print(plain("\n".join(lines)), markup=False, soft_wrap=True)


@contextmanager
def place_of(output: Path | None) -> Iterator[Path]:
    """The folder of the run, or one that is gone at the end."""
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written to: {error}. Give another folder.") from error
    yield output


class Outcomes:
    """Every single outcome, kept in a file as soon as a method is through.

    Args:
        file: The file.
        about: What outcomes depend on, as JSON values; a run is resumed with the same only.
        resume: Whether to start from what is there.

    Raises:
        ConfigError: If what is there is of another run.
        CheckpointError: If it cannot be read.
    """

    def __init__(self, file: Path, about: Mapping[str, Any], resume: bool) -> None:
        self.file, self.about = file, dict(about)
        self.methods: dict[str, dict[str, Any]] = {}
        if not resume or not file.is_file():
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.methods = kept["methods"]
            differing = sorted(key for key in about if kept["about"][key] != json.loads(json.dumps(about[key])))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error!r}). Evaluate again without --resume.") from error
        if differing:
            raise ConfigError(
                f"{file} is of a run with {differing[0]} = {kept['about'][differing[0]]}, and this one has "
                f"{about[differing[0]]}. Resume with the same, or give another --output."
            )

    def get(self, method: str, seed: int) -> Found | None:
        """What a method came to; None if it was not run."""
        record = self.methods.get(method, {}).get(str(seed))
        return None if record is None else from_record(record)

    def all(self, method: str, seeds: Sequence[int]) -> list[Found]:
        """What a method came to with each seed."""
        return [from_record(self.methods[method][str(seed)]) for seed in seeds]

    def put(self, method: str, seed: int, found: Found) -> None:
        """Keep it."""
        self.methods.setdefault(method, {})[str(seed)] = as_record(found)
        partial = self.file.with_name(self.file.name + ".partial")
        content = {"about": self.about, "methods": self.methods}
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)


# -- reporting ---------------------------------------------------------------------------------------------------------

ByMethod = Mapping[str, Sequence[Found]]


def results(found: Sequence[Found]) -> np.ndarray:
    """[seeds, tasks], from 0 to 1."""
    return np.array([[row["right"] for row in each.rows] for each in found])


def build_table(
    given: TaskSet,
    model: LiveModel,
    outcomes: ByMethod,
    seeds: Sequence[int],
    command: str,
    settings: Mapping[str, Any],
) -> ResultTable:
    """One row a method, intervals over tasks and seeds."""
    rows = tuple(
        ResultRow(
            ROWS[method],
            {given.name: mean_interval(results(found))},
            _mean([each.sampled_tokens for each in found]),
            _mean([each.seconds for each in found]),
        )
        for method, found in outcomes.items()
    )
    device = model.mass.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    meta = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine}, {torch.get_num_threads()} thread(s)",
        "model": model.name,
        "seeds": list(seeds),
        "settings": {key: value for key, value in settings.items() if value is not None},
        **{package: version(package) for package in PACKAGES},
    }
    return ResultTable(f"{given.name}: {model.name}", (given.name,), rows, meta)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def differences(outcomes: ByMethod) -> list[str]:
    """Every method against its baseline, task by task."""
    lines = []
    for method, found in outcomes.items():
        baseline = next(base for start, base in {**BASELINES, "none": "none"}.items() if method.startswith(start))
        if baseline in outcomes and baseline != method and results(found).shape[1] > 1:
            apart = paired_difference(results(found), results(outcomes[baseline]))
            lines.append(f"{ROWS[method]} − {ROWS[baseline]}: {apart}")
    return lines


def remarks(outcomes: ByMethod, names: Sequence[str]) -> list[str]:
    """What a reader of the table must know besides."""
    lines = []
    for plain_name in ("few-shot", "ttt"):
        if plain_name in names and f"{plain_name}-voting" in names:
            voting = ROWS[f"{plain_name}-voting"]
            lines.append(
                f"{ROWS[plain_name]} is of the same run as {voting}, which has the tokens and seconds of both."
            )
    for method, found in outcomes.items():
        reasons = Counter(row["reason"] for each in found for row in each.rows if row["reason"])
        if reasons:
            reason, _ = reasons.most_common(1)[0]
            lines.append(f"{ROWS[method]}: {reasons.total()} times not adapted or answered; most often: {reason}")
    return lines


def by_domain(outcomes: ByMethod) -> list[str]:
    """A table of the domains, where there are several; in Markdown."""
    domains = list(dict.fromkeys(row["domain"] for found in outcomes.values() for row in found[0].rows))
    if len(domains) < 2:
        return []
    lines = []
    for domain in domains:
        cells = [
            [r["right"] for each in found for r in each.rows if r["domain"] == domain] for found in outcomes.values()
        ]
        count = sum(row["domain"] == domain for row in next(iter(outcomes.values()))[0].rows)
        lines.append((domain or "–", count, *(f"{np.mean(cell):.3f}" for cell in cells)))
    header = ("domain", "n", *(ROWS[method] for method in outcomes))
    return ["## By domain", "", markdown_table(header, lines), ""]


def write_report(output: Path, table: ResultTable, notes: Sequence[str], outcomes: ByMethod) -> list[Path]:
    """results.json, results.md and results.png; where they are, with the outcomes."""
    paths = [output / name for name in ("results.json", "results.md", "results.png", OUTCOMES)]
    table.save(paths[0])
    about = ", ".join(f"{name} {table.meta[name]}" for name in ("date", "machine", *PACKAGES))
    seeds = ", ".join(map(str, table.meta["seeds"]))
    lines = [
        f"# {table.title}",
        "",
        f"    {table.meta['command']}",
        "",
        f"Mean with a 95% interval (bootstrap over tasks and seeds). Seeds: {seeds}. {about}.",
        "",
        table.to_markdown(),
        "",
        *(f"- {note}" for note in notes),
        "",
        *by_domain(outcomes),
        "![accuracies](results.png)",
    ]
    paths[1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    accuracy_plot(table, paths[2])
    return paths
