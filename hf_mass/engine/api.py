"""The public calls: `hf_mass.adapt` and `hf_mass.solve`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypedDict, Unpack, overload

from hf_mass.engine.events import Event
from hf_mass.engine.models import load
from hf_mass.engine.session import Session
from hf_mass.engine.solution import Solution
from hf_mass.errors import ConfigError, DataError
from hf_mass.methods.base import Adaptation, Method, is_method
from hf_mass.methods.guard import guarded
from hf_mass.methods.registry import METHODS, make_method
from hf_mass.tasks.checks import shown
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.task import Task

AnyModel = Any
"""What `hf_mass.load` takes."""


class RunOptions(TypedDict, total=False):
    """How a method is run: fields of `Session`, and `stop`, an event to set from another thread."""

    seed: int
    tasks_per_pass: int | None
    on_event: Callable[[Event], None]
    time_limit: float | None
    stop: threading.Event


@overload
def adapt(
    model: AnyModel,
    tasks: Task,
    method: str | Method[Any] = "ttt",
    guard: bool | None = None,
    **options: Unpack[RunOptions],
) -> Adaptation: ...
@overload
def adapt(
    model: AnyModel,
    tasks: Sequence[Task],
    method: str | Method[Any] = "ttt",
    guard: bool | None = None,
    **options: Unpack[RunOptions],
) -> list[Adaptation]: ...
def adapt(
    model: AnyModel,
    tasks: Task | Sequence[Task],
    method: str | Method[Any] = "ttt",
    guard: bool | None = None,
    **options: Unpack[RunOptions],
) -> Adaptation | list[Adaptation]:
    """Adapt a model to one task, or to many in one pass. Nothing of it stays in the model.

        model = hf_mass.load("grids-base")
        adaptation = hf_mass.adapt(model, task)
        print(adaptation.before(), "->", adaptation.answer())

    Args:
        model: What `hf_mass.load` gave or takes.
        tasks: One task (gives one record) or several (gives a list). Those with the same demonstrations share one.
        method: "ttt", "mass", "both", "vote", "none", a registered name, "package.module:Class", or a method:
            `TTT(...)`, `MASS(...)`, `Guard(TTT(...))`.
        guard: Whether left-out demonstrations decide how strongly to adapt, and whether at all (`Guard`); None for on a
            model that does not ship, where that can be.
        options: `seed` for sampling and training; `tasks_per_pass`, distinct sets of demonstrations that go through the
            model side by side, None for all; `on_event`, called with every event (`hf_mass.engine.events`);
            `time_limit` in seconds; `stop`, a `threading.Event` that stops when it is set.

    Raises:
        Stopped: If it was stopped, or time is up.
        DataError: If a task is none for the method or model.
        ConfigError: If there is no such method, an option is out of its range, or the method cannot be guarded so.
    """
    several = _as_list(tasks)
    session = _session(model, method, several, guard, options)
    session.require(several)
    adaptations = session.adapt(several)
    return adaptations[0] if isinstance(tasks, Task) else adaptations


def solve(
    model: AnyModel,
    problem: Task | Problem | Sequence[Task],
    method: str | Method[Any] = "ttt",
    guard: bool | None = None,
    **options: Unpack[RunOptions],
) -> Solution:
    """Answer a problem, adapt to it, and answer it again. Where it was stopped, the solution says so.

    Args:
        model: What `hf_mass.load` gave or takes.
        problem: A task, a problem of several queries, or several tasks.
        method: As for `adapt`.
        guard: As for `adapt`.
        options: As for `adapt`.

    Raises:
        DataError: If a task is none for the method or model.
        ConfigError: If there is no such method, an option is out of its range, or the method cannot be guarded so.
    """
    if not isinstance(problem, Problem):
        tasks = _as_list(problem)
        problem = Problem(tasks[0].id or "problem", kind_of(tasks), tuple(tasks))
    return _session(model, method, problem.tasks, guard, options).solve(problem)


def _as_list(tasks: Task | Sequence[Task]) -> list[Task]:
    if not isinstance(tasks, Task | Sized):  # it may never end
        raise DataError(f"tasks is a {type(tasks).__name__}, of no known length; give a task or a list of tasks.")
    several = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not several:
        raise DataError("tasks is empty; give at least one task.")
    for task in several:
        if not isinstance(task, Task):
            raise DataError(f"tasks holds a {type(task).__name__}; give hf_mass.Task, such as Task.from_pairs(...).")
    return several


def _session(
    model: AnyModel, method: str | Method[Any], tasks: Sequence[Task], guard: bool | None, options: RunOptions
) -> Session:
    fields: dict[str, Any] = {name: value for name, value in options.items() if name != "stop" and value is not None}
    if (stop := options.get("stop")) is not None:
        if not isinstance(stop, threading.Event):
            raise ConfigError(f"stop is {shown(stop)}; give a threading.Event, which stops when it is set.")
        fields["halt"] = stop.is_set
    if not isinstance(guard, bool | None):
        raise ConfigError(f"guard is {shown(guard)}; choose True or False, or None for what suits the model.")
    chosen = make_method(method) if isinstance(method, str) else method
    if not is_method(chosen):
        raise ConfigError(
            f"method is {shown(method)}; give a name, one of {list(METHODS)}, or a method such as TTT(...)."
        )
    lm = load(model)
    return Session(lm, guarded(chosen, lm, tasks, guard), **fields)
