"""Views of a few-shot task: answers mapped there and back, how many there are, and what the model makes of them."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import byte_base, byte_tokenizer, equal_trees
from peft import LoraConfig, get_peft_model
from ttt_fixtures import FewShot, few_shot_settings

from hf_mass.errors import DataError
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation
from hf_mass.methods.views import View, task_views
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS, resolve_format
from hf_mass.tasks.grid_transformations import (
    FlipColumns,
    Identity,
    PermuteColours,
    Reflect,
    Transformation,
    Transpose,
)
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.transformations import (
    GEOMETRIC,
    TRANSFORMATION_SETS,
)

COMPACT = resolve_format("compact")
SWAP = PermuteColours((0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
EOS = byte_tokenizer().eos_token_id
END_OF_TURN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def copy_task(name: str, rows: tuple[str, ...] = ("1 0 0", "0 2 0", "0 0 3"), query: str = "0 4 4") -> Task:
    """Output = input."""
    return Task(query, tuple(Demonstration(row, row) for row in rows), answer=query, id=name)


def few_shot(
    views: tuple[Transformation, ...] | None = None, context: int = 1024, tokenizer: Any = None, **changes: Any
) -> FewShot:
    torch.manual_seed(0)
    base = byte_base()
    base.config.max_position_embeddings = context
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    lm = LanguageModel(get_peft_model(base, config).eval(), tokenizer or byte_tokenizer())
    assert lm.context == context
    return FewShot(lm, few_shot_settings(4, 8, **{"learning_rate": 0.05, "max_examples": 4, **changes}), views)


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def says(monkeypatch: pytest.MonkeyPatch, *completions: list[int]) -> list[list[int]]:
    """Let the model generate these, in turn; the prompts that it got."""
    prompts: list[list[int]] = []

    def canned(model: Any, tokenizer: Any, given: list[list[int]], *rest: Any, **more: Any) -> list[list[int]]:
        prompts.extend(given)
        return [completions[n % len(completions)] for n in range(len(given))]

    monkeypatch.setattr("hf_mass.methods.few_shot_answers.complete", canned)
    return prompts


# -- there and back ----------------------------------------------------------------------------------------------------

GRIDS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=4)
)


@pytest.mark.parametrize("form", sorted(name for name, f in FEW_SHOT_FORMATS.items() if f.grid_form))
@pytest.mark.parametrize("names", sorted(TRANSFORMATION_SETS))
@given(rows=GRIDS, draw=st.randoms(use_true_random=False), recolour=st.booleans(), keep=st.booleans())
def test_reading_takes_back_what_showing_does(
    form: str, names: str, rows: list[list[int]], draw: random.Random, recolour: bool, keep: bool
) -> None:
    fmt, answer = FEW_SHOT_FORMATS[form], grid_text(tuple(map(tuple, rows)))
    for transformation in TRANSFORMATION_SETS[names]:
        colours = PermuteColours.random(draw, keep) if recolour else None
        view = View(0, copy_task("a"), transformation, colours, 3, 0)
        shown = parse_grid(view.show(answer, fmt))
        assert shown is not None
        expected = transformation.apply(tuple(map(tuple, rows)))
        assert shown == (expected if colours is None else colours.apply(expected))
        generated = fmt.answer_prefix + grid_text(shown, fmt.grid_form or "") + fmt.pair_separator + "9"
        prediction = view.read(fmt, generated)
        assert (prediction.answer, prediction.transformation, prediction.permutation) == (
            answer,
            transformation.name,
            3,
        )


def test_what_cannot_be_read_or_mapped_back_is_no_answer() -> None:
    view = View(0, copy_task("a"), Reflect("columns"), None, 0, 0)
    assert view.read(COMPACT, "1221;").answer == "1 2"
    assert view.read(COMPACT, "1223;").answer is None  # no grid next to its mirror image
    for text in ("", ";", "12\n3;", "1x;", "no"):
        assert view.read(COMPACT, text).answer is None
    with pytest.raises(DataError, match=r"View\.show: 'blue' is no grid"):
        view.show("blue", COMPACT)


def test_texts_are_shown_and_read_as_they_are() -> None:
    view = View(0, Task("q?", id="text"), Identity(), None, 0, 0)
    assert view.show("0 1", FEW_SHOT_FORMATS["plain"]) == "0 1"
    assert view.read(FEW_SHOT_FORMATS["plain"], " a b \n\nInput: c").answer == "a b"


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("letter", " B) it is\nQ: and then", "(b)"),
        ("letter", " (C).", "(c)"),
        ("word", " Yes.\n\nQ: next", "yes"),
        ("sequence", " b c - no\nQ:", "b c "),
        ("word", "  \nQ: Yes", None),
    ],
)
def test_answers_to_big_bench_hard_are_extracted_when_read(
    monkeypatch: pytest.MonkeyPatch, kind: str, text: str, answer: str | None
) -> None:
    few = few_shot(few_shot_format="questions")
    says(monkeypatch, [*ids_of(text), EOS])
    task = Task("q?", (Demonstration("r?", "(A)"),), answer="(B)", fields={"answer_kind": kind}, id="bbh")
    assert few.predict([task])[0][0].answer == answer


@pytest.mark.parametrize(
    ("written", "text", "cut"),
    [
        ([*ids_of("blue"), EOS], "blue", False),
        (ids_of("blue\n\nInput"), "blue", False),  # what ends an answer here
        (ids_of("blue and gre"), "blue and gre", True),
        ([*ids_of("blue and green"), EOS], "blue and gre", True),  # of a batch in which others may be longer
    ],
)
def test_an_answer_that_the_limit_ended_says_so(
    monkeypatch: pytest.MonkeyPatch, written: list[int], text: str, cut: bool
) -> None:
    few = few_shot(few_shot_format="plain", max_completion_length=12)
    says(monkeypatch, written)
    (answer,) = few.answers.answer([Task("sky", (Demonstration("sea", "blue"),), id="text")])
    assert (answer.text, answer.cut, answer.predictions[0].cut) == (text, cut, cut)


def test_an_answer_that_was_once_given_whole_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    few = few_shot(few_shot_format="plain", max_completion_length=7, predict_samples=2, predict_temperature=1.0)
    says(monkeypatch, ids_of("bluish "), [*ids_of("bluish"), EOS])
    (answer,) = few.answers.answer([Task("sky", (Demonstration("sea", "blue"),), id="text")])
    assert ([each.cut for each in answer.predictions], answer.cut) == ([True, False], False)


# -- which views there are ---------------------------------------------------------------------------------------------


def views(task: Task, seed: int = 0, **settings: Any) -> list[View]:
    shown = settings.pop("transformations", None)
    changes = {name if name == "keep_background" else f"predict_{name}": value for name, value in settings.items()}
    return list(task_views(0, task, few_shot(shown, **changes).settings, seed))


@pytest.mark.parametrize(
    ("demonstrations", "permutations", "recolour", "each"),
    [(3, 1, False, 1), (3, 4, False, 4), (3, 9, False, 6), (1, 4, False, 1), (1, 4, True, 4), (2, 5, True, 5)],
)
def test_the_number_of_views(demonstrations: int, permutations: int, recolour: bool, each: int) -> None:
    """As many orders as differ; recoloured, as many views as asked for."""
    task = copy_task("a", ("1 0 0", "0 2 0", "0 0 3")[:demonstrations])
    settings = {"permutations": permutations, "recolour": recolour, "samples": 2, "temperature": 1.0}
    found = views(task, transformations=GEOMETRIC, **settings)
    assert Counter((v.transformation.name, v.number) for v in found) == {
        (t.name, number): 2 for t in GEOMETRIC for number in range(each)
    }
    assert len({v.seed for v in found}) == len(found)
    for transformation in GEOMETRIC:
        own = [v for v in found if v.transformation == transformation]
        assert [v.colours is not None for v in own] == [recolour and v.number > 0 for v in own]
        if not recolour:
            assert len({v.task.demonstrations for v in own}) == each


def test_the_first_view_of_a_transformation_keeps_order_and_colours_and_the_others_hold_the_same_pairs() -> None:
    task = copy_task("a")
    found = views(task, transformations=(FlipColumns(),), permutations=6)
    flipped = tuple(Demonstration(each.question[::-1], each.answer[::-1]) for each in task.demonstrations)
    assert found[0].task.demonstrations == flipped and found[0].task.problem == "4 4 0"
    assert {frozenset(v.task.demonstrations) for v in found} == {frozenset(flipped)}
    for view in views(task, permutations=4, recolour=True, keep_background=True)[1:]:
        assert view.colours is not None and view.colours.mapping[0] == 0
        changed = [grid_text(view.colours.apply(parse_grid(d.question) or ())) for d in task.demonstrations]
        assert sorted(d.question for d in view.task.demonstrations) == sorted(changed)


def test_the_seed_and_the_tasks_id_decide_about_views() -> None:
    settings = {"permutations": 4, "recolour": True, "samples": 2, "temperature": 1.0}
    first, second, other = (views(copy_task("a"), seed, **settings) for seed in (0, 0, 1))
    named = views(copy_task("b"), 0, **settings)
    assert first == second
    for different in (other, named):
        assert [v.colours for v in different] != [v.colours for v in first]
        assert not {v.seed for v in different} & {v.seed for v in first}


# -- log-probabilities -------------------------------------------------------------------------------------------------


def log_probability(model: Any, prompt: str, answer: str) -> float:
    """Of the bytes of `answer` after `prompt`, token by token from one plain forward pass."""
    front, back = ids_of(prompt), ids_of(answer)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([front + back])).logits[0].double().log_softmax(-1)
    return math.fsum(float(log_p[len(front) - 1 + n, token]) for n, token in enumerate(back))


# The task's text under each view, written by hand.
SHOWN = {
    "identity": ("100>100;020>020;003>003;044>", {"0 4 4": "044;", "1\n2": "1\n2;"}),
    "flip columns": ("001>001;020>020;300>300;440>", {"0 4 4": "440;", "1\n2": "1\n2;"}),
    "transpose": ("1\n0\n0>1\n0\n0;0\n2\n0>0\n2\n0;0\n0\n3>0\n0\n3;0\n4\n4>", {"0 4 4": "0\n4\n4;", "1\n2": "12;"}),
    SWAP.name: ("200>200;010>010;003>003;044>", {"0 4 4": "044;", "1\n2": "2\n1;"}),
}


@pytest.mark.parametrize("batch_size", [64, 3])
@pytest.mark.parametrize("trained", [False, True])
def test_scores_are_those_of_the_merged_model(trained: bool, batch_size: int) -> None:
    transformations = (Identity(), FlipColumns(), Transpose(), SWAP)
    few = few_shot(transformations, predict_batch_size=batch_size)
    task = copy_task("a")
    records = few.adapt([task]) if trained else [Adaptation(task)]
    merged = copy.deepcopy(few.lm.model)
    if records[0].adapted is not None:
        state = dict(merged.named_parameters())
        with torch.no_grad():
            for name, leaf in records[0].adapted.items():
                state[name].copy_(leaf[0])
    merged = merged.merge_and_unload()
    (scores,) = few.score([task], [["0 4 4", "1\n2", "0 4 4"]], records)
    assert list(scores) == ["0 4 4", "1\n2"]
    for answer, values in scores.items():
        expected = [log_probability(merged, SHOWN[t.name][0], SHOWN[t.name][1][answer]) for t in transformations]
        assert values == pytest.approx(expected, abs=1e-3)
    bare = log_probability(few.lm.model, SHOWN["identity"][0], "044;")
    assert (abs(scores["0 4 4"][0] - bare) > 0.1) == trained


def test_scores_of_several_tasks_are_each_ones_own() -> None:
    few = few_shot((Identity(), FlipColumns()), predict_permutations=2)
    tasks = [copy_task("a"), copy_task("b", ("5 0", "0 6"), "7 0"), copy_task("c", query="9 9 9")]
    records = [*few.adapt(tasks[:2]), Adaptation(tasks[2])]
    answers = [["0 4 4"], ["7 0", "0 7"], []]
    together = few.score(tasks, answers, records)
    assert [list(each) for each in together] == answers
    for n, task in enumerate(tasks):
        (alone,) = few.score([task], [answers[n]], [records[n]])
        for answer in answers[n]:
            assert len(alone[answer]) == 4 and together[n][answer] == pytest.approx(alone[answer], abs=1e-4)


# -- tasks that share demonstrations -----------------------------------------------------------------------------------


def test_tasks_with_equal_demonstrations_share_their_adapter() -> None:
    few = few_shot()
    tasks = [copy_task("a"), copy_task("b", ("5 0", "0 6")), copy_task("a2", query="1 2 3"), copy_task("a3")]
    tasks[3].fields["instruction"] = "Copy."
    first, other, second, instructed = few.adapt(tasks)
    assert first.adapted is second.adapted and first.losses == second.losses
    assert [r.task for r in (first, other, second, instructed)] == tasks
    assert other.adapted is not first.adapted and not equal_trees(instructed.adapted, first.adapted)
    (alone,) = few.adapt([tasks[2]])
    assert alone.examples == second.examples and alone.losses == pytest.approx(second.losses, rel=1e-5)
    assert alone.adapted is not None and second.adapted is not None
    for name, leaf in alone.adapted.items():
        torch.testing.assert_close(leaf, second.adapted[name], rtol=1e-4, atol=1e-5)


# -- the model's context -----------------------------------------------------------------------------------------------

SHORT, LONG = copy_task("short", ("1 0", "0 2"), "3 0"), copy_task("long", ("1 0 0", "0 2 0", "0 0 3"), "3 0 0")


def test_a_view_that_is_longer_than_the_context_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short task has 15 tokens and the long one 28; transposed 20 and 42."""
    few = few_shot((Identity(), Transpose()), 28, max_completion_length=5)
    prompts = says(monkeypatch, ids_of("30;"))
    short, long = few.predict([SHORT, LONG])
    assert [p.answer for p in short] == ["3 0", "3\n0"]
    assert [p.answer for p in long] == [None, None] and sorted(map(len, prompts)) == [15, 20]
    few.answers.require_room(SHORT)
    message = r"Task 'long' with its 3 demonstrations has 28 tokens, and the model's context 28\. Give fewer or shorter"
    with pytest.raises(DataError, match=message):
        few.answers.require_room(LONG)
    few_shot(context=29).answers.require_room(LONG)


