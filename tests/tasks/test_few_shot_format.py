"""How few-shot tasks read: plain and through chat templates, where the loss is, and how answers are read back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.few_shot_format import (
    FEW_SHOT_FORMATS,
    LOSS_ON,
    FewShotFormat,
    Messages,
    resolve_format,
)
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import Demonstration, Task
from research.grids import world as grid_world

COMPACT, ARC, PLAIN = (FEW_SHOT_FORMATS[name] for name in ("compact", "arc", "plain"))
GRIDS = TrainingExample(
    (Demonstration("0 1 2\n3 4 0", "1 1 1\n1 1 1"), Demonstration("0 0 0", "3 4 0")), Demonstration("2 2 0", "3 4 5")
)
WORDS = TrainingExample((Demonstration("cat", "cats"), Demonstration("ox", "oxen")), Demonstration("mouse", "mice"))


def as_task(example: TrainingExample, **more: Any) -> Task:
    return Task(example.query.question, example.demonstrations, answer=example.query.answer, **more)


def text(example: TrainingExample | Task, format: FewShotFormat, **more: Any) -> str:
    return "".join(segment.text for segment in format.render(example, **more))


# Plain text


def test_compact_is_one_character_a_cell() -> None:
    assert text(GRIDS, COMPACT) == "012\n340>111\n111;000>340;220>345;"
    assert text(as_task(GRIDS), COMPACT) == "012\n340>111\n111;000>340;220>"


@given(st.integers(0, 200))
def test_compact_is_the_text_of_the_grid_world(seed: int) -> None:
    pairs = grid_world.draw_task(random.Random(seed), grid_world.curriculum(0.5)).pairs
    texts = [Demonstration(*(grid_text(tuple(map(tuple, grid))) for grid in pair)) for pair in pairs]
    example = TrainingExample(tuple(texts[:-1]), texts[-1])
    expected = grid_world.render_task(pairs)
    assert text(example, COMPACT) == expected
    prompt = text(as_task(example), COMPACT)
    assert prompt == COMPACT.prompt(example)
    assert prompt.endswith(">")
    assert COMPACT.read_answer(expected.removeprefix(prompt) + "123>") == texts[-1].answer


def test_arc_is_arrays_after_an_instruction() -> None:
    head, _, rest = text(GRIDS, ARC).partition("\n\n")
    assert head == ARC.instruction
    assert rest.split("#\n") == [
        "[[0 1 2]\n [3 4 0]] -> [[1 1 1]\n [1 1 1]]",
        "[[0 0 0]] -> [[3 4 0]]",
        "[[2 2 0]] -> [[3 4 5]]",
        "",
    ]
    assert text(as_task(GRIDS), ARC).endswith("#\n[[2 2 0]] ->")


def test_plain_is_lines_of_input_and_output() -> None:
    assert text(WORDS, PLAIN) == (
        "Input: cat\nOutput: cats\n\nInput: ox\nOutput: oxen\n\nInput: mouse\nOutput: mice\n\n"
    )
    assert text(as_task(WORDS), PLAIN).endswith("oxen\n\nInput: mouse\nOutput:")
    assert text(as_task(WORDS), FEW_SHOT_FORMATS["questions"]).endswith("A: oxen\n\nQ: mouse\nA:")


def test_the_instruction_of_a_task_takes_the_place_of_the_formats() -> None:
    formatted = replace(PLAIN, instruction="Answer.")
    assert text(WORDS, formatted).startswith("Answer.\n\nInput: cat")
    own = replace(WORDS, instruction="Give the plural.")
    assert text(own, formatted).startswith("Give the plural.\n\nInput: cat")
    task = as_task(WORDS, fields={"instruction": "Give the plural."})
    assert formatted.prompt(own) == formatted.prompt(task) == text(task, formatted)
    assert text(task, formatted).startswith("Give the plural.\n\nInput: cat")


# Loss


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("query", ["mice"]),
        ("demonstrations", ["oxen", "mice"]),
        ("outputs", ["cats", "oxen", "mice"]),
        ("all", ["cat", "cats", "ox", "oxen", "mouse", "mice"]),
    ],
)
def test_where_the_loss_is(loss_on: Any, expected: list[str]) -> None:
    format = replace(PLAIN, instruction="Answer.")
    segments = format.render(WORDS, loss_on)
    assert trained_words(segments) == expected
    assert not segments[0].trained  # the instruction
    direct = format.render(replace(WORDS, demonstrations=()), loss_on)
    assert trained_words(direct) == (["mouse", "mice"] if loss_on == "all" else ["mice"])


def trained_words(segments: list[Any]) -> list[str]:
    trained = "".join(segment.text for segment in segments if segment.trained)
    return trained.replace("Input: ", " ").replace("\nOutput:", " ").split()


def test_the_loss_is_on_the_end_of_an_output_and_not_on_what_leads_to_it() -> None:
    trained = [segment.text for segment in PLAIN.render(WORDS) if segment.trained]
    assert trained == [" oxen\n\n", " mice\n\n"]
    assert [segment.text for segment in COMPACT.render(GRIDS, "outputs") if segment.trained] == [
        "111\n111;",
        "340;",
        "345;",
    ]


@pytest.mark.parametrize("name", FEW_SHOT_FORMATS)
@pytest.mark.parametrize("loss_on", LOSS_ON)
@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_is_the_beginning_of_the_example(name: str, loss_on: Any, chat: bool) -> None:
    format = replace(FEW_SHOT_FORMATS[name], chat=chat)
    more = {"template": chatml} if chat else {}
    segments = format.render(GRIDS, loss_on, **more)
    assert format.render(as_task(GRIDS), loss_on, **more) == segments[:-1]
    assert format.prompt(GRIDS, **more) == "".join(segment.text for segment in segments[:-1])
    assert [segment.text for segment in segments] == [segment.text for segment in format.render(GRIDS, **more)]
    assert segments[-1].trained


# Reading answers


def test_answers_end_at_the_separator() -> None:
    assert PLAIN.stop() == "\n\n"
    assert PLAIN.read_answer(" mice\n\nInput: louse\nOutput: lice") == "mice"
    assert PLAIN.read_answer("two\nlines") == "two\nlines"
    assert PLAIN.read_answer(" \n\nInput:") is PLAIN.read_answer("") is None
    assert COMPACT.read_answer("12\n34;0>") == "1 2\n3 4"
    assert COMPACT.read_answer("12\n3") is COMPACT.read_answer(";12") is COMPACT.read_answer("12>3;") is None
    assert ARC.read_answer(" [[1 2]\n [3 4]]#\n[[0]] -> [[1]]#\n") == "1 2\n3 4"
    assert ARC.read_answer(" [[1, 2], [3, 4]]#\n") == "1 2\n3 4"
    assert ARC.read_answer(" [[1 2]\n [3") is None


def test_answers_stop_where_the_demonstrations_do() -> None:
    one_line = Task.from_pairs([("cat", "cats"), ("dog", "dogs")], "fox")
    several = Task.from_pairs([("a b", "a\nb"), ("c", "c")], "d e")
    written = " foxes\nInput: ox\nOutput: oxen\n\nInput:"
    for fmt in (PLAIN, replace(PLAIN, chat=True)):
        assert fmt.read_answer(written, one_line) == "foxes"
    assert PLAIN.stop(one_line) == "\n" and PLAIN.stop(several) == PLAIN.stop(Task("fox")) == "\n\n"
    assert PLAIN.read_answer(" d\ne\n\nInput:", several) == "d\ne"
    assert replace(PLAIN, pair_separator=" END").stop(one_line) == " END"
    assert COMPACT.stop(Task.from_pairs([("1", "2")], "3")) == ";"


def test_in_a_chat_the_whole_text_is_the_answer() -> None:
    format = replace(PLAIN, chat=True)
    assert format.stop() is None
    assert format.read_answer("one\n\ntwo ") == "one\n\ntwo"
    assert replace(ARC, chat=True).read_answer("[[1, 2]]\n") == "1 2"


@given(st.sampled_from(["compact", "arc"]), st.booleans(), st.data())
def test_grids_are_read_back_as_they_were_written(name: str, chat: bool, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 4))
    rows = st.lists(st.integers(0, 9), min_size=width, max_size=width).map(tuple)
    answer = grid_text(tuple(data.draw(st.lists(rows, min_size=1, max_size=4))))
    format = replace(FEW_SHOT_FORMATS[name], chat=chat)
    example = TrainingExample((), Demonstration("0", answer))
    written = format.render(example, template=chatml)[-1].text
    assert format.read_answer(written.removesuffix("<|im_end|>\n")) == answer
    assert parse_grid(answer) is not None


# Chat templates


def chatml(messages: Messages, generate: bool) -> str:
    shown = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
    return shown + ("<|im_start|>assistant\n" if generate else "")


def bare(messages: Messages, generate: bool) -> str:
    return "".join(one["content"] for one in messages)


def counting(messages: Messages, generate: bool) -> str:
    return "".join(f"<{place}>{one['content']}" for place, one in enumerate(messages))


def trimming(messages: Messages, generate: bool) -> str:
    """With a system message of its own, and contents without the space around them."""
    shown = "".join(f"<h>{one['role']}</h>\n\n{one['content'].strip()}<eot>" for one in messages)
    return "<bos><h>system</h>\n\nIt is 1 May 2020.<eot>" + shown + ("<h>assistant</h>\n\n" if generate else "")


def ending(messages: Messages, generate: bool) -> str:
    """With another end after the last message than between them."""
    shown = "".join(f"<|{one['role']}|>\n{one['content']}<|end|>\n" for one in messages)
    return shown + ("<|assistant|>\n" if generate else "<|endoftext|>")


def thinking(messages: Messages, generate: bool) -> str:
    """With empty thoughts before the last answer, and a block of thoughts opened where one is to be generated."""
    *before, last = messages
    if generate:
        return chatml(messages, True) + "<think>"
    return chatml([*before, {**last, "content": f"<think></think>{last['content']}"}], False)


def spaced(messages: Messages, generate: bool) -> str:
    """With a space before what is said, which tokenizers join to the word behind it."""
    shown = "".join(f"{one['role']}: {one['content']}</s>\n" for one in messages)
    return shown + ("assistant:" if generate else "")


def test_messages_take_turns() -> None:
    format = replace(PLAIN, instruction="Give the plural.", chat=True)
    assert format.messages(as_task(WORDS)) == [
        {"role": "user", "content": "Give the plural.\n\ncat"},
        {"role": "assistant", "content": "cats"},
        {"role": "user", "content": "ox"},
        {"role": "assistant", "content": "oxen"},
        {"role": "user", "content": "mouse"},
    ]
    assert format.messages(WORDS)[-1] == {"role": "assistant", "content": "mice"}
    assert COMPACT.messages(GRIDS)[1]["content"] == "111\n111"


@pytest.mark.parametrize("template", [chatml, trimming, ending, spaced])
@pytest.mark.parametrize("example", [WORDS, as_task(WORDS), replace(WORDS, demonstrations=())])
def test_segments_of_a_chat_make_up_its_text(template: Callable[..., str], example: TrainingExample | Task) -> None:
    format = replace(PLAIN, chat=True)
    whole = template(format.messages(example), isinstance(example, Task))
    assert text(example, format, template=template) == whole


def test_an_answer_to_be_generated_begins_as_a_known_one_does() -> None:
    format = replace(PLAIN, chat=True)
    opening = "<|im_end|>\n<|im_start|>assistant\n<think></think>"
    prompt, whole = text(as_task(WORDS), format, template=thinking), text(WORDS, format, template=thinking)
    assert whole == f"{prompt}mice<|im_end|>\n"
    assert prompt.endswith(f"mouse{opening}") and prompt.count("<think></think>") == 3  # before every answer
    last = thinking([{"role": "user", "content": "mouse"}, {"role": "assistant", "content": "mice"}], False)
    assert whole.endswith(last)
    segments = format.render(WORDS, template=spaced)
    assert segments[-2].text == "user: mouse</s>\nassistant:" and segments[-1].text == " mice</s>\n"


def test_the_loss_in_a_chat_is_on_answers_and_the_ends_of_their_turns() -> None:
    format = replace(PLAIN, chat=True, instruction="Give the plural.")

    def trained(template: Callable[..., str], loss_on: Any = "outputs") -> list[str]:
        return [segment.text for segment in format.render(WORDS, loss_on, template) if segment.trained]

    assert trained(chatml) == ["cats<|im_end|>\n", "oxen<|im_end|>\n", "mice<|im_end|>\n"]
    assert trained(chatml, "query") == ["mice<|im_end|>\n"]
    assert trained(trimming) == ["cats<eot>", "oxen<eot>", "mice<eot>"]
    assert trained(thinking) == ["cats<|im_end|>\n", "oxen<|im_end|>\n", "mice<|im_end|>\n"]
    assert trained(ending) == ["cats<|end|>\n", "oxen<|end|>\n", "mice<|end|>\n<|endoftext|>"]
    assert trained(chatml, "all")[0] == "<|im_start|>user\nGive the plural.\n\ncat<|im_end|>\n<|im_start|>assistant\n"


def test_templates_of_no_use_are_refused() -> None:
    format = replace(PLAIN, chat=True)
    with pytest.raises(ConfigError, match="chat is set, but there is no chat template"):
        format.render(WORDS)
    with pytest.raises(ConfigError, match="writes no end behind an answer"):
        format.render(WORDS, template=bare)
    with pytest.raises(ConfigError, match=r"behind one answer and .* behind the next"):
        format.render(WORDS, template=counting)
    with pytest.raises(ConfigError, match="does not show every message, in order"):
        format.render(WORDS, template=lambda messages, generate: chatml(messages[-1:], generate))
    with pytest.raises(ConfigError, match="does not show every message, in order"):
        format.render(WORDS, template=lambda messages, generate: chatml(messages[1:], generate))
    with pytest.raises(ConfigError, match="does not show every message, in order"):
        format.render(WORDS, template=lambda messages, generate: chatml(messages[::-1], generate))


# Bad input


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match=r"grid_form is 'compact'.*no grid: 'cat'.*'plain'"):
        COMPACT.render(WORDS)
    with pytest.raises(DataError, match="no grid: '1 2\\\\n3'"):
        ARC.messages(Task("1 2\n3", GRIDS.demonstrations))
    cut = replace(WORDS, query=Demonstration("x", "one\n\ntwo"))
    with pytest.raises(DataError, match=r"pair_separator '\\n\\n'.*'one\\n\\ntwo'"):
        PLAIN.render(cut)
    assert replace(PLAIN, chat=True).render(cut, template=chatml)
    with pytest.raises(DataError, match="'id7' has a conversation before it"):
        PLAIN.render(as_task(WORDS, history=(("user", "hello"),), id="id7"))
    with pytest.raises(ConfigError, match=r"loss_on is 'input'; choose one of \['query', "):
        PLAIN.render(WORDS, "input")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pair_separator": ""}, "pair_separator is empty"),
        ({"grid_form": "png"}, r"grid_form is 'png'; choose one of \['spaced', 'compact'"),
        ({"input_prefix": None}, "FewShotFormat.input_prefix must be a string, got None"),
        ({"instruction": 3}, "instruction must be a string"),
        ({"chat": "yes"}, "FewShotFormat.chat must be True or False, got 'yes'"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FewShotFormat(**setting)


def test_formats_by_name() -> None:
    assert resolve_format("arc") is ARC
    assert resolve_format(PLAIN) is PLAIN
    with pytest.raises(ConfigError, match=r"'json'; choose one of \['compact', 'arc', 'plain'"):
        resolve_format("json")
    assert FewShotFormat(**asdict(ARC)) == ARC


# -- written inputs ----------------------------------------------------------------------------------------------------


def test_a_written_input_is_read_up_to_its_output() -> None:
    assert PLAIN.read_input(" dogs\nOutput: dog") == "dogs"
    assert PLAIN.read_input(" dogs") == "dogs"
    assert PLAIN.read_input(" \nOutput: dog") is None
    assert PLAIN.read_input(" dogs\n\nInput: cat\nOutput: cats") is None  # a pair without an output went before
    assert COMPACT.read_input("12\n34>43") == "1 2\n3 4" and COMPACT.read_input("12\n3>") is None
    assert replace(PLAIN, chat=True).read_input(" two\nlines ") == "two\nlines"
    assert PLAIN.input_stop == "\nOutput:" and replace(PLAIN, chat=True).input_stop is None
    with pytest.raises(ConfigError, match="there is no chat template"):
        replace(PLAIN, chat=True).continued(as_task(WORDS))
