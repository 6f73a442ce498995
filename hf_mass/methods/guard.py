"""The guard: a task's own demonstrations, left out in turn, say whether to adapt, how strongly, and when to stop.

The demonstrations are cut in two halves. A method is run on one half, and the log-probability of the other half's
answers, given the first half, is read before and after; then the reverse. The mean rise is the *left-out gain*, in nats
per answer token. It is measured for a few strengths of the method, and on the way for a part of its steps. Then all
demonstrations train once, at the strength and number of steps with the largest gain, or not at all where none gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_mass.errors import ConfigError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, GuardEntry, Method, Progress
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt import TTT, sharing_data
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task

GUARDED = ("ttt", "mass", "both")
"""Methods that are guarded where nobody says."""
FEWEST = 4
"""Demonstrations that a guard needs."""
STOPS = (0.5, 1.0)
"""Shares of the steps after which the left-out gain is read."""


@dataclass(frozen=True)
class Run:
    """A method on some tasks, stopped after a share of its steps."""

    strength: int  # number of the method among the strengths
    numbers: tuple[int, ...]  # numbers of the tasks (of the folds, while it is chosen)
    state: Any = None  # the method's own; None before it has begun
    stop: float = 1.0  # share of its steps
    measured: int = 0  # how many of `STOPS` are measured, on folds


@dataclass(frozen=True)
class GuardState:
    """How far the guard has come."""

    tasks: tuple[Task, ...]
    seed: int  # for the method
    sets: tuple[tuple[int, ...], ...]  # for each distinct set of demonstrations the numbers of its tasks
    # (number of the set, task that shows one half of its demonstrations, the other half as tasks)
    folds: tuple[tuple[int, Task, tuple[Task, ...]], ...]
    base: tuple[tuple[float, int], ...] = ()  # log-probability of the left-out answers of each fold before adapting
    runs: tuple[Run, ...] = ()  # what is still to be run: strengths on folds, then the choices on the tasks themselves
    entries: tuple[tuple[GuardEntry, ...], ...] = ()  # what was measured, by set
    chosen: bool = False
    adaptations: tuple[Adaptation | None, ...] = ()  # by number of the task


class Guard(Method[GuardState]):
    """Any method, guarded by left-out demonstrations. With fewer than four the method runs as it is.

    Args:
        method: The method.
        strengths: The method at the strengths to choose from, the default first; None for its own (`Method.strengths`).
        reads_by: Whose few-shot prompt left-out answers are read by; None for the model's own.
        margin: Left-out gain, in nats per answer token, that adapting must reach.
    """

    def __init__(
        self,
        method: Method[Any],
        strengths: Sequence[Method[Any]] | None = None,
        reads_by: TTT | None = None,
        margin: float = 0.0,
    ) -> None:
        self.method, self.name, self.joint = method, method.name, method.joint
        self.candidates = list(strengths or method.strengths())
        self.trials = [candidate.on_half() for candidate in self.candidates]
        self.reads_by, self.margin = reads_by or (method if isinstance(method, TTT) else TTT()), margin
        if not self.candidates:
            raise ConfigError("Guard.strengths is empty; give the method at least at one strength.")

    def __repr__(self) -> str:
        return f"Guard({self.method!r})"

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        self.method.require(lm, tasks)

    # -- steps --------------------------------------------------------------------------------------------------------

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> GuardState:
        """Two folds for each distinct set of demonstrations, and every strength to be run on all of them at once."""
        sets = tuple(map(tuple, sharing_data(tasks)))
        folds = [
            (number, *halves(tasks[members[0]], half))
            for number, members in enumerate(sets)
            if len(tasks[members[0]].demonstrations) >= FEWEST
            for half in (0, 1)
        ]
        everything = tuple(range(len(folds)))
        runs = tuple(Run(strength, everything) for strength in range(len(self.candidates))) if folds else ()
        base = tuple(self._log_prob(lm, fold, None) for fold in folds)
        state = GuardState(tuple(tasks), seed, sets, tuple(folds), base, runs, ((),) * len(sets))
        return state if folds else self._choose(state)

    def step(self, lm: LanguageModel, state: GuardState) -> GuardState:
        """A step of the run at hand; where it ends, or a share of it does, the left-out gain is read."""
        if not state.runs:
            return self._choose(state)
        run = state.runs[0]
        method = (self.candidates if state.chosen else self.trials)[run.strength]
        if run.state is None:
            tasks = [state.tasks[n] if state.chosen else state.folds[n][1] for n in run.numbers]
            run = replace(run, state=method.begin(lm, tasks, state.seed))
            return replace(state, runs=(run, *state.runs[1:]))
        if self._share(method, run) >= run.stop:
            adaptations = list(state.adaptations)
            if state.chosen:
                guards = {n: state.entries[number] for number, members in enumerate(state.sets) for n in members}
                for n, adaptation in zip(run.numbers, method.finish(lm, run.state), strict=True):
                    adaptations[n] = replace(adaptation, guard=guards[n])
            return replace(state, runs=state.runs[1:], adaptations=tuple(adaptations))
        run = replace(run, state=method.step(lm, run.state))
        if not state.chosen:
            due = sum(self._share(method, run) >= stop for stop in STOPS)
            if due > run.measured:
                state, run = self._measure(lm, state, run, method), replace(run, measured=due)
        return replace(state, runs=(run, *state.runs[1:]))

    def stop(self, state: GuardState) -> bool:
        return state.chosen and not state.runs

    def progress(self, state: GuardState) -> Progress:
        measured = tuple(entry for entries in state.entries for entry in entries)
        if not state.runs:
            return Progress("Choosing by left-out demonstrations", guard=measured)
        run = state.runs[0]
        method = (self.candidates if state.chosen else self.trials)[run.strength]
        inner = Progress(f"Adapting at {method.strength}") if run.state is None else method.progress(run.state)
        if not state.chosen:
            stage = f"Trying on left-out demonstrations: {method.strength}"
            return replace(inner, stage=stage, writes=False, trial=True, guard=measured)
        steps = None if inner.steps is None else max(1, round(inner.steps * run.stop))
        return replace(inner, steps=steps, guard=measured)

    def finish(self, lm: LanguageModel, state: GuardState) -> list[Adaptation]:
        return [each for each in state.adaptations if each is not None]

    # -- choosing -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _share(method: Method[Any], run: Run) -> float:
        """Share of the steps that are made; methods that count none are measured at their end."""
        if method.stop(run.state):
            return 1.0
        progress = method.progress(run.state)
        return progress.step / progress.steps if progress.steps else 0.0

    def _measure(self, lm: LanguageModel, state: GuardState, run: Run, method: Method[Any]) -> GuardState:
        """The left-out gain of every set at the weights of the moment."""
        adaptations = method.finish(lm, run.state)
        share = self._share(method, run)
        sums: dict[int, list[float]] = {}
        for adaptation, number, (before, _) in zip(adaptations, run.numbers, state.base, strict=True):
            total = sums.setdefault(state.folds[number][0], [0.0, 0.0, 0.0])
            after, tokens = self._log_prob(lm, state.folds[number], adaptation)
            # Losses of minibatches are of other examples at each step; those of auxiliary samples are of the same.
            rises = bool(adaptation.samples) and adaptation.losses[-1:] > adaptation.losses[:1]
            total[0] += after - before
            total[1] += tokens
            total[2] += not adaptation.parts or rises
        entries = list(state.entries)
        for number, (rise, count, failures) in sums.items():
            value = float("-inf") if failures else rise / count
            entries[number] = (*entries[number], GuardEntry(method.strength, share, value, run.strength))
        return replace(state, entries=tuple(entries))

    def _log_prob(
        self, lm: LanguageModel, fold: tuple[int, Task, tuple[Task, ...]], adaptation: Adaptation | None
    ) -> tuple[float, int]:
        """(log-probability of the left-out answers behind the other half, in nats; their tokens)."""
        answers = FewShotAnswers(lm, self.reads_by.resolved(lm, [fold[1]]))
        return answers.answered_log_prob(fold[2], adaptation.parts if adaptation else ())

    def _choose(self, state: GuardState) -> GuardState:
        """What each set is trained by: the largest gain, the mean over sets where they share an adaptation."""
        entries = state.entries
        if self.joint and len(entries) > 1 and all(entries):
            alike = zip(*entries, strict=True)  # what was measured at one strength
            means = [replace(each[0], gain=sum(entry.gain for entry in each) / len(each)) for each in alike]
            entries = (tuple(means),) * len(entries)
        groups: dict[tuple[int, float], list[int]] = {}
        adaptations: list[Adaptation | None] = [None] * len(state.tasks)
        by_set: list[tuple[GuardEntry, ...]] = []
        for members, measured in zip(state.sets, entries, strict=True):
            best = max(measured, key=lambda entry: entry.gain, default=None)
            if best is None:
                groups.setdefault((0, 1.0), []).extend(members)
            elif best.gain > self.margin:
                groups.setdefault((best.number, best.share), []).extend(members)
                measured = tuple(replace(entry, chosen=entry is best) for entry in measured)
            else:
                reason = f"not adapted: the best left-out gain is {best.gain:+.3f} nats per answer token"
                for n in members:
                    adaptations[n] = Adaptation(state.tasks[n], reason=reason, guard=measured)
            by_set.append(measured)
        runs = tuple(Run(strength, tuple(numbers), stop=share) for (strength, share), numbers in groups.items())
        return replace(state, runs=runs, entries=tuple(by_set), chosen=True, adaptations=tuple(adaptations))

    # -- answering ----------------------------------------------------------------------------------------------------

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        return self.method.answer(lm, tasks, adaptations, seed)

    def explain(self, lm: LanguageModel, adaptation: Adaptation) -> list[dict[str, Any]]:
        return self.method.explain(lm, adaptation)

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        return self.method.defaults(lm, tasks)


def guarded(method: Method[Any], lm: LanguageModel, tasks: Sequence[Task]) -> Method[Any]:
    """The method behind a guard, for a model that does not ship, if left-out answers to such tasks can be read."""
    readable = kind_of(tasks) in lm.defaults.get("ttt", {})
    return Guard(method) if readable and not lm.kinds and method.name in GUARDED else method


def halves(task: Task, half: int) -> tuple[Task, tuple[Task, ...]]:
    """(the task with every other demonstration, beginning with the first or second; the others as tasks behind it)."""
    left_out = task.demonstrations[1 - half :: 2]
    fold = replace(task, demonstrations=task.demonstrations[half::2], id=f"{task.id}#half{half}")
    return fold, tuple(replace(fold, problem=pair.question, answer=pair.answer, solution=None) for pair in left_out)
