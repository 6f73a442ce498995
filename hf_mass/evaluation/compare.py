"""The methods that `hf-mass evaluate` compares, each on all tasks with one seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_mass.cli.options import ROWS
from hf_mass.cli.progress import Watcher
from hf_mass.engine.events import LiveConfig
from hf_mass.engine.models import LiveModel
from hf_mass.engine.session import solve
from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation.protocol import Answers, Method, adapt_on_samples, answer_greedily, majority_vote, run_method
from hf_mass.methods.base import Solution
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.ttt import FewShotAdapter, FitRecord, OnStep
from hf_mass.tasks.answers import rank_answers, score_answers
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.reading import TaskSet
from hf_mass.tasks.task import Task
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_results import TaskResult
from hf_mass.training.ttt_trainer import TTTTrainer

BY_MASS = {"mass-uniform": "uniform", "mass-scorer": "scorer", "mass-demonstrations": "demonstrations"}
"""Method → what weighs its samples."""
BY_TTT = {
    "few-shot": (False, False),
    "few-shot-voting": (False, True),
    "ttt": (True, False),
    "ttt-voting": (True, True),
}
"""Method → (whether it trains, whether it votes)."""
_TTT_SETTINGS = ("max_examples", "num_train_epochs", "learning_rate")


@dataclass(frozen=True)
class Found:
    """What one method came to with one seed.

    Args:
        rows: For each task its id, domain, whether it is "right" (from 0 to 1), the answer, and what went wrong.
        sampled_tokens: Mean per task, samples and answers; None where it was not counted.
        seconds: Mean per task; None where the time is part of another method's.
    """

    rows: list[dict[str, Any]]
    sampled_tokens: float | None = None
    seconds: float | None = None


class Counted(FewShotAdapter):
    """Counts the tokens of answers, and shows how training goes on."""

    tokens = 0
    show: OnStep | None = None

    def texts(self, completions: Sequence[list[int]]) -> list[str]:
        """As in `FewShotAdapter`; every completion comes by here."""
        self.tokens += sum(map(len, completions))
        return super().texts(completions)

    def adapt(
        self, tasks: Sequence[Task], seed: int = 0, shared: bool = False, on_step: OnStep | None = None
    ) -> list[FitRecord]:
        """As in `FewShotAdapter`."""
        return super().adapt(tasks, seed, shared, on_step or self.show)


@dataclass
class Methods:
    """All methods on the same tasks with the same model.

    Args:
        model: The model.
        given: The tasks.
        names: The methods that are compared.
        settings: Of `LiveConfig`, and "batch_size" and "token_budget".
        folder: Where test-time training keeps what it has finished.
        resume: Whether to take that as it is.
    """

    model: LiveModel
    given: TaskSet
    names: Sequence[str]
    settings: Mapping[str, Any]
    folder: Path
    resume: bool = False
    spent: list[float] = field(default_factory=list)
    _runs: dict[tuple[bool, int], tuple[list[TaskResult], float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tasks = self.model.as_tasks(self.given.tasks)
        self.live = {k: v for k, v in self.settings.items() if k not in ("batch_size", "token_budget")}
        for name in self.names:
            part = "both" if name == "both" else "ttt" if name in BY_TTT else "mass"
            self.model.require(self.given.kind, self.tasks, self._config(part, 0))
        shown = all(task.demonstrations for task in self.tasks)
        if "mass-demonstrations" in self.names and not shown:
            raise DataError("Some tasks have no solved examples, which mass-demonstrations weighs by. Leave it out.")
        samples = self.settings["token_budget"] or set(self.names) & set(BY_MASS)
        if "majority" in self.names and not samples:
            raise ConfigError("The majority vote spends what a row of MASS does. Name one, or give --token_budget.")

    def _config(self, method: str, seed: int) -> LiveConfig:
        return LiveConfig(method=method, seed=seed, **self.live)

    def run(self, name: str, seed: int, watch: Watcher) -> Found:
        """One method with one seed."""
        watch.say(f"{ROWS[name]}, seed {seed}")
        if name in BY_TTT:
            return self._trained(name, seed, watch)
        if name == "both":
            return self._both(seed, watch)
        mass = self.model.with_settings(self.tasks, self._config("mass", seed))
        found = self._answered(name, mass, seed, watch)
        if name in BY_MASS:
            self.spent.append(float(found.sampled_tokens or 0))
        return found

    # -- MASS ---------------------------------------------------------------------------------------------------------

    def _answered(self, name: str, mass: MassModel, seed: int, watch: Watcher) -> Found:
        solutions: list[Solution] = []
        method = answer_greedily if name == "none" else self._method(name, mass)

        def watched(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
            answers = method(mass, tasks, seed)
            solutions.extend(answers.solutions)
            watch.say(f"{ROWS[name]}, seed {seed}", len(solutions), len(self.tasks))
            return answers

        outcome = run_method(watched, mass, self.tasks, seed, self.settings["batch_size"])
        reasons = [record.reason for record in outcome.records] or [None] * len(self.tasks)
        rows = [
            _row(solution.task, right, solution.answer, reason)
            for solution, right, reason in zip(solutions, outcome.correct.tolist(), reasons, strict=True)
        ]
        return Found(rows, outcome.sampled_tokens, outcome.latency_s)

    def _method(self, name: str, mass: MassModel) -> Method:
        if name == "majority":
            return majority_vote(self.settings["token_budget"] or math.ceil(max(self.spent)))
        return adapt_on_samples(BY_MASS[name], mass.config.samples)

    # -- test-time training -------------------------------------------------------------------------------------------

    def _trained(self, name: str, seed: int, watch: Watcher) -> Found:
        trains, votes = BY_TTT[name]
        if (trains, seed) not in self._runs:
            self._runs[trains, seed] = self._predict(trains, seed, watch)
        results, tokens = self._runs[trains, seed]
        rows = []
        for result in results:
            answers = list(result.answers) if votes else rank_answers(result.predictions, "first")
            rows.append(_row(result.task, _right(result.task, answers), answers[0] if answers else None, result.reason))
        if not votes and self._votes(trains):  # both rows are of one run, whose cost is that of the vote
            return Found(rows)
        return Found(rows, tokens, float(np.mean([result.seconds for result in results])))

    def _votes(self, trains: bool) -> bool:
        """Whether a method votes that trains, or does not train, alike."""
        return any(BY_TTT.get(name) == (trains, True) for name in self.names)

    def _predict(self, trains: bool, seed: int, watch: Watcher) -> tuple[list[TaskResult], float | None]:
        place = self.folder / f"{'ttt' if trains else 'few-shot'}{'-voting' if self._votes(trains) else ''}-seed-{seed}"
        fresh = not (self.resume and place.is_dir())
        config = self._ttt_config(place, seed, self._votes(trains))
        trainer = TTTTrainer(self.model.mass.model, config, processing_class=self.model.mass.tokenizer)
        few = Counted(self.model.mass.model, self.model.mass.tokenizer, config.fit_config(), config.predict_config())
        few.show = lambda step, steps, losses: watch.say(
            f"TTT, seed {seed}: {len(losses)} tasks, loss {float(np.mean(losses)):.3f}", step + 1, steps
        )
        trainer.few_shot = few
        results = trainer.predict(self.tasks, resume=self.resume, adapt=trains)
        return results, few.tokens / len(results) if fresh else None

    def _ttt_config(self, place: Path, seed: int, votes: bool) -> TTTConfig:
        changes: dict[str, Any] = {name: self.live[name] for name in _TTT_SETTINGS if self.live.get(name) is not None}
        one = LiveConfig(seed=seed, vote=votes, **{n: v for n, v in self.live.items() if n in _TTT_SETTINGS})
        _, settings = self.model.few_shot(self.given.kind, self.tasks, one)
        changes |= {"transformations": settings.transformations}
        changes |= {"predict_transformations": settings.predict_transformations if votes else ["none"]}
        if not votes:
            changes |= {"predict_permutations": 1, "predict_recolour": False, "vote": "first"}
        return TTTConfig.preset(
            self.model.presets[self.given.kind],
            output_dir=str(place),
            seed=seed,
            chat=settings.chat,
            tasks_per_pass=self.settings["batch_size"],
            use_cpu=self.model.mass.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
            **changes,
        )

    def _both(self, seed: int, watch: Watcher) -> Found:
        rows, seconds = [], []
        for number, task in enumerate(self.tasks):
            watch.say(f"{ROWS['both']}, seed {seed}", number, len(self.tasks))
            problem = Problem(task.id, self.given.kind, (task,))
            outcome = solve(self.model, problem, self._config("both", seed))
            answer = outcome.answers[0].text
            rows.append(_row(task, _right(task, [answer] if answer is not None else []), answer, outcome.reason))
            seconds.append(outcome.seconds)
        return Found(rows, None, float(np.mean(seconds)))


def _right(task: Task, answers: Sequence[str]) -> float:
    score = score_answers(task, answers, ())
    return float(score.pass_1) if score is not None else 0.0


def _row(task: Task, right: float, answer: str | None, reason: str | None) -> dict[str, Any]:
    return {"task": task.id, "domain": task.domain, "right": right, "answer": answer, "reason": reason}


def fitting_methods(model: LiveModel, given: TaskSet) -> list[str]:
    """What to compare where nobody says: test-time training, or MASS for a model that was trained for it.

    Voting is left out where tasks have one view only.
    """
    shown = all(task.demonstrations for task in given.tasks)
    if model.mass.config.weigh_by == "uniform" and given.kind in model.presets and shown:
        return ["few-shot", "few-shot-voting", "ttt", "ttt-voting"] if given.kind == "grids" else ["few-shot", "ttt"]
    weighed = ["mass-scorer"] if model.mass.config.weigh_by == "scorer" else []
    return ["none", "majority", "mass-uniform", *weighed, *(["mass-demonstrations"] if shown else [])]


def in_order(names: Sequence[str]) -> list[str]:
    """In the order in which they are run: the majority vote last, whose budget is what others spent."""
    return sorted(names, key=lambda name: name == "majority")


def as_record(found: Found) -> dict[str, Any]:
    """As JSON values."""
    return {"sampled_tokens": found.sampled_tokens, "seconds": found.seconds, "rows": found.rows}


def from_record(record: Mapping[str, Any]) -> Found:
    """The inverse of `as_record`.

    Raises:
        DataError: If something is missing.
    """
    try:
        return replace(Found([]), **record)
    except TypeError as error:
        raise DataError(f"outcomes.json holds no outcome ({error}). Evaluate again without --resume.") from error
