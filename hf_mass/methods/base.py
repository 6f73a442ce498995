"""What every method of adapting is, and the records that it gives: `Method`, `Adaptation`, `Answer`, `Cost`.

A method begins on tasks, makes steps on an explicit state until it says stop, and answers (the shape of a solver in
Optimistix). Each call is a pure function of its arguments; whoever runs it (`hf_mass.engine`) brings progress, stopping
and time limits, so a method of a user's own has them too:

    class BestOfN(Method[...]):      # begin, step, stop, finish, answer; see examples/guides/best_of_n.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hf_mass.core.meter import Meter
from hf_mass.core.trees import Tree
from hf_mass.errors import AdaptationError, DataError, VerifierError
from hf_mass.lm.adapters import Part, combined_adapter
from hf_mass.lm.language_model import LanguageModel, save_adapted
from hf_mass.lm.turns import lent, using
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.answers import try_scoring
from hf_mass.tasks.checks import as_path
from hf_mass.tasks.task import Task
from hf_mass.tasks.voting import Prediction

State = TypeVar("State")
_NONE = torch.zeros(0)


@dataclass(frozen=True)
class Cost:
    """What adapting and answering took, shared evenly by the tasks of a pass.

    Args:
        sampled_tokens: Tokens that were generated.
        trained_tokens: Tokens of rows that went through a backward pass.
        forward_passes: Rows that went through the model, generation apart.
        backward_passes: Rows that went back through it.
        seconds: Wall time.
    """

    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, meter: Meter, seconds: float, tasks: int) -> Cost:
        """An even share of what a meter counted."""
        return cls(**{name: value / tasks for name, value in vars(meter).items()}, seconds=seconds / tasks)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Answer:
    """An answer to a task; as text it is the answer alone.

    Args:
        task: The task.
        text: The final answer; None if none could be read.
        score: The verifier's judgement in [0, 1]; None where the task has no gold answer, or the verifier raised.
        written: What the model wrote; None where the answer comes from a vote.
        ranked: The answers that a vote ranked, best first.
        predictions: Every prediction behind the vote.
        sampled_tokens: Tokens generated for it.
        reason: Why there is no answer, or no score for it; or None.
        cut: Whether the limit of tokens ended it, not the model: `max_completion_length` or `max_answer_tokens`. Of a
            vote, whether it did each time that this was the answer.
    """

    task: Task = field(repr=False)
    text: str | None
    score: float | None = None
    written: str | None = field(default=None, repr=False)
    ranked: tuple[str, ...] = field(default=(), repr=False)
    predictions: tuple[Prediction, ...] = field(default=(), repr=False)
    sampled_tokens: int = 0
    reason: str | None = None
    cut: bool = False

    @classmethod
    def judged(cls, task: Task, text: str | None, **more: Any) -> Answer:
        """An answer with the judgement of the task's verifier, where the gold answer is known."""
        judgement = try_scoring(task, [] if text is None else [text], ())
        if isinstance(judgement, VerifierError):
            return cls(task, text, **{**more, "reason": more.get("reason") or str(judgement)})
        return cls(task, text, None if judgement is None else float(judgement.pass_1), **more)

    def __str__(self) -> str:
        return self.text or ""

    def reward(self) -> float:
        """The score as a reward to learn from; 0 for a task without a gold answer.

        Raises:
            VerifierError: If the verifier raised on the answer: that it is wrong is not known.
        """
        if self.score is None and self.text is not None and self.reason is not None:
            raise VerifierError(self.reason)
        return self.score or 0.0

    @property
    def right(self) -> bool | None:
        """Whether it is right; None where that is not known."""
        return None if self.score is None else self.score >= 1.0


