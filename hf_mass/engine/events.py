"""What happens while a method runs on tasks, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from hf_mass.methods.base import Answer, GuardEntry


@dataclass(frozen=True)
class Stage:
    """Something begins.

    Args:
        text: What.
    """

    text: str


@dataclass(frozen=True)
class Generating:
    """Texts as far as they are generated.

    Args:
        rows: How many side by side.
        tokens: Tokens of the longest.
        most: Tokens that one may have.
    """

    rows: int
    tokens: int
    most: int


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
class InnerStep:
    """A step of an inner loop while samples are weighed, which may not be the last with these weights.

    Args:
        step: From 0.
        steps: How many there will be; None where that is not known.
        value: The loss before it, in nats per token.
    """

    step: int
    steps: int | None
    value: float


@dataclass(frozen=True)
class Trial:
    """The training loss at one step on a part of the demonstrations, to see what the others gain.

    Args:
        stage: What is tried.
        step: From 0.
        steps: How many there will be.
        value: Nats per token.
    """

    stage: str
    step: int
    steps: int
    value: float


@dataclass(frozen=True)
class Measured:
    """What a guard has measured so far, and in the end what it chose.

    Args:
        entries: As in `Adaptation.guard`, for one set of demonstrations after the other.
    """

    entries: tuple[GuardEntry, ...]


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


Event: TypeAlias = Stage | Generating | Writing | Weighed | InnerStep | Trial | Measured | Loss | Replies
