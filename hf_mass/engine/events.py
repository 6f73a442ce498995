"""What happens while a model adapts to a problem, as plain data: events on the way, and the outcome."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from peft import PeftConfig
from torch import Tensor

from hf_mass.errors import ConfigError
from hf_mass.methods.mass_settings import WEIGHINGS
from hf_mass.store.adapters import write_adapter
from hf_mass.store.storage import write_atomically
from hf_mass.tasks.problems import Problem

METHODS = ("none", "mass", "ttt", "both")


@dataclass(frozen=True)
class LiveConfig:
    """How to adapt to a problem. What is None is the model's own setting.

    Args:
        method: "none"; "mass": train on samples that the model writes for the problem; "ttt": train on the problem's
            demonstrations, left out one by one; "both": TTT, then MASS on top of it.
        samples: m, auxiliary samples of MASS.
        inner_steps: K, inner steps of MASS.
        inner_learning_rate: α, inner rate of MASS.
        weigh_by: "demonstrations", "scorer" or "uniform". None for "demonstrations" where the problem has some.
        max_examples: Training examples of TTT.
        num_train_epochs: Passes of TTT over them.
        learning_rate: Highest learning rate of TTT.
        vote: Whether TTT answers under several transformations and votes; False asks once.
        seed: For sampling and training.
        time_limit: Seconds after which adapting ends without an answer; None for no limit.

    Raises:
        ConfigError: If a value is out of its range.
    """

    method: str = "ttt"
    samples: int | None = None
    inner_steps: int | None = None
    inner_learning_rate: float | None = None
    weigh_by: str | None = None
    max_examples: int | None = None
    num_train_epochs: int | None = None
    learning_rate: float | None = None
    vote: bool = True
    seed: int = 0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}; choose one of {list(METHODS)}.")
        if self.weigh_by is not None and self.weigh_by not in WEIGHINGS:
            raise ConfigError(f"weigh_by is {self.weigh_by!r}; choose one of {list(WEIGHINGS)}.")
        for name in ("samples", "inner_steps", "max_examples", "num_train_epochs"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r:.60}; choose a whole number of at least 1.")
        for name in ("inner_learning_rate", "learning_rate", "time_limit"):
            value = getattr(self, name)
            if value is not None and (type(value) not in (int, float) or not 0 < value <= sys.float_info.max):
                raise ConfigError(f"{name} is {value!r:.60}; choose a finite number above 0.")
        if type(self.seed) is not int:
            raise ConfigError(f"seed is {self.seed!r:.60}; choose a whole number.")

    @property
    def trains(self) -> bool:
        """Whether TTT has a part in it."""
        return self.method in ("ttt", "both")

    @property
    def synthesises(self) -> bool:
        """Whether MASS has a part in it."""
        return self.method in ("mass", "both")


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
        query: Number of the query that they are for.
        texts: One for each sample.
    """

    query: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Weighed:
    """Auxiliary samples with their weights.

    Args:
        query: Number of the query.
        rows: `AdaptationRecord.table()`: question, answer, weight, attribution, losses, reason of each sample.
    """

    query: int
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Loss:
    """The training loss at one step.

    Args:
        method: "ttt" or "mass".
        query: Number of the query.
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
class Answer:
    """The answer to one query.

    Args:
        text: The answer; None if none could be read.
        gold: The right one, where it is known.
        right: Whether it is right, where that is known.
        written: What the model wrote, where that is more than the answer.
    """

    text: str | None
    gold: str | None = None
    right: bool | None = None
    written: str | None = None


@dataclass(frozen=True)
class Answered:
    """All queries are answered.

    Args:
        when: "before" or "after" adapting.
        answers: One for each query.
    """

    when: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Adapter:
    """Adapted weights, for download.

    Args:
        name: The query's name.
        config: PEFT's description.
        weights: Matrices under PEFT's names.
    """

    name: str
    config: PeftConfig
    weights: dict[str, Tensor]

    def save(self, path: str | Path) -> None:
        """Write a folder that `PeftModel.from_pretrained` reads.

        Raises:
            CheckpointError: If it cannot be written.
        """
        write_atomically(Path(path), lambda folder: write_adapter(folder, self.weights, self.config))


@dataclass(frozen=True)
class Outcome:
    """What came of adapting to a problem.

    Args:
        problem: The problem.
        config: How it was adapted to.
        before: Answers without adaptation.
        after: Answers with it; empty where it was stopped, and for method "none".
        samples: Of each query the rows of `Weighed`; empty without MASS.
        losses: Every `Loss` in turn.
        adapters: Adapted weights, one for each query, or one for all where they share it.
        reason: Why there is no adapted answer, or the adapted weights of some query are missing; None if all went well.
        sampled_tokens: Tokens of the auxiliary samples.
        seconds: Wall time.
    """

    problem: Problem
    config: LiveConfig
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    samples: tuple[tuple[dict[str, Any], ...], ...] = ()
    losses: tuple[Loss, ...] = ()
    adapters: tuple[Adapter, ...] = field(default=(), repr=False)
    reason: str | None = None
    sampled_tokens: int = 0
    seconds: float = 0.0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The adapted answers where there are some, else those without adaptation."""
        return self.after or self.before

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without weights."""

        def answers(given: tuple[Answer, ...]) -> list[dict[str, Any]]:
            return [{"answer": a.text, "gold": a.gold, "right": a.right} for a in given]

        return {
            "problem": self.problem.name,
            "method": self.config.method,
            "queries": [task.problem for task in self.problem.tasks],
            "before": answers(self.before),
            "after": answers(self.after),
            "samples": [[{key: _finite(value) for key, value in row.items()} for row in rows] for rows in self.samples],
            "losses": [
                {"method": x.method, "query": x.query, "step": x.step, "loss": _finite(x.value)} for x in self.losses
            ],
            "reason": self.reason,
            "sampled_tokens": self.sampled_tokens,
            "seconds": round(self.seconds, 3),
        }


def _finite(value: Any) -> Any:
    """None for a number that JSON has no way to write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Event: TypeAlias = Stage | Writing | Weighed | Loss | Answered
