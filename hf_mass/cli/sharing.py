"""`hf-mass push` and `hf-mass card`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_mass.cli.progress import watched
from hf_mass.cli.showing import plain, stdout_console
from hf_mass.cli.streams import json_text
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.evaluation.cards import make_card
from hf_mass.methods.mass_files import REQUIRED, read_saved
from hf_mass.store.card import hub_id
from hf_mass.store.hub_files import push_folder
from hf_mass.store.shipped import shipped_name
from hf_mass.store.storage import ADAPTER_FILES

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def push(folder: Path, repo_id: str, *, as_json: bool, **settings: Any) -> None:
    """`hf-mass push`; `settings` are those of `push_folder`.

    Raises:
        CheckpointError: If the folder holds no model that others could load, or it could not be pushed.
        ConfigError: If the repository's name is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no name of a repository. Give one as in user/name. {error}") from error
    kind, notes = check_folder(folder)
    with watched(quiet=as_json):
        commit = push_folder(folder, repo_id, **settings)
    place = str(commit.pr_url or commit.commit_url)
    if as_json:
        print(json_text({"url": place, "commit": commit.oid, "kind": kind, "notes": notes}))
        return
    console = stdout_console()
    for note in [*(f"note: {note}" for note in notes), f"pushed {kind}: {place}"]:
        console.print(plain(note), markup=False, soft_wrap=True)


def check_folder(folder: Path) -> tuple[str, list[str]]:
    """(what a folder holds, what whoever pushes it should know).

    Raises:
        CheckpointError: If it holds neither a whole MassModel nor a whole PEFT adapter, or its base is on this machine.
    """
    config, adapter, base = read_saved(folder)
    if missing := [n for n in (ADAPTER_FILES if config is None else REQUIRED) if not (folder / n).is_file()]:
        raise CheckpointError(
            f"{folder / missing[0]} is missing: {folder} holds neither a whole MassModel nor a whole PEFT adapter. "
            "Save the model again."
        )
    if shipped_name(base) is None and hub_id(base) is None:
        raise CheckpointError(
            f"{adapter / ADAPTER_FILES[0]} names the base {base!r}, which others do not have. "
            "Push the base, and set base_model_name_or_path to its Hub id."
        )
    notes = [f"the base is {name}, which ships with hf_mass" for name in [shipped_name(base)] if name]
    if not (folder / "README.md").is_file():
        notes.append(f"there is no model card; `hf-mass card {folder} --output {folder / 'README.md'}` makes one")
    if pickles := sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in PICKLES):
        notes.append(f"not pushed, since pickles can run code: {', '.join(pickles)}")
    return "a PEFT adapter" if config is None else "a MassModel", notes


def card(folder: Path, results: Path | None, output: Path | None, repo_id: str | None) -> None:
    """`hf-mass card`.

    Raises:
        CheckpointError: If the folder holds no saved model, or the card cannot be written.
        DataError: If the result file is no table.
    """
    with watched(quiet=True):
        text = make_card(folder, results, repo_id=repo_id)
    if output is None:
        print(str(text))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    text.save(output)
    stdout_console().print(f"written: {plain(str(output))}", markup=False, soft_wrap=True)
