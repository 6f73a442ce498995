"""A base model and its tokenizer from the forms that people have: the Hub, folders, GGUF files, multimodal models.

No code of a repository is ever run and no pickle read: whoever wants a base that needs either loads it with
transformers and passes the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_mass.errors import CheckpointError, ConfigError, HFMassError, ModelWarning, UnsupportedModelError
from hf_mass.lm.config_values import require_sane, told
from hf_mass.lm.gguf import gguf_file, gguf_files, load_gguf, load_gguf_tokenizer
from hf_mass.lm.multimodal import is_multimodal, language_model_of
from hf_mass.lm.random_state import host_random_state
from hf_mass.lm.turns import apart_from_host
from hf_mass.store.hub_files import Token, cached_folder, checked_download, explained, require_known_token
from hf_mass.store.weights import require_finite, require_floats, require_own_shards
from hf_mass.tasks.checks import shown


@apart_from_host()
@host_random_state()
def load_base(
    base: str | Path, token: Token = None, cure: str = "", known_as: str | Path = "", **model_kwargs: Any
) -> PreTrainedModel:
    """A base model, from safetensors or a GGUF file; of a multimodal model its language model.

    Args:
        base: Hub id, folder, or GGUF file.
        token: Access token of the Hub.
        cure: What else helps if it fails; the end of the message.
        known_as: The name of a GGUF file of the Hub that is here already.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ConfigError: If `trust_remote_code` is given, or a GGUF file without the package `gguf`.
        CheckpointError: If it cannot be loaded.
        UnsupportedModelError: If it is multimodal and its language model cannot be taken by itself.
    """
    if model_kwargs.get("trust_remote_code"):
        raise ConfigError(
            "trust_remote_code is True; loading never runs code of a repository. Read that code, load the base with "
            "AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), and pass the model as `base`."
        )
    settings = {"use_safetensors": True, **model_kwargs, "trust_remote_code": False}  # None would ask at the terminal
    if (file := gguf_file(base, model_kwargs.get("revision"), token)) is not None:
        known_as = known_as or base
        name = str(known_as) if not Path(known_as).exists() else ""
        model = load_gguf(file, cure, name, **model_kwargs)
    else:
        model = _from_pretrained(_CausalLM, "Base model", base, token, cure, settings)
    require_finite(model.named_parameters(), f"Base model {str(base)!r}")
    model.config.return_dict = True  # outputs are read by name
    if Path(base).is_dir():  # found also where the working directory is another by then
        model.config.name_or_path = str(Path(base).absolute())
    return model


def load_tokenizer(
    source: str | Path, token: Token = None, cure: str = "", revision: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer, from a Hub id, folder or GGUF file; `cure` and errors are as for `load_base`."""
    if (file := gguf_file(source, revision, token)) is not None:
        return load_gguf_tokenizer(file, cure)
    settings = {"trust_remote_code": False, "revision": revision}
    tokenizer = _from_pretrained(AutoTokenizer, "Tokenizer", source, token, cure, settings)
    problem = None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        problem = "it names neither a padding nor an end-of-sequence token"
    elif not isinstance(tokenizer.model_max_length, int | float):
        problem = f"model_max_length is {shown(tokenizer.model_max_length)}, and no number"
    elif not isinstance(getattr(tokenizer, "chat_template", None), str | dict | None):
        problem = f"chat_template is {shown(tokenizer.chat_template)}, and no text"
    if problem is not None:
        raise CheckpointError(
            f"Tokenizer {str(source)!r}: {problem}. Correct its tokenizer_config.json. {cure}".rstrip()
        )
    return tokenizer


def _from_pretrained(
    factory: Any, what: str, source: str | Path, token: Token, cure: str, settings: Mapping[str, Any]
) -> Any:
    subject = f"{what} {str(source)!r} could not be loaded"
    if Path(source).is_dir():
        with explained(subject, str(source), cure=cure):
            require_own_shards(Path(source))
            return _with_floats(_refused(subject, factory, source, settings), Path(source))
    try:
        validate_repo_id(str(source))
    except HFValidationError as error:
        raise CheckpointError(f"{subject}: there is no such folder, and it is no Hub id. {cure}".rstrip()) from error
    revision, cache_dir = settings.get("revision"), settings.get("cache_dir")
    with explained(subject, str(source), revision, cure=cure), checked_download(str(source), cache_dir):
        require_known_token(str(source), token)
        # All files of one commit. And transformers, which is asked for safetensors, would else let a service convert
        # the pickles of a branch, and send it the token.
        commit = HfApi().resolve_revision(str(source), revision=revision, cache_dir=cache_dir, token=token).resolved
        folder = cached_folder(str(source), commit, cache_dir)
        try:
            loaded = _refused(subject, factory, source, {**settings, "token": token, "revision": commit})
        except (OSError, ValueError, CheckpointError) as error:
            if (folder / "config.json").is_file() or not (files := gguf_files(str(source), commit, token)):
                raise
            raise CheckpointError(
                f"{str(source)!r} has no config.json, but GGUF files. Name one of them: {', '.join(files)}."
            ) from error
        return _with_floats(loaded, folder)


