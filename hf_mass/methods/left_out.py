"""What a guard goes by: a task's demonstrations in halves, and how the answers of one half fare behind the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Method
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt import TTT
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class Fold:
    """Half of a task's demonstrations.

    Args:
        owner: Number of the set of demonstrations that it is cut from.
        half: 0 or 1 of the first cut, 2 or 3 of the second.
        task: The task with this half alone.
        left_out: The other half, as tasks behind this one and the rest of the other.
    """

    owner: int
    half: int
    task: Task
    left_out: tuple[Task, ...]


@dataclass(frozen=True)
class Reading:
    """How the left-out answers of a fold fare at some weights.

    Args:
        log_probs: Log-probability of each, in nats.
        tokens: Tokens of each.
        right: Whether the method writes each; None where the verifier raised on what it wrote.
    """

    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]
    right: tuple[bool | None, ...]

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.log_probs + other.log_probs, self.tokens + other.tokens, self.right + other.right)


def halves(task: Task, half: int) -> tuple[Task, tuple[Task, ...]]:
    """(the task with half of its demonstrations, the other half as tasks, each behind all demonstrations but itself).

    So as many demonstrations are in sight, before and after adapting, as when the task is answered, less one; but what
    is left out is in no training data. Behind half of them a model may do so badly that nothing could get worse.

    Halves 0 and 1 are every other demonstration, ABABABAB; 2 and 3 are another cut, ABBAABBA. Neighbours, which are
    often of one kind, are parted by both of them or by one.
    """
    cut, taken = divmod(half, 2)
    in_fold = [(n + cut * (n // 2)) % 2 == taken for n in range(len(task.demonstrations))]
    kept = tuple(pair for pair, here in zip(task.demonstrations, in_fold, strict=True) if here)
    left_out = [pair for pair, here in zip(task.demonstrations, in_fold, strict=True) if not here]
    fold = replace(task, demonstrations=kept, id=f"{task.id}#half{half}")
    tasks = []
    for n, pair in enumerate(left_out):
        in_sight = (*kept, *left_out[:n], *left_out[n + 1 :])  # all begin alike: that is read once
        tasks.append(replace(fold, demonstrations=in_sight, problem=pair.question, answer=pair.answer, solution=None))
    return fold, tuple(tasks)


def read(
    lm: LanguageModel, method: Method[Any], reads_by: TTT, fold: Fold, adaptation: Adaptation | None, seed: int
) -> Reading:
    """How left-out answers fare at an adaptation, or at the model's own weights.

    Args:
        lm: The model.
        method: Writes answers to the left-out questions.
        reads_by: Whose few-shot prompt the known answers are scored behind.
        fold: What is left out.
        adaptation: Of `fold.task`; None for the model as it is.
        seed: For answering.
    """
    answers = FewShotAnswers(lm, reads_by.resolved(lm, [fold.task]))
    log_probs, tokens = answers.answered_log_probs(fold.left_out, adaptation.parts if adaptation else ())
    adaptations = None if adaptation is None else [replace(adaptation, task=task) for task in fold.left_out]
    written = method.answer(lm, fold.left_out, adaptations, seed)
    return Reading(tuple(log_probs), tuple(tokens), tuple(answer.right for answer in written))


def counts_right(before: Reading, after: Reading) -> tuple[int, int, int]:
    """(answers right before, right after, answers of which both are known)."""
    pairs = zip(before.right, after.right, strict=True)
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return sum(one for one, _ in known), sum(other for _, other in known), len(known)


def gain(before: Reading, after: Reading) -> tuple[float, float]:
    """(left-out gain in nats per answer token, its standard error over the left-out answers).

    The gain is a ratio of sums, the rise over the tokens; the error is that of a ratio estimator (Cochran, Sampling
    Techniques, chapter 6, without the correction for finite populations).
    """
    rises, tokens = [a - b for a, b in zip(after.log_probs, before.log_probs, strict=True)], after.tokens
    value, n = sum(rises) / sum(tokens), len(rises)
    residuals = sum((rise - value * count) ** 2 for rise, count in zip(rises, tokens, strict=True))
    return value, math.sqrt(residuals * n / max(1, n - 1)) / sum(tokens)


def failure(adaptation: Adaptation, joint: bool = False) -> str | None:
    """Why an adaptation is no good whatever is left out: it has no weights, or its own loss rose; else None.

    Where it is `joint`, shared by many tasks, its minibatches are of other tasks at each step, and their losses cannot
    be compared.
    """
    if not adaptation.parts:
        return adaptation.reason or "nothing was trained"
    if adaptation.weights.any():  # of samples, the same ones before and after
        weights = adaptation.weights
        ends = (adaptation.losses_before, adaptation.losses_after)
        first, last = (float((weights * losses).nansum() / weights.sum()) for losses in ends)
        return rise(first, last, room=0.0)
    losses = adaptation.losses
    return rise(losses[0], losses[-1], room=float("inf") if joint else None) if losses else None


def rise(first: float, last: float, room: float | None = None) -> str | None:
    """That a training loss, in nats per token, is not finite, or rose by more than `room`; else None.

    Losses of minibatches are of other examples at each step, so they have room: that of the first loss once more, and
    at least two nats.
    """
    if not math.isfinite(last):
        return "the training loss is not finite"
    room = max(2.0, first) if room is None else room
    return f"the training loss rose from {first:.2f} to {last:.2f} nats per token" if last > first + room else None