def test_a_long_prompt_does_not_cut_the_answers_of_others_short(monkeypatch: pytest.MonkeyPatch) -> None:
    few = few_shot(context=30, max_completion_length=9)
    (alone,) = few.predict([SHORT])
    assert few.predict([SHORT, LONG])[0] == alone
    rooms: dict[int, int] = {}

    def noting(
        model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Any, *rest: Any, **more: Any
    ) -> list[list[int]]:
        rooms.update({len(prompt): sampling.max_new_tokens for prompt in prompts})
        return [[EOS] for _ in prompts]

    monkeypatch.setattr("hf_mass.methods.few_shot_answers.complete", noting)
    few.predict([SHORT, LONG])
    assert rooms == {15: 9, 28: 2}


def test_examples_that_are_longer_than_the_context_are_not_trained_on() -> None:
    (record,) = few_shot(context=20).adapt([LONG])
    assert record.adapted is None and record.reason is not None and "max_tokens = 20" in record.reason
    (record,) = few_shot(context=29).adapt([LONG])
    assert record.reason is None and record.examples == 3


# -- ends of answers ---------------------------------------------------------------------------------------------------


def test_answers_in_a_chat_hold_no_end_of_turn_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = END_OF_TURN
    few = few_shot(tokenizer=tokenizer, chat=True)
    prompts = says(monkeypatch, [*ids_of("044"), EOS], [*ids_of("044"), EOS, EOS, *ids_of("1")])
    assert [few.predict([copy_task("a")])[0][0].answer for _ in range(2)] == ["0 4 4"] * 2
    rows = [[*ids_of("044"), EOS], [*ids_of("04"), EOS, EOS], [EOS]]
    assert few.answers.encoder.texts(rows) == ["044", "04", ""]
    text = tokenizer.decode(prompts[0])
    assert text.startswith("<user>100<eos><assistant>100<eos><user>020<eos>") and text.endswith("044<eos><assistant>")
    ids, learned = few.answers.encoder.answered(copy_task("a"), "0 4 4")
    assert [i for i, flag in zip(ids, learned, strict=True) if flag] == [*ids_of("044"), EOS]  # it learns to stop
    assert ids[: len(prompts[0])] == prompts[0]


def test_outside_of_a_chat_only_the_last_mark_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    few = few_shot()
    rows = [[*ids_of("04"), EOS], [*ids_of("0"), 0, *ids_of("4;")], [EOS], []]
    assert few.answers.encoder.texts(rows) == [
        "04",
        "0<pad>4;",
        "",
        "",
    ]
    says(monkeypatch, [*ids_of("04"), 0, *ids_of("4;")])
    assert few.predict([copy_task("a")])[0][0].answer is None


def test_a_missing_padding_token_is_the_end_of_sequence() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert FewShotEncoder(tokenizer, COMPACT).tokenizer.pad_token_id == EOS
