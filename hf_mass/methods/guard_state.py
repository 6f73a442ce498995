"""How far a guard has come: what it runs, what that came to, and what is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_mass.methods.base import Adaptation, Cost, GuardEntry
from hf_mass.methods.left_out import Fold, Reading
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class Run:
    """A method on some tasks, stopped after a share of its steps."""

    strength: int  # number of the method among the strengths
    numbers: tuple[int, ...]  # numbers of the tasks (of the folds, while it is chosen)
    state: Any = None  # the method's own; None before it has begun
    stop: float = 1.0  # share of its steps
    measured: int = 0  # how many of `STOPS` are measured, on folds
    first: float | None = None  # the first training loss
    ended: bool = False  # whether its last share is measured, or it is ruled out


@dataclass(frozen=True)
class Attempt:
    """What one strength came to on a fold at one stop."""

    fold: int
    strength: int
    stop: int  # number of the stop
    share: float  # share of the steps that were made
    reading: Reading | None = None  # None where the strength is ruled out
    reason: str | None = None  # why it is


@dataclass(frozen=True)
class GuardState:
    """How far the guard has come."""

    tasks: tuple[Task, ...]
    seed: int  # for the method
    sets: tuple[tuple[int, ...], ...]  # for each distinct set of demonstrations the numbers of its tasks
    folds: tuple[Fold, ...]
    before: tuple[Reading, ...] = ()  # of each fold at the model's own weights
    runs: tuple[Run, ...] = ()  # what is still to be run: strengths on folds, then the choices on the tasks themselves
    attempts: tuple[Attempt, ...] = ()
    chosen: bool = False
    entries: tuple[tuple[GuardEntry, ...], ...] = ()  # what was measured for each set, once it is chosen
    records: tuple[Adaptation, ...] = ()  # by number of the task; without weights until it is trained
    cost: Cost = field(default_factory=Cost)  # of choosing, for each task
