"""Files of a saved model: where they are, what version they are of, and writing them all or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from hf_mass import __version__
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.models.config import MassConfig

CONFIG_NAME = "mass_config.json"
FORMAT_VERSION = 1
FILES = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is downloaded: no pickles and no code."""
REQUIRED = (
    CONFIG_NAME,
    "generator/adapter_config.json",
    "generator/adapter_model.safetensors",
    "inner/adapter_config.json",
    "inner/adapter_model.safetensors",
)
"""Without these a folder is no saved model. The scorer checks its own files."""


def resolve_folder(path_or_id: str | Path, revision: str | None, token: str | bool | None) -> Path:
    """The local folder of a saved model, downloaded into the Hub cache if it is no folder.

    Raises:
        CheckpointError: If there is neither such a folder nor such a repository, or files are missing.
    """
    folder = Path(path_or_id)
    if not folder.is_dir() and _replaced(folder).is_dir():
        folder = _replaced(folder)
    if not folder.is_dir():
        if folder.is_absolute() or str(path_or_id).startswith(".") or str(path_or_id).count("/") > 1:
            raise CheckpointError(
                f"{path_or_id} is no folder. Give the folder that save_pretrained wrote, or a Hub id."
            )
        try:
            folder = Path(
                snapshot_download(str(path_or_id), revision=revision, token=token, allow_patterns=list(FILES))
            )
        except Exception as error:  # the client raises many kinds; all of them mean that the files are not to be had
            raise CheckpointError(
                f"{path_or_id!r} is neither a folder nor a Hub repository that could be downloaded: {error}"
            ) from error
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: {folder} is no saved MassModel, or an incomplete one.")
    return folder


def write_config(config: MassConfig, folder: Path) -> None:
    """Write mass_config.json."""
    values = {"format_version": FORMAT_VERSION, "hf_mass_version": __version__, **config.to_dict()}
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> MassConfig:
    """Read mass_config.json.

    Raises:
        CheckpointError: If it is no JSON, of an unknown version, or holds unknown settings.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}. Save the model again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, no settings. Save the model again.")
    version = values.pop("format_version", None)
    values.pop("hf_mass_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}. Update hf_mass."
        )
    try:
        return MassConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this release: {error}") from error


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
