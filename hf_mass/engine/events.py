"""What happens while a method runs on tasks, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from hf_mass.methods.base import Answer


@dataclass(frozen=True)
class Stage:
    """Something begins.

    Args:
        text: What.
    """

    text: str


@dataclass(frozen=True)
class Writing:
    """Auxiliary samples as far as they are written.

    Args:
        texts: One for each sample, task after task.
    """

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Weighed:
    """Auxiliary samples with their weights.

    Args:
        query: Number of the task.
        rows: `Adaptation.explain()`: one for each sample.
    """

    query: int
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Loss:
    """The training loss at one step.

    Args:
        method: "ttt", "mass", or another's name.
        query: Number of the task; 0 where all train together.
        step: From 0.
        steps: How many there will be.
        value: Nats per token.
    """

    method: str
    query: int
    step: int
    steps: int
    value: float


@dataclass(frozen=True)
class Replies:
    """All tasks are answered.

    Args:
        when: "before" or "after" adapting.
        answers: One for each task.
    """

    when: str
    answers: tuple[Answer, ...]


Event: TypeAlias = Stage | Writing | Weighed | Loss | Replies