def _with_floats(loaded: Any, folder: Path) -> Any:
    """What was loaded, if no integers were taken for weights; quantised ones are integers."""
    if isinstance(loaded, PreTrainedModel) and getattr(loaded.config, "quantization_config", None) is None:
        require_floats(folder, [name for name, _ in loaded.named_parameters()])
    return loaded


def _refused(subject: str, factory: Any, source: str | Path, settings: Mapping[str, Any]) -> Any:
    try:
        return factory.from_pretrained(source, **settings)
    except HFMassError:
        raise
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:  # of a package that quantised weights need
        raise CheckpointError(
            f"{subject}: {' '.join(str(error).split())} Weights quantised by torchao need: "
            'pip install "hf_mass[quantized]"'
        ) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(
            f"{subject}: it needs code from its repository, and loading never runs any. Read that code, load the model "
            "with transformers and trust_remote_code=True, and pass it as `base`."
        ) from error
    except _OF_WRONG_FILES as error:
        if "mismatched_sizes" in str(error):
            reason = "its weights are of other shapes than its config.json says"
        else:
            reason = told(error, _config(source, settings))
        raise CheckpointError(f"{subject}: {reason}. Download or save it again.") from error
    except OSError as error:
        if not ("safetensors" in str(error) and "no" in str(error) and "file named" in str(error)):
            raise
        raise CheckpointError(
            f"{subject}: it has no safetensors, and pickles are not loaded, because they can run code. Convert it, or "
            "load the model with transformers and pass it as `base`."
        ) from error


_OF_FILES = ("token", "revision", "cache_dir", "trust_remote_code", "local_files_only")


def _config(source: str | Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json holds."""
    asked = {name: settings[name] for name in _OF_FILES if name in settings}
    return dict(PreTrainedConfig.get_config_dict(source, **asked)[0])


_OF_WRONG_FILES = (
    *(TypeError, KeyError, AttributeError, IndexError, ArithmeticError, AssertionError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises at a config of wrong types, or weights that are damaged or of other shapes."""


def _whole(loaded: tuple[PreTrainedModel, Mapping[str, Any]], source: str | Path) -> PreTrainedModel:
    """A model all of whose weights were in its files; what was left over there is told.

    Raises:
        CheckpointError: If some were not, and were drawn at random.
    """
    model, found = loaded
    if getattr(model.config, "quantization_config", None) is not None:  # its parameters are named otherwise
        return model
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"Base model {str(source)!r}: {len(missing)} of its weights are in none of its files (first: {missing[0]}) "
            "and would be random. Download or save it again, or correct its config.json."
        )
    if left := sorted(found["unexpected_keys"]):
        warnings.warn(
            f"Base model {str(source)!r}: {len(left)} weights in its files are no part of the model that its "
            f"config.json describes (first: {left[0]}), and are left out.",
            ModelWarning,
            stacklevel=2,
        )
    return model


class _CausalLM:
    """A causal language model: one that is saved as such, or that of a multimodal model."""

    @staticmethod
    def from_pretrained(source: str | Path, **settings: Any) -> PreTrainedModel:
        asked = {name: settings[name] for name in _OF_FILES if name in settings}
        require_sane(_config(source, settings), source)
        config = AutoConfig.from_pretrained(source, **asked)
        settings = {**settings, "output_loading_info": True}
        if not is_multimodal(config):
            return _whole(AutoModelForCausalLM.from_pretrained(source, **settings), source)
        if settings.get("quantization_config") or getattr(config, "quantization_config", None):
            raise UnsupportedModelError(
                f"{str(source)!r} is multimodal and quantised, and its language model cannot be taken from quantised "
                "weights. Load one that is not quantised."
            )
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise UnsupportedModelError(
                f"{str(source)!r} is of type {config.model_type!r}, which is no model of images and text that "
                "transformers loads by AutoModelForImageTextToText. Load its language model yourself, and pass it."
            )
        return language_model_of(_whole(AutoModelForImageTextToText.from_pretrained(source, **settings), source))
