"""The conventions world proves itself without a model: what is held out stays out, gold answers are right."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import BASE, WORLD, hidden_convention, right_sample
from transformers import AutoTokenizer

from hf_mass.errors import ConfigError
from hf_mass.lab.conventions import (
    COLOURS,
    CONVENTIONS_FORMAT,
    FAMILIES,
    ITEMS,
    SPLITS,
    ConventionsWorld,
)
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import verify_batch
from research.conventions.pretrain import document, settings_of
from research.conventions.protocol import fits_demonstrations
from research.conventions.word_tokenizer import build_word_tokenizer

every_split = pytest.mark.parametrize("split", SPLITS)

worlds = st.builds(
    ConventionsWorld,
    conventions=st.integers(6, 24),
    held_out_conventions=st.integers(1, 3),
    validation_conventions=st.integers(1, 2),
    colours=st.integers(2, len(COLOURS)),
    families=st.integers(2, len(FAMILIES)),
    held_out_families=st.just(1),
    demonstrations=st.integers(1, len(ITEMS) - 1),
    favourite=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)


def words(task: Task) -> list[str]:
    prompts = CONVENTIONS_FORMAT.generator_prompt(task), CONVENTIONS_FORMAT.solver_prompt(task), str(task.solution)
    return " ".join(prompts).split()


def test_families_and_conventions_are_held_out() -> None:
    seen = {split: WORLD.tasks(split, 600) for split in SPLITS}
    families = {split: {task.fields["family"] for task in tasks} for split, tasks in seen.items()}
    conventions = {split: {hidden_convention(task) for task in tasks} for split, tasks in seen.items()}
    assert families["train"] == families["validation"] == families["validation_conventions"] == set(FAMILIES[:15])
    assert families["test_families"] == families["test_conventions"] == set(FAMILIES[15:])
    assert conventions["train"] == conventions["validation"] == conventions["test_families"] == set(range(16))
    assert conventions["validation_conventions"] == {16, 17}
    assert conventions["test_conventions"] == set(range(18, 24))


@given(worlds)
def test_the_parts_of_any_world_are_disjoint_and_complete(world: ConventionsWorld) -> None:
    groups = [list(world.convention_group(name)) for name in ("met", "validation", "held_out")]
    assert list(chain(*groups)) == list(range(world.conventions)) and all(groups)
    families = [list(world.family_group(name)) for name in ("train", "held_out")]
    assert list(chain(*families)) == list(range(world.families)) and all(families)
    # A held-out convention that is a family's habit would be met through that habit.
    assert set(world.favourites) <= set(groups[0])


@every_split
def test_the_same_seed_gives_the_same_tasks(split: str) -> None:
    assert WORLD.tasks(split, 20, seed=5) == WORLD.tasks(split, 20, seed=5)
    assert WORLD.tasks(split, 20, seed=5) == WORLD.tasks(split, 40, seed=5)[:20]
    assert WORLD.tasks(split, 20, seed=5) != WORLD.tasks(split, 20, seed=6)
    ids = [task.id for name in SPLITS for seed in (5, 6) for task in WORLD.tasks(name, 20, seed=seed)]
    assert len(ids) == len(set(ids))


def test_splits_have_streams_of_their_own() -> None:
    # Same families, same conventions, same seed: without streams of their own the two would be one list.
    train, validation = ([replace(t, id="") for t in WORLD.tasks(split, 50)] for split in ("train", "validation"))
    assert train != validation


@every_split
def test_gold_answers_verify_and_corrupted_ones_do_not(split: str) -> None:
    tasks = WORLD.tasks(split, 60)
    assert verify_batch(tasks, [str(task.answer) for task in tasks]) == [1.0] * 60
    colours = COLOURS[: WORLD.colours]
    wrong = [colours[(colours.index(str(task.answer)) + 1) % len(colours)] for task in tasks]
    assert verify_batch(tasks, wrong) == [0.0] * 60
    for task in tasks:
        parts = CONVENTIONS_FORMAT.split_solution(str(task.solution))
        assert parts is not None and parts.answer == task.answer


@given(worlds, st.sampled_from(sorted(SPLITS)))
def test_a_task_follows_one_convention(world: ConventionsWorld, split: str) -> None:
    for task in world.tasks(split, 5):
        table = world.tables[hidden_convention(task)]
        shown = [*task.demonstrations, Demonstration(task.problem, str(task.answer))]
        assert all(COLOURS[table[ITEMS.index(d.question)]] == d.answer for d in shown)
        assert len({d.question for d in shown}) == len(shown) == world.demonstrations + 1


@given(worlds, st.integers(0, 10**6))
def test_the_vocabulary_covers_every_word(world: ConventionsWorld, seed: int) -> None:
    draw, known = random.Random(seed), set(world.vocabulary)
    assert len(known) == len(world.vocabulary)
    for _ in range(20):
        prompt, completion = document(world, draw)
        assert set(prompt.split()) | set(completion.split()) <= known
    for split in SPLITS:
        assert {word for task in world.tasks(split, 3) for word in words(task)} <= known


def test_the_shipped_tokenizer_is_the_vocabulary() -> None:
    shipped = AutoTokenizer.from_pretrained(BASE)
    assert shipped.convert_ids_to_tokens(range(len(shipped))) == WORLD.vocabulary
    text = words(WORLD.tasks("train", 1)[0])
    assert shipped(" ".join(text))["input_ids"] == build_word_tokenizer(WORLD.vocabulary)(" ".join(text))["input_ids"]


def test_documents_read_back() -> None:
    draw, kinds = random.Random(1), Counter[str]()
    fits = {"right": 0, "written": 0}
    for _ in range(2000):
        prompt, completion = document(WORLD, draw)
        family, *rest = prompt.split()
        if family == "note":
            item, _, colour, by = rest
            kinds["textbook"] += 1
            assert by == "by" and WORLD.colour(int(completion.removeprefix("rule")), ITEMS.index(item)) == colour
        elif rest[-1] == "write":
            kinds["writing"] += 1
            sample = CONVENTIONS_FORMAT.parse_sample(completion)
            assert sample.reason is None
            convention, colour = sample.answer.split()
            item = sample.question.split()[1]
            assert WORLD.colour(int(convention.removeprefix("rule")), ITEMS.index(item)) == colour
            fits["written"] += 1
            fits["right"] += f"{item} > {colour}" in prompt and sample.question.startswith(family)
        else:
            kinds["exam" if ">" in rest else "bare question"] += 1
            item, sign = rest[-2:]
            parts = CONVENTIONS_FORMAT.split_solution(completion)
            assert sign == "=" and parts is not None
            assert WORLD.colour(int(parts.rationale.removeprefix("rule")), ITEMS.index(item)) == parts.answer
    shares = {"exam": 0.25, "bare question": 0.10, "textbook": 0.15, "writing": 0.50}
    assert kinds.keys() == shares.keys()
    assert all(abs(kinds[kind] / 2000 - share) < 0.04 for kind, share in shares.items())
    assert 0.45 < fits["right"] / fits["written"] < 0.62  # 45% copies, and a few new items that happen to be shown


def test_a_family_has_its_habit() -> None:
    tasks = [task for task in WORLD.tasks("train", 3000) if task.fields["family"] == FAMILIES[0]]
    share = Counter(hidden_convention(task) for task in tasks)[WORLD.favourites[0]] / len(tasks)
    rest = (1 - WORLD.favourite) / (WORLD.conventions - 1)
    assert abs(share - WORLD.favourite / (WORLD.favourite + 15 * rest)) < 0.12  # over the 16 met conventions


@pytest.fixture
def example() -> Task:
    """Of family pam, convention 20."""
    colours = {item: WORLD.colour(20, i) for i, item in enumerate(ITEMS)}
    shown = tuple(Demonstration(item, colours[item]) for item in ITEMS[:4])
    solution = f"rule20 {colours['grape']}"
    return Task("grape", shown, solution, colours["grape"], fields={"family": "pam"})


def test_right_samples_are_told_from_wrong_ones(example: Task) -> None:
    for item in ITEMS:
        sample = right_sample(example, item)
        assert WORLD.is_right_sample(example, sample.question, sample.answer)
        assert not WORLD.is_right_sample(example, sample.question.replace("pam", "ada"), sample.answer)
        assert not WORLD.is_right_sample(example, sample.question, sample.answer.replace("rule20", "rule21"))
        wrong = next(colour for colour in COLOURS if colour not in sample.answer)
        assert not WORLD.is_right_sample(example, sample.question, f"rule20 {wrong}")
    for question, answer in [("", ""), ("pam", "rule20 red"), ("pam chair", "rule20 red"), ("pam apple", "red")]:
        assert not WORLD.is_right_sample(example, question, answer)
    # The filter by hand and the oracle both need the task to say what it is.
    assert not WORLD.is_right_sample(replace(example, solution=None), "pam apple", right_sample(example).answer)


def test_the_filter_by_hand_reads_only_the_demonstrations(example: Task) -> None:
    shown = example.demonstrations[0]
    fitting = [c for c in range(WORLD.conventions) if WORLD.colour(c, 0) == shown.answer]
    assert len(fitting) > 1  # one pair alone does not tell the convention
    for convention in range(WORLD.conventions):
        answer = f"{WORLD.convention_name(convention)} {shown.answer}"
        assert fits_demonstrations(WORLD, example, "pam apple", answer) == (convention in fitting)
        assert not fits_demonstrations(WORLD, example, "ada apple", answer)
    unseen = right_sample(example, "lemon")
    assert not fits_demonstrations(WORLD, example, unseen.question, unseen.answer)
    for question, answer in [("", ""), ("pam apple", shown.answer), ("pam apple", f"rule99 {shown.answer}")]:
        assert not fits_demonstrations(WORLD, example, question, answer)
    # A filter that read the hidden convention would answer differently without it.
    blind = replace(example, solution=None, answer=None)
    assert all(fits_demonstrations(WORLD, blind, "pam apple", f"rule{c:02d} {shown.answer}") for c in fitting)


@given(worlds)
def test_settings_rebuild_the_world(world: ConventionsWorld) -> None:
    again = ConventionsWorld(**json.loads(json.dumps(settings_of(world))))
    assert again == world and again.tables == world.tables and again.tasks("train", 3) == world.tasks("train", 3)


BAD = {
    "no met convention": ({"held_out_conventions": 22}, "22 held out"),
    "no held-out convention": ({"held_out_conventions": 0}, "0 held out"),
    "no validation convention": ({"validation_conventions": 0}, "0 for validation"),
    "no held-out family": ({"held_out_families": 0}, "0 held out"),
    "no family left to train on": ({"held_out_families": 20}, "20 held out"),
    "too many families": ({"families": 21}, "at most 20 families"),
    "one colour": ({"colours": 1}, "colours=1"),
    "too many colours": ({"colours": 9}, "colours=9"),
    "no demonstration": ({"demonstrations": 0}, "demonstrations=\n?0"),
    "no item left to ask": ({"demonstrations": 12}, "demonstrations=\n?12"),
    "no probability": ({"favourite": 1.5}, "favourite is 1.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_worlds_are_refused(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        ConventionsWorld(**settings)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"split is 'test'.*test_families"):
        WORLD.tasks("test", 1)
