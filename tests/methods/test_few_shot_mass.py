"""MASS on a model that was not meta-trained: the prompt of test-time training, and which samples are usable."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer

import hf_mass
from hf_mass import MASS, TTT, LanguageModel, MajorityVote, NoAdaptation, Task
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.sampling import CURES, few_usable
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.ttt_settings import TTTSettings

PAIRS = [("river", "revir"), ("stone", "enots"), ("lamp", "pmal"), ("green", "neerg"), ("table", "elbat")]
TEXT = "".join(f"Input: {question}\nOutput: {answer}\n\n" for question, answer in PAIRS)
TASK = Task.from_pairs(PAIRS, "tulip", "pilut", id="tulip")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A model that knows few-shot texts, as if it did not ship."""
    lm = hf_mass.load("strings-base", device="cpu")
    lm.kinds, lm.defaults = (), {"ttt": lm.defaults["ttt"]}
    return lm


@pytest.fixture(scope="module")
def mass(lm: LanguageModel) -> MassModel:
    return MASS().resolved(lm, [TASK])


def chat_mass() -> MassModel:
    lm = hf_mass.load(byte_base(), byte_tokenizer(chat=True))
    return MASS(asks=TTT(chat=True)).resolved(lm, [TASK])


def text_of(mass: MassModel, ids: Any) -> str:
    return str(mass.tokenizer.decode(list(ids))).removeprefix(
        "<bos>"
    )  # which the tokenizer of strings-base begins with


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_every_method_asks_alike(lm: LanguageModel) -> None:
    tasks = [TASK, TASK.with_query("garden", "nedrag"), Task.from_pairs(PAIRS[1:], "candle")]
    asked = TTT().answer(lm, tasks, None, 0)
    for method in (MASS(), TTTThenMASS(), NoAdaptation(), NoAdaptation(MASS())):
        answers = method.answer(lm, tasks, None, 0)
        assert [(a.text, a.predictions) for a in answers] == [(a.text, a.predictions) for a in asked]
    assert len(asked[0].predictions) > 1  # the vote over views is the same too
    votes = MajorityVote(samples=7).answer(lm, tasks, None, 0)
    sampled = TTT(predict_permutations=1, predict_samples=7, predict_temperature=1.0, vote="flat")
    assert [a.text for a in votes] == [a.text for a in sampled.answer(lm, tasks, None, 0)]


def test_the_generator_continues_the_list_of_solved_examples(mass: MassModel) -> None:
    assert text_of(mass, mass.encoder.generator_prompt_ids(TASK)) == f"{TEXT}Input:"
    assert text_of(mass, mass.encoder.solver_prompt_ids(TASK)) == f"{TEXT}Input: tulip\nOutput:"
    told = Task.from_pairs(PAIRS[:1], "tulip", instruction="Turn it round.")
    assert text_of(mass, mass.encoder.generator_prompt_ids(told)) == (
        "Turn it round.\n\nInput: river\nOutput: revir\n\nInput:"
    )


def test_samples_and_left_out_demonstrations_are_asked_in_the_same_prompt(mass: MassModel) -> None:
    row = mass.encoder.inner_row(3, TASK, "candle", "eldnac")
    assert row.task == 3 and text_of(mass, row.answer_ids) == " eldnac\n\n"
    assert text_of(mass, row.prompt_ids).endswith("Input: candle\nOutput:")
    left_out = mass.encoder.demonstration_row(0, TASK, 1, "")
    without = TEXT.replace("Input: stone\nOutput: enots\n\n", "")
    assert text_of(mass, left_out.prompt_ids) == f"{without}Input: stone\nOutput:"
    assert text_of(mass, left_out.answer_ids) == " enots\n\n"
    single = replace(TASK, demonstrations=TASK.demonstrations[:1])
    assert text_of(mass, mass.encoder.demonstration_row(0, single, 0, "").prompt_ids) == "Input: river\nOutput:"


def test_a_chat_is_continued_where_the_user_speaks() -> None:
    mass = chat_mass()
    turns = "".join(f"<user>{question}</user><assistant>{answer}</assistant>" for question, answer in PAIRS)
    assert text_of(mass, mass.encoder.generator_prompt_ids(TASK)) == f"{turns}<user>"
    assert text_of(mass, mass.encoder.solver_prompt_ids(TASK)) == f"{turns}<user>tulip</user><assistant>"


def test_tasks_without_demonstrations_keep_their_question(mass: MassModel) -> None:
    bare = Task("What is 2 + 2?")
    prompt = mass.encoder.full_solver_prompt_ids(bare)
    assert prompt == mass.encoder.full_prompt_ids(bare, MassConfig().format.solver_prompt(bare))
    mixed = [bare, TASK]
    assert [answer.text for answer in mass.solve(mixed)] == [mass.solve(task).text for task in mixed]
    assert len(mass.generate_auxiliary(mixed, 2)) == 2


