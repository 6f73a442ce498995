"""Files of a saved model: where they are, what version they are of, and writing them all or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_mass import __version__
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.store.hub_files import Token, download_snapshot, listed_files

CONFIG_NAME = "mass_config.json"
FORMAT_VERSION = 1
REQUIRED = (
    CONFIG_NAME,
    "generator/adapter_config.json",
    "generator/adapter_model.safetensors",
    "inner/adapter_config.json",
    "inner/adapter_model.safetensors",
)
"""Without these a folder is no saved model. The scorer checks its own files."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def resolve_folder(path_or_id: str | Path, revision: str | None, token: Token) -> Path:
    """The local folder of a saved model, downloaded into the Hub cache if it is no folder.

    Raises:
        HubError: If there is neither such a folder nor a repository that could be downloaded.
        CheckpointError: If files are missing, or the weights are pickled.
    """
    return _resolve(path_or_id, revision, token, REQUIRED, "saved MassModel")


def resolve_adapter(path_or_id: str | Path, revision: str | None, token: Token) -> Path:
    """As `resolve_folder`, for a single PEFT adapter."""
    return _resolve(path_or_id, revision, token, ADAPTER_FILES, "PEFT adapter")


def _resolve(path_or_id: str | Path, revision: str | None, token: Token, required: Sequence[str], what: str) -> Path:
    folder, listed = Path(path_or_id), set()
    if not folder.is_dir() and _replaced(folder).is_dir():
        folder = _replaced(folder)
    if not folder.is_dir():
        if folder.is_absolute() or str(path_or_id).startswith(".") or str(path_or_id).count("/") > 1:
            raise CheckpointError(
                f"{path_or_id} is no folder. Give the folder that save_pretrained wrote, or a Hub id."
            )
        folder = download_snapshot(str(path_or_id), revision, token)
        listed = listed_files(str(path_or_id), folder)
    for name in required:
        if not (folder / name).is_file():
            raise CheckpointError(_missing(folder, name, listed, f"{path_or_id} is no {what}"))
    return folder


def _missing(folder: Path, name: str, listed: set[str], conclusion: str) -> str:
    """Why a required file is not there."""
    for pickled in (name.replace(".safetensors", ending) for ending in (".bin", ".pt", ".pkl")):
        if pickled != name and (pickled in listed or (folder / pickled).is_file()):
            return (
                f"{folder / name} is missing: {pickled} is a pickle, which can run code when it is loaded. Only "
                f"safetensors are loaded: save the adapter again with PEFT, which writes {name}."
            )
    if name == CONFIG_NAME and ("adapter_config.json" in listed or (folder / "adapter_config.json").is_file()):
        return (
            f"{folder / name} is missing: {conclusion}, but an adapter of PEFT alone. Load it with "
            "PeftModel.from_pretrained, and pass the model to MassModel."
        )
    return f"{folder / name} is missing: {conclusion}, or an incomplete one."


def write_config(config: MassConfig, folder: Path, base: Mapping[str, Any] | None = None) -> None:
    """Write mass_config.json.

    Args:
        config: The settings.
        folder: Where it is written.
        base: What the base model is like, by which a later one is told to be another; see `read_base`.
    """
    values = {"format_version": FORMAT_VERSION, "hf_mass_version": __version__, **config.to_dict()}
    if base is not None:
        values["base_model"] = dict(base)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> MassConfig:
    """Read mass_config.json.

    Raises:
        CheckpointError: If it is no JSON, of an unknown version, or holds unknown settings.
    """
    path = folder / CONFIG_NAME
    values = read_json(path)
    version = values.pop("format_version", None)
    for name in ("hf_mass_version", "base_model"):
        values.pop(name, None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}. Update hf_mass."
        )
    try:
        return MassConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this release: {error}") from error


def read_base(folder: Path) -> dict[str, Any]:
    """What mass_config.json says that the base model is like; empty where it does not say."""
    found = read_json(folder / CONFIG_NAME).get("base_model")
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        CheckpointError: If it holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Save the model again.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}. Save the model again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, no settings. Save the model again.")
    return values


def _replaced(target: Path) -> Path:
    """Where an earlier folder is for the moment between making room and moving the new one in."""
    return target.with_name(f".{target.name}-replaced")


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in the place of `target`; an earlier one stays whole until then.

    Whatever else lies in `target` stays there (the checkpoints of a run, a README): then the files are moved in one by
    one, each in one step. Otherwise the folders are exchanged, which takes two renames. A kill between them leaves the
    earlier one under its `_replaced` name, where `resolve_folder` finds it and the next writer puts it back.

    Raises:
        CheckpointError: If the files could not be written (the earlier folder is untouched).
    """
    target = target.absolute()
    replaced, temporary = _replaced(target), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        write(temporary)
        os.chmod(temporary, 0o755)
        shutil.rmtree(replaced, ignore_errors=True)
        if target.is_dir() and {entry.name for entry in target.iterdir()} - {e.name for e in temporary.iterdir()}:
            _move_files(temporary, target)
        else:
            if target.exists():
                os.rename(target, replaced)
            _move_in(temporary, target, replaced)
    except Exception as error:
        if not _is_disk_error(error):
            raise
        raise CheckpointError(f"{target} could not be written: {error}. Free some space and save again.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _move_files(temporary: Path, target: Path) -> None:
    for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
        place = target / file.relative_to(temporary)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def _move_in(temporary: Path, target: Path, replaced: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError:
        if replaced.exists():
            os.rename(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _is_disk_error(error: Exception) -> bool:
    """Whether a writer failed for want of space or rights. tokenizers reports that as a bare Exception."""
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and "os error" in str(error))
