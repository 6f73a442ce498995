"""Two methods in sequence: test-time training first, MASS on top of what it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from hf_mass.core.trees import Tree, tree_map
from hf_mass.lm.adapters import Part
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method, Progress
from hf_mass.methods.mass import MASS
from hf_mass.methods.ttt import STRENGTHS, TTT, TTTState, sharing_data
from hf_mass.tasks.checks import require_method
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class SequenceState:
    """How far the two methods have come."""

    tasks: tuple[Task, ...]
    seed: int  # of both
    first: TTTState  # state of the first method; it is done before the second begins
    trained: tuple[Adaptation, ...] = ()  # what the first gave
    second: Any = None  # state of the second on the next tasks that share an adapter of the first
    done: Mapping[int, Adaptation] = field(default_factory=dict)  # what both gave, by number of the task


class TTTThenMASS(Method[SequenceState]):
    """MASS, the `second`, whose generator and solver are the model as test-time training, the `first`, left it."""

    name = "both"

    def __init__(self, first: TTT | None = None, second: MASS | None = None) -> None:
        require_method("TTTThenMASS.first", first, TTT)
        require_method("TTTThenMASS.second", second, MASS)
        self.first = first or TTT()
        self.second = second or MASS(asks=self.first)

    @property
    def strength(self) -> str:
        return self.first.strength if self.first.scale == 1 else f"{self.first.strength} in both"

    def strengths(self) -> list[Method[Any]]:
        """Both at the rates that are set, and at smaller ones."""
        return [TTTThenMASS(self.first.scaled(scale), self.second.scaled(scale)) for scale in STRENGTHS]

    def on_half(self) -> TTTThenMASS:
        """Both without a vote."""
        return TTTThenMASS(self.first.on_half(), self.second.on_half())

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        self.first.require(lm, tasks)
        self.second.require(lm, tasks)

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> SequenceState:
        return SequenceState(tuple(tasks), seed, self.first.begin(lm, tasks, seed))

    def step(self, lm: LanguageModel, state: SequenceState) -> SequenceState:
        """A step of the first; then one of the second, on tasks with the same demonstrations together."""
        if not self.first.stop(state.first):
            return replace(state, first=self.first.step(lm, state.first))
        if not state.trained:
            return replace(state, trained=tuple(self.first.finish(lm, state.first)))
        numbers = next(group for group in sharing_data(state.tasks) if group[0] not in state.done)
        trained_on = state.trained[numbers[0]]
        with at_starting_weights(lm, trained_on):
            tasks = [state.tasks[n] for n in numbers]
            second = self.second.begin(lm, tasks, state.seed) if state.second is None else state.second
            second = self.second.step(lm, second)
            if not self.second.stop(second):
                return replace(state, second=second)
            synthesised = self.second.finish(lm, second)
        joined = {n: _joined(lm, trained_on, each) for n, each in zip(numbers, synthesised, strict=True)}
        return replace(state, second=None, done={**state.done, **joined})

    def stop(self, state: SequenceState) -> bool:
        return len(state.done) == len(state.tasks)

    def progress(self, state: SequenceState) -> Progress:
        if not state.trained:
            return self.first.progress(state.first)
        return Progress("Writing samples", writes=True) if state.second is None else self.second.progress(state.second)

    def finish(self, lm: LanguageModel, state: SequenceState) -> list[Adaptation]:
        """Midway those that are done."""
        return [state.done[n] for n in range(len(state.tasks)) if n in state.done]

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        if adaptations is None:
            return self.second.answer(lm, tasks, None, seed)
        answers: dict[int, Answer] = {}
        for numbers in _alike(lm, adaptations):
            above = [replace(adaptations[n], parts=_above(lm, adaptations[n])) for n in numbers]
            with at_starting_weights(lm, adaptations[numbers[0]]):
                replies = self.second.answer(lm, [tasks[n] for n in numbers], above, seed)
            answers.update(zip(numbers, replies, strict=True))
        return [answers[n] for n in range(len(tasks))]

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        return self.first.defaults(lm, tasks)


def at_starting_weights(lm: LanguageModel, adaptation: Adaptation) -> AbstractContextManager[None]:
    """Within this context the model's starting adapter is as the adaptation has it."""
    tree = _starting(lm, adaptation)
    return nullcontext() if tree is None else lm.starting_at(tree)


def _starting(lm: LanguageModel, adaptation: Adaptation) -> Tree | None:
    return next((tree for lora, tree in adaptation.parts if lora.adapter == lm.adapter_name), None)


def _above(lm: LanguageModel, adaptation: Adaptation) -> tuple[Part, ...]:
    return tuple(part for part in adaptation.parts if part[0].adapter != lm.adapter_name)


def _alike(lm: LanguageModel, adaptations: Sequence[Adaptation]) -> list[list[int]]:
    """Numbers of adaptations, those with the same starting weights together."""
    groups: dict[int, list[int]] = {}
    for n, adaptation in enumerate(adaptations):
        groups.setdefault(id(_starting(lm, adaptation)), []).append(n)
    return list(groups.values())


def _joined(lm: LanguageModel, trained: Adaptation, synthesised: Adaptation) -> Adaptation:
    starting = next((part for part in synthesised.parts if part[0].adapter == lm.adapter_name), None)
    below = trained.parts or (() if starting is None else ((starting[0], tree_map(lambda x: x.clone(), starting[1])),))
    reasons = [reason for reason in (trained.reason, synthesised.reason) if reason]
    return replace(
        synthesised,
        parts=(*below, *_above(lm, synthesised)),
        reason="; ".join(dict.fromkeys(reasons)) or None,
        losses=(*trained.losses, *synthesised.losses),
        examples=trained.examples,
        cost=trained.cost + synthesised.cost,
    )
