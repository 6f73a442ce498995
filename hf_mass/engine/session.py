"""Adapt to a problem step by step: events while it goes on, the outcome at its end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hf_mass.core.trees import Tree, tree_map
from hf_mass.engine.events import Adapter, Answer, Answered, Event, LiveConfig, Loss, Outcome, Stage, Weighed, Writing
from hf_mass.engine.models import LiveModel
from hf_mass.errors import DataError
from hf_mass.lm.adapters import Part, combined_adapter
from hf_mass.lm.binding import BoundLora
from hf_mass.methods.base import AdaptationRecord
from hf_mass.methods.mass_model import GENERATOR, MassModel
from hf_mass.methods.ttt import FewShotAdapter, FitRecord
from hf_mass.tasks.answers import rank_answers, score_answers
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.task import Task

Emit = Callable[[Event], None]
TURN = threading.Lock()
"""Held while a problem is adapted to, on whichever model: which kernels torch may use for attention, and its random
state, are the whole process's."""


class Stopped(Exception):
    """Adapting was stopped; the text says by what."""


@dataclass
class _Run:
    """One adaptation as far as it has come; its steps go through `emit`, which also is where it can be stopped."""

    model: LiveModel
    problem: Problem
    config: LiveConfig
    sink: Emit
    halt: Callable[[], bool]
    begun: float = field(default_factory=time.perf_counter)
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    samples: list[tuple[dict[str, Any], ...]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    adapters: list[Adapter] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    sampled_tokens: int = 0

    def check(self, *_: Any) -> None:
        """Raises Stopped if somebody asked for it, or time is up."""
        if self.halt():
            raise Stopped("stopped")
        limit = self.config.time_limit
        if limit is not None and time.perf_counter() - self.begun > limit:
            raise Stopped(f"the time limit of {limit:g} s is reached; choose fewer samples, examples or steps")

    def emit(self, event: Event) -> None:
        """Tell what happens."""
        self.check()
        if isinstance(event, Loss):
            self.losses.append(event)
        self.sink(event)

    # -- the whole --------------------------------------------------------------------------------------------------

    def go(self) -> Outcome:
        """Answer, adapt, answer again."""
        tasks = self.model.as_tasks(self.problem.tasks)
        self.model.require(self.problem.kind, tasks, self.config)
        try:
            with self._turn():
                self._steps(tasks)
        except Stopped as stopped:
            self.reasons.append(str(stopped))
            self.after, self.adapters = (), []
        return Outcome(
            self.problem,
            self.config,
            self.before,
            self.after,
            tuple(self.samples),
            tuple(self.losses),
            tuple(self.adapters),
            "; ".join(dict.fromkeys(self.reasons)) or None,
            self.sampled_tokens,
            time.perf_counter() - self.begun,
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Within this context nobody else adapts; the time limit counts from its beginning."""
        if not TURN.acquire(blocking=False):
            self.emit(Stage("Waiting for another problem's turn to end"))
            while not TURN.acquire(timeout=0.1):
                if self.halt():
                    raise Stopped("stopped")
        try:
            self.begun = time.perf_counter()
            yield
        finally:
            TURN.release()

    def _steps(self, tasks: list[Task]) -> None:
        mass = self.model.with_settings(tasks, self.config)
        if self.config.synthesises or not self.model.presets:
            self.model.require_room(mass, tasks)
        by_mass = self.config.synthesises or self.problem.kind not in self.model.presets
        few = None if by_mass and not self.config.trains else self._few(tasks)
        self.emit(Stage("Answering without adaptation"))
        answer = (lambda: self._solve(mass, tasks, None)) if by_mass else (lambda: self._predict(few, tasks, None))
        self.before = answer()
        self.emit(Answered("before", self.before))
        if self.config.method == "none":
            return
        records = self._train(few, tasks) if few is not None and self.config.trains else None
        if not self.config.synthesises:
            assert few is not None and records is not None
            self.emit(Stage("Answering at the adapted weights"))
            self.after = self._predict(few, tasks, records)
            self._keep_trained(few, records)
        else:
            self.after = self._synthesised(mass, tasks, records)
        self.emit(Answered("after", self.after))

    # -- test-time training -------------------------------------------------------------------------------------------

    def _few(self, tasks: Sequence[Task]) -> FewShotAdapter:
        few, self._settings = self.model.few_shot(self.problem.kind, tasks, self.config)
        few.watch = self.check
        for task in tasks:
            few.require_room(task)
        return few

    def _train(self, few: FewShotAdapter, tasks: list[Task]) -> list[FitRecord]:
        self.emit(Stage("Training on the demonstrations"))
        records = few.adapt(
            tasks,
            self.config.seed,
            on_step=lambda step, steps, losses: self.emit(Loss("ttt", 0, step, steps, losses[0])),
        )
        self.reasons += [record.reason for record in records if record.reason]
        return records

    def _predict(
        self, few: FewShotAdapter | None, tasks: list[Task], records: list[FitRecord] | None
    ) -> tuple[Answer, ...]:
        assert few is not None
        predictions = few.predict(tasks, records, self.config.seed)
        vote, within = ("first", 1) if not self.config.vote else (self._settings.vote, self._settings.vote_within)
        answers = []
        for task, found in zip(tasks, predictions, strict=True):
            ranked = rank_answers(found, vote, within, 1)
            answers.append(_judged(task, ranked[0] if ranked else None))
        return tuple(answers)

    def _keep_trained(self, few: FewShotAdapter, records: list[FitRecord]) -> None:
        if records[0].params is not None:  # queries of one problem have the same demonstrations, so the same adapter
            self._keep(self.problem.name, [(few.lora, records[0].params)])

    def _keep(self, name: str, parts: Sequence[Part]) -> None:
        try:
            config, weights = combined_adapter(parts)
        except DataError:  # all of it is zero
            self.reasons.append("adapting changed nothing; choose a higher rate")
            return
        self.adapters.append(Adapter(name, config, {key: leaf.cpu() for key, leaf in weights.items()}))

    # -- self-synthesis -----------------------------------------------------------------------------------------------

    def _synthesised(self, mass: MassModel, tasks: list[Task], trained: list[FitRecord] | None) -> tuple[Answer, ...]:
        answers: list[Answer] = []
        for query, task in enumerate(tasks):
            params = None if trained is None else trained[query].params
            with _generator_at(mass, params):
                record = self._adapt(mass, task, query)
                self.emit(Stage("Answering at the adapted weights"))
                answers += self._solve(mass, [task], None if record.adapted is None else [record])
                generator = BoundLora(mass.model, GENERATOR)
                parts: list[Part] = [(generator, tree_map(lambda x: x.clone(), generator.start(1)))]
                if record.adapted is not None:
                    self._keep(task.id, [*parts, (mass.adapter.lora, record.adapted)])
                elif params is not None:
                    self._keep(task.id, parts)
        return tuple(answers)

    def _adapt(self, mass: MassModel, task: Task, query: int) -> AdaptationRecord:
        weigh_by = self.config.weigh_by or self.model.default_weighing([task])
        self.emit(Stage("Writing samples"))

        def watch(rows: list[list[int]]) -> None:
            texts = mass.tokenizer.batch_decode(rows, skip_special_tokens=True)
            self.emit(Writing(query, tuple(texts)))

        samples = mass.generate_auxiliary([task], seed=self.config.seed, watch=watch)
        self.sampled_tokens += sum(len(sample.token_ids) for sample in samples[0])
        self.emit(Stage("Weighing the samples and training on them"))
        record = mass.adapt([task], weigh_by, samples, self.config.seed)[0]  # type: ignore[index]
        rows = tuple(record.table())
        self.samples.append(rows)
        self.emit(Weighed(query, rows))
        if record.reason:
            self.reasons.append(record.reason)
        else:
            weights, usable = record.weights, record.losses[0].isfinite()
            for step, losses in enumerate(record.losses):  # [m]
                mean = float((weights * losses)[usable].sum() / weights[usable].sum())
                self.emit(Loss("mass", query, step, len(record.losses), mean))
        return record

    def _solve(self, mass: MassModel, tasks: list[Task], records: list[AdaptationRecord] | None) -> tuple[Answer, ...]:
        solutions = mass.solve(tasks, records)
        assert isinstance(solutions, list)
        return tuple(_judged(s.task, s.answer, s.text) for s in solutions)


def _judged(task: Task, answer: str | None, written: str | None = None) -> Answer:
    score = score_answers(task, [] if answer is None else [answer], ())
    return Answer(answer, task.answer, None if score is None else score.pass_1, written)


@contextmanager
def _generator_at(mass: MassModel, params: Tree | None) -> Iterator[None]:
    """Within this context the generator's adapter holds these matrices."""
    lora = BoundLora(mass.model, GENERATOR)
    before = tree_map(lambda x: x.clone(), lora.start(1))
    try:
        if params is not None:
            lora.load(params)
        yield
    finally:
        lora.load(before)


def solve(
    model: LiveModel,
    problem: Problem,
    config: LiveConfig,
    on_event: Emit | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Adapt to a problem and answer it.

    Args:
        model: The model. Problems take turns, those on other models too.
        problem: The problem.
        config: How.
        on_event: Called with every event.
        stop: Asked at every step; True ends adapting, and the outcome says so.

    Raises:
        DataError: If the problem is none for this model or method.
    """
    return _Run(model, problem, config, on_event or (lambda event: None), stop or (lambda: False)).go()


def run(
    model: LiveModel, problem: Problem, config: LiveConfig, stop: threading.Event | None = None
) -> Generator[Event | Outcome, None, None]:
    """As `solve`, as a generator of the events, whose last item is the outcome.

    Adapting goes on in a thread of its own, and ends with the generator.

    Args:
        model: The model.
        problem: The problem.
        config: How.
        stop: Set it to end adapting.

    Raises:
        DataError: If the problem is none for this model or method.
    """
    left, events = threading.Event(), queue.Queue[Event | Outcome | BaseException]()

    def halted() -> bool:
        return left.is_set() or (stop is not None and stop.is_set())

    def work() -> None:
        try:
            events.put(solve(model, problem, config, events.put, halted))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the events are read
            events.put(error)

    thread = threading.Thread(target=work, daemon=True, name="adapt")
    thread.start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Outcome):
                return
    finally:
        left.set()
        thread.join()
