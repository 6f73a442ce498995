"""Few-shot prompts begin as the tokenizer begins a text."""

from __future__ import annotations

import pytest
from model_fixtures import byte_tokenizer
from tokenizers.processors import TemplateProcessing

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
