"""`hf-mass solve` and `hf-mass adapt`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from hf_mass.cli.groups import How
from hf_mass.cli.options import ModelChoice
from hf_mass.cli.progress import Watcher, watched
from hf_mass.cli.showing import plain, show_solution, stdout_console
from hf_mass.cli.streams import json_text
from hf_mass.engine.api import solve
from hf_mass.engine.models import SMALL, default_model, load, require_device
from hf_mass.engine.solution import Solution
from hf_mass.errors import AdaptationError, DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.suitability import beyond
from hf_mass.lm.threads import choose_threads
from hf_mass.methods.registry import make_method
from hf_mass.store.card import converted_snippet, peft_snippet, quoted
from hf_mass.store.folders import require_writable
from hf_mass.tasks.problems import Problem


class Solver:
    """Loads the model that a problem needs, once, and adapts it."""

    def __init__(self, how: How) -> None:
        names = [how.method] if how.method else ["ttt", "mass"]
        look_here(names)
        self.how, self.methods = how, {name: make_method(name, how.settings) for name in names}
        self.loaded: dict[str, LanguageModel] = {}

    def __call__(self, problem: Problem, watch: Watcher) -> tuple[Solution, LanguageModel]:
        """Adapt to a problem and answer it."""
        name = self.how.model.name or default_model(problem.kind, problem.tasks[0].fields)
        if name not in self.loaded:
            self.loaded[name] = load_chosen(self.how.model, name, watch)
        lm = self.loaded[name]
        solved = all(task.demonstrations for task in problem.tasks)
        fitting = "ttt" if solved and problem.kind in lm.defaults.get("ttt", {}) else "mass"
        method = self.methods[self.how.method or fitting]
        return solve(lm, problem, method, self.how.guard, seed=self.how.seed, on_event=watch), lm


def look_here(names: Sequence[str]) -> None:
    """Where a method is somebody's own, let it be imported from the folder where they work."""
    if any(":" in name for name in names) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def load_chosen(choice: ModelChoice, default: str, watch: Watcher) -> LanguageModel:
    """The model that was chosen, or a default, which is introduced; on a CPU with as many threads as are fastest."""
    name = f"{choice.name or default:.100}"
    watch.say(f"Loading {name}")
    require_device(choice.device)
    if (threads := choose_threads(choice.device)) is not None:
        watch.say(f"Loading {name}, with {threads}")
    lm = load(choice.name or default, **choice.settings())
    watch.say(introduction(lm))
    if lm.device.type == "cpu" and lm.size < SMALL:
        torch.set_num_threads(1)
    return lm


def introduction(lm: LanguageModel) -> str:
    """What answers: its name, size and precision, and why it runs in that."""
    return f"{lm.name}: {lm.measure}" + (f" ({lm.precision_reason})" if lm.precision_reason else "")


def solve_problems(problems: Sequence[Problem], how: How, each: bool) -> int:
    """`hf-mass solve`; with `each` there may be many problems, and one that fails does not end the others.

    Returns:
        The exit code: 1 if a problem of many could not be adapted to.

    Raises:
        HFMassError: If the problem cannot be adapted to.
    """
    solver = Solver(how)
    console, failed, solutions = stdout_console(), 0, list[Solution]()
    for number, problem in enumerate(problems):
        try:
            with watched(how.quiet) as watch:
                solution, lm = solver(problem, watch)
        except (DataError, AdaptationError) as error:
            if not each:
                raise
            failed += 1
            if how.as_json:
                print(json_text({"problem": problem.name, "error": str(error)}), flush=True)
            else:
                console.print(Text(f"{plain(problem.name)}: {plain(str(error))}", style="red"))
            continue
        solutions.append(solution)
        if how.as_json:
            print(to_json(solution, lm), flush=True)
        else:
            console.rule(f"{number + 1} of {len(problems)}") if each else None
            show_solution(solution, introduction(lm), console)
    if each and not how.as_json:
        console.print(Text(summary(solutions, failed), style="bold"))
    return 1 if failed else 0


def to_json(solution: Solution, lm: LanguageModel, **more: Any) -> str:
    """A solution as one line of JSON."""
    about = {"kind": solution.problem.kind, **lm.facts(), "note": beyond(lm, solution.problem.tasks)}
    return json_text({**solution.to_dict(), **about, **more})


def summary(solutions: Sequence[Solution], failed: int) -> str:
    """How many questions were answered rightly before and after, where that is known."""
    parts = [f"{len(solutions)} problems"] + ([f"{failed} failed"] if failed else [])
    for name in ("before", "after"):
        known = [a.right for solution in solutions for a in getattr(solution, name) if a.right is not None]
        parts += [f"{name} {sum(known)} of {len(known)} right"] if known else []
    return ", ".join(parts)


# -- adapt -------------------------------------------------------------------------------------------------------------


def adapt_and_save(problem: Problem, output: Path, how: How) -> None:
    """`hf-mass adapt`: one adapter into the folder itself, several into folders of it.

    Raises:
        CheckpointError: If the folder cannot be written.
        AdaptationError: If there are no adapted weights.
        HFMassError: If the problem cannot be adapted to.
    """
    require_writable(output.parent)
    with watched(how.quiet) as watch:
        solution, lm = Solver(how)(problem, watch)
        adaptations = list(solution.distinct())
        if not adaptations:
            reason = solution.reason or "; ".join(guard["note"] for guard in solution.guards) or "nothing was adapted"
            raise AdaptationError(f"There are no adapted weights to save: {reason}.")
        several = len(adaptations) > 1
        folders = [output / f"question-{n + 1}" if several else output for n in range(len(adaptations))]
        for adaptation, folder in zip(adaptations, folders, strict=True):
            adaptation.save(folder)
    base = str(lm.model.peft_config[lm.adapter_name].base_model_name_or_path)
    if how.as_json:
        print(to_json(solution, lm, adapters=[str(folder) for folder in folders], base_model=base))
        return
    console = stdout_console()
    show_solution(solution, introduction(lm), console)
    is_converted = getattr(lm.model.get_base_model(), "is_converted", False)
    code = converted_snippet(base, str(folders[0])) if is_converted else peft_snippet(quoted(base), str(folders[0]))
    lines = ["\nsaved; load it by", "", *code]
    if several:
        lines.append(f"# and so on: {', '.join(map(str, folders[1:]))}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
