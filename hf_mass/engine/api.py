"""The public calls: `hf_mass.adapt` and `hf_mass.solve`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, overload

from hf_mass.engine.events import Event
from hf_mass.engine.models import load
from hf_mass.engine.session import Session
from hf_mass.engine.solution import Solution
from hf_mass.errors import DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Method
from hf_mass.methods.registry import make_method
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.task import Task

AnyModel = Any
"""What `hf_mass.load` takes."""


@overload
def adapt(
    model: AnyModel,
    tasks: Task,
    method: str | Method[Any] = "ttt",
    *,
    seed: int = 0,
    tasks_per_pass: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    time_limit: float | None = None,
) -> Adaptation: ...
@overload
def adapt(
    model: AnyModel,
    tasks: Sequence[Task],
    method: str | Method[Any] = "ttt",
    *,
    seed: int = 0,
    tasks_per_pass: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    time_limit: float | None = None,
) -> list[Adaptation]: ...
def adapt(
    model: AnyModel,
    tasks: Task | Sequence[Task],
    method: str | Method[Any] = "ttt",
    *,
    seed: int = 0,
    tasks_per_pass: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    time_limit: float | None = None,
) -> Adaptation | list[Adaptation]:
    """Adapt a model to one task, or to many in one pass. Nothing of it stays in the model.

        model = hf_mass.load("grids-base")
        adaptation = hf_mass.adapt(model, task)
        print(adaptation.before(), "->", adaptation.answer())

    Args:
        model: What `hf_mass.load` gave or takes.
        tasks: One task (gives one record) or several (gives a list). Those with the same demonstrations share one.
        method: "ttt", "mass", "both", "vote", "none", a registered name, "package.module:Class", or a method:
            `TTT(...)`, `MASS(...)`.
        seed: For sampling and training.
        tasks_per_pass: Distinct sets of demonstrations that go through the model side by side; None for all.
        on_event: Called with every event (`hf_mass.engine.events`).
        stop: Set it, from another thread, to stop.
        time_limit: Seconds.

    Raises:
        Stopped: If it was stopped, or time is up.
        DataError: If a task is none for the method or model.
        ConfigError: If there is no such method.
    """
    several = _listed(tasks)
    session = _session(model, method, seed, tasks_per_pass, on_event, stop, time_limit)
    session.require(several)
    adaptations = session.adapt(several)
    return adaptations[0] if isinstance(tasks, Task) else adaptations


def solve(
    model: AnyModel,
    problem: Task | Problem | Sequence[Task],
    method: str | Method[Any] = "ttt",
    *,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    time_limit: float | None = None,
) -> Solution:
    """Answer a problem, adapt to it, and answer it again.

    Args:
        model: What `hf_mass.load` gave or takes.
        problem: A task, a problem of several queries, or several tasks.
        method: As for `adapt`.
        seed: For sampling and training.
        on_event: Called with every event.
        stop: Set it, from another thread, to stop; the solution says so.
        time_limit: Seconds; the solution says if time is up.

    Raises:
        DataError: If a task is none for the method or model.
        ConfigError: If there is no such method.
    """
    session = _session(model, method, seed, None, on_event, stop, time_limit)
    return session.solve(problem if isinstance(problem, Problem) else as_problem(_listed(problem)))


def as_problem(tasks: Sequence[Task]) -> Problem:
    """Tasks as the queries of one problem."""
    return Problem(tasks[0].id or "problem", kind_of(tasks), tuple(tasks))


def _listed(tasks: Task | Sequence[Task]) -> list[Task]:
    several = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not several:
        raise DataError("tasks is empty; give at least one task.")
    for task in several:
        if not isinstance(task, Task):
            raise DataError(f"tasks holds a {type(task).__name__}; give hf_mass.Task, such as Task.from_pairs(...).")
    return several


def _session(
    model: AnyModel,
    method: str | Method[Any],
    seed: int,
    tasks_per_pass: int | None,
    on_event: Callable[[Event], None] | None,
    stop: threading.Event | None,
    time_limit: float | None,
) -> Session:
    chosen = make_method(method) if isinstance(method, str) else method
    lm: LanguageModel = load(model)
    return Session(
        lm,
        chosen,
        seed,
        tasks_per_pass,
        on_event or (lambda event: None),
        stop.is_set if stop is not None else (lambda: False),
        time_limit,
    )
