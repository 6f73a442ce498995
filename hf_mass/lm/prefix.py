"""What many prompts begin with, read once: one forward pass over the common prefix fills the cache of all rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_mass.errors import UnsupportedModelError

KEYWORD = "cache" if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
"""What transformers calls the cache that it is handed."""
SHORTEST = 32
"""Tokens of a prefix below which reading it for each row costs less than it saves."""


@dataclass(frozen=True)
class Prefix:
    """A common prefix of prompts, as the model remembers it.

    Args:
        length: Its length in tokens; each prompt has at least one token behind it.
        cache: Keys and values [rows, heads, length, features] of each layer.
    """

    length: int
    cache: DynamicCache

    @classmethod
    def read(cls, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], room: int = 0) -> Prefix | None:
        """The prefix of several prompts; None where it is short, or the model remembers more than keys and values.

        A model with a recurrent state, or a sliding window that prompts and answers do not fit into, would count the
        padding that stands between prefix and rest.

        Args:
            model: A causal language model.
            prompts: Token ids of each row.
            room: Tokens that may follow the longest.
        """
        if len(prompts) < 2:
            return None
        columns = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
        length = min(sum(1 for _ in columns), min(map(len, prompts)) - 1)
        config = model.config.get_text_config()
        within = max(map(len, prompts)) + room <= attended_length(config)
        if length < SHORTEST or keeps_state(model) or not within:
            return None
        cache = DynamicCache(config=config)
        ids = torch.tensor([list(prompts[0][:length])], device=next(model.parameters()).device)
        model(input_ids=ids, use_cache=True, logits_to_keep=1, **{KEYWORD: cache})
        if any(type(layer) not in _LAYERS for layer in cache.layers) or cache.get_seq_length() != length:
            return None
        cache.batch_repeat_interleave(len(prompts))
        return cls(length, cache)


_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_STATES = ("state_size", "ssm_state_size", "lru_width", "mamba_d_state", "conv_L_cache", "linear_conv_kernel_dim")


def keeps_state(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a model carries a state from token to token (recurrent, or a convolution): it would read padding."""
    config = model.config.get_text_config()
    stateful = any(getattr(module, "_is_stateful", False) for module in model.modules())
    layers = set(getattr(config, "layer_types", None) or _ATTENTION)
    return stateful or not layers <= _ATTENTION or any(getattr(config, name, None) for name in _STATES)


def require_no_state(model: PreTrainedModel | PeftModel) -> None:
    """Refuse a model for a trainer of TRL, which pads prompts in front.

    Raises:
        UnsupportedModelError: If the model keeps a state.
    """
    if keeps_state(model):
        kind = model.config.get_text_config().model_type
        raise UnsupportedModelError(
            f"A model of type {kind!r} keeps a state from token to token, and TRL pads prompts on the left, which gets "
            "into it. Use a model with attention alone; `adapt`, `solve` and TTTTrainer's objective 'sft' do not pad "
            "there."
        )


def attended_length(config: object) -> int:
    """Longest sequence in which every layer attends to everything before it; 0 where some never does."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if not layers <= {"full_attention", "sliding_attention"}:
        return 0
    return window - 1 if window else sys.maxsize
