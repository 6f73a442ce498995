"""Telling a whole checkpoint from one that was cut off."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_mass.errors import CheckpointError

TENSORS = ("adapter_model.safetensors", "inner/adapter_model.safetensors", "scorer/scorer.safetensors")
VALUES = ("adapter_config.json", "inner/adapter_config.json", "scorer/scorer_config.json", "trainer_state.json")


def problem_of(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole.

    trainer_state.json is the last file that the Trainer writes, so a checkpoint that has it was written to its end;
    what was cut off afterwards shows in each file's own structure.
    """
    folder = Path(folder)
    for name in (*TENSORS, *VALUES):
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name in TENSORS:
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            return f"{name} is damaged ({error})"
    for name in VALUES:
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        if not zipfile.is_zipfile(path):  # what torch.save writes; its directory stands at the end
            return f"{path.name} is damaged (its end is missing)"
    return None


def require_whole(folder: str | Path) -> None:
    """Checks that a checkpoint is whole.

    Raises:
        CheckpointError: If it is not.
    """
    if (problem := problem_of(folder)) is not None:
        raise CheckpointError(f"Checkpoint {folder} is incomplete: {problem}. Resume from an earlier one.")


def last_whole_checkpoint(output_dir: str | Path) -> str:
    """The newest whole checkpoint-N of a run.

    Raises:
        CheckpointError: If there is none.
    """
    folder, problems = Path(output_dir), []
    names = [path.name for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for name in sorted(names, key=lambda name: int(name.partition("-")[2]), reverse=True):
        if (problem := problem_of(folder / name)) is None:
            return str(folder / name)
        problems.append(f"{name}: {problem}")
    reasons = "; ".join(problems) or "there is no checkpoint folder"
    raise CheckpointError(f"{folder} holds no whole checkpoint to resume from ({reasons}). Start without resuming.")
