"""Two methods in sequence: test-time training first, MASS on top of what it learned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from hf_mass.core.trees import tree_map
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method, Progress
from hf_mass.methods.mass import MASS
from hf_mass.methods.ttt import STRENGTHS, TTT, TTTState
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class SequenceState:
    """How far the two methods have come."""

    tasks: tuple[Task, ...]
    seed: int  # of both
    first: TTTState  # state of the first method; it is done before the second begins
    trained: tuple[Adaptation, ...] = ()  # what the first gave
    second: Any = None  # state of the second on the next task
    done: tuple[Adaptation, ...] = ()  # what both gave, task by task


class TTTThenMASS(Method[SequenceState]):
    """MASS, the `second`, whose generator and solver are the model as test-time training, the `first`, left it."""

    name = "both"

    def __init__(self, first: TTT | None = None, second: MASS | None = None) -> None:
        self.first, self.second = first or TTT(), second or MASS()

    @property
    def strength(self) -> str:
        return self.first.strength if self.first.scale == 1 else f"{self.first.strength} in both"

    def strengths(self) -> list[Method[Any]]:
        """Both at the rates that are set, and at smaller ones."""
        return [TTTThenMASS(self.first.scaled(scale), self.second.scaled(scale)) for scale in STRENGTHS]

    def on_half(self) -> TTTThenMASS:
        return TTTThenMASS(self.first.on_half(), self.second)

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        self.first.require(lm, tasks)
        self.second.require(lm, tasks)

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> SequenceState:
        return SequenceState(tuple(tasks), seed, self.first.begin(lm, tasks, seed))

    def step(self, lm: LanguageModel, state: SequenceState) -> SequenceState:
        """A step of the first; then, task by task, one of the second."""
        if not self.first.stop(state.first):
            return replace(state, first=self.first.step(lm, state.first))
        if not state.trained:
            return replace(state, trained=tuple(self.first.finish(lm, state.first)))
        task, trained_on = state.tasks[len(state.done)], state.trained[len(state.done)]
        with at_starting_weights(lm, trained_on):
            second = self.second.begin(lm, [task], state.seed) if state.second is None else state.second
            second = self.second.step(lm, second)
            if not self.second.stop(second):
                return replace(state, second=second)
            (synthesised,) = self.second.finish(lm, second)
            return replace(state, second=None, done=(*state.done, _joined(lm, trained_on, synthesised)))

    def stop(self, state: SequenceState) -> bool:
        return len(state.done) == len(state.tasks)

    def progress(self, state: SequenceState) -> Progress:
        if not state.trained:
            return self.first.progress(state.first)
        return Progress("Writing samples", writes=True) if state.second is None else self.second.progress(state.second)

    def finish(self, lm: LanguageModel, state: SequenceState) -> list[Adaptation]:
        return list(state.done)

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        if adaptations is None:
            return self.second.answer(lm, tasks, None, seed)
        answers: list[Answer] = []
        for task, adaptation in zip(tasks, adaptations, strict=True):
            inner = tuple(part for part in adaptation.parts if part[0].adapter != lm.adapter_name)
            with at_starting_weights(lm, adaptation):
                answers += self.second.answer(lm, [task], [replace(adaptation, parts=inner)], seed)
        return answers

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        return self.first.defaults(lm, tasks)


def at_starting_weights(lm: LanguageModel, adaptation: Adaptation) -> AbstractContextManager[None]:
    """Within this context the model's starting adapter is as the adaptation has it."""
    tree = next((tree for lora, tree in adaptation.parts if lora.adapter == lm.adapter_name), None)
    return nullcontext() if tree is None else lm.starting_lora().loaded(tree)


def _joined(lm: LanguageModel, trained: Adaptation, synthesised: Adaptation) -> Adaptation:
    starting = next((part for part in synthesised.parts if part[0].adapter == lm.adapter_name), None)
    below = trained.parts or (() if starting is None else ((starting[0], tree_map(lambda x: x.clone(), starting[1])),))
    above = tuple(part for part in synthesised.parts if part[0].adapter != lm.adapter_name)
    reasons = [reason for reason in (trained.reason, synthesised.reason) if reason]
    return replace(
        synthesised,
        parts=(*below, *above),
        reason="; ".join(dict.fromkeys(reasons)) or None,
        losses=(*trained.losses, *synthesised.losses),
        examples=trained.examples,
        cost=trained.cost + synthesised.cost,
    )
