"""The procedural world of string rules, its text form, and the tokenizer of the base that is trained on it."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_mass.errors import ConfigError
from hf_mass.lm.encoding import TextEncoder
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import Demonstration, Task
from research import pretraining
from research.strings import world as string_world
from research.strings.parts import RULES, Inputs
from research.strings.pretrain import Strings, build_tokenizer
from research.strings.world import FAMILIES, HELD_OUT, TRAINED, Sizes, StringTask, curriculum, draw_task, render_task

WORLD = Strings()
PLAIN = FEW_SHOT_FORMATS["plain"]
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12).filter(str.strip)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=4)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.mark.parametrize("progress", [0.0, 0.29, 0.31, 1.0])
def test_every_family_can_be_drawn_at_every_stage(progress: float) -> None:
    sizes = curriculum(progress)
    for family in FAMILIES:
        for seed in range(3):
            task = draw_task(random.Random(f"{family}-{seed}"), sizes, [family])
            assert task.family.partition("+")[0] == family
            assert sizes.demonstrations[0] < len(task.pairs) <= sizes.demonstrations[1] + 1
            assert string_world.token_count(task.pairs) <= sizes.longest
            texts = [text for pair in task.pairs for text in pair]
            assert all(text and text == text.strip() and text.isascii() and text.isprintable() for text in texts)


@given(seed=st.integers(0, 10**9), progress=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_task_is_a_function_of_its_seed(seed: int, progress: float) -> None:
    sizes = curriculum(progress)
    assert draw_task(random.Random(seed), sizes) == draw_task(random.Random(seed), sizes)


def test_training_draws_every_family_but_those_held_out() -> None:
    draw = random.Random(0)
    drawn = {WORLD.draw(draw, 0.0).family.partition("+")[0] for _ in range(4000)}
    assert drawn == set(TRAINED) == set(FAMILIES) - set(HELD_OUT)
    assert len(HELD_OUT) == 8 and set(HELD_OUT) <= set(FAMILIES) and len(FAMILIES) > 60


def test_queries_are_new_where_inputs_do_not_repeat_and_shown_where_they_are_looked_up() -> None:
    draw = random.Random(1)
    for _ in range(500):
        task = draw_task(draw, Sizes())
        shown = [question for question, _ in task.pairs[:-1]]
        if task.family.startswith("look_up/table"):
            assert task.pairs[-1][0] in shown
        elif not task.family.startswith("know/"):
            assert task.pairs[-1][0] not in shown


def test_no_composition_makes_a_held_out_rule_of_a_trained_one() -> None:
    """Turning the letters of a text whose words were turned would be "words/reverse_each"."""
    draw = random.Random(2)
    families = ["words/reverse_order", "words/swap_two"]
    tasks = [draw_task(draw, Sizes(composed=1.0), families) for _ in range(300)]
    assert tasks and not any(
        b == " ".join(w[::-1] for w in a.split()) for t in tasks for a, b in t.pairs if t.family.endswith("+reverse")
    )


@pytest.mark.parametrize(
    ("family", "question", "answer"),
    [
        ("case/alternating", "hello", "hElLo"),
        ("case/vowels_upper", "hello", "hEllO"),
        ("order/mirror", "abc", "abccba"),
        ("order/swap_ends", "hello", "oellh"),
        ("words/camel", "make this name", "makeThisName"),
        ("words/reverse_each", "make this", "ekam siht"),
        ("number/grouped", "1234567", "1,234,567"),
        ("order/swap_pairs", "abcde", "badce"),
        ("words/acronym", "make this", "MT"),
        ("name/last_comma_first", "Jane Doe", "Doe, Jane"),
        ("name/user", "Jane Doe", "jdoe"),
        ("ending/plural", "city", "cities"),
        ("ending/plural", "toy", "toys"),
        ("ending/past", "bake", "baked"),
        ("ending/article", "apple", "an apple"),
        ("know/roman", "14", "XIV"),
        ("time/to_twelve", "00:05", "12:05 am"),
        ("time/to_twelve", "13:30", "1:30 pm"),
    ],
)
def test_rules_do_what_their_name_says(family: str, question: str, answer: str) -> None:
    _, function = RULES[family](Inputs(random.Random(0), Sizes()))
    assert function(question) == answer


def test_no_task_of_impossible_sizes_is_drawn() -> None:
    with pytest.raises(ConfigError, match="order/reverse"):
        draw_task(random.Random(0), Sizes(longest=20), ["order/reverse"])


@given(pairs=PAIRS, weight=st.sampled_from([0.0, 0.25]))
@settings(max_examples=50, deadline=None)
def test_one_token_a_character_and_loss_on_later_outputs(pairs: list[tuple[str, str]], weight: float) -> None:
    tokenizer, task = build_tokenizer(), StringTask("order/copy", tuple(pairs))
    ids, weights = WORLD.row(task, tokenizer, weight)
    assert ids == tokenizer(render_task(pairs))["input_ids"] and len(ids) == WORLD.length(task)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>" + render_task(pairs)
    counted = "".join(tokenizer.decode([i]) for i, w in zip(ids, weights, strict=True) if w == 1)
    assert counted == "".join(b + "\n\n" for _, b in pairs[1:])
    assert set(weights[1:]) <= {0.0, 1.0, weight} and weights[1] == weight


@given(pairs=PAIRS, text=st.text(max_size=12))
@settings(max_examples=50, deadline=None)
def test_text_has_the_same_tokens_whole_and_in_parts(pairs: list[tuple[str, str]], text: str) -> None:
    """Training examples are read part by part, a prompt of MASS as a whole: both are what the base was trained on."""
    tokenizer = build_tokenizer()
    shown = [Demonstration(*pair) for pair in pairs]
    task = Task(shown[-1].question, tuple(shown[:-1]))
    whole, _ = WORLD.row(StringTask("order/copy", tuple(pairs)), tokenizer, 0.1)
    few_shot, mass = FewShotEncoder(tokenizer, PLAIN), TextEncoder(tokenizer, FORMATS["plain"], 1024)
    assert few_shot.example(TrainingExample(task.demonstrations, shown[-1]), "demonstrations")[0] == whole
    assert mass.solver_prompt_ids(task) + mass.answer_ids(shown[-1].answer) == whole
    assert few_shot.prompt(task) + tokenizer(" ", add_special_tokens=False)["input_ids"] == mass.solver_prompt_ids(task)
    asked = mass.generator_prompt_ids(task)
    assert asked == whole[: len(asked)] and tokenizer.convert_ids_to_tokens(asked[-1]) == "Input: "
    if "\n" not in text:
        parts = [f"Input: {text}\nOutput:", f" {text}\n\n"]
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
        assert [*ids[0], *ids[1]] == tokenizer("".join(parts), add_special_tokens=False)["input_ids"]


def test_unknown_characters_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("aé→b", add_special_tokens=False)["input_ids"]
    assert ids[1] == ids[2] == tokenizer.unk_token_id and len(ids) == 4
    assert tokenizer.eos_token == "\n\n"
    assert tokenizer.decode(tokenizer("a\nOutput: b\n\n")["input_ids"], skip_special_tokens=True) == "a\nOutput: b"


def test_a_run_writes_a_base_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [draw_task(random.Random(i), curriculum(0.0), ["case/upper"]) for i in range(3)]
    monkeypatch.setattr(WORLD, "validation_sets", lambda per_family: {"trained_full": tasks})
    arguments = Namespace(
        output=tmp_path / "base",
        minutes=0.01,
        width=32,
        layers=1,
        batch_tokens=512,
        batch_tasks=8,
        learning_rate=2e-3,
        warm_up=5,
        input_weight=0.1,
        checkpoint_minutes=1,
        compile=False,
        validation_per_family=1,
        threads=1,
        seed=0,
    )
    steps = []
    for minutes in (0.01, 0.02):
        arguments.minutes = minutes
        pretraining.train(WORLD, arguments)
        record = json.loads((tmp_path / "base/pretraining.json").read_text())
        steps.append(record["step"])
    assert 0 < steps[0] < steps[1] and record["held_out"] == list(HELD_OUT)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer(render_task(tasks[0].pairs))["input_ids"] == WORLD.row(tasks[0], build_tokenizer(), 0.1)[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.isfinite(model(torch.tensor([[1, 2]])).logits).all()
