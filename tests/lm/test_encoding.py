"""Text to token rows: what is conditioned on, what is learned, and what is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import CHAT_TEMPLATE, WORLD, byte_tokenizer, text_task
from transformers import PreTrainedTokenizerFast

from hf_mass.core.token_loss import IGNORED
from hf_mass.errors import ConfigError, DataError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.lm.encoding import Row, TextEncoder, pad_rows
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.formats import PromptFormat
from research.conventions.word_tokenizer import build_word_tokenizer

FORMAT = PromptFormat()
token_lists = st.lists(st.integers(3, 50), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(byte_tokenizer(), FORMAT, 512)


@pytest.fixture(scope="module")
def chat_encoder() -> TextEncoder:
    return TextEncoder(byte_tokenizer(chat=True), FORMAT, 512)


@pytest.fixture(scope="module")
def world_encoder() -> TextEncoder:
    return TextEncoder(build_word_tokenizer(WORLD.vocabulary), CONVENTIONS_FORMAT, 64)


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_plain_prompts_are_the_format_s_text(encoder: TextEncoder) -> None:
    task = text_task()
    assert encoder.tokenizer.decode(encoder.solver_prompt_ids(task)) == FORMAT.solver_prompt(task)
    assert encoder.tokenizer.decode(encoder.generator_prompt_ids(task)) == FORMAT.generator_prompt(task)


def test_word_prompts_begin_with_the_beginning_token(world_encoder: TextEncoder) -> None:
    task = WORLD.tasks("train", 1)[0]
    ids = world_encoder.solver_prompt_ids(task)
    assert ids[0] == 1 and ids.count(1) == 1
    assert world_encoder.tokenizer.decode(ids[1:]) == CONVENTIONS_FORMAT.solver_prompt(task)


@given(st.text(min_size=1, max_size=30))
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_conversational_tasks_go_through_the_chat_template(chat_encoder: TextEncoder) -> None:
    task = text_task(conversational=True, history=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")))
    text = FORMAT.solver_prompt(task)
    expected = f"<system>Be brief.</system><user>Hi</user><assistant>Hello</assistant><user>{text}</user><assistant>"
    assert chat_encoder.tokenizer.decode(chat_encoder.solver_prompt_ids(task)) == expected
    plain = replace(task, conversational=False, history=())
    assert chat_encoder.tokenizer.decode(chat_encoder.solver_prompt_ids(plain)) == FORMAT.solver_prompt(plain)


def test_the_answer_follows_a_chat_prompt_without_a_second_beginning(chat_encoder: TextEncoder) -> None:
    task = text_task(conversational=True)
    row = Row(0, chat_encoder.solver_prompt_ids(task), chat_encoder.answer_ids("5"))
    batch = chat_encoder.batch([row], "cpu")
    assert chat_encoder.tokenizer.decode(batch.input_ids[0]).endswith("<assistant>5<eos>")


def test_a_missing_chat_template_is_a_clear_error(encoder: TextEncoder) -> None:
    task = text_task(conversational=True)
    with pytest.raises(DataError, match=r"'sum-0' is conversational, but the tokenizer has no chat_template"):
        encoder.solver_prompt_ids(task)
    encoder_later = TextEncoder(byte_tokenizer(), FORMAT, 512)
    encoder_later.tokenizer.chat_template = CHAT_TEMPLATE
    assert encoder_later.solver_prompt_ids(task)


@given(st.integers(1, 60), st.integers(0, 20))
def test_long_prompts_are_cut_on_the_left(max_length: int, room: int) -> None:
    encoder = TextEncoder(byte_tokenizer(), FORMAT, max_length)
    text = "".join(chr(97 + i % 26) for i in range(50))
    if room >= max_length:
        with pytest.raises(DataError, match=f"max_length {max_length} leaves no prompt beside {room} answer tokens"):
            encoder.prompt_ids(text_task(), text, room)
    else:
        kept = encoder.tokenizer.decode(encoder.prompt_ids(text_task(), text, room))
        assert text.endswith(kept) and len(kept) == min(50, max_length - room)


@pytest.mark.parametrize(
    ("settings", "before"), [({"add_eos_token": True}, []), ({"add_bos_token": True, "add_eos_token": True}, [1])]
)
def test_a_tokenizer_that_ends_every_text_ends_no_prompt(settings: dict[str, bool], before: list[int]) -> None:
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, **names, **settings)
    tokenizer.chat_template = CHAT_TEMPLATE
    assert tokenizer("x")["input_ids"] == [*before, *byte_tokenizer()("x")["input_ids"], 2]
    encoder, task = TextEncoder(tokenizer, FORMAT, 2048, few_shot=FewShotFormat()), text_task()
    bare, talk = replace(task, demonstrations=()), replace(task, demonstrations=(), conversational=True)
    for prompts in (encoder.generator_prompt_ids, encoder.solver_prompt_ids):
        for each in (task, bare, talk):
            ids, start = prompts(each), [] if each is talk else before
            assert ids[: len(start)] == start and not {1, 2}.intersection(ids[len(start) :])
    rows = [encoder.inner_row(0, each, "3 + 3 = ?", "6") for each in (task, bare, talk)]
    rows += [encoder.demonstration_row(0, task, 0, "")]
    for row in rows:
        assert 2 not in row.prompt_ids and 2 not in row.answer_ids[:-1]
    assert rows[1].prompt_ids == [*before, *byte_tokenizer()(FORMAT.inner_prompt("3 + 3 = ?", bare))["input_ids"]]


# -- answers and rows --------------------------------------------------------------------------------------------------


def test_answers_end(encoder: TextEncoder, world_encoder: TextEncoder) -> None:
    assert encoder.tokenizer.decode(encoder.answer_ids("so 5")) == "so 5<eos>"
    assert encoder.tokenizer.decode(encoder.answer_ids("so 5", end=False)) == "so 5"
    # No beginning-of-sequence token in the middle of a row.
    assert world_encoder.answer_ids("rule03 red") == [world_encoder.tokenizer.vocab[w] for w in ("rule03", "red")] + [2]


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=4), st.integers(2, 16))
def test_rows_learn_their_answers_and_nothing_else(drawn: list[tuple[list[int], list[int]]], max_length: int) -> None:
    encoder = TextEncoder(byte_tokenizer(), FORMAT, max_length)
    rows = [Row(n, prompt, answer) for n, (prompt, answer) in enumerate(drawn)]
    batch = encoder.batch(rows, "cpu")
    assert batch.row_task.tolist() == list(range(len(rows)))
    for row, ids, mask, labels in zip(rows, batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        real = ids[mask.bool()].tolist()
        assert len(real) <= max_length and mask.tolist() == sorted(mask.tolist(), reverse=True)
        learned = labels[labels != IGNORED].tolist()
        # The answer's beginning is kept, then as much of the prompt's end as there is room for; one token at least.
        assert learned == list(row.answer_ids)[: max_length - 1]
        assert real == list(row.prompt_ids)[-(max_length - len(learned)) :] + learned
        assert (ids[~mask.bool()] == 0).all() and (labels[len(real) :] == IGNORED).all()
        assert (labels[: len(real) - len(learned)] == IGNORED).all()


@given(st.lists(token_lists, min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padding(sequences: list[list[int]], side: str) -> None:
    ids, mask = pad_rows(sequences, 0, "cpu", side)
    longest = max(map(len, sequences))
    assert ids.shape == mask.shape == (len(sequences), longest) and ids.dtype == mask.dtype == torch.long
    for sequence, row, kept in zip(sequences, ids.tolist(), mask.tolist(), strict=True):
        gap = longest - len(sequence)
        assert row == ([0] * gap + sequence if side == "left" else sequence + [0] * gap)
        assert kept == ([0] * gap + [1] * len(sequence) if side == "left" else [1] * len(sequence) + [0] * gap)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_a_missing_padding_token_becomes_the_end_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert TextEncoder(tokenizer, FORMAT, 8).tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_an_end_token_is_needed() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"tokenizer\.eos_token is None"):
        TextEncoder(tokenizer, FORMAT, 8)


@given(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=8, unique=True), st.data())
def test_words_are_their_places(words: list[str], data: st.DataObject) -> None:
    vocabulary = ["<pad>", "<bos>", "<eos>", *words]
    tokenizer = build_word_tokenizer(vocabulary)
    text = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=6))
    ids = tokenizer(" ".join(text))["input_ids"]
    assert ids == [1, *map(vocabulary.index, text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(text)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 2


def test_bad_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks \['<bos>'\]"):
        build_word_tokenizer(["<pad>", "<eos>", "a"])
    with pytest.raises(ConfigError, match="has a word twice"):
        build_word_tokenizer(["<pad>", "<bos>", "<eos>", "a", "a"])
