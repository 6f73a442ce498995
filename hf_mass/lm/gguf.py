"""GGUF files, the format of llama.cpp, as ordinary models: transformers dequantises their weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.store.hub_files import Token, explained, require_known_token

SUFFIX = ".gguf"


def gguf_file(source: str | Path, revision: str | None = None, token: Token = None) -> Path | None:
    """The GGUF file that a path names, or the one in a folder that has no config.json; None for anything else.

    A path owner/name/file.gguf that is not here is a file of a Hub repository, and is downloaded.

    Raises:
        CheckpointError: If there is no such file, or the folder holds several.
        HubError: If the repository cannot be asked.
    """
    path = Path(source)
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        if not path.is_file() and not path.is_absolute() and len(path.parts) > 2 and not Path(path.parts[0]).exists():
            return _of_hub(path, revision, token)
        if not path.is_file():
            raise CheckpointError(f"There is no file {str(path)!r}. Give the path of a {SUFFIX} file that is there.")
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(each for each in path.iterdir() if each.suffix.lower() == SUFFIX)
    if len(files) > 1:
        names = ", ".join(each.name for each in files)
        raise CheckpointError(f"{str(path)!r} holds {len(files)} {SUFFIX} files ({names}). Name one of them.")
    return files[0] if files else None


def _of_hub(path: Path, revision: str | None, token: Token) -> Path:
    repo, file = "/".join(path.parts[:2]), "/".join(path.parts[2:])
    with explained(f"{str(path)!r} is no file here, and could not be read from the Hub", repo, revision):
        require_known_token(repo, token)
        try:
            return Path(hf_hub_download(repo, file, revision=revision, token=token))
        except EntryNotFoundError as error:
            held = ", ".join(gguf_files(repo, revision, token)) or "none"
            raise CheckpointError(f"Repository {repo} has no file {file!r}. Its {SUFFIX} files: {held}.") from error


def gguf_files(repo: str, revision: str | None, token: Token) -> list[str]:
    """The GGUF files of a Hub repository, as owner/name/file.gguf."""
    names = HfApi().list_repo_files(repo, revision=revision, token=token)
    return [f"{repo}/{name}" for name in sorted(names) if name.lower().endswith(SUFFIX)]


def load_gguf(file: Path, cure: str = "", name: str = "", **model_kwargs: Any) -> PreTrainedModel:
    """The model in a GGUF file with float weights, float32 unless `dtype` says otherwise.

    Args:
        file: The file.
        name: What it was asked for by, such as owner/name/file.gguf; an adapter on it names it so.
        cure: What else helps if it fails; the end of the message.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`; quantising anew is refused.

    Raises:
        ConfigError: If the package `gguf` is missing, or a quantisation is asked for.
        CheckpointError: If the file cannot be read, or is of an architecture that transformers does not read.
    """
    _require_package()
    if model_kwargs.get("quantization_config") is not None:
        raise ConfigError(f"quantization_config is given, but the weights of a {SUFFIX} file are dequantised. Omit it.")
    settings = {"dtype": torch.float32, **{k: v for k, v in model_kwargs.items() if k not in ("revision", "token")}}
    with explained(f"Base model {str(file)!r} could not be loaded", str(file), cure=cure):
        read = _read(AutoModelForCausalLM, file, quantization_config=GgufConfig(dequantize=True), **settings)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A plain model, which can be saved and cast: the one that was read still counts as quantised.
    model = AutoModelForCausalLM.from_config(config, dtype=read.dtype)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.config._name_or_path = model.name_or_path = name or str(file)
    model.is_converted = True  # its name alone is not enough for `AutoModelForCausalLM.from_pretrained`
    return model


def load_gguf_tokenizer(file: Path, cure: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file; arguments and errors are those of `load_gguf`."""
    _require_package()
    with explained(f"Tokenizer {str(file)!r} could not be loaded", str(file), cure=cure):
        return _read(AutoTokenizer, file)


def _read(factory: Any, file: Path, **settings: Any) -> Any:
    try:
        return factory.from_pretrained(file.parent, gguf_file=file.name, **settings)
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{str(file)!r} is damaged, or no model that transformers reads: {reason}") from error


def _require_package() -> None:
    if find_spec("gguf") is None:
        raise ConfigError('Loading a GGUF file needs gguf. Run: pip install "hf_mass[gguf]"')
