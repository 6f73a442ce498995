"""Folders of saved models: found here or on the Hub, and written as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_mass.errors import CheckpointError
from hf_mass.store.hub_files import Token, download_snapshot, listed_files

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def resolve(
    path_or_id: str | Path,
    revision: str | None,
    token: Token,
    required: Sequence[str],
    what: str,
    adapter_cure: str = "",
) -> Path:
    """The local folder of a saved model, downloaded into the Hub cache if it is no folder.

    Args:
        path_or_id: Folder, or Hub id.
        revision: Branch, tag or commit of a Hub repository.
        token: Access token of the Hub.
        required: Files without which the folder is no such model; the first of them tells its kind.
        what: What it is called in messages.
        adapter_cure: What helps whoever has a bare PEFT adapter instead; for a model that is more than one.

    Raises:
        HubError: If there is neither such a folder nor a repository that could be downloaded.
        CheckpointError: If files are missing, or the weights are pickled.
    """
    folder, in_repository = Path(path_or_id), set()
    if not folder.is_dir() and _replaced(folder).is_dir():
        folder = _replaced(folder)
    if not folder.is_dir():
        if folder.is_absolute() or str(path_or_id).startswith(".") or str(path_or_id).count("/") > 1:
            raise CheckpointError(
                f"{path_or_id} is no folder. Give the folder that save_pretrained wrote, or a Hub id."
            )
        folder = download_snapshot(str(path_or_id), revision, token)
        in_repository = listed_files(str(path_or_id), folder)
    missing = next((name for name in required if not (folder / name).is_file()), None)
    if missing is None:
        return folder
    names = in_repository | {str(file.relative_to(folder)) for file in (*folder.glob("*"), *folder.glob("*/*"))}
    pickles = {missing.replace(".safetensors", ending) for ending in (".bin", ".pt", ".pkl")} - {missing}
    if pickle := next(iter(sorted(pickles & names)), None):
        reason = (
            f"{pickle} is a pickle, which can run code when it is loaded. Only safetensors are loaded: save the "
            f"adapter again with PEFT, which writes {missing}."
        )
    elif adapter_cure and missing == required[0] and ADAPTER_FILES[0] in names:
        reason = f"{path_or_id} is no {what}, but an adapter of PEFT alone. {adapter_cure}"
    else:
        reason = f"{path_or_id} is no {what}, or an incomplete one."
    raise CheckpointError(f"{folder / missing} is missing: {reason}")


def resolve_adapter(path_or_id: str | Path, revision: str | None, token: Token) -> Path:
    """As `resolve`, for a single PEFT adapter."""
    return resolve(path_or_id, revision, token, ADAPTER_FILES, "PEFT adapter")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of names and values.

    Raises:
        CheckpointError: If it cannot be read, or holds anything else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON that can be read: {error}. Save the model again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, no settings. Save the model again.")
    return values


def replace_text(path: Path, text: str) -> Path:
    """Write a text file; an existing one is replaced only once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)


def _replaced(target: Path) -> Path:
    """Where the earlier folder lies between the two renames of an exchange."""
    return target.with_name(f".{target.name}-replaced")


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in the place of `target`, which stays whole until then.

    If `target` holds other files as well (the checkpoints of a run, a README), they stay, and the new files are moved
    in one by one, each in one step. Otherwise the folders are exchanged, which takes two renames. If the process is
    killed between them, the earlier folder is left under its `_replaced` name, where `resolve` finds it and the next
    writer puts it back.

    Args:
        target: The folder.
        write: Writes the files into the folder that it is called with.

    Raises:
        CheckpointError: If the files could not be written; the earlier folder is untouched.
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
            for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                place = target / file.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
        else:
            if target.exists():
                os.rename(target, replaced)
            try:
                os.rename(temporary, target)
            except OSError:
                if replaced.exists():
                    os.rename(replaced, target)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        # tokenizers reports a lack of space or rights as a bare Exception.
        is_bare = type(error) is Exception and "os error" in str(error)
        if not is_bare and not isinstance(error, OSError | SafetensorError):
            raise
        raise CheckpointError(f"{target} could not be written: {error}. Free some space and save again.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
