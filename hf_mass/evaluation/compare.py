"""Comparing methods on the same tasks with the same model: one loop over seeds, rows and batches.

A row of the table is a method with its settings. Rows whose methods train alike share their adaptations, so that they
differ in nothing but how they ask. A task that raises gets the reason, and the others go on; where its verifier does,
whether it was solved is not known, and its outcome says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from hf_mass.engine.events import Event
from hf_mass.engine.session import Session, passes
from hf_mass.errors import ConfigError, DataError, HFMassError, ModelWarning, Stopped, VerifierError
from hf_mass.evaluation.outcomes import Outcomes, outcome
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.suitability import beyond
from hf_mass.methods.base import Adaptation, Answer, Cost, Method
from hf_mass.methods.guard import Guard, guarded, unguardable
from hf_mass.methods.mass import MASS
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.registry import make_method
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.ttt import TTT
from hf_mass.methods.unadapted import MajorityVote, NoAdaptation
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task

T = TypeVar("T")
Settings = Mapping[str, Any]


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparator:
    """A row of the table.

    Args:
        label: What the table calls it.
        make: What makes its method from the model, all tasks and the settings by their flat names. Settings that follow
            the tasks follow all of them, so that no answer depends on which tasks share its batch.
        baseline: Name of the row that it is compared with; None for none.
    """

    label: str
    make: Callable[[LanguageModel, Sequence[Task], Settings], Method[Any]]
    baseline: str | None = None


def _mass(lm: LanguageModel, tasks: Sequence[Task], settings: Settings, weigh_by: str | None = None) -> MASS:
    method = make_method("mass", {**settings, "weigh_by": weigh_by})
    assert isinstance(method, MASS)
    return MASS(method.resolved(lm, tasks).config, weigh_by)


def _ttt(lm: LanguageModel, tasks: Sequence[Task], settings: Settings, vote: bool = True) -> TTT:
    method = make_method("ttt", {**settings, "vote": vote})
    assert isinstance(method, TTT)
    return TTT(method.resolved(lm, tasks))


def _both(lm: LanguageModel, tasks: Sequence[Task], settings: Settings) -> TTTThenMASS:
    second = make_method("mass", settings)  # its settings follow each task, to which it adapts alone
    assert isinstance(second, MASS)
    return TTTThenMASS(_ttt(lm, tasks, settings), second)


_WEIGHED = {
    "uniform": "uniform",
    "scorer": "scorer",
    "demonstrations": "attribution to demonstrations",
    "matching": "matched to demonstrations as a set",
}
ROWS: dict[str, Comparator] = {
    "none": Comparator("base", lambda *of: NoAdaptation(_mass(*of))),
    "majority": Comparator("base, majority vote", lambda *of: MajorityVote(asks=_mass(*of)), "none"),
    **{
        f"mass-{weigh_by}": Comparator(f"MASS, {label}", partial(_mass, weigh_by=weigh_by), "none")
        for weigh_by, label in _WEIGHED.items()
    },
    "few-shot": Comparator("base, few-shot prompt", lambda *of: NoAdaptation(partial(_ttt, vote=False)(*of))),
    "few-shot-voting": Comparator("base, few-shot prompt + voting", lambda *of: NoAdaptation(_ttt(*of)), "few-shot"),
    "ttt": Comparator("TTT", partial(_ttt, vote=False), "few-shot"),
    "ttt-voting": Comparator("TTT + voting", _ttt, "few-shot"),
    "both": Comparator("TTT, then MASS", _both, "few-shot"),
}
"""Name → row, in the order of the help."""


def find_row(name: str, settings: Settings) -> Comparator:
    """The row called `name`: one of `ROWS`, or one that is labelled as the method of that name calls itself.

    Raises:
        ConfigError: If there is no such method.
    """
    if name in ROWS:
        return ROWS[name]
    method = make_method(name, settings)
    return Comparator(method.name, lambda *of: method, "few-shot")


def fitting_rows(lm: LanguageModel, kind: str, tasks: Sequence[Task]) -> list[str]:
    """What to compare where nobody says: test-time training, or MASS for a model that was trained for it.

    Voting is left out where tasks have one view only.
    """
    weigh_by = lm.config.weigh_by if isinstance(lm, MassModel) else "uniform"
    with_demonstrations = all(task.demonstrations for task in tasks)
    if weigh_by == "uniform" and kind in lm.defaults.get("ttt", {}) and with_demonstrations:
        return ["few-shot", "few-shot-voting", "ttt", "ttt-voting"] if kind == "grids" else ["few-shot", "ttt"]
    judged = {"mass-scorer": weigh_by == "scorer", "mass-demonstrations": with_demonstrations}
    return ["none", "majority", "mass-uniform", *(name for name, fits in judged.items() if fits)]


# -- the loop ----------------------------------------------------------------------------------------------------------


def attempt(work: Callable[[list[int]], Sequence[T]], numbers: list[int]) -> dict[int, T | str]:
    """What `work` gives for each task of a batch; task by task if it raises, with the reason for those that do alone.

    Raises:
        Stopped: If it was stopped.
        VerifierError: If a verifier is unknown, or returns what is no reward: no answer would be judged by it.
    """
    try:
        return dict(zip(numbers, work(numbers), strict=True)) if numbers else {}
    except (Stopped, VerifierError):
        raise
    except Exception as error:  # noqa: BLE001 - a method may be anybody's; what went wrong is in the table
        if len(numbers) == 1:
            return {numbers[0]: str(error) if isinstance(error, HFMassError) else f"{type(error).__name__}: {error}"}
        return {n: result for number in numbers for n, result in attempt(work, [number]).items()}


@dataclass
class Comparison:
    """Runs rows on tasks.

    Args:
        lm: The model.
        tasks: The tasks; their answers are known.
        names: The rows; see `find_row`.
        settings: Flat name → value, for all of them; None stands for the model's own.
        outcomes: Where outcomes are kept; what is there is not run again.
        batch_size: Tasks side by side; sets of demonstrations for methods that train on these.
        token_budget: Sampled tokens that the majority vote may spend on a task; None for as many as the costliest row
            of MASS.
        guard: Whether methods that adapt are guarded by left-out demonstrations; None for on one that does not ship.
        say: Told what runs, how many tasks are done, and of how many.
        on_event: Called with every event of the methods.

    Raises:
        ConfigError: If there is no such row, no budget for the majority vote, or the guard is asked for where none of
            the methods has one.
        DataError: If the model is made for other tasks, or a row's method can do none of them.
    """

    lm: LanguageModel
    tasks: Sequence[Task]
    names: Sequence[str]
    settings: Settings
    outcomes: Outcomes
    batch_size: int = 8
    token_budget: float | None = None
    guard: bool | None = None
    say: Callable[[str, int, int], None] = lambda text, done, total: None
    on_event: Callable[[Event], None] = lambda event: None
    rows: dict[str, Comparator] = field(init=False)
    methods: dict[str, Method[Any]] = field(init=False)

    def __post_init__(self) -> None:
        kind = kind_of(self.tasks)
        if self.lm.kinds and kind not in self.lm.kinds:
            raise DataError(f"{self.lm.name} is made for {' and '.join(self.lm.kinds)}, and these tasks are {kind}.")
        if (note := beyond(self.lm, self.tasks)) is not None:
            warnings.warn(note, ModelWarning, stacklevel=3)
        self.rows = {name: find_row(name, self.settings) for name in self.names}
        if len({row.label for row in self.rows.values()}) < len(self.names):
            raise ConfigError(f"Two of the methods {list(self.names)} call themselves alike. Give one another name.")
        if "majority" in self.names and not (self.token_budget or any(name.startswith("mass") for name in self.names)):
            raise ConfigError("The majority vote spends what a row of MASS does. Name one, or give --token_budget.")
        self.methods = {name: row.make(self.lm, self.tasks, self.settings) for name, row in self.rows.items()}
        self._guard()
        for method in self.methods.values():
            self._require(method)

    def _guard(self) -> None:
        """Guards the methods that can be, and names their rows so.

        Raises:
            ConfigError: If the guard is asked for, and none can be.
        """
        for name, method in self.methods.items():
            can_be = unguardable(method, self.lm, self.tasks) is None
            self.methods[name] = guarded(method, self.lm, self.tasks, self.guard if can_be else None)
            if isinstance(self.methods[name], Guard):
                self.rows[name] = replace(self.rows[name], label=f"{self.rows[name].label}, guarded")
        if self.guard and not any(isinstance(method, Guard) for method in self.methods.values()):
            raise ConfigError(
                f"guard is True, and none of {list(self.names)} can be guarded on such tasks. Name a method that "
                "adapts, such as 'ttt', or leave the guard off."
            )

    def _require(self, method: Method[Any]) -> None:
        errors = []
        for task in self.tasks:
            try:
                return method.require(self.lm, [task])
            except DataError as error:
                errors.append(error)
        raise errors[0]

    def run(self, seeds: Sequence[int]) -> dict[str, list[list[dict[str, Any]]]]:
        """Name → seed → the outcome of each task."""
        sharing: dict[object, list[str]] = {}  # rows that share adaptations
        for name in sorted(self.names, key=lambda name: name == "majority"):  # last: its budget is what others spent
            sharing.setdefault(training(self.methods[name]), []).append(name)
        for number, seed in enumerate(seeds):
            for names in sharing.values():
                if names == ["majority"]:
                    self._set_budget(seed, self._budget(seeds[: number + 1]))
                self._run(names, seed)
        return {name: self.outcomes.complete(name, seeds) for name in self.names}

    def _budget(self, seeds: Sequence[int]) -> float:
        runs = [rows for n in self.names if n.startswith("mass") for rows in self.outcomes.complete(n, seeds)]
        return self.token_budget or math.ceil(max(mean_cost(rows).sampled_tokens for rows in runs))

    def _set_budget(self, seed: int, budget: float) -> None:
        """What the majority vote may spend; what it came to with another budget, in an earlier run, is run again."""
        self.methods["majority"].token_budget = budget  # type: ignore[attr-defined]
        rows = self.outcomes.rows("majority", seed, self.tasks)
        rows[:] = [row if row is not None and row.get("budget") == budget else None for row in rows]

    def _run(self, names: list[str], seed: int) -> None:
        """Rows that share adaptations, batch by batch as far as outcomes are missing."""
        total, done = len(self.tasks), 0
        rows = {name: self.outcomes.rows(name, seed, self.tasks) for name in names}
        for numbers in self._batches(self.methods[names[0]]):
            if missing := [name for name in names if any(rows[name][n] is None for n in numbers)]:
                labels = ", ".join(self.rows[name].label for name in missing)
                self.say(f"{labels}, seed {seed}", done, total)
                for name, results in self._together(missing, numbers, seed).items():
                    for n, result in results.items():
                        rows[name][n] = result
                self.outcomes.save()
            done += len(numbers)

    def _batches(self, method: Method[Any]) -> list[list[int]]:
        """Numbers of tasks that go through the model together; queries behind the same demonstrations train once."""
        if isinstance(method, TTT | TTTThenMASS | Guard):
            return passes(self.tasks, self.batch_size)
        starts = range(0, len(self.tasks), self.batch_size)
        return [list(range(start, min(start + self.batch_size, len(self.tasks)))) for start in starts]

    def _together(self, names: list[str], numbers: list[int], seed: int) -> dict[str, dict[int, dict[str, Any]]]:
        """Adapts to a batch once, and answers it for each row."""
        adaptations = attempt(partial(self._adapt, self._session(names[0], seed)), numbers)
        records = {n: each for n, each in adaptations.items() if isinstance(each, Adaptation)}
        results = {}
        for name in names:
            answers = attempt(partial(self._answer, self._session(name, seed), records), list(records))
            results[name] = {n: outcome(self.tasks[n], adaptations[n], answers.get(n)) for n in numbers}
            if name == "majority":
                for row in results[name].values():
                    row["budget"] = self.methods[name].token_budget  # type: ignore[attr-defined]
        return results

    def _session(self, name: str, seed: int) -> Session:
        return Session(self.lm, self.methods[name], seed, on_event=self.on_event)

    def _adapt(self, session: Session, numbers: list[int]) -> list[Adaptation]:
        tasks = [self.tasks[n] for n in numbers]
        session.method.require(self.lm, tasks)
        return session.adapt(tasks)

    def _answer(
        self, session: Session, records: Mapping[int, Adaptation], numbers: list[int]
    ) -> list[tuple[Answer, Cost]]:
        answers, cost = session.answer([self.tasks[n] for n in numbers], [records[n] for n in numbers])
        return [(each, replace(cost, sampled_tokens=each.sampled_tokens or cost.sampled_tokens)) for each in answers]


def training(method: Method[Any]) -> object:
    """What adaptations depend on: methods for which it is equal adapt alike, and differ only in how they ask."""
    if isinstance(method, Guard):
        return "guarded", training(method.method)
    if isinstance(method, TTT) and method.settings is not None:
        return tuple((k, v) for k, v in vars(method.settings).items() if not k.startswith(("predict_", "vote")))
    return id(method)


def mean_cost(rows: Sequence[Mapping[str, Any]]) -> Cost:
    """The mean over tasks of what their outcomes took."""
    return Cost(**{name: float(np.mean([row["cost"][name] for row in rows])) for name in vars(Cost())})
