"""Putting a saved model together: its folder, the base that it names or is given, and whether the two fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.lm.base_models import load_base, load_tokenizer
from hf_mass.lm.random_state import host_random_state
from hf_mass.lm.special_tokens import tokens_without_rows
from hf_mass.store.adapters import require_adapter
from hf_mass.store.hub_files import Token
from hf_mass.store.shipped import resolve_bases, resolve_shipped
from hf_mass.store.storage import ADAPTER_FILES, read_json

GENERATOR, INNER = "default", "inner"
_FOLDERS = {GENERATOR: "generator", INNER: "inner"}


@host_random_state()
def load_adapted(
    folder: Path,
    name: str,
    made_for: Mapping[str, Any],
    base: str | Path | PreTrainedModel | None,
    token: Token,
    model_kwargs: Mapping[str, Any],
    adapters: Mapping[str, str] = _FOLDERS,
    prepare: Callable[[PreTrainedModel], PreTrainedModel] = lambda base: base,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base with the generator's and the inner adapter of a saved model, and the tokenizer.

    Args:
        folder: The saved model.
        name: What the caller knows it by.
        made_for: What the base is like that the adapters were made for, as `describe_base` tells; empty if not known.
        base: The base; None for the one that the generator's adapter_config.json names.
        token: Access token of the Hub.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.
        adapters: Name of an adapter → its folder within the saved model; the first names the base.
        prepare: What is done to a base that is loaded here, before it gets adapters.

    Raises:
        CheckpointError: If no base is named, it cannot be loaded, or it is not the one that the adapters were made for.
    """
    places = {adapter: folder / within for adapter, within in adapters.items()}
    config = next(iter(places.values())) / "adapter_config.json"
    settings = [require_adapter(place) for place in places.values()]
    origin = resolve_shipped(settings[0].get("base_model_name_or_path"))
    cure = f"{name} names it; or pass another copy of it as `base=`." if base is None else ""
    base = origin if base is None else base
    if not base:
        raise CheckpointError(f"{name}: {config.relative_to(folder)} names no base model; pass it as `base`.")
    own = folder / "tokenizer_config.json"
    has_tokenizer = own.is_file()
    if not has_tokenizer and os.path.lexists(own):  # the base's would be taken for it
        raise CheckpointError(f"{own} is a folder, a pipe or a link to nothing. Put the file there, or take it away.")
    tokenizer = load_tokenizer(folder if has_tokenizer else origin or str(base), token, cure)
    label = str(base) if isinstance(base, str | Path) else base.config.name_or_path or type(base).__name__
    model = base if isinstance(base, PreTrainedModel) else prepare(load_base(base, token, cure, **model_kwargs))
    mismatch = f"{name} does not fit the base {label!r}; it was made for {repr(str(origin)) if origin else 'another'}"
    if differing := [
        f"{field} {value!r} in place of {made_for[field]!r}"
        for field, value in describe_base(model).items()
        if made_for.get(field, value) != value
    ]:
        raise CheckpointError(f"{mismatch}: {', '.join(differing)}. Pass that one as `base=`.")
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens_without_rows(tokenizer, rows):
        raise CheckpointError(
            f"{mismatch}: the tokenizer has {len(tokenizer)} tokens, the base {rows} rows of embeddings. If tokens "
            "were added and the embeddings resized (resize_token_embeddings), save that base. Pass that one as `base=`."
        )
    return _with_adapters(model, places, mismatch), tokenizer


def load_lora(
    folder: Path,
    name: str,
    token: Token,
    model_kwargs: Mapping[str, Any],
    prepare: Callable[[PreTrainedModel], PreTrainedModel] = lambda base: base,
) -> tuple[PeftModel, PreTrainedTokenizerBase, str]:
    """A LoRA with the base that it names, its tokenizer (the base's where it has none), and the base's name.

    Arguments and errors are those of `load_adapted`.
    """
    model, tokenizer = load_adapted(folder, name, {}, None, token, model_kwargs, {GENERATOR: ""}, prepare)
    return model, tokenizer, str(read_json(folder / "adapter_config.json").get("base_model_name_or_path"))


def is_lora(folder: str | Path) -> bool:
    """Returns True for a folder of one PEFT adapter."""
    return (Path(folder) / ADAPTER_FILES[0]).is_file()


def load_lora_alone(
    folder: Path, generator: object, tokenizer: PreTrainedTokenizerBase | None, model_kwargs: Mapping[str, Any]
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A LoRA to start from where a base was asked for; a tokenizer that is given goes before its own.

    Raises:
        ConfigError: If there is a `generator` as well, a new adapter.
        CheckpointError: As `load_adapted`.
    """
    if generator is not None:
        raise ConfigError(f"{str(folder)!r} is a LoRA already. Leave out `generator`, or give the base itself.")
    others = {name: value for name, value in model_kwargs.items() if name != "token"}
    model, own, _ = load_lora(folder, str(folder), model_kwargs.get("token"), others)
    return model, tokenizer or own


def describe_base(model: Any) -> dict[str, Any]:
    """What tells bases apart; a saved model keeps it."""
    config = model.config.get_text_config()
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def _with_adapters(base: PreTrainedModel, places: Mapping[str, Path], mismatch: str) -> PeftModel:
    """A base with adapters by name, the first of them active."""
    first, place = next(iter(places.items()))
    try:
        model = PeftModel.from_pretrained(base, place, adapter_name=first)
        # Loaded once more for what the first call keeps to itself: whether every matrix found its place.
        results = [model.load_adapter(place, name) for name, place in places.items()]
    except torch.OutOfMemoryError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"{place.parent}: an adapter's file is damaged ({error}). Save or download it again."
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{mismatch}: {reason}. Pass that one as `base=`.") from error
    astray = [name for result in results for name in (*result.missing_keys, *result.unexpected_keys)]
    if astray:
        raise CheckpointError(
            f"{mismatch}: {len(astray)} matrices are on one side only (first: {astray[0]}). Pass that one as `base=`."
        )
    resolve_bases(model.peft_config)
    return model.eval()
