"""What came of adapting to a problem and answering it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hf_mass.core.trees import Tree
from hf_mass.engine.events import Loss
from hf_mass.methods.base import Adaptation, Answer, Cost
from hf_mass.tasks.problems import Problem


@dataclass(frozen=True)
class Solution:
    """A problem, answered before and after adapting to it.

    Args:
        problem: The problem.
        method: Name of the method.
        before: Answers without adaptation.
        after: Answers with it; empty where it was stopped, and for method "none".
        adaptations: One for each task.
        losses: Every training loss in turn.
        reason: Why there is no adapted answer, or the adapted weights of some task are missing; None if all went well.
        cost: What answering took for each task; adapting is in the adaptations' own.
        seconds: Wall time.
    """

    problem: Problem
    method: str
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    adaptations: tuple[Adaptation, ...] = field(default=(), repr=False)
    losses: tuple[Loss, ...] = ()
    reason: str | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The adapted answers where there are some, else those without adaptation."""
        return self.after or self.before

    @property
    def samples(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """Of each task the rows of its auxiliary samples; empty for methods that write none."""
        return tuple(tuple(each.explain()) for each in self.adaptations if each.samples)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the auxiliary samples."""
        return sum(len(sample.token_ids) for each in self.adaptations for sample in each.samples)

    @property
    def guards(self) -> list[dict[str, Any]]:
        """What the guard did, as JSON values, an object for each set of demonstrations: numbers of its `queries`, the
        `note` in words, `entries` as `GuardEntry`, and the `seconds` and `trained_tokens` that it took."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for n, each in enumerate(self.adaptations):
            if each.guard_note is not None:
                groups.setdefault((each.guard_note, each.guard), []).append(n)
        return [
            {
                "queries": queries,
                "note": note,
                "entries": [{k: _finite(v) for k, v in vars(entry).items()} for entry in entries],
                "seconds": round(sum(self.adaptations[n].guard_cost.seconds for n in queries), 3),
                "trained_tokens": round(sum(self.adaptations[n].guard_cost.trained_tokens for n in queries)),
            }
            for (note, entries), queries in groups.items()
        ]

    def distinct(self) -> Iterator[Adaptation]:
        """The adaptations that have weights, each once where tasks share one."""
        trees: list[Tree | None] = []
        for each in self.adaptations:
            if each.parts and not any(each.adapted is tree for tree in trees):
                trees.append(each.adapted)
                yield each

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without weights."""

        def answers(several: tuple[Answer, ...]) -> list[dict[str, Any]]:
            return [
                {
                    "answer": a.text,
                    "gold": a.task.answer,
                    "right": a.right,
                    **({"reason": a.reason} if a.reason else {}),
                    **({"cut": True} if a.cut else {}),
                }
                for a in several
            ]

        return {
            "problem": self.problem.name,
            "method": self.method,
            "queries": [task.problem for task in self.problem.tasks],
            "before": answers(self.before),
            "after": answers(self.after),
            "samples": [[{key: _finite(value) for key, value in row.items()} for row in rows] for rows in self.samples],
            "losses": [
                {"method": x.method, "query": x.query, "step": x.step, "loss": _finite(x.value)} for x in self.losses
            ],
            "guard": self.guards,
            "reason": self.reason,
            "sampled_tokens": self.sampled_tokens,
            "seconds": round(self.seconds, 3),
        }


def _finite(value: Any) -> Any:
    """None for a number that JSON has no way to write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