@dataclass(frozen=True)
class GuardEntry:
    """What the guard measured at one strength of a method.

    Args:
        strength: The strength, in words.
        share: Share of the steps that were made.
        gain: Left-out gain, in nats per answer token; −inf where training failed.
        number: Number of the strength.
        chosen: Whether all demonstrations were trained on with it.
        error: Standard error of the gain over the left-out demonstrations; 0 where there is none.
        right_before: Left-out answers that were written right before training.
        right: The same after it.
        left_out: Left-out answers that could be judged.
        reason: Why the strength is ruled out ("the training loss rose ..."), or None.
    """

    strength: str
    share: float
    gain: float
    number: int = 0
    chosen: bool = False
    error: float = 0.0
    right_before: int = 0
    right: int = 0
    left_out: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Adaptation:
    """How a model was adapted to one task. Nothing of it stays in the model.

    Args:
        task: The task.
        parts: The adapted low-rank updates, applied together: adapters with leaves [1, ...]. Empty if the task could
            not be adapted to. Tasks that share an adaptation have the same objects.
        reason: Why it could not ("no usable sample", "the training loss is not finite", ...), or if it could that few
            of its samples were usable; None if all went well.
        losses: Training loss before each step, in nats per token.
        examples: Number of training examples, for methods that train on demonstrations.
        samples: The m auxiliary samples, for methods that write some.
        weights: s [m] float32, 0 for unusable samples.
        attributions: −∂L/∂s [m] to the task's demonstrations, where they were computed; positive = helpful.
        sample_losses: ℓ_i(θ_k) [K + 1, m] before the first inner step and after each; NaN for unusable samples.
        guard: What the guard measured on left-out demonstrations; empty where it was off.
        guard_note: What the guard did and why, in words, also where it was off; None where there was no guard.
        guard_cost: What the guard took, before the training proper.
        cost: What it took, without the guard.
        lm: The model, for `answer`, `before`, `explain` and `applied`.
        method: The method, for the same.
        seed: For the same.
    """

    task: Task = field(repr=False)
    parts: tuple[Part, ...] = field(default=(), repr=False)
    reason: str | None = None
    losses: tuple[float, ...] = field(default=(), repr=False)
    examples: int = 0
    samples: tuple[AuxiliarySample, ...] = field(default=(), repr=False)
    weights: Tensor = field(default=_NONE, repr=False)
    attributions: Tensor | None = field(default=None, repr=False)
    sample_losses: Tensor = field(default=_NONE[None], repr=False)
    guard: tuple[GuardEntry, ...] = field(default=(), repr=False)
    guard_note: str | None = None
    guard_cost: Cost = field(default_factory=Cost, repr=False)
    cost: Cost = field(default_factory=Cost)
    lm: LanguageModel | None = field(default=None, repr=False, compare=False)
    method: Method[Any] | None = field(default=None, repr=False, compare=False)
    seed: int = field(default=0, repr=False, compare=False)

    @property
    def adapted(self) -> Tree | None:
        """θ' of the uppermost part, leaves [1, ...]; None if there is none."""
        return self.parts[-1][1] if self.parts else None

    @property
    def losses_before(self) -> Tensor:
        """ℓ_i(θ_0) [m]."""
        return self.sample_losses[0]

    @property
    def losses_after(self) -> Tensor:
        """ℓ_i(θ') [m]."""
        return self.sample_losses[-1]

    def answer(self, query: str | None = None) -> Answer:
        """The answer at the adapted weights: to the task, or to another query behind the same demonstrations."""
        return self._reply(query, [self])

    def before(self, query: str | None = None) -> Answer:
        """As `answer`, at the weights before adapting."""
        return self._reply(query, None)

    def _reply(self, query: str | None, adaptations: list[Adaptation] | None) -> Answer:
        lm, method = self._bound()
        task = self.task if query is None else self.task.with_query(query)
        with using(lm.model):
            return method.answer(lm, [task], adaptations, self.seed)[0]

    def explain(self) -> list[dict[str, Any]]:
        """What was learned from, a row each: demonstrations with their losses before and after, or samples with weight,
        attribution (positive = helpful) and losses."""
        if self.samples:
            return self.sample_rows()
        lm, method = self._bound()
        with using(lm.model):
            return method.explain(lm, self)

    def sample_rows(self) -> list[dict[str, Any]]:
        """One row for each auxiliary sample: weight, attribution (positive = helpful), losses, why it was left out."""
        return [
            {
                "question": sample.question,
                "answer": sample.answer,
                "weight": float(self.weights[i]),
                "attribution": None if self.attributions is None else float(self.attributions[i]),
                "loss_before": float(self.losses_before[i]),
                "loss_after": float(self.losses_after[i]),
                "reason": sample.reason,
            }
            for i, sample in enumerate(self.samples)
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model is at the adapted weights, for code of one's own and any number of rows.

        Other threads wait with whatever else they do with the model.

        Raises:
            AdaptationError: If there are no adapted weights.
            ConfigError: If the model is in use in this thread.
        """
        self.require_parts()
        model = self.parts[0][0].model
        with using(model, alone=False), lent(model, "applied()"), ExitStack() as stack:
            for lora, tree in self.parts:
                stack.enter_context(lora.applied(tree))
            yield

    def save(self, path: str | Path) -> None:
        """Write a folder that `hf_mass.load`, `hf-mass solve --model` and PEFT alone read.

        Raises:
            AdaptationError: If there are no adapted weights.
            DataError: If no folder can be called so.
            CheckpointError: If it cannot be written.
        """
        self.require_parts()
        as_path("path", path)
        try:
            config, weights = combined_adapter(self.parts)
        except DataError as error:
            raise AdaptationError(str(error)) from error
        about: dict[str, Any] = {}
        if self.lm is not None and self.method is not None:
            about = {"method": self.method.name, "defaults": self.method.defaults(self.lm, [self.task])}
            about |= {"chat": self.lm.chat, "chat_template_kwargs": dict(self.lm.chat_template_kwargs)}
        save_adapted(Path(path), config, weights, self.lm.tokenizer if self.lm else None, about)

    def require_parts(self) -> None:
        """Checks that there are adapted weights.

        Raises:
            AdaptationError: If there are none.
        """
        if not self.parts:
            reason = self.reason or self.guard_note or "not adapted"
            raise AdaptationError(f"Task {self.task.id!r} has no adapted weights: {reason}.")

    def _bound(self) -> tuple[LanguageModel, Method[Any]]:
        if self.lm is None or self.method is None:
            raise AdaptationError(
                f"The adaptation to task {self.task.id!r} belongs to no model. Take one from hf_mass.adapt or solve."
            )
        return self.lm, self.method


@dataclass(frozen=True)
class Progress:
    """How far a method has come.

    Args:
        stage: What goes on, in words for people.
        step: Training steps made.
        steps: How many there will be; None where there are no steps.
        loss: The last training loss, mean over the tasks; None where there is none.
        writes: Whether what is being generated is worth showing while it is written.
        trial: Whether what is trained is thrown away, once it was measured.
        guard: What a guard has measured so far.
    """

    stage: str
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    writes: bool = False
    trial: bool = False
    guard: tuple[GuardEntry, ...] = ()


class Method(Protocol, Generic[State]):
    """A way to adapt a model to tasks and to answer them.

    Tasks that are begun together go through the model together. Subclass it for the defaults of `require`, `progress`
    and `explain`.
    """

    name: str
    """What people call it; lower case."""
    joint: bool = False
    """Whether all tasks share one adaptation, so that they cannot be taken apart into passes."""

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> State:
        """The state before the first step.

        Raises:
            DataError: If a task is none for this method or model.
        """

    def step(self, lm: LanguageModel, state: State) -> State:
        """One step: short enough that stopping between two of them is prompt."""

    def stop(self, state: State) -> bool:
        """Whether there are no more steps to make."""

    def finish(self, lm: LanguageModel, state: State) -> list[Adaptation]:
        """The record of each task."""

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        """The answer to each task at its adaptation; at the model's own weights where that is None or has no parts."""

    @property
    def strength(self) -> str:
        """How strongly it adapts, in words."""
        return "default"

    def strengths(self) -> list[Method[Any]]:
        """The method at the strengths that a guard chooses from, the default first; none if it cannot be guarded."""
        return []

    def on_half(self) -> Method[Any]:
        """What a guard runs on half of the demonstrations: asking once, where that can be."""
        return self

    def begin_like(self, lm: LanguageModel, tasks: Sequence[Task], seed: int, other: State) -> State:
        """As `begin`, where another strength has been run on the same tasks and seed, and ended at state `other`: what
        does not depend on the strength may be taken from there."""
        return self.begin(lm, tasks, seed)

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        """Checks, before anything is computed, that the method can do what is asked.

        Raises:
            DataError: If it cannot.
        """

    def progress(self, state: State) -> Progress:
        """How far it has come, as people are shown it."""
        return Progress(f"Running {self.name}")

    def explain(self, lm: LanguageModel, adaptation: Adaptation) -> list[dict[str, Any]]:
        """What was learned from, a row each."""
        return adaptation.sample_rows()

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        """The settings that travel with a saved adaptation, as `LanguageModel.defaults`."""
        return dict(lm.defaults)


def is_method(value: object) -> bool:
    """Whether a value does what a `Method` does; a class does not, what is made from it does."""
    calls = ("begin", "step", "stop", "finish", "answer")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in calls)
