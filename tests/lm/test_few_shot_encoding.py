"""Few-shot prompts begin as the tokenizer begins a text."""

from __future__ import annotations

import pytest
from model_fixtures import byte_tokenizer
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_mass.lm.few_shot_encoding import FewShotEncoder, opening
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS
from hf_mass.tasks.task import Task

TASK = Task.from_pairs([("cat", "cats"), ("dog", "dogs")], "fox")


@pytest.mark.parametrize(
    ("template", "before"), [(None, []), ("<bos> $A", [1]), ("<bos> $A <eos>", [1]), ("$A <eos>", [])]
)
def test_prompt_has_special_tokens_of_the_tokenizers_own_rule(template: str | None, before: list[int]) -> None:
    tokenizer = byte_tokenizer()
    if template:
        marks = [("<bos>", 1), ("<eos>", 2)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=marks)
    encoder = FewShotEncoder(tokenizer, FEW_SHOT_FORMATS["plain"])
    text = FEW_SHOT_FORMATS["plain"].prompt(TASK)
    assert opening(tokenizer) == before
    assert encoder.prompt(TASK) == before + tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_begins_a_text_is_found_though_the_tokenizer_drops_unknown_characters() -> None:
    backend = Tokenizer(models.BPE(vocab={"<bos>": 0, "<eos>": 1, "a": 2}, merges=[]))
    marks = [("<bos>", 0), ("<eos>", 1)]
    backend.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    assert tokenizer("1")["input_ids"] == [0, 1] and opening(tokenizer) == [0]
