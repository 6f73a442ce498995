"""`MassModel` as its users meet it: generate, score, adapt, solve; and that nothing of a task stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import (
    WORLD,
    adapt,
    as_tuples,
    byte_base,
    byte_model,
    conventions_config,
    conventions_model,
    equal_trees,
    largest_difference,
    pair,
    rejected,
    right_sample,
    snapshot,
    solve,
    text_task,
    written,
)

from hf_mass.core import trees
from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.evaluation.outcomes import outcome
from hf_mass.methods.base import Adaptation, Answer, Cost
from hf_mass.methods.judging import judge
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import BY_DEMONSTRATIONS, WEIGHINGS, MassConfig
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS

every_weighing = pytest.mark.parametrize("weigh_by", WEIGHINGS)


# -- what the calls give -----------------------------------------------------------------------------------------------


def test_one_task_gives_one_answer_and_a_list_gives_a_list(mass: MassModel, tasks: list[Task]) -> None:
    groups = mass.generate_auxiliary(tasks[0])
    assert len(groups) == 1 and len(groups[0]) == mass.config.samples
    assert len(mass.generate_auxiliary(tasks[:2], count=3)[1]) == 3
    assert mass.score(tasks[0], groups).shape == (1, mass.config.samples)
    assert isinstance(mass.adapt(tasks[0]), Adaptation)
    assert [record.task for record in mass.adapt(tasks[:1])] == tasks[:1]
    assert isinstance(mass.solve(tasks[0]), Answer)
    assert [solution.task for solution in mass.solve(tasks)] == tasks
    assert mass.solve([]) == []


@every_weighing
def test_a_record_says_what_was_done(mass: MassModel, tasks: list[Task], weigh_by: str) -> None:
    task = tasks[0]
    group = [right_sample(task), written("tom lemon red rule03"), rejected("no_match"), right_sample(task, "fig")]
    record = adapt(mass, task, weigh_by, samples=[group])
    assert record.task == task and record.samples == tuple(group) and record.reason is None
    assert record.weights.shape == (4,) and record.weights.sum().item() == pytest.approx(1) and record.weights[2] == 0
    assert (record.attributions is None) == (weigh_by not in BY_DEMONSTRATIONS)
    assert record.cost.sampled_tokens == 5 + 5 + 3 + 5 and record.cost.seconds > 0
    assert (
        torch.isnan(record.losses_before).tolist()
        == torch.isnan(record.losses_after).tolist()
        == [False, False, True, False]
    )
    # Training on a sample makes it likelier; by how much depends on its weight.
    assert record.losses_after[0] < record.losses_before[0]
    assert record.adapted is not None
    assert all(leaf.shape[0] == 1 and not leaf.requires_grad for leaf in record.adapted.values())
    table = record.explain()
    assert [row["reason"] for row in table] == [None, None, "no_match", None]
    assert [row["weight"] for row in table] == record.weights.tolist()
    assert [row["question"] for row in table][1] == "tom lemon" and table[1]["answer"] == "rule03 red"
    assert (table[0]["attribution"] is None) == (weigh_by not in BY_DEMONSTRATIONS)
    assert math.isnan(table[2]["loss_before"]) and not math.isnan(table[0]["loss_after"])


def test_weighing_ranks_what_it_should(mass: MassModel, tasks: list[Task]) -> None:
    """Attribution to the demonstrations prefers the sample that explains them; equal weights do not care."""
    for task in tasks:
        shown = [d.question for d in task.demonstrations]
        good = [right_sample(task, item) for item in shown[:2]]
        bad = [written(f"{task.fields['family']} lemon red rule03"), written("tom plum blue rule01")]
        record = adapt(mass, task, "demonstrations", samples=[[*good, *bad]])
        assert record.weights[:2].min() > record.weights[2:].max()
        assert record.attributions[:2].min() > record.attributions[2:].max()
        assert adapt(mass, task, "uniform", samples=[[*good, *bad]]).weights.tolist() == [0.25] * 4


def test_adapting_to_right_samples_solves_the_task(mass: MassModel) -> None:
    tasks = WORLD.tasks("test_conventions", 20)
    plain = sum(solution.score for solution in mass.solve(tasks))
    right = [[right_sample(task, d.question) for d in task.demonstrations] for task in tasks]
    adapted = sum(solution.score for solution in mass.solve(tasks, mass.adapt(tasks, "uniform", right)))
    assert adapted >= 16 and plain <= 8


def test_a_solution_is_read_and_verified(mass: MassModel, tasks: list[Task]) -> None:
    solution = solve(mass, tasks[0], adapt(mass, tasks[0], samples=[[right_sample(tasks[0])] * 2]))
    assert (solution.written or "").split()[1] == solution.text and solution.sampled_tokens == 3
    assert solution.score == float(solution.text == tasks[0].answer)
    blind = replace(tasks[0], answer=None, solution=None)
    assert solve(mass, blind).score is None


def test_judging(mass: MassModel, tasks: list[Task]) -> None:
    gold, blind = tasks[0], replace(tasks[0], answer=None, solution=None)
    texts = [f"rule00 {gold.answer}", "rule00 plum", "what?!", "rule00 red"]
    found = judge(mass.config.format, [gold, gold, gold, blind], texts, [3, 3, 9, 3], cut=[False, False, True, False])
    assert [solution.score for solution in found] == [1.0, 0.0, 0.0, None]
    assert [solution.text for solution in found] == [gold.answer, "plum", None, "red"]
    assert [solution.sampled_tokens for solution in found] == [3, 3, 9, 3]
    assert [solution.cut for solution in found] == [False, False, True, False]


def test_an_answer_that_the_limit_ended_says_so(mass: MassModel, tasks: list[Task]) -> None:
    short = conventions_model(trained=True)
    short.config = replace(short.config, max_answer_tokens=2)
    found = [solve(each, tasks[0], adapt(each, tasks[0], weigh_by="uniform")) for each in (mass, short)]
    assert [(answer.sampled_tokens, answer.cut) for answer in found] == [(3, False), (2, True)]


def raising(task: Task, text: str) -> float:
    return 1.0 / (text != "plum")


def test_a_verifier_that_raises_is_the_reason_of_that_answer(
    mass: MassModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFIERS, "mine", raising)
    task = replace(tasks[0], verifier="mine")
    good, failed = judge(mass.config.format, [task, task], ["rule00 red", "rule00 plum"])
    assert (good.score, good.reason, failed.score, failed.right) == (1.0, None, None, None)
    assert "'mine' raised ZeroDivisionError" in str(failed.reason) and task.id in str(failed.reason)
    with pytest.raises(VerifierError, match="'mine' raised ZeroDivisionError"):
        failed.reward()
    assert (good.reward(), replace(good, score=None).reward()) == (1.0, 0.0)
    assert Answer.judged(task, "plum") == replace(failed, written=None)
    kept = outcome(task, Adaptation(task, reason="no weights"), (failed, Cost()))
    assert kept["right"] is None and kept["reason"] == failed.reason


def test_sampled_solutions_are_reproducible(mass: MassModel, tasks: list[Task]) -> None:
    first = [s.written for s in mass.solve(tasks, temperature=2.0, seed=1)]
    assert first == [s.written for s in mass.solve(tasks, temperature=2.0, seed=1)]
    assert first[2:3] == [s.written for s in mass.solve(tasks[2:3], temperature=2.0, seed=1)]
    assert first != [s.written for s in mass.solve(tasks, temperature=2.0, seed=2)]
    assert [s.written for s in mass.solve(tasks, seed=1)] == [s.written for s in mass.solve(tasks, seed=2)]  # greedy


@settings(max_examples=8)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_samples_do_not_depend_on_the_batch(mass: MassModel, tasks: list[Task], order: list[int], size: int) -> None:
    everything = as_tuples(mass.generate_auxiliary(tasks, seed=3))
    chosen = order[:size]
    assert as_tuples(mass.generate_auxiliary([tasks[i] for i in chosen], seed=3)) == [everything[i] for i in chosen]
    # Fewer samples are the first of more.
    assert as_tuples(mass.generate_auxiliary([tasks[i] for i in chosen], 2, 3)) == [everything[i][:2] for i in chosen]


def test_samples_depend_on_the_seed(mass: MassModel, tasks: list[Task]) -> None:
    assert as_tuples(mass.generate_auxiliary(tasks, seed=3)) != as_tuples(mass.generate_auxiliary(tasks, seed=4))
    assert len(set(as_tuples(mass.generate_auxiliary(tasks[0], 12))[0])) > 3


# -- nothing stays -----------------------------------------------------------------------------------------------------


@every_weighing
def test_adapting_and_solving_leave_no_trace(mass: MassModel, tasks: list[Task], weigh_by: str) -> None:
    """Solving B after adapting to A and solving A is solving B alone, bit for bit."""
    first, second = tasks[:2]
    before = snapshot(mass.model)
    alone = adapt(mass, second, weigh_by)
    answer = solve(mass, second, alone, temperature=1.0)
    unadapted = solve(mass, second, temperature=1.0)
    for _ in range(2):
        solve(mass, first, adapt(mass, first, weigh_by))
    after = adapt(mass, second, weigh_by)
    assert equal_trees(after.adapted, alone.adapted) and torch.equal(after.weights, alone.weights)
    assert solve(mass, second, after, temperature=1.0) == answer
    assert solve(mass, second, temperature=1.0) == unadapted
    now = mass.model.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
    assert mass.model.active_adapters == ["default"]
    assert not any(module._forward_hooks for module in mass.model.modules())


def test_a_record_of_one_task_does_not_help_another(mass: MassModel, tasks: list[Task]) -> None:
    records = mass.adapt(tasks[:2], "uniform")
    swapped = mass.solve(tasks[:2], records[::-1], temperature=1.5)
    assert swapped[0] == solve(mass, tasks[0], records[1], temperature=1.5)
    # A record has storage of its own: it neither shares memory with another task nor keeps the whole batch alive.
    for leaf in records[0].adapted.values():
        assert leaf.untyped_storage().nbytes() == leaf.nbytes


def test_training_mode_and_the_random_state_are_put_back(tasks: list[Task]) -> None:
    mass = conventions_model()
    mass.model.train()
    modes = [module.training for module in mass.model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    solve(mass, tasks[0], adapt(mass, tasks[0], "scorer"))
    assert [module.training for module in mass.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert solve(mass, tasks[0]) == solve(conventions_model(), tasks[0])


@every_weighing
@pytest.mark.parametrize("steps", [1, 2])
def test_many_tasks_at_once_are_the_same_as_one_by_one(tasks: list[Task], weigh_by: str, steps: int) -> None:
    mass = conventions_model(conventions_config(inner_steps=steps, inner_learning_rate=10.0 / steps**3), trained=True)
    groups = mass.generate_auxiliary(tasks)
    groups[2] = [rejected(), *groups[2][1:]]
    groups[4] = [rejected()] * len(groups[4])
    together = mass.adapt(tasks, weigh_by, groups)
    answers = mass.solve(tasks, together)
    start = {name: leaf[:1] for name, leaf in mass.adapter.lora.start().items()}
    near = 1e-3 if weigh_by == "matching" else 1e-5  # which solves equations that are nearly singular
    for task, group, record, answer in zip(tasks, groups, together, answers, strict=True):
        alone = adapt(mass, task, weigh_by, samples=[group])
        torch.testing.assert_close(record.weights, alone.weights, rtol=near, atol=near)
        torch.testing.assert_close(record.losses_before, alone.losses_before, rtol=1e-5, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(record.losses_after, alone.losses_after, rtol=near, atol=near, equal_nan=True)
        assert record.reason == alone.reason and (record.adapted is None) == (alone.adapted is None)
        if record.adapted is not None:
            moved = trees.add(record.adapted, start, -1)
            assert largest_difference(moved, trees.add(alone.adapted, start, -1)) < 10 * near
            assert largest_difference(record.adapted, alone.adapted) < near
        single = solve(mass, task, alone)
        assert (single.written, single.score) == (answer.written, answer.score)


# -- samples that are no use -------------------------------------------------------------------------------------------


@every_weighing
def test_a_task_without_usable_samples_is_solved_unadapted(mass: MassModel, tasks: list[Task], weigh_by: str) -> None:
    groups = [[rejected(reason) for reason in ("empty", "no_match", "no_answer")], [right_sample(tasks[1])] * 3]
    for chosen, parts in ((tasks[:2], groups), (tasks[:1], groups[:1])):
        record = mass.adapt(chosen, weigh_by, parts)[0]
        assert record.adapted is None and str(record.reason).startswith("no usable sample of 3, most often 'empty'")
        assert record.weights.tolist() == [0.0, 0.0, 0.0] and torch.isnan(record.losses_before).all()
        assert [row["reason"] for row in record.explain()] == ["empty", "no_match", "no_answer"]
        assert solve(mass, tasks[0], record) == solve(mass, tasks[0])
    records = mass.adapt(tasks[:2], weigh_by, groups)
    assert records[1].adapted is not None and records[1].reason is None
    assert mass.solve(tasks[:2], records)[0] == solve(mass, tasks[0])
    assert mass.score(tasks[:2], groups)[0].tolist() == [0.0, 0.0, 0.0]


@given(
    st.lists(st.sampled_from(["", "tom", "tom pear red", "tom pear red rule01", "a b c d e"]), min_size=1, max_size=5)
)
def test_any_mixture_of_samples_gives_finite_weights(mass: MassModel, texts: list[str]) -> None:
    task = WORLD.tasks("train", 1)[0]
    group = [replace(rejected(), reason="no_match") if len(t.split()) != 4 else written(t) for t in texts]
    for weigh_by in WEIGHINGS:
        record = adapt(mass, task, weigh_by, samples=[group])
        usable = [sample.usable for sample in group]
        weighs = [weight > 0 for weight in record.weights.tolist()]
        assert record.weights.isfinite().all() and (weighs == usable or weigh_by == "matching")
        assert not any(has and not may for has, may in zip(weighs, usable, strict=True))
        assert record.weights.sum().item() == pytest.approx(float(any(weighs)))


def test_what_the_generator_writes_amiss_is_named() -> None:
    mass = byte_model(max_sample_tokens=30)
    for sample in mass.generate_auxiliary(text_task(), count=4)[0]:
        assert sample.reason in ("empty", "no_match") and (sample.question, sample.answer) == ("", "")
        assert len(sample.token_ids) <= 30


@every_weighing
@pytest.mark.parametrize("steps", [1, 2])
def test_a_loss_that_is_not_finite_is_recorded_and_harms_no_other_task(weigh_by: str, steps: int) -> None:
    config = conventions_config(inner_steps=steps)
    chosen = [next(t for t in WORLD.tasks("train", 40) if t.fields["family"] == name) for name in ("ada", "bob", "cyd")]
    groups = [[right_sample(task), right_sample(task, "fig")] for task in chosen]
    mass, clean = conventions_model(config), conventions_model(config)
    with torch.no_grad():  # bob's word breaks whatever contains it
        mass.model.get_base_model().get_input_embeddings().weight[WORLD.vocabulary.index("bob")] = float("nan")
    records, expected = mass.adapt(chosen, weigh_by, groups), clean.adapt(chosen, weigh_by, groups)
    assert [record.reason for record in records] == [None, "non-finite inner loss", None]
    assert records[1].adapted is None and torch.isnan(records[1].losses_before).all()
    for n in (0, 2):
        assert equal_trees(records[n].adapted, expected[n].adapted)
        assert torch.equal(records[n].weights, expected[n].weights)
    answers = mass.solve(chosen, records)
    assert [answers[n].written for n in (0, 2)] == [clean.solve(chosen, expected)[n].written for n in (0, 2)]
    assert answers[1] == solve(mass, chosen[1])  # the model's own, such as it is


def test_a_rate_that_is_far_too_large_is_recorded() -> None:
    mass = conventions_model(conventions_config(inner_learning_rate=1e30))
    task = WORLD.tasks("train", 1)[0]
    record = adapt(mass, task, samples=[[right_sample(task)]])
    assert record.reason == "non-finite inner loss" and record.adapted is None
    assert record.losses_before.isfinite().all() and not record.losses_after.isfinite().all()
    assert solve(mass, task, record) == solve(mass, task)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_wrong_calls_are_refused(mass: MassModel, tasks: list[Task]) -> None:
    with pytest.raises(ConfigError, match="weigh_by is 'votes'"):
        mass.adapt(tasks[0], "votes")
    with pytest.raises(ConfigError, match="count is 0"):
        mass.generate_auxiliary(tasks[0], count=0)
    with pytest.raises(DataError, match="tasks is empty"):
        mass.generate_auxiliary([])
    with pytest.raises(DataError, match="1 adaptations for 2 tasks"):
        mass.solve(tasks[:2], mass.adapt(tasks[:1], "uniform"))
    with pytest.raises(DataError, match=r"groups of \[1\] for 2 tasks"):
        mass.adapt(tasks[:2], "uniform", [[rejected()]])
    with pytest.raises(DataError, match="no demonstrations to attribute samples to"):
        bare = replace(tasks[0], demonstrations=())
        mass.adapt(bare, "demonstrations", [[right_sample(tasks[0])]])
    with pytest.raises(ConfigError, match="tokenizer is None"):
        MassModel.from_base(byte_base(), MassConfig())


# -- conversations -----------------------------------------------------------------------------------------------------


def test_conversational_tasks_are_adapted_to_and_solved() -> None:
    mass = byte_model(chat=True)
    task = text_task(conversational=True, history=(("system", "Be brief."),))
    group = [pair("3 + 4 = ?", "#### 7"), pair("1 + 2 = ?", "#### 3")]
    record = adapt(mass, task, "demonstrations", samples=[group])
    assert record.reason is None and record.losses_after.sum() < record.losses_before.sum()
    plain = adapt(mass, replace(task, conversational=False), "demonstrations", samples=[group])
    assert not torch.allclose(plain.losses_before, record.losses_before)  # other prompts, other losses
    assert solve(mass, task, record).sampled_tokens > 0
    assert len(mass.generate_auxiliary(task)[0]) == 2


def test_conversational_tasks_need_a_chat_template() -> None:
    mass, task = byte_model(), text_task(conversational=True)
    message = r"Task 'sum-0' is conversational, but the tokenizer has no chat_template\. Use an instruction-tuned"
    for call in (
        lambda: mass.generate_auxiliary(task),
        lambda: mass.adapt(task, "uniform", [[pair("1 + 1 = ?", "#### 2")]]),
        lambda: mass.solve(task),
    ):
        with pytest.raises(DataError, match=message):
            call()
