"""`hf-mass solve` and `hf-mass adapt`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from hf_mass.cli.options import ModelChoice
from hf_mass.cli.progress import Watcher, watched
from hf_mass.cli.showing import plain, show_outcome, stdout_console
from hf_mass.engine.events import Adapter, LiveConfig, Outcome
from hf_mass.engine.models import SMALL, LiveModel, default_model, load_model
from hf_mass.engine.session import solve
from hf_mass.errors import AdaptationError, CheckpointError, DataError, HFMassError
from hf_mass.methods.mass_model import GENERATOR
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.reading import read_many, read_one


class Solver:
    """Loads the model that a problem needs, once, and adapts it.

    Args:
        choice: Which model.
        method: How to adapt; None for what fits problem and model.
        settings: Of `LiveConfig`.
    """

    def __init__(self, choice: ModelChoice, method: str | None, settings: Mapping[str, Any]) -> None:
        self.choice, self.method, self.settings = choice, method, dict(settings)
        self.loaded: dict[str, LiveModel] = {}
        LiveConfig(method=method or "ttt", **self.settings)  # wrong settings are told before anything is loaded

    def __call__(self, problem: Problem, watch: Watcher) -> tuple[Outcome, LiveModel]:
        """Adapt to a problem and answer it."""
        watch.say("Loading the model")
        model = self.model(problem.kind, problem.tasks[0].fields)
        config = LiveConfig(method=self.method or fitting_method(model, problem), **self.settings)
        return solve(model, problem, config, watch), model

    def model(self, kind: str, fields: Collection[str]) -> LiveModel:
        """The model for a kind of problem; one that was chosen by name is for all."""
        key = self.choice.name or default_model(kind, fields)
        if key not in self.loaded:
            self.loaded[key] = load_chosen(self.choice, key)
        return self.loaded[key]


def load_chosen(choice: ModelChoice, default: str) -> LiveModel:
    """The model that was chosen, or a default."""
    model = load_model(choice.name or default, choice.revision, choice.token, choice.device)
    if model.mass.device.type == "cpu" and model.mass.model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    return model


def fitting_method(model: LiveModel, problem: Problem) -> str:
    """Test-time training where the model can do it and there are solved examples, else MASS."""
    shown = all(task.demonstrations for task in problem.tasks)
    return "ttt" if shown and problem.kind in model.presets else "mass"


def solve_problems(
    words: Sequence[str],
    method: str | None,
    settings: Mapping[str, Any],
    choice: ModelChoice,
    *,
    each: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """`hf-mass solve`.

    Args:
        words: A file, "-", or the problem's lines.
        method: How to adapt.
        settings: Of `LiveConfig`.
        choice: Which model.
        each: Whether the file holds many problems; one that fails does not end the others.
        as_json: Whether to write JSON, one object a line.
        quiet: Whether to show no progress.

    Returns:
        The exit code: 1 if a problem of many could not be adapted to.

    Raises:
        HFMassError: If the problem cannot be read or adapted to.
    """
    solver = Solver(choice, method, settings)
    if each and len(words) != 1:
        raise DataError(f"--each takes one file or folder, and there are {len(words)} words.")
    problems = read_many(words[0]) if each else [read_one(words)]
    console, failed, outcomes = stdout_console(), 0, list[Outcome]()
    for number, problem in enumerate(problems):
        try:
            with watched(quiet) as watch:
                outcome, model = solver(problem, watch)
        except (DataError, AdaptationError) as error:
            if not each:
                raise
            failed += 1
            report_failure(problem, error, console, as_json)
            continue
        outcomes.append(outcome)
        if as_json:
            print(to_json(outcome, model), flush=True)
        else:
            console.rule(f"{number + 1} of {len(problems)}") if each else None
            show_outcome(outcome, outcome.config.method, model.name, console)
    if each and not as_json:
        console.print(Text(summary(outcomes, failed), style="bold"))
    return 1 if failed else 0


def to_json(outcome: Outcome, model: LiveModel, **more: Any) -> str:
    """An outcome as one line of JSON."""
    about = {"kind": outcome.problem.kind, "model": model.name}
    return json.dumps({**outcome.to_dict(), **about, **more}, ensure_ascii=False)


def report_failure(problem: Problem, error: HFMassError, console: Console, as_json: bool) -> None:
    """That one of many problems could not be adapted to."""
    if as_json:
        print(json.dumps({"problem": problem.name, "error": str(error)}, ensure_ascii=False), flush=True)
    else:
        console.print(Text(f"{plain(problem.name)}: {plain(str(error))}", style="red"))


def summary(outcomes: Sequence[Outcome], failed: int) -> str:
    """How many questions were answered rightly before and after, where that is known."""
    parts = [f"{len(outcomes)} problems"] + ([f"{failed} failed"] if failed else [])
    for name in ("before", "after"):
        known = [a.right for outcome in outcomes for a in getattr(outcome, name) if a.right is not None]
        parts += [f"{name} {sum(known)} of {len(known)} right"] if known else []
    return ", ".join(parts)


# -- adapt -------------------------------------------------------------------------------------------------------------


def adapt_and_save(
    words: Sequence[str],
    output: Path,
    method: str | None,
    settings: Mapping[str, Any],
    choice: ModelChoice,
    *,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """`hf-mass adapt`.

    Args:
        words: A file, "-", or the problem's lines.
        output: Where the adapters go.
        method: How to adapt.
        settings: Of `LiveConfig`.
        choice: Which model.
        overwrite: Whether the folder may hold something.
        as_json: Whether to write JSON.
        quiet: Whether to show no progress.

    Raises:
        CheckpointError: If the folder cannot be written.
        AdaptationError: If there are no adapted weights.
        HFMassError: If the problem cannot be read or adapted to.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        raise CheckpointError(f"{output} is there already. Give a new folder, or --overwrite.")
    solver, problem = Solver(choice, method, settings), read_one(words)
    with watched(quiet) as watch:
        outcome, model = solver(problem, watch)
        if not outcome.adapters:
            raise AdaptationError(f"There are no adapted weights to save: {outcome.reason or 'nothing was adapted'}.")
        folders = save_adapters(outcome.adapters, output)
    base = str(model.mass.model.peft_config[GENERATOR].base_model_name_or_path)
    if as_json:
        print(to_json(outcome, model, adapters=[str(folder) for folder in folders], base_model=base))
        return
    console = stdout_console()
    show_outcome(outcome, outcome.config.method, model.name, console)
    console.print(how_to_load(base, folders), markup=False, soft_wrap=True)


def save_adapters(adapters: Sequence[Adapter], output: Path) -> list[Path]:
    """One adapter into the folder itself, several into folders of it; where they are."""
    folders = [output] if len(adapters) == 1 else [output / f"question-{n + 1}" for n in range(len(adapters))]
    for adapter, folder in zip(adapters, folders, strict=True):
        adapter.save(folder)
    return folders


def how_to_load(base: str, folders: Sequence[Path]) -> str:
    """Python that loads a saved adapter."""
    others = [f"# and so on: {', '.join(str(folder) for folder in folders[1:])}"] if folders[1:] else []
    lines = [
        "\nsaved; load it by",
        "",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        f"model = PeftModel.from_pretrained(base, {str(folders[0])!r})",
        *others,
    ]
    return "\n".join(lines)
