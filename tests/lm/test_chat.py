"""Chat templates: all that TRL bundles, in few-shot chats and in conversational prompts, with their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from model_fixtures import byte_base, byte_tokenizer
from transformers import PreTrainedTokenizerFast

import hf_mass
from hf_mass import MASS, TTT, Task
from hf_mass.errors import ConfigError
from hf_mass.lm.chat import Chat
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods import few_shot_answers
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.mass import as_read
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import Demonstration

TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
CHAT = FewShotFormat(chat=True)
TASK = Task.from_pairs([("cat", "cats"), ("ox", "oxen")], "mouse")
EXAMPLE = TrainingExample(TASK.demonstrations, Demonstration("mouse", "mice"))
IM = "<|im_end|>\n<|im_start|>assistant\n"
THOUGHTLESS = f"{IM}<think>\n\n</think>\n\n"
AROUND = {  # beginning of a template's name → (from the question to the answer, behind the last answer)
    "cohere2": (
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "cohere": ("<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<turn|>\n<|turn>model\n", "<turn|>\n"),
    "gemma4": ("<turn|>\n<|turn>model\n", "<turn|>\n"),
    "gemma": ("<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n"),
    "glm4moe_training": ("/nothink<|assistant|>\n<think></think>\n", "<|user|>"),
    "glm4moe": ("/nothink<|assistant|>\n<think></think>\n", "<|user|>\n"),
    "gptoss": ("<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
    "idefics3": ("<end_of_utterance>\nAssistant: ", "<end_of_utterance>\n"),
    "lfm2": (IM, "<|im_end|>\n"),
    "llama3": ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "llava_next": (" [/INST] ", "</s> "),
    "muse_glimmer": ("<|eot|><|start|>assistant to=user<|message|>", "<|eot|>"),
    "nemotron": (f"{IM}<think></think>", "<|im_end|>\n"),
    "phi3": ("<|end|>\n<|assistant|>\n", "<|end|>\n<eos>"),
    "qwen2_5": (IM, "<|im_end|>\n"),
    "qwen3_instruct_2507": (IM, "<|im_end|>\n"),
    "qwen3_vl": (IM, "<|im_end|>\n"),
    "qwen3": (THOUGHTLESS, "<|im_end|>\n"),
    "smolvlm": ("<end_of_utterance>\nAssistant: ", "<end_of_utterance>\n"),
}

MIDDLE = {"gptoss": "<|end|>", "phi3": "<|end|>\n"}
"""Behind the other answers, where that differs."""


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[template].read_text(encoding="utf-8")
    return tokenizer


def test_templates_are_there() -> None:
    assert len(TEMPLATES) > 60


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_trl_makes_few_shot_chats(name: str) -> None:
    """Written out by hand what stands around an answer; the template itself is asked for the rest."""
    opening, end = next(around for family, around in AROUND.items() if name.startswith(family))
    tokenizer = tokenizer_with(name)
    encoder = FewShotEncoder(tokenizer, CHAT)
    ids, learned = encoder.example(EXAMPLE, "outputs")
    prompt, whole = encoder.prompt(TASK), tokenizer.decode(ids)
    assert ids[: len(prompt)] == prompt  # token by token
    assert whole.endswith(f"mouse{opening}mice{end}")
    assert all(f"{pair.question}{opening}{pair.answer}" in whole for pair in TASK.demonstrations)
    chat = Chat(tokenizer, {"enable_thinking": False})
    messages = CHAT.messages(EXAMPLE)
    own = chat.text(messages, False)
    assert whole.startswith(own[: own.index("cat")])
    if name != "glm4moe":  # which writes no end behind the last answer
        last = own[own.index("mouse") :]
        assert whole.endswith(last) and last == f"mouse{opening}mice{end}"
    lead, middle = " " * opening.endswith(" "), MIDDLE.get(name.split("_")[0], end)
    trained = [segment.text for segment in CHAT.render(EXAMPLE, "outputs", encoder.turns) if segment.trained]
    assert trained == [f"{lead}cats{middle}", f"{lead}oxen{middle}", f"{lead}mice{end}"]
    assert encoder.stop() == middle.strip()
    assert tokenizer.decode([token for token, flag in zip(ids, learned, strict=True) if flag]) == "".join(trained)


def test_thoughts_that_examples_lack_are_refused() -> None:
    tokenizer = tokenizer_with("qwen3")
    with pytest.raises(
        ConfigError, match=r"enable_thinking = True, but the answers of few-shot examples have no thought"
    ):
        FewShotEncoder(tokenizer, CHAT, {"enable_thinking": True})
    assert FewShotEncoder(tokenizer, FewShotFormat(), {"enable_thinking": True}).turns is None  # plain text has none
    with pytest.raises(ConfigError, match="chat is set, but the tokenizer has no chat template"):
        FewShotEncoder(byte_tokenizer(), CHAT)


def test_what_a_template_refuses_is_a_clear_error() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ConfigError, match=r"chat template cannot be used \(no such role\)"):
        Chat(tokenizer, {}).text([{"role": "user", "content": "x"}], True)


# -- on models ---------------------------------------------------------------------------------------------------------


def chat_lm(**settings: Any) -> LanguageModel:
    return hf_mass.load(byte_base(), tokenizer_with("qwen3"), **settings)


def test_chat_reaches_every_method() -> None:
    plain, chat, never = chat_lm(), chat_lm(chat=True), chat_lm(chat=False)
    prompts = [
        FewShotAnswers(lm, TTT(preset="text").resolved(lm, [TASK])).encoder.prompt(TASK) for lm in (plain, chat, never)
    ]
    texts = [plain.tokenizer.decode(prompt) for prompt in prompts]
    assert texts[0] == texts[2] == "Input: cat\nOutput: cats\n\nInput: ox\nOutput: oxen\n\nInput: mouse\nOutput:"
    assert texts[1].endswith(f"mouse{THOUGHTLESS}")
    assert TTT(preset="text", chat=False).resolved(chat, [TASK]).chat is False  # a method's own goes before
    assert TTT(preset="text", chat=True).resolved(never, [TASK]).chat is True

    shown = []
    for lm in (plain, chat, never):
        (task,) = as_read(lm, [TASK])
        encoder = MASS(prompt_format="plain").resolved(lm, [TASK]).encoder
        shown.append(lm.tokenizer.decode(encoder.solver_prompt_ids(task)))
    assert shown[0] == shown[1] and shown[0].endswith(IM) and "<|im_start|>" not in shown[2]

    lists = [MASS().resolved(lm, [TASK]).encoder.solver_prompt_ids(TASK) for lm in (plain, chat, never)]
    assert lists[1] == chat_prompt(chat) and lists[0] == lists[2] != lists[1]  # that of test-time training


def chat_prompt(lm: LanguageModel) -> list[int]:
    return FewShotAnswers(lm, TTT().resolved(lm, [TASK])).encoder.prompt(TASK)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "glm4moe", "idefics3", "llama3"])
def test_a_list_of_examples_is_continued_by_an_input(name: str) -> None:
    """As far as it goes, it is the prompt of a task that has those examples."""
    tokenizer = tokenizer_with(name)
    encoder = FewShotEncoder(tokenizer, CHAT)
    begun, prompt = (tokenizer.decode(ids) for ids in (encoder.continued(TASK), encoder.prompt(TASK)))
    rest = prompt.removeprefix(begun)
    assert rest != prompt and rest.lstrip().startswith(f"mouse{AROUND[name][0].rstrip(' ')}")
    written = tokenizer(rest, add_special_tokens=False)["input_ids"]
    assert encoder.is_ended(written, encoder.input_stop)
    assert CHAT.read_input(encoder.texts([written], encoder.input_stop)[0]) == "mouse"


def test_arguments_of_the_template_reach_conversational_prompts() -> None:
    lm = chat_lm(chat_template_kwargs={"enable_thinking": False})
    (task,) = as_read(lm, [TASK])
    encoder = MASS(prompt_format="plain").resolved(lm, [TASK]).encoder
    assert lm.tokenizer.decode(encoder.solver_prompt_ids(task)).endswith(THOUGHTLESS)


def test_an_answer_stops_at_the_end_of_its_turn_though_that_is_no_end_of_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = chat_lm(chat=True)
    answers = FewShotAnswers(lm, TTT(preset="text").resolved(lm, [TASK]))
    written = lm.tokenizer("mice<|im_end|>\n<|im_start|>user", add_special_tokens=False)["input_ids"]
    asked: list[str] = []

    def complete(*args: Any, **kwargs: Any) -> list[list[int]]:
        asked.append(args[5])
        return [written]

    monkeypatch.setattr(few_shot_answers, "complete", complete)
    monkeypatch.setattr(answers, "_longest_answer", lambda task: 100)
    predictions, _ = answers.predict([TASK])
    assert asked == ["<|im_end|>"] and [each.answer for each in predictions[0]] == ["mice"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat": "yes"}, "chat is 'yes'; choose True, False, or None"),
        ({"chat_template_kwargs": ["x"]}, r"chat_template_kwargs is \['x'\]; give names and values"),
        (
            {"chat_template_kwargs": {"enable_thinkin": 0}},
            "has 'enable_thinkin', which the model's chat template does not use",
        ),
    ],
)
def test_wrong_choices_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chat_lm(**settings)


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(ConfigError, match="chat is True, but the tokenizer has no chat template"):
        hf_mass.load("strings-base", chat=True)
    with pytest.raises(
        ConfigError, match="chat_template_kwargs has 'enable_thinking', but the tokenizer has no chat template"
    ):
        hf_mass.load("strings-base", chat_template_kwargs={"enable_thinking": False})
    assert hf_mass.load("strings-base", chat=False).converses is False


def test_a_saved_adaptation_keeps_its_chat(tmp_path: Path) -> None:
    byte_base().save_pretrained(tmp_path / "base")
    tokenizer_with("qwen3").save_pretrained(tmp_path / "base")
    lm = hf_mass.load(tmp_path / "base", chat=True, chat_template_kwargs={"enable_thinking": False}, device="cpu")
    hf_mass.adapt(lm, TASK, TTT(preset="text", max_examples=2)).save(tmp_path / "adapted")
    again = hf_mass.load(tmp_path / "adapted", device="cpu")
    assert again.chat is True and again.chat_template_kwargs == {"enable_thinking": False}
    assert TTT().resolved(again, [TASK]).chat is True
    assert hf_mass.load(tmp_path / "adapted", chat=False, device="cpu").chat is False