def test_models_with_prompts_of_their_own_keep_them() -> None:
    for name in ("strings-base", "conventions-mass"):
        assert MASS().settings(hf_mass.load(name, device="cpu"), [TASK]).few_shot is None


def test_settings_that_hold_a_few_shot_prompt_are_saved() -> None:
    config = MassConfig(few_shot=TTTSettings.preset("text"))
    assert MassConfig.from_dict(config.to_dict()) == config and MassConfig.from_dict({}).few_shot is None


# -- samples -----------------------------------------------------------------------------------------------------------


def test_samples_are_new_complete_and_in_form(mass: MassModel) -> None:
    (group,) = mass.generate_auxiliary(TASK, 40)
    reasons = Counter(sample.reason for sample in group)
    assert reasons[None] >= 20 and reasons["not_new"] >= 1
    usable = [sample for sample in group if sample.usable]
    questions = [sample.question for sample in usable]
    assert len(set(questions)) == len(questions) and not {*questions} & {q for q, _ in [*PAIRS, ("tulip", "")]}
    for sample in usable:
        assert sample.text.split() == [sample.question, "Output:", sample.answer]
        assert text_of(mass, sample.token_ids).split() == sample.text.split()
        assert sample.answer and "\n" not in sample.question + sample.answer


def test_what_the_limit_cut_off_is_unusable_and_told_with_the_cure(lm: LanguageModel) -> None:
    for cut in ({"max_sample_tokens": 2}, {"max_answer_tokens": 1}):
        adaptation = hf_mass.adapt(lm, TASK, MASS(samples=4, **cut), guard=False)
        assert {sample.reason for sample in adaptation.samples} <= {"incomplete", "not_new"}
        assert not adaptation.parts and "'incomplete': raise max_sample_tokens" in (adaptation.reason or "")
        solution = hf_mass.solve(lm, TASK, MASS(samples=4, **cut), guard=False)
        assert solution.reason == adaptation.reason and solution.to_dict()["reason"] == adaptation.reason


def test_few_usable_samples_are_told_though_they_are_trained_on() -> None:
    def group(*reasons: str | None) -> list[AuxiliarySample]:
        return [AuxiliarySample("", (), "q", "a", reason) for reason in reasons]

    assert few_usable(group(None, "not_new", "other_form")) is None
    told = few_usable(group(None, "not_new", "other_form", "not_new"))
    assert told == f"1 usable sample of 4, most often 'not_new': {CURES['not_new']}"
    assert str(few_usable(group("empty"))).startswith("no usable sample of 1")


def test_a_sample_that_asks_the_query_is_left_out_for_that_query_alone(lm: LanguageModel) -> None:
    mass = MASS(samples=12, inner_learning_rate=1e-2).resolved(lm, [TASK])
    (group,) = mass.generate_auxiliary(TASK)
    asked = next(sample.question for sample in group if sample.usable)
    tasks = [TASK, TASK.with_query("garden"), TASK.with_query(asked)]
    first, second, third = mass.adapt(tasks, "uniform")
    assert first.samples == second.samples and first.parts[1] is second.parts[1]
    assert next(s.reason for s in third.samples if s.question == asked and s.answer) == "not_new"
    assert third.parts[1] is not first.parts[1]
    alone = mass.adapt(TASK, "uniform")
    assert alone.samples == first.samples and alone.losses == pytest.approx(first.losses, rel=1e-4)
    assert sum(each.cost.sampled_tokens for each in (first, second)) == pytest.approx(alone.cost.sampled_tokens)


# -- behind test-time training -----------------------------------------------------------------------------------------


def test_where_no_sample_is_usable_both_answers_as_training_left_it(lm: LanguageModel) -> None:
    training = TTT(max_examples=4, learning_rate=2e-2)
    tasks = [TASK, TASK.with_query("garden")]
    both = hf_mass.adapt(lm, tasks, TTTThenMASS(training, MASS(samples=2, max_sample_tokens=1)), False)
    trained = hf_mass.adapt(lm, tasks, training, False)
    assert [str(a.answer()) for a in both] == [str(a.answer()) for a in trained]
    assert [str(a.answer()) for a in both] != [str(a.before()) for a in both]
    assert lm.untrained is not None


def test_tasks_with_the_same_demonstrations_go_through_both_together(lm: LanguageModel) -> None:
    method = TTTThenMASS(TTT(max_examples=4), MASS(samples=6, inner_optimizer="sgd"))
    tasks = [TASK, Task.from_pairs(PAIRS[1:], "candle"), TASK.with_query("garden")]
    first, other, third = hf_mass.adapt(lm, tasks, method)
    assert first.parts[0] is third.parts[0] and first.parts[0] is not other.parts[0]
    assert [each.task for each in (first, other, third)] == tasks
    alone = hf_mass.adapt(lm, tasks[1], method)
    assert alone.samples == other.samples and torch.allclose(alone.weights, other.weights, atol=1e-5)
