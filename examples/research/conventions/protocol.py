"""How the rows of the designed world's tables are measured: on the same tasks and at a stated budget.

A `Method` answers a batch of tasks with one `MassModel` and reports what it sampled. `run_method` applies it to a split
and returns a 0/1 result per task, the sampled tokens and the latency per task.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_mass.core import trees
from hf_mass.lab.conventions import CONVENTIONS_FORMAT, ITEMS, ConventionsWorld
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import row_seed
from hf_mass.methods.base import Adaptation, Answer
from hf_mass.methods.mass_model import MassModel, one_task
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.unadapted import vote
from hf_mass.tasks.task import Demonstration, Task

Method = Callable[[MassModel, list[Task], int], "Answers"]
"""(model, tasks, seed) → answers."""

Judge = Callable[[Task, AuxiliarySample], bool]
"""Whether a sample is kept (a filter), or is right (an oracle)."""


@dataclass(frozen=True)
class Answers:
    """Answers to a batch, the tokens sampled for each task on the way, and how each was adapted to."""

    answers: list[Answer]
    sampled_tokens: list[int]
    adaptations: list[Adaptation] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """One method on one split.

    Args:
        correct: [tasks] float, the verifier's judgement of each answer.
        sampled_tokens: Mean per task, answers included.
        latency_s: Wall seconds per task at the batch size used.
        adaptations: How each task was adapted to, without adapted weights.
    """

    correct: np.ndarray
    sampled_tokens: float
    latency_s: float
    adaptations: list[Adaptation]


def run_method(method: Method, mass: MassModel, tasks: Sequence[Task], seed: int, batch_size: int = 50) -> Outcome:
    """Apply a method to tasks, `batch_size` at a time."""
    correct: list[float] = []
    tokens: list[int] = []
    adaptations: list[Adaptation] = []
    start = time.perf_counter()
    for first in range(0, len(tasks), batch_size):
        batch = method(mass, list(tasks[first : first + batch_size]), seed)
        correct += [answer.reward() for answer in batch.answers]
        tokens += batch.sampled_tokens
        adaptations += [replace(each, parts=()) for each in batch.adaptations]
    seconds = time.perf_counter() - start
    return Outcome(np.array(correct), sum(tokens) / len(tokens), seconds / len(tasks), adaptations)


def with_inner_rate(mass: MassModel, learning_rate: float, steps: int | None = None) -> MassModel:
    """The same weights with another inner learning rate (and number of steps)."""
    inner = replace(mass.config.inner, learning_rate=learning_rate, steps=steps or mass.config.inner.steps)
    return MassModel.on(mass, replace(mass.config, inner=inner))


# -- methods that do not adapt -----------------------------------------------------------------------------------------


def answer_greedily(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
    """The model as it is."""
    return _solve(mass, tasks, None, [0] * len(tasks))


def majority_vote(token_budget: int) -> Method:
    """The most frequent of as many sampled answers as fit a budget of tokens; ties go to the answer seen first."""

    def method(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
        length = max(1, mass.solve(tasks[0]).sampled_tokens)
        answers = vote(mass, tasks, max(1, round(token_budget / length)), seed)
        return Answers(answers, [answer.sampled_tokens for answer in answers])

    return method


# -- methods that adapt ------------------------------------------------------------------------------------------------


def adapt_on_samples(weigh_by: str, count: int, keep: Judge | None = None, draw: int | None = None) -> Method:
    """Self-generated samples, weighed by the scorer, by attribution to the demonstrations, or equally.

    Args:
        weigh_by: "scorer", "demonstrations" or "uniform".
        count: m, samples trained on.
        keep: Only samples that pass are trained on.
        draw: Samples drawn for a filter to choose `count` from; by default `count`.
    """

    def method(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
        drawn = mass.generate_auxiliary(tasks, count=draw or count, seed=seed)
        spent = [sum(len(s.token_ids) for s in group) for group in drawn]
        if keep is not None:
            drawn = [_filtered(task, group, keep, count) for task, group in zip(tasks, drawn, strict=True)]
        return _adapted_answers(mass, tasks, weigh_by, drawn, spent, seed)

    return method


def adapt_on_random_tasks(pool: Sequence[Task], as_question: Callable[[Task], str], count: int) -> Method:
    """Gold solutions of `count` random training tasks: test-time training without synthesis."""

    def method(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
        samples = []
        for task in tasks:
            drawn = random.Random(row_seed("random", seed, task.id, task.problem)).sample(list(pool), count)
            samples.append([AuxiliarySample("", (), as_question(p), str(p.solution)) for p in drawn])
        return _adapted_answers(mass, tasks, "uniform", samples, [0] * len(tasks), seed)

    return method


def adapt_directly(derivations: Sequence[str]) -> Method:
    """One gradient step on the demonstrations themselves, marginal over all `derivations`: TTT without synthesis."""

    def method(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
        adapter = mass.adapter
        with deterministic(mass.model):
            start = adapter.lora.start(len(tasks))
            outer = adapter.demonstration_loss(tasks, [list(derivations)] * len(tasks))
            with adapter.lora.inactive():
                gradient = outer.gradient(start).params
            adapted = trees.add(start, gradient, -mass.config.inner.learning_rate)
        adaptations = [Adaptation(task, ((adapter.lora, one_task(adapted, n)),)) for n, task in enumerate(tasks)]
        return _solve(mass, tasks, adaptations, [0] * len(tasks))

    return method


def _filtered(task: Task, group: Sequence[AuxiliarySample], keep: Judge, count: int) -> list[AuxiliarySample]:
    """At most `count` samples that pass, filled up with unusable ones so that every task has as many."""
    passed = [sample for sample in group if sample.usable and keep(task, sample)][:count]
    rejected = replace(group[0], reason="filtered out")
    return passed + [rejected] * (count - len(passed))


def _adapted_answers(
    mass: MassModel,
    tasks: list[Task],
    weigh_by: str,
    samples: Sequence[Sequence[AuxiliarySample]],
    spent: Sequence[int],
    seed: int,
) -> Answers:
    return _solve(mass, tasks, mass.adapt(tasks, weigh_by, samples, seed), spent)


def _solve(mass: MassModel, tasks: list[Task], adaptations: list[Adaptation] | None, spent: Sequence[int]) -> Answers:
    answers = mass.solve(tasks, adaptations)
    tokens = [answer.sampled_tokens + n for answer, n in zip(answers, spent, strict=True)]
    return Answers(answers, tokens, adaptations or [])


def fits_demonstrations(world: ConventionsWorld, task: Task, question: str, answer: str) -> bool:
    """The hand-written filter: the sample copies a demonstration, and its convention does give that colour.

    It reads the task's own family, items and colours and the textbook tables, never the hidden convention.
    """
    family, _, item = question.partition(" ")
    parts = CONVENTIONS_FORMAT.split_solution(answer)
    names = [world.convention_name(c) for c in range(world.conventions)]
    if parts is None or family != task.fields["family"] or parts.rationale not in names or item not in ITEMS:
        return False
    is_copy = Demonstration(item, parts.answer) in task.demonstrations
    return is_copy and world.colour(names.index(parts.rationale), ITEMS.index(item)) == parts.answer


def choose_rate(
    method: Method, mass: MassModel, tasks: Sequence[Task], rates: Sequence[float], seed: int
) -> tuple[float, dict[float, float]]:
    """(the inner rate with the best accuracy on validation tasks, the smaller one of equals; accuracy of each rate)."""
    accuracies = {
        rate: float(run_method(method, with_inner_rate(mass, rate), tasks, seed).correct.mean()) for rate in rates
    }
    return max(rates, key=lambda rate: (accuracies[rate], -rate)), accuracies
