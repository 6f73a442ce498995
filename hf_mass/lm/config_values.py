"""Values of a config.json, which may be anybody's: those that no model can be made of, or a wrong one, are named.

transformers checks the types of the fields that it knows, and not those within rope_parameters, nor whether a size, a
base of rotary embeddings or an epsilon is one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.activations import ACT2FN

from hf_mass.errors import CheckpointError
from hf_mass.tasks.checks import shown

MOST_LAYERS = 1000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "n_embd",
        "d_model",
        "embedding_size",
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "state_size",
    ]
)
_WIDTHS = frozenset(["intermediate_size", "n_inner", "d_ff", "ffn_dim"])  # some models have layers without
_IS_NUMBER = re.compile(
    r"rope_theta|rotary_emb_base|rope_local_base_freq|(?:.*_)?(?:eps|epsilon|dropout|softcapping|scalar|std)|factor"
    r"|partial_rotary_factor|rotary_pct|sliding_window|initializer_range"
)
_IS_SWITCH = re.compile(r"use_|do_|with_|no_|sliding_window")  # also off by false, where others have null
_IS_BASE = re.compile(r"rope_theta|rotary_emb_base|rope_local_base_freq|factor")
_IS_EPSILON = re.compile(r"(?:.*_)?(?:eps|epsilon)")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_STRICT = re.compile(r"[Vv]alidation error for (?:field|validator) '(\w+)'\s*:?\s*(.*)", re.DOTALL)


def require_sane(config: Mapping[str, Any], source: str | Path) -> None:
    """Checks values that would make a model without end, none, or one that computes something else.

    Raises:
        CheckpointError: Naming the field, its value and what is wrong with it.
    """
    if found := _wrong(config):
        raise CheckpointError(f"{str(source)!r}: {found}. Correct it.")


def told(error: Exception, config: Mapping[str, Any]) -> str:
    """What a model could not be made for, in a line, with the field of its config where that can be told."""
    if found := _wrong(config):
        return found
    text = " ".join(str(error).split())
    if strict := _STRICT.search(text):
        name, reason = strict[1], strict[2].strip()[:200]
        is_field = name in config
        return f"config.json has {name} {shown(config[name])} ({reason})" if is_field else f"config.json: {reason}"
    reason = f"{type(error).__name__}: {text[:300]}"
    named = [(name, value) for name, value in _fields(config) if isinstance(value, str) and repr(value) in text]
    return reason + (f" (config.json has {named[0][0]} {shown(named[0][1])})" if named else "")


def _wrong(config: Mapping[str, Any]) -> str | None:
    """The first field whose value is wrong, and why."""
    for name, value in _fields(config):
        if (problem := _problem(name.rpartition(".")[2], value)) is not None:
            return f"config.json has {name} {shown(value)}, {problem}"
    return None


def _fields(config: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with the value of a field; None if nothing is, or that is not known."""
    is_whole, is_number = type(value) is int, type(value) in (int, float)
    if type(value) is float and not math.isfinite(value):
        return "no number" if math.isnan(value) else "no finite number"
    if value is None:
        return "no number" if name == "rope_theta" else None
    if name == "rope_type" and not isinstance(value, str):
        return "no text"
    if name in _LAYERS and not (is_whole and 1 <= value <= MOST_LAYERS):
        return f"outside 1 to {MOST_LAYERS}" if is_whole else "no whole number"
    if name in _SIZES | _WIDTHS and not isinstance(value, list):
        least = int(name in _SIZES)
        return None if is_whole and value >= least else f"no whole number of at least {least}"
    if _IS_NUMBER.fullmatch(name) and not is_number and not (isinstance(value, bool) and _IS_SWITCH.match(name)):
        return "no number"
    if _IS_BASE.fullmatch(name) and value <= 0:
        return "which must be above 0"
    if _IS_EPSILON.fullmatch(name) and not 0 <= value < 1:
        return "outside 0 to 1"
    if name in ("dtype", "torch_dtype") and value != "auto":
        is_dtype = isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), 0), torch.dtype)
        return None if is_dtype else "no dtype of torch"
    if name in _ACTIVATIONS and (not isinstance(value, str) or value not in ACT2FN):
        return "no activation of transformers"
    return None
