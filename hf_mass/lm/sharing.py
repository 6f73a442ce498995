"""Which models can read rows that begin alike as one sequence: found out by trying, once for a model."""

from __future__ import annotations

import inspect
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_mass.core.dropout import without_noise
from hf_mass.core.kernels import dtype_of
from hf_mass.core.sharing import LONGEST, NO_SHARING, Sequences, Sharing
from hf_mass.core.symmetry import fingerprint
from hf_mass.lm.prefix import attended_length, keeps_state

logger = logging.getLogger(__name__)
_MASKED = ("sdpa", "eager")
"""Kinds of attention that take the mask that they are given."""
_ROUNDING = {torch.bfloat16: 0.2, torch.float16: 0.02}
"""Of SmolLM2-135M in bfloat16: .00 to .07; without the mask .65 to .94, without the positions .68 to .73."""
_CANNOT = (ValueError, TypeError, IndexError, RuntimeError)
"""What models raise, each in its own way, where they cannot take a mask of this form."""
_TRIED = 16
"""Tokens of the rows that are tried."""
_KNOWN: WeakKeyDictionary[PreTrainedModel | PeftModel, tuple[tuple[Any, ...], bool]] = WeakKeyDictionary()


def sharing_of(model: PreTrainedModel | PeftModel) -> Sharing:
    """Which rows may share a sequence: none where the model would read them differently than apart.

    Its attention must take a mask as it is, and positions that are given; it may keep no state from token to token, and
    a sliding window must be longer than a row. What else may be in the way shows in the numbers: a few tokens are read
    both ways.

    Args:
        model: In evaluation mode, without an active adapter.
    """
    config = model.config.get_text_config()
    longest = min(attended_length(config), LONGEST)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    takes = inspect.signature(type(base).forward).parameters
    attention = getattr(config, "_attn_implementation", None)
    if longest < _TRIED or keeps_state(model) or attention not in _MASKED or "position_ids" not in takes:
        return NO_SHARING
    now = (*fingerprint(model), attention, dtype_of(model))
    if model not in _KNOWN or _KNOWN[model][0] != now:
        _KNOWN[model] = now, _reads_alike(model)
    return Sharing(longest) if _KNOWN[model][1] else NO_SHARING


@torch.no_grad()
def _reads_alike(model: PreTrainedModel | PeftModel) -> bool:
    """Whether three short rows are read alike as one sequence and apart.

    The measure is how far apart the last row is from what it would be behind the others, as ordinary text: that is what
    a mask or positions that are not heeded would come to. In a small model it may be little.
    """
    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (3, _TRIED), generator=generator)
    ids[:, : _TRIED // 2] = ids[0, : _TRIED // 2]
    ids, lengths = ids.to(device), torch.tensor([_TRIED, _TRIED - 2, _TRIED], device=device)
    one, own = Sequences.of(ids, lengths, [[0, 1, 2]]), slice(_TRIED // 2, _TRIED)
    rest = one.place[2, own]

    def read(**inputs: Tensor) -> Tensor:
        with without_noise(model, device):
            return model(**inputs, use_cache=False).logits.float()

    apart = read(input_ids=ids[2:])[0, own]
    try:
        together = read(**one.arguments(dtype_of(model)))[0]
    except _CANNOT as error:
        logger.info("%s reads rows that begin alike apart: %s", type(model).__name__, error)
        return False
    behind = read(input_ids=one.input_ids)[0]
    effect = (behind[rest] - apart).norm()
    return bool((together[rest] - apart).norm() < _ROUNDING.get(dtype_of(model), 1e-3) * effect)
