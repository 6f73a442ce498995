"""The designed world's protocol: every way to answer a task does what it says, at the budget that it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixtures import (
    WORLD,
    conventions_config,
    conventions_model,
    equal_trees,
    hidden_convention,
    largest_difference,
    snapshot,
)
from torch import Tensor

from hf_mass.core import trees
from hf_mass.errors import VerifierError
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.methods.base import Answer
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task
from research.conventions.protocol import (
    Answers,
    Method,
    adapt_directly,
    adapt_on_random_tasks,
    adapt_on_samples,
    answer_greedily,
    choose_rate,
    fits_demonstrations,
    majority_vote,
    run_method,
    with_inner_rate,
)

RULES = [WORLD.convention_name(c) for c in range(WORLD.conventions)]


@pytest.fixture(scope="module")
def mass() -> MassModel:
    return conventions_model(conventions_config(inner_learning_rate=60.0))


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return WORLD.tasks("test_conventions", 24)


def right(task: Task, sample: AuxiliarySample) -> bool:
    return WORLD.is_right_sample(task, sample.question, sample.answer)


def fits(task: Task, sample: AuxiliarySample) -> bool:
    return fits_demonstrations(WORLD, task, sample.question, sample.answer)


def as_question(task: Task) -> str:
    return f"{task.fields['family']} {task.problem}"


EVERY: dict[str, Method] = {
    "greedy": answer_greedily,
    "vote": majority_vote(9),
    "uniform": adapt_on_samples("uniform", 4),
    "scorer": adapt_on_samples("scorer", 4),
    "demonstrations": adapt_on_samples("demonstrations", 4),
    "filtered": adapt_on_samples("uniform", 2, keep=fits, draw=6),
    "random": adapt_on_random_tasks(WORLD.tasks("train", 30), as_question, 4),
    "direct": adapt_directly(RULES),
}


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_method_answers_every_task_and_leaves_no_trace(name: str, mass: MassModel, tasks: list[Task]) -> None:
    before = snapshot(mass.model)
    first = run_method(EVERY[name], mass, tasks[:6], seed=1, batch_size=6)
    assert first.correct.shape == (6,) and set(first.correct) <= {0.0, 1.0}
    assert first.sampled_tokens >= 2 and first.latency_s > 0
    assert all(each.adapted is None for each in first.adaptations)  # weights are not kept for every task of a split
    assert len(first.adaptations) == (0 if name in ("greedy", "vote") else 6)
    # In other batches, after other tasks, the answers are the same.
    again = run_method(EVERY[name], mass, tasks[:6], seed=1, batch_size=4)
    assert again.correct.tolist() == first.correct.tolist() and again.sampled_tokens == first.sampled_tokens
    now = mass.model.state_dict()
    assert all(torch.equal(now[key], before[key]) for key in before)


def test_batches_are_consecutive_and_counted(mass: MassModel, tasks: list[Task]) -> None:
    seen: list[list[str]] = []

    def method(mass: MassModel, batch: list[Task], seed: int) -> Answers:
        seen.append([task.id for task in batch])
        answers = [Answer(t, None, None if n == 0 else 1.0) for n, t in enumerate(batch)]
        return Answers(answers, [10 * seed + n for n in range(len(batch))])

    found = run_method(method, mass, tasks[:5], seed=1, batch_size=2)
    assert seen == [[t.id for t in tasks[:2]], [t.id for t in tasks[2:4]], [tasks[4].id]]
    assert found.correct.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]  # no judgement counts as wrong
    assert found.sampled_tokens == (10 + 11 + 10 + 11 + 10) / 5


def test_greedy_answers_are_the_model_s_own(mass: MassModel, tasks: list[Task]) -> None:
    answers = answer_greedily(mass, tasks, 7)
    assert answers.answers == mass.solve(tasks)
    assert answers.sampled_tokens == [3] * len(tasks)


# -- voting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "votes"), [(1, 1), (3, 1), (9, 3), (20, 7)])
def test_a_vote_spends_its_budget_and_takes_the_most_frequent_answer(
    budget: int, votes: int, mass: MassModel, tasks: list[Task]
) -> None:
    chosen = tasks[:6]
    answers = majority_vote(budget)(mass, chosen, 3)
    for task, answer, tokens in zip(chosen, answers.answers, answers.sampled_tokens, strict=True):
        seeds = [row_seed("vote", 3, task.id, task.problem, j) for j in range(votes)]
        prompts = [mass.encoder.solver_prompt_ids(task)] * votes
        ids = complete(mass.model, mass.tokenizer, prompts, Sampling(4), seeds)
        ballots = [mass.tokenizer.decode(row, skip_special_tokens=True).split()[1] for row in ids]
        most = max(ballots, key=lambda colour: (ballots.count(colour), -ballots.index(colour)))  # ties: the first seen
        assert answer.text == most and tokens == sum(map(len, ids))
        assert answer.score == float(most == task.answer)


def test_a_vote_without_a_readable_answer_is_wrong(mass: MassModel, tasks: list[Task]) -> None:
    # One token a solution: a convention and no colour.
    short = MassModel(mass.model, mass.tokenizer, replace(mass.config, max_answer_tokens=1), mass.scorer)
    answers = majority_vote(5)(short, tasks[:3], 0)
    assert [answer.text for answer in answers.answers] == [None] * 3
    assert [answer.score for answer in answers.answers] == [0.0] * 3
    assert answers.sampled_tokens == [5] * 3


# -- adapting ----------------------------------------------------------------------------------------------------------


def test_adapting_on_samples_is_generating_adapting_and_solving(mass: MassModel, tasks: list[Task]) -> None:
    groups = mass.generate_auxiliary(tasks, 4, seed=2)
    for weigh_by in ("uniform", "scorer", "demonstrations"):
        answers = adapt_on_samples(weigh_by, 4)(mass, tasks, 2)
        adaptations = mass.adapt(tasks, weigh_by, groups)
        assert answers.answers == mass.solve(tasks, adaptations)
        assert all(equal_trees(a.adapted, b.adapted) for a, b in zip(answers.adaptations, adaptations, strict=True))
        spent = [sum(len(s.token_ids) for s in group) for group in groups]
        assert answers.sampled_tokens == [n + s.sampled_tokens for n, s in zip(spent, answers.answers, strict=True)]


def test_a_filter_chooses_from_what_is_drawn(mass: MassModel, tasks: list[Task]) -> None:
    drawn = mass.generate_auxiliary(tasks, 8, seed=2)
    answers = adapt_on_samples("uniform", 3, keep=fits, draw=8)(mass, tasks, 2)
    spared = 0
    for task, group, adaptation, tokens in zip(tasks, drawn, answers.adaptations, answers.sampled_tokens, strict=True):
        passed = [sample for sample in group if sample.usable and fits(task, sample)][:3]
        assert [sample for sample in adaptation.samples if sample.usable] == passed and len(adaptation.samples) == 3
        assert all(s.reason == "filtered out" for s in adaptation.samples[len(passed) :])
        assert (adaptation.weights > 0).tolist() == [i < len(passed) for i in range(3)]
        assert (adaptation.adapted is None) == (not passed)
        assert tokens == sum(len(s.token_ids) for s in group) + 3  # what was rejected was paid for
        spared += len(passed) < 3
    assert spared  # some task has too few


def test_an_oracle_is_worth_more_than_attribution_and_that_more_than_nothing(mass: MassModel) -> None:
    """A measured property of the shipped base: conventions held out, no training, 24 samples a task."""
    tasks = WORLD.tasks("test_conventions", 40, seed=1)

    def accuracy(method: Method) -> float:
        return float(run_method(method, mass, tasks, seed=0).correct.mean())

    base, raw = accuracy(answer_greedily), accuracy(adapt_on_samples("uniform", 16))
    attributed = accuracy(adapt_on_samples("demonstrations", 16))
    oracle = accuracy(adapt_on_samples("uniform", 16, keep=right))
    assert attributed > base + 0.2 and attributed > raw + 0.1 and oracle > raw + 0.2


def test_random_tasks_come_from_the_pool(mass: MassModel, tasks: list[Task]) -> None:
    pool = WORLD.tasks("train", 12)
    known = {(as_question(task), task.solution) for task in pool}
    answers = adapt_on_random_tasks(pool, as_question, 5)(mass, tasks[:4], 2)
    for adaptation, tokens in zip(answers.adaptations, answers.sampled_tokens, strict=True):
        used = {(sample.question, sample.answer) for sample in adaptation.samples}
        assert len(adaptation.samples) == 5 and used <= known
        assert torch.allclose(adaptation.weights, torch.full((5,), 0.2)) and tokens == 3  # nothing was sampled to adapt
    assert len({tuple(s.question for s in adaptation.samples) for adaptation in answers.adaptations}) > 1
    again = adapt_on_random_tasks(pool, as_question, 5)(mass, tasks[1:2], 2)
    assert again.adaptations[0].samples == answers.adaptations[1].samples
    other = adapt_on_random_tasks(pool, as_question, 5)(mass, tasks[1:2], 3)
    assert other.adaptations[0].samples != answers.adaptations[1].samples


def demonstration_loss(mass: MassModel, task: Task, params: dict[str, Tensor]) -> Tensor:
    """−log Σ_r p(r, y | x), mean over the demonstrations, one row at a time."""
    total = torch.zeros(())
    for shown in task.demonstrations:
        prompt = mass.encoder.prompt_ids(task, f"{task.fields['family']} {shown.question} =")
        ways = []
        for rule in RULES:
            ids = torch.tensor([[*prompt, *mass.encoder.answer_ids(f"{rule} {shown.answer}", end=False)]])
            with mass.adapter.lora.applied(params, torch.tensor([0])):
                scores = mass.model(input_ids=ids, use_cache=False).logits[0].log_softmax(1)
            ways.append(scores[[-3, -2]].gather(1, ids[0, -2:, None]).sum())
        total = total - torch.stack(ways).logsumexp(0) / len(task.demonstrations)
    return total


def test_the_direct_step_descends_the_demonstrations_own_loss(mass: MassModel, tasks: list[Task]) -> None:
    answers = adapt_directly(RULES)(mass, tasks[:2], 0)
    for task, adaptation in zip(tasks[:2], answers.adaptations, strict=True):
        start = trees.leaves(trees.tree_map(torch.clone, mass.adapter.lora.start()))
        loss = demonstration_loss(mass, task, start)
        gradient = dict(zip(start, torch.autograd.grad(loss, list(start.values())), strict=True))
        moved = trees.add(adaptation.adapted, trees.detached(start), -1)
        expected = trees.tree_map(lambda g: -mass.config.inner.learning_rate * g, gradient)
        assert largest_difference(moved, expected) < 1e-3
        with torch.no_grad():
            assert demonstration_loss(mass, task, adaptation.adapted) < loss
        assert adaptation.samples == () and adaptation.reason is None
    assert answers.sampled_tokens == [3, 3]


def test_the_direct_step_never_reads_the_gold_answer(mass: MassModel, tasks: list[Task]) -> None:
    blind = [replace(task, solution=None, answer=None) for task in tasks[:3]]
    known, unknown = adapt_directly(RULES)(mass, tasks[:3], 0), adapt_directly(RULES)(mass, blind, 0)
    assert [a.written for a in known.answers] == [a.written for a in unknown.answers]
    weighed = [adapt_on_samples("demonstrations", 4)(mass, batch, 0) for batch in (tasks[:3], blind)]
    assert [a.written for a in weighed[0].answers] == [a.written for a in weighed[1].answers]
    assert len({hidden_convention(task) for task in tasks}) > 1


# -- the inner rate ----------------------------------------------------------------------------------------------------


def test_another_rate_shares_the_weights(mass: MassModel, tasks: list[Task]) -> None:
    other = with_inner_rate(mass, 1.5, steps=2)
    assert other.model is mass.model and other.scorer is mass.scorer
    assert (other.config.inner.learning_rate, other.config.inner.steps) == (1.5, 2)
    assert replace(other.config, inner=mass.config.inner) == mass.config
    assert (mass.config.inner.learning_rate, mass.config.inner.steps) == (60.0, 1)
    assert with_inner_rate(mass, 2.0).config.inner.steps == 1
    # Half the rate is half the step.
    groups = mass.generate_auxiliary(tasks[:1])
    start = mass.adapter.lora.start()
    whole, half = (
        trees.add(with_inner_rate(mass, rate).adapt(tasks[:1], "uniform", groups)[0].adapted, start, -1)
        for rate in (2.0, 1.0)
    )
    assert largest_difference(trees.tree_map(lambda x: 2 * x, half), whole) < 1e-5


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [({1.0: 0.2, 3.0: 0.8, 9.0: 0.4}, 3.0), ({1.0: 0.6, 3.0: 0.6, 9.0: 0.2}, 1.0), ({9.0: 0.6, 3.0: 0.6}, 3.0)],
)
def test_the_best_rate_is_chosen_and_the_smaller_of_equals(
    accuracies: dict[float, float], chosen: float, mass: MassModel, tasks: list[Task]
) -> None:
    def method(mass: MassModel, batch: list[Task], seed: int) -> Answers:
        correct = np.arange(len(batch)) < round(accuracies[mass.config.inner.learning_rate] * len(batch))
        return Answers([Answer(t, None, float(c)) for t, c in zip(batch, correct, strict=True)], [1] * len(batch))

    rate, found = choose_rate(method, mass, tasks[:5], list(accuracies), seed=0)
    assert rate == chosen and found == accuracies


def test_a_verifier_that_raises_makes_no_wrong_answers(mass: MassModel, tasks: list[Task]) -> None:
    def method(mass: MassModel, tasks: list[Task], seed: int) -> Answers:
        return Answers([Answer(task, "red", None, reason="the verifier raised") for task in tasks], [0] * len(tasks))

    with pytest.raises(VerifierError, match="the verifier raised"):
        run_method(method, mass, tasks[:2], seed=0)
