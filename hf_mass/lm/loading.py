"""Putting a saved model together: its folder, the base that it names or is given, and whether the two belong together.

No code of a repository is ever run and no pickle read: whoever wants a base that needs either loads it with
transformers and passes the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.store.hub_files import Token, checked_download, explained
from hf_mass.store.shipped import resolve_bases, resolve_shipped
from hf_mass.store.storage import read_json

GENERATOR, INNER = "default", "inner"
_FOLDERS = {GENERATOR: "generator", INNER: "inner"}


def load_base(base: str | Path, token: Token = None, cure: str = "", **model_kwargs: Any) -> PreTrainedModel:
    """A base model, from safetensors alone.

    Args:
        base: Hub id or folder.
        token: Access token of the Hub.
        cure: What else helps if it fails; the end of the message.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ConfigError: If `trust_remote_code` is given.
        CheckpointError: If it cannot be loaded.
    """
    if model_kwargs.get("trust_remote_code"):
        raise ConfigError(
            "trust_remote_code is True; loading never runs code of a repository. Read that code, load the base with "
            "AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), and pass the model as `base`."
        )
    settings = {"use_safetensors": True, **model_kwargs, "trust_remote_code": False}  # None would ask at the terminal
    return _from_pretrained(AutoModelForCausalLM, "Base model", base, token, cure, settings)


def load_tokenizer(
    source: str | Path, token: Token = None, cure: str = "", revision: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer, from a Hub id or folder; `cure` and errors are as for `load_base`."""
    settings = {"trust_remote_code": False, "revision": revision}
    return _from_pretrained(AutoTokenizer, "Tokenizer", source, token, cure, settings)


def _from_pretrained(
    factory: Any, what: str, source: str | Path, token: Token, cure: str, settings: Mapping[str, Any]
) -> Any:
    subject = f"{what} {str(source)!r} could not be loaded"
    if Path(source).is_dir():
        with explained(subject, str(source), cure=cure):
            return _refused(subject, factory, source, settings)
    try:
        validate_repo_id(str(source))
    except HFValidationError as error:
        raise CheckpointError(f"{subject}: there is no such folder, and it is no Hub id. {cure}".rstrip()) from error
    revision, cache_dir = settings.get("revision"), settings.get("cache_dir")
    with explained(subject, str(source), revision, cure=cure), checked_download(str(source), cache_dir):
        # All files of one commit. And transformers, which is asked for safetensors, would else let a service convert
        # the pickles of a branch, and send it the token.
        commit = HfApi().resolve_revision(str(source), revision=revision, cache_dir=cache_dir, token=token).resolved
        return _refused(subject, factory, source, {**settings, "token": token, "revision": commit})


def _refused(subject: str, factory: Any, source: str | Path, settings: Mapping[str, Any]) -> Any:
    try:
        return factory.from_pretrained(source, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(
            f"{subject}: it needs code from its repository, and loading never runs any. Read that code, load the model "
            "with transformers and trust_remote_code=True, and pass it as `base`."
        ) from error
    except OSError as error:
        if not ("safetensors" in str(error) and "no" in str(error) and "file named" in str(error)):
            raise
        raise CheckpointError(
            f"{subject}: it has no safetensors, and pickles are not loaded, because they can run code. Convert it, or "
            "load the model with transformers and pass it as `base`."
        ) from error


def load_adapted(
    folder: Path,
    name: str,
    made_for: Mapping[str, Any],
    base: str | Path | PreTrainedModel | None,
    token: Token,
    model_kwargs: Mapping[str, Any],
    adapters: Mapping[str, str] = _FOLDERS,
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

    Raises:
        CheckpointError: If no base is named, it cannot be loaded, or it is not the one that the adapters were made for.
    """
    places = {adapter: folder / within for adapter, within in adapters.items()}
    config = next(iter(places.values())) / "adapter_config.json"
    origin = resolve_shipped(read_json(config).get("base_model_name_or_path"))
    cure = f"{name} names it; or pass another copy of it as `base=`." if base is None else ""
    base = origin if base is None else base
    if not base:
        raise CheckpointError(f"{name}: {config.relative_to(folder)} names no base model; pass it as `base`.")
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(folder if has_tokenizer else origin or str(base), token, cure)
    label = str(base) if isinstance(base, str | Path) else base.config.name_or_path or type(base).__name__
    model = base if isinstance(base, PreTrainedModel) else load_base(base, token, cure, **model_kwargs)
    mismatch = f"{name} does not fit the base {label!r}; it was made for {repr(str(origin)) if origin else 'another'}"
    if differing := [
        f"{field} {value!r} in place of {made_for[field]!r}"
        for field, value in describe_base(model).items()
        if made_for.get(field, value) != value
    ]:
        raise CheckpointError(f"{mismatch}: {', '.join(differing)}. Pass that one as `base=`.")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{mismatch}: the tokenizer has {len(tokenizer)} tokens, the base {rows}. Pass that one as `base=`."
        )
    return _with_adapters(model, places, mismatch), tokenizer


def load_lora(
    folder: Path, name: str, token: Token, model_kwargs: Mapping[str, Any]
) -> tuple[PeftModel, PreTrainedTokenizerBase, str]:
    """A LoRA with the base that it names, its tokenizer (the base's where it has none), and the base's name.

    Arguments and errors are those of `load_adapted`.
    """
    model, tokenizer = load_adapted(folder, name, {}, None, token, model_kwargs, {GENERATOR: ""})
    return model, tokenizer, str(read_json(folder / "adapter_config.json").get("base_model_name_or_path"))


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
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{mismatch}: {reason}. Pass that one as `base=`.") from error
    astray = [name for result in results for name in (*result.missing_keys, *result.unexpected_keys)]
    if astray:
        raise CheckpointError(
            f"{mismatch}: {len(astray)} matrices are on one side only (first: {astray[0]}). Pass that one as `base=`."
        )
    resolve_bases(model.peft_config)
    return model.eval()
