"""Running a method on tasks: what happens is told, it stops when asked or when time is up, and its cost is counted."""

from __future__ import annotations

import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

from hf_mass.core.meter import Meter, metered, watching_steps
from hf_mass.engine.events import (
    Event,
    Generating,
    InnerStep,
    Loss,
    Measured,
    Replies,
    Stage,
    Trial,
    Weighed,
    Writing,
)
from hf_mass.engine.solution import Solution
from hf_mass.errors import ConfigError, DataError, ModelWarning, Stopped
from hf_mass.lm.adapters import changes_something
from hf_mass.lm.device_memory import hand_back
from hf_mass.lm.generation import watching
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.stopping import asked_at_every_layer
from hf_mass.lm.suitability import beyond
from hf_mass.lm.turns import lent, using
from hf_mass.methods.base import Adaptation, Answer, Cost, Method, Progress
from hf_mass.methods.ttt import sharing_data
from hf_mass.tasks.checks import shown
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.task import Task


@dataclass
class Session:
    """Runs a method on tasks.

    Args:
        lm: The model; nothing of what is done stays in it.
        method: The method.
        seed: For sampling and training.
        tasks_per_pass: Distinct sets of demonstrations that go through the model side by side; None for all.
        on_event: Called with every event.
        halt: Asked at every training step and every token; True stops.
        time_limit: Seconds; None for no limit.
        begun: When it began, from which the time limit counts.
        losses: Every training loss so far.
    """

    lm: LanguageModel
    method: Method[Any]
    seed: int = 0
    tasks_per_pass: int | None = None
    on_event: Callable[[Event], None] = lambda event: None
    halt: Callable[[], bool] = lambda: False
    time_limit: float | None = None
    begun: float = field(default_factory=time.perf_counter)
    losses: list[Loss] = field(default_factory=list)

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise ConfigError(f"seed is {shown(self.seed)}; choose a whole number.")
        limit = self.time_limit
        size = self.tasks_per_pass
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigError(f"tasks_per_pass is {shown(size)}; choose a whole number of at least 1, or None for all.")
        for name in ("on_event", "halt"):
            if not callable(getattr(self, name)):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; give a function.")
        if limit is not None and (type(limit) not in (int, float) or not 0 < limit <= sys.float_info.max):
            raise ConfigError(f"time_limit is {shown(limit)}; choose a finite number above 0.")

    def require(self, tasks: Sequence[Task]) -> None:
        """Checks that model and method can do what is asked, before anything is computed.

        A toy that is asked for something else than what it is made for gives a `ModelWarning`.

        Raises:
            DataError: If they cannot.
        """
        if self.lm.kinds and (kind := kind_of(tasks)) not in self.lm.kinds:
            made_for = " and ".join(self.lm.kinds)
            raise DataError(f"{self.lm.name} is made for {made_for}, and this problem is of {kind}.")
        self.method.require(self.lm, tasks)
        if (note := beyond(self.lm, tasks)) is not None:
            warnings.warn(note, ModelWarning, stacklevel=2)

    # -- adapting and answering ---------------------------------------------------------------------------------------

    def adapt(self, tasks: Sequence[Task]) -> list[Adaptation]:
        """Adapt to tasks, those with the same demonstrations together.

        Raises:
            Stopped: If somebody asked for it, or time is up.
            DataError: If a task is none for the method or model.
        """
        adaptations: dict[int, Adaptation] = {}
        with self._turn():
            for numbers in passes(tasks, None if self.method.joint else self.tasks_per_pass):
                adaptations.update(zip(numbers, self._adapt_together([tasks[n] for n in numbers]), strict=True))
        return [adaptations[n] for n in range(len(tasks))]

    def answer(self, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None) -> tuple[list[Answer], Cost]:
        """Answer tasks at their adaptations; the answers, and what they cost for each task.

        Raises:
            Stopped: If somebody asked for it, or time is up.
        """
        with self._turn(), self._metered() as meter, watching(self._tell_generating):
            begun = time.perf_counter()
            answers = self.method.answer(self.lm, tasks, adaptations, self.seed)
        return answers, Cost.of(meter, time.perf_counter() - begun, len(tasks))

    def _adapt_together(self, tasks: list[Task]) -> list[Adaptation]:
        method, begun = self.method, time.perf_counter()
        with self._metered() as meter:
            self.tell(Stage("Reading the problem"))
            state, before = method.begin(self.lm, tasks, self.seed), Progress("")
            while not method.stop(state):
                progress = method.progress(state)
                if progress.stage != before.stage:
                    self.tell(Stage(progress.stage))
                with (
                    watching(partial(self._tell_writing, progress.writes)),
                    watching_steps(self._inner_steps(progress)),
                ):
                    state = method.step(self.lm, state)
                before = progress
                self._tell_step(method.progress(state), before)
            adaptations = method.finish(self.lm, state)
        shared = Cost.of(meter, time.perf_counter() - begun, len(tasks))
        for n, each in enumerate(adaptations):
            cost = shared - each.guard_cost
            sampled = each.cost.sampled_tokens or cost.sampled_tokens  # a method may know each task's own
            cost = replace(cost, sampled_tokens=sampled)
            adaptations[n] = replace(each, cost=cost, lm=self.lm, method=method, seed=self.seed)
            if each.samples:
                self._tell_samples(n, adaptations[n])
        return adaptations

    # -- telling and stopping -----------------------------------------------------------------------------------------

    @contextmanager
    def _metered(self) -> Iterator[Meter]:
        """Context in which cost is counted, and passes can be stopped; after it, what they took is free again."""
        try:
            with metered(self.check) as meter, asked_at_every_layer(self.lm.model, self.check):
                yield meter
        finally:
            hand_back(self.lm.device)

    def check(self) -> None:
        """Raises Stopped if somebody asked for it, or time is up."""
        if self.halt():
            raise Stopped("stopped")
        if self.time_limit is not None and time.perf_counter() - self.begun > self.time_limit:
            raise Stopped(
                f"the time limit of {self.time_limit:g} s is reached; choose fewer samples, examples or steps"
            )

    def tell(self, event: Event) -> None:
        """Tell what happens; this also is where it can be stopped."""
        self.check()
        if isinstance(event, Loss):
            self.losses.append(event)
        with lent(self.lm.model, "on_event"):
            self.on_event(event)

    def _tell_generating(self, rows: list[list[int]], most: int) -> None:
        self.tell(Generating(len(rows), max(map(len, rows)), most))

    def _tell_writing(self, shown: bool, rows: list[list[int]], most: int) -> None:
        self._tell_generating(rows, most)
        if shown:
            self.tell(Writing(tuple(self.lm.tokenizer.batch_decode(rows, skip_special_tokens=True))))

    def _inner_steps(self, progress: Progress) -> Callable[[float], None]:
        """What tells of the inner steps that are made within one step of the method."""
        numbers = count()
        return lambda loss: self.tell(InnerStep(next(numbers), progress.steps, loss))

    def _tell_step(self, progress: Progress, before: Progress) -> None:
        self.check()
        if progress.loss is not None and progress.steps is not None and progress.step > before.step:
            name = "ttt" if self.method.name == "both" else self.method.name
            step = progress.step - 1, progress.steps, progress.loss
            self.tell(Trial(progress.stage, *step) if progress.trial else Loss(name, 0, *step))
        if progress.guard != before.guard:
            self.tell(Measured(progress.guard))

    def _tell_samples(self, query: int, adaptation: Adaptation) -> None:
        self.tell(Weighed(query, tuple(adaptation.explain())))
        steps = adaptation.sample_losses.shape[0]
        for step, value in enumerate(adaptation.losses[-steps:] if adaptation.parts else ()):
            self.tell(Loss("mass", query, step, steps, value))

    # -- a whole problem ----------------------------------------------------------------------------------------------

    def solve(self, problem: Problem) -> Solution:
        """Answer a problem, adapt to it, and answer it again. Being stopped is told in the solution's reason.

        Raises:
            DataError: If the problem is none for this model or method.
        """
        self.begun, self.losses = time.perf_counter(), []
        tasks = list(problem.tasks)
        self.require(tasks)
        before, after, adaptations = list[Answer](), list[Answer](), list[Adaptation]()
        reasons, costs = list[str](), list[Cost]()
        try:
            with self._turn():
                self.tell(Stage("Answering without adaptation"))
                before, cost = self.answer(tasks, None)
                costs.append(cost)
                self.tell(Replies("before", tuple(before)))
                if self.method.name != "none":
                    adaptations = [_changed(each) for each in self.adapt(tasks)]
                    reasons += [each.reason for each in adaptations if each.reason]
                    self.tell(Stage("Answering at the adapted weights"))
                    after, cost = self.answer(tasks, adaptations)
                    costs.append(cost)
                    self.tell(Replies("after", tuple(after)))
        except Stopped as stopped:
            reasons.append(str(stopped))
            after, adaptations = [], [replace(each, parts=()) for each in adaptations]
        return Solution(
            problem,
            self.method.name,
            tuple(before),
            tuple(after),
            tuple(adaptations),
            tuple(self.losses),
            "; ".join(dict.fromkeys(reasons)) or None,
            sum(costs, Cost()),
            time.perf_counter() - self.begun,
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Within this context nobody else adapts or answers; waiting for it does not count for the time limit."""
        asked, told = time.perf_counter(), False

        def waiting() -> None:
            nonlocal told
            if not told:
                told = True
                self.tell(Stage("Waiting for another problem's turn to end"))
            if self.halt():
                raise Stopped("stopped")

        with using(self.lm.model, waiting):
            self.begun += time.perf_counter() - asked
            yield


def _changed(adaptation: Adaptation) -> Adaptation:
    """The adaptation, or if it changed nothing one that says so."""
    if not adaptation.parts or any(changes_something(part) for part in adaptation.parts):
        return adaptation
    return replace(adaptation, parts=(), reason="adapting changed nothing; choose a higher rate")


def passes(tasks: Sequence[Task], size: int | None) -> list[list[int]]:
    """Numbers of tasks that go side by side: `size` distinct sets of demonstrations, whose tasks stay together."""
    sets = sharing_data(tasks)
    size = size or max(1, len(sets))
    return [[n for group in sets[i : i + size] for n in group] for i in range(0, len(sets), size)]


def events(
    session: Session, problem: Problem, stop: threading.Event | None = None
) -> Generator[Event | Solution, None, None]:
    """As `Session.solve`, as a generator of the events, whose last item is the solution.

    Adapting goes on in a thread of its own, and ends with the generator.

    Args:
        session: How it is run.
        problem: The problem.
        stop: Set it to end adapting.

    Raises:
        DataError: If the problem is none for this model or method.
    """
    ended, items = threading.Event(), queue.Queue[Event | Solution | BaseException]()
    session = replace(session, on_event=items.put, halt=lambda: ended.is_set() or (stop is not None and stop.is_set()))

    def work() -> None:
        try:
            items.put(session.solve(problem))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the events are read
            items.put(error)

    thread = threading.Thread(target=work, daemon=True, name="adapt")
    thread.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Solution):
                return
    finally:
        ended.set()
        thread.join()
