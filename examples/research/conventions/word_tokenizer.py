"""A fast tokenizer of whole words, for models whose vocabulary is a short list of words."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_mass.errors import ConfigError


def build_word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A `PreTrainedTokenizerFast` that splits on white space and gives each word its place in `vocabulary` as id.

    Args:
        vocabulary: Distinct words; must hold "<pad>", "<bos>" and "<eos>".

    Raises:
        ConfigError: If a word is missing or appears twice.
    """
    ids = {word: index for index, word in enumerate(vocabulary)}
    missing = [word for word in ("<pad>", "<bos>", "<eos>") if word not in ids]
    if missing or len(ids) != len(vocabulary):
        problem = f"lacks {missing}" if missing else "has a word twice"
        raise ConfigError(f"vocabulary {problem}; give distinct words that include <pad>, <bos> and <eos>.")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
