"""The guard: a task's own demonstrations, left out in turn, say whether to adapt, how strongly, and when to stop.

The demonstrations are cut in two halves. A method is run on one half, and the log-probability of the other half's
answers, each given all other demonstrations, is read before and after; then the reverse. The mean rise is the *left-
out gain*, in nats per answer token. It is measured for a few strengths of the method, and on the way for a part of its
steps. A strength whose training loss rises is given up at once. Where the default would be given up by what one cut
says, a second cut is asked too, since which demonstrations meet in a half is chance. Then all demonstrations train
once, at the strength and number of steps that `choose` takes, or not at all where left-out demonstrations speak
against all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_mass.core.meter import metered
from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Cost, GuardEntry, Method, Progress, is_method
from hf_mass.methods.guard_choice import choose, common, is_default, told
from hf_mass.methods.guard_state import Attempt, GuardState, Run
from hf_mass.methods.left_out import Fold, Reading, counts_right, failure, gain, halves, read, rise
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.ttt import TTT, sharing_data
from hf_mass.tasks.checks import shown
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task

FEWEST = 4
"""Demonstrations that a guard needs."""
STOPS = (0.5, 1.0)
"""Shares of the steps after which the left-out gain is read."""


class Guard(Method[GuardState]):
    """Any method that has strengths, guarded by left-out demonstrations. With fewer than four of them it runs as it is.

    Args:
        method: The method.
        strengths: The method at the strengths to choose from, the default first; None for its own (`Method.strengths`).
        reads_by: Whose few-shot prompt left-out answers are read by; None for the model's own.
        margin: Left-out gain, in nats per answer token, that adapting must reach.

    Raises:
        ConfigError: If an argument is of another type or out of bounds, or there is no strength.
    """

    def __init__(
        self,
        method: Method[Any],
        strengths: Sequence[Method[Any]] | None = None,
        reads_by: TTT | None = None,
        margin: float = 0.0,
    ) -> None:
        if not is_method(method):
            raise ConfigError(f"Guard.method is {shown(method)}; give a method, such as TTT() or MASS().")
        if not isinstance(reads_by, TTT | None):
            raise ConfigError(f"Guard.reads_by is {shown(reads_by)}; give a TTT(), or leave it out.")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < float("inf"):
            raise ConfigError(f"Guard.margin is {shown(margin)}; choose a finite number of nats per answer token.")
        if strengths is not None and not (isinstance(strengths, list | tuple) and all(map(is_method, strengths))):
            raise ConfigError(f"Guard.strengths is {shown(strengths)}; give a list of methods, the default first.")
        self.method, self.name, self.joint = method, method.name, method.joint
        self.candidates = list(strengths or method.strengths())
        self.on_folds = [candidate.on_half() for candidate in self.candidates]
        self.reads_by, self.margin = reads_by or _reader(method), margin
        if not self.candidates:
            raise ConfigError(
                f"Guard.strengths is empty, and method {method.name!r} has none to choose from. Give the method at "
                "least at one strength, or leave the guard off."
            )

    def __repr__(self) -> str:
        return f"Guard({self.method!r})"

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        self.method.require(lm, tasks)

    # -- steps --------------------------------------------------------------------------------------------------------

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> GuardState:
        """Two folds for each distinct set of demonstrations, and every strength to be run on them."""
        sets = tuple(map(tuple, sharing_data(tasks)))
        folds = [
            Fold(number, half, *halves(tasks[members[0]], half))
            for number, members in enumerate(sets)
            if len(tasks[members[0]].demonstrations) >= FEWEST
            for half in (0, 1)
        ]
        groups = self._groups([fold.task for fold in folds], [fold.half for fold in folds])
        runs = [Run(strength, numbers) for strength in range(len(self.candidates)) for numbers in groups]
        state = GuardState(tuple(tasks), seed, sets, tuple(folds), runs=tuple(runs))
        return state if folds else self._choose(state)

    def step(self, lm: LanguageModel, state: GuardState) -> GuardState:
        """A step of the run at hand; on folds, where it ends or a share of it does, the left-out gain is read."""
        if state.chosen:
            return self._train(lm, state)
        begun = time.perf_counter()
        with metered() as meter:
            if len(state.before) < len(state.folds):
                fold = state.folds[len(state.before)]
                reading = read(lm, self.on_folds[0], self.reads_by, fold, None, state.seed)
                state = replace(state, before=(*state.before, reading))
            else:
                state = self._try(lm, state) if state.runs else self._choose(state)
        return replace(state, cost=state.cost + Cost.of(meter, time.perf_counter() - begun, len(state.tasks)))

    def stop(self, state: GuardState) -> bool:
        return state.chosen and not state.runs

    def progress(self, state: GuardState) -> Progress:
        by_set = state.entries if state.chosen else self._entries(state)
        measured = tuple(entry for entries in by_set for entry in entries)
        if len(state.before) < len(state.folds):
            return Progress("Reading left-out demonstrations", trial=True, guard=measured)
        if not state.runs:
            return Progress("Choosing by left-out demonstrations", guard=measured)
        run = state.runs[0]
        method = (self.candidates if state.chosen else self.on_folds)[run.strength]
        inner = Progress(f"Adapting at {method.strength}") if run.state is None else method.progress(run.state)
        if not state.chosen:
            stage = f"Trying on left-out demonstrations: {method.strength}"
            return replace(inner, stage=stage, writes=False, trial=True, guard=measured)
        steps = None if inner.steps is None else max(1, round(inner.steps * run.stop))
        return replace(inner, steps=steps, guard=measured)

    def finish(self, lm: LanguageModel, state: GuardState) -> list[Adaptation]:
        return [replace(each, guard_cost=state.cost) for each in state.records]

    def _groups(self, tasks: Sequence[Task], halves: Sequence[int]) -> list[tuple[int, ...]]:
        """Numbers of tasks that may train side by side up to a share of their steps, of which all must have as many.

        Where one adaptation is shared, the halves of a set must not meet in it.
        """
        groups: dict[int, list[int]] = {}
        for number, (task, half) in enumerate(zip(tasks, halves, strict=True)):
            groups.setdefault(half if self.joint else len(task.demonstrations), []).append(number)
        return [tuple(numbers) for numbers in groups.values()]

    # -- on folds -----------------------------------------------------------------------------------------------------

    def _try(self, lm: LanguageModel, state: GuardState) -> GuardState:
        """A step of a strength on folds. It ends where it is ruled out for all of them."""
        run, *others = state.runs
        method = self.on_folds[run.strength]
        if run.ended:
            return self._cut_again(replace(state, runs=tuple(self._onward(lm, state, run, others))))
        if run.state is None:
            begun = method.begin(lm, [state.folds[n].task for n in run.numbers], state.seed)
            return replace(state, runs=(replace(run, state=begun), *others))
        if not method.stop(run.state):
            run = replace(run, state=method.step(lm, run.state))
        share, loss = _share(method, run), method.progress(run.state).loss
        run = replace(run, first=loss if run.first is None else run.first)
        due, attempts = sum(share >= stop for stop in STOPS), list[Attempt]()
        if due > run.measured or (loss is not None and run.first is not None and rise(run.first, loss)):
            attempts = self._measure(lm, state, run, share, due - 1 if due > run.measured else None)
        state = replace(state, attempts=(*state.attempts, *attempts))
        ended = due == len(STOPS) or (bool(attempts) and all(attempt.reason for attempt in attempts))
        return replace(state, runs=(replace(run, measured=due, ended=ended), *others))

    def _measure(self, lm: LanguageModel, state: GuardState, run: Run, share: float, stop: int | None) -> list[Attempt]:
        """The left-out answers of every fold at the weights of the moment; nothing where the method has none midway.

        Between two stops, where the loss rose, only whether all are ruled out.
        """
        method, attempts = self.on_folds[run.strength], []
        adaptations = method.finish(lm, run.state)
        reasons = [failure(adaptation, self.joint) for adaptation in adaptations]
        if len(adaptations) < len(run.numbers) or (stop is None and not all(reasons)):
            return []
        for adaptation, reason, n in zip(adaptations, reasons, run.numbers, strict=True):
            reading = None
            if reason is None:
                reading = read(lm, method, self.reads_by, state.folds[n], adaptation, state.seed)
            attempts.append(Attempt(n, run.strength, run.measured if stop is None else stop, share, reading, reason))
        return attempts

    def _onward(self, lm: LanguageModel, state: GuardState, run: Run, others: list[Run]) -> list[Run]:
        """The runs that follow, without folds of sets for which their strength is ruled out, or the default is taken
        already; the next one with the same folds has begun."""
        out = {(attempt.strength, state.folds[attempt.fold].owner) for attempt in state.attempts if attempt.reason}
        settled = set[int]() if self.joint else self._settled(state)
        runs = []
        for other in others:
            owners = {n: state.folds[n].owner for n in other.numbers}
            numbers = [n for n in other.numbers if owners[n] not in settled and (other.strength, owners[n]) not in out]
            same = tuple(numbers) == other.numbers
            runs += [other if same else replace(other, numbers=tuple(numbers), state=None)] if numbers else []
        place = next((n for n, other in enumerate(runs) if other.numbers == run.numbers), None)
        if place is not None:
            tasks = [state.folds[n].task for n in run.numbers]
            begun = self.on_folds[runs[place].strength].begin_like(lm, tasks, state.seed, run.state)
            runs[place] = replace(runs[place], state=begun)
        return runs

    def _cut_again(self, state: GuardState) -> GuardState:
        """Two more folds for each set that would give up the default by its first two: every strength runs on them."""
        doubted = set[int]() if self.joint else self._measured(state) - self._settled(state)
        seen = {fold.owner for fold in state.folds if fold.half > 1}
        first = len(state.folds)
        folds = [
            Fold(owner, half, *halves(state.tasks[state.sets[owner][0]], half))
            for owner in sorted(doubted - seen)
            for half in (2, 3)
        ]
        if not folds:
            return state
        groups = [tuple(first + n for n in group) for group in self._groups([f.task for f in folds], [0] * len(folds))]
        again, *weaker = ([Run(strength, numbers) for numbers in groups] for strength in range(len(self.candidates)))
        runs = [*again, *state.runs, *(run for runs in weaker for run in runs)]
        return replace(state, folds=(*state.folds, *folds), runs=tuple(runs))

    def _measured(self, state: GuardState) -> set[int]:
        """The sets for which the default strength was read on every fold to its end."""
        read = Counter(
            state.folds[a.fold].owner for a in state.attempts if a.strength == 0 and a.share == 1.0 and a.reading
        )
        return {owner for owner, count in Counter(fold.owner for fold in state.folds).items() if read[owner] == count}

    def _settled(self, state: GuardState) -> set[int]:
        """Those of them that take it: no other strength is tried."""
        chosen = {owner: choose(entries, self.margin) for owner, entries in enumerate(self._entries(state)) if entries}
        return {owner for owner in self._measured(state) if (best := chosen[owner]) and is_default(best)}

    def _entries(self, state: GuardState) -> list[tuple[GuardEntry, ...]]:
        """What was measured for each set, strength by strength."""
        by_set: list[dict[tuple[int, int], list[Attempt]]] = [{} for _ in state.sets]
        for attempt in state.attempts:
            by_set[state.folds[attempt.fold].owner].setdefault((attempt.strength, attempt.stop), []).append(attempt)
        return [
            tuple(self._entry(state, attempts) for _, attempts in sorted(measured.items(), key=lambda item: item[0]))
            for measured in by_set
        ]

    def _entry(self, state: GuardState, attempts: list[Attempt]) -> GuardEntry:
        number, shares = attempts[0].strength, [attempt.share for attempt in attempts]
        share, strength = sum(shares) / len(shares), self.candidates[number].strength
        if (reason := next((attempt.reason for attempt in attempts if attempt.reason), None)) is not None:
            return GuardEntry(strength, share, float("-inf"), number, reason=reason)
        before, after = (Reading((), (), ()), Reading((), (), ()))
        for attempt in attempts:
            assert attempt.reading is not None
            before, after = before + state.before[attempt.fold], after + attempt.reading
        value, error = gain(before, after)
        return GuardEntry(strength, share, value, number, False, error, *counts_right(before, after))

    # -- choosing and training ----------------------------------------------------------------------------------------

    def _choose(self, state: GuardState) -> GuardState:
        """What each set is trained by; where sets share an adaptation, by the mean over those that were measured."""
        by_set = self._entries(state)
        measured = [entries for entries in by_set if entries]
        if self.joint and measured:
            by_set = [common(measured)] * len(by_set)
        groups: dict[tuple[int, float], list[int]] = {}
        records, kept = [Adaptation(task) for task in state.tasks], list[tuple[GuardEntry, ...]]()
        for members, entries in zip(state.sets, by_set, strict=True):
            best = choose(entries, self.margin) if entries else None
            entries = tuple(replace(entry, chosen=entry is best) for entry in entries)
            kept.append(entries)
            note = told(entries) if entries else self._off(state.tasks[members[0]])
            for n in members:
                records[n] = replace(records[n], guard=entries, guard_note=note)
            if best is not None or not entries:
                groups.setdefault((best.number, best.share) if best else (0, 1.0), []).extend(members)
        runs = [
            Run(strength, tuple(numbers[n] for n in group), stop=share)
            for (strength, share), numbers in groups.items()
            for group in self._groups([state.tasks[n] for n in numbers], [0] * len(numbers))
        ]
        return replace(state, runs=tuple(runs), chosen=True, entries=tuple(kept), records=tuple(records))

    def _off(self, task: Task) -> str:
        count = len(task.demonstrations)
        had = "no demonstrations" if not count else "1 demonstration" if count == 1 else f"{count} demonstrations"
        return f"off: {had}, and the guard needs {FEWEST}; adapted at the default strength"

    def _train(self, lm: LanguageModel, state: GuardState) -> GuardState:
        """A step of a choice on the tasks themselves."""
        run, *others = state.runs
        method = self.candidates[run.strength]
        if run.state is None:
            run = replace(run, state=method.begin(lm, [state.tasks[n] for n in run.numbers], state.seed))
        elif _share(method, run) < run.stop:
            run = replace(run, state=method.step(lm, run.state))
        else:
            records = list(state.records)
            for n, adaptation in zip(run.numbers, method.finish(lm, run.state), strict=True):
                records[n] = replace(adaptation, guard=records[n].guard, guard_note=records[n].guard_note)
            return replace(state, runs=tuple(others), records=tuple(records))
        return replace(state, runs=(run, *others))

    # -- answering ----------------------------------------------------------------------------------------------------

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        return self.method.answer(lm, tasks, adaptations, seed)

    def explain(self, lm: LanguageModel, adaptation: Adaptation) -> list[dict[str, Any]]:
        return self.method.explain(lm, adaptation)

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        return self.method.defaults(lm, tasks)


# -- where it is on ----------------------------------------------------------------------------------------------------


def guarded(method: Method[Any], lm: LanguageModel, tasks: Sequence[Task], guard: bool | None = None) -> Method[Any]:
    """The method behind a guard, or as it is.

    Args:
        method: The method. One that is a `Guard` already stays one unless `guard` is False.
        lm: The model.
        tasks: What it is to adapt to.
        guard: Whether to guard it; None guards on a model that does not ship, where that can be.

    Raises:
        ConfigError: If `guard` is True and it cannot be.
    """
    if isinstance(method, Guard):
        return method.method if guard is False else method
    if guard is False:
        return method
    problem = unguardable(method, lm, tasks)
    if guard and problem is not None:
        raise ConfigError(f"guard is True, and {problem}, or leave the guard off.")
    return Guard(method) if problem is None and (guard or not lm.kinds) else method


def unguardable(method: Method[Any], lm: LanguageModel, tasks: Sequence[Task]) -> str | None:
    """Why a method cannot be guarded on such tasks, with the cure; None if it can."""
    if not method.strengths():
        return f"method {method.name!r} has no strengths to choose from. Choose method 'ttt', 'mass' or 'both'"
    try:
        _reader(method).resolved(lm, tasks)
    except DataError:
        return (
            f"left-out answers of {kind_of(tasks)} cannot be read: the tokenizer of {lm.name} cannot write a few-shot "
            "prompt of them. Choose another model"
        )
    return None


def _share(method: Method[Any], run: Run) -> float:
    """Share of the steps that are made, 1 at the end alone; methods that count none are measured there."""
    if method.stop(run.state):
        return 1.0
    progress = method.progress(run.state)
    return min(progress.step / progress.steps, 0.99) if progress.steps else 0.0


def _reader(method: Method[Any]) -> TTT:
    """Whose few-shot prompt left-out answers are read by."""
    method = method.first if isinstance(method, TTTThenMASS) else method
    return method if isinstance(method, TTT) else TTT()
