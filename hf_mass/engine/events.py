"""What happens while a method runs on tasks, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from hf_mass.methods.base import Answer


@dataclass(frozen=True)
class Stage:
    """Something begins."""

    text: str  # what


@dataclass(frozen=True)
class Writing:
    """Auxiliary samples as far as they are written."""

    texts: tuple[str, ...]  # one for each sample, task after task


@dataclass(frozen=True)
class Weighed:
    """Auxiliary samples with their weights."""

    query: int  # number of the task
    rows: tuple[dict[str, Any], ...]  # `Adaptation.explain()`: one for each sample


@dataclass(frozen=True)
class Loss:
    """The training loss at one step."""

    method: str  # "ttt", "mass", or another's name
    query: int  # number of the task; 0 where all train together
    step: int  # from 0
    steps: int  # how many there will be
    value: float  # nats per token


@dataclass(frozen=True)
class Replies:
    """All tasks are answered."""

    when: str  # "before" or "after" adapting
    answers: tuple[Answer, ...]  # one for each task


Event: TypeAlias = Stage | Writing | Weighed | Loss | Replies
