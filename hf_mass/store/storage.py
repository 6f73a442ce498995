"""Folders of saved models: found here or on the Hub. How they are written stands in `folders`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_mass.errors import CheckpointError
from hf_mass.store.adapters import ADAPTER_FILES
from hf_mass.store.folders import replace_text, settle, write_atomically
from hf_mass.store.hub_files import Token, download_snapshot, listed_files
from hf_mass.store.json_files import read_json

__all__ = ["ADAPTER_FILES", "read_json", "replace_text", "resolve", "resolve_adapter", "write_atomically"]


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
    settle(folder)
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
