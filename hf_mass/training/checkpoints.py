"""Checkpoints of a trainer: the scorer's files, and telling a whole checkpoint from one that was cut off."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_mass.errors import CheckpointError
from hf_mass.methods.mass_files import write_config
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.scorer import Scorer

TENSORS = ("adapter_model.safetensors", "inner/adapter_model.safetensors", "scorer/scorer.safetensors")
VALUES = ("adapter_config.json", "inner/adapter_config.json", "scorer/scorer_config.json", "trainer_state.json")


def save_scorer(mass: MassModel, folder: str | Path) -> None:
    """Write the scorer and mass_config.json into a checkpoint."""
    mass.scorer.save(Path(folder) / "scorer")
    write_config(mass.config, Path(folder))


def load_scorer(mass: MassModel, folder: str | Path) -> None:
    """Read the scorer's weights back into the one that is being trained."""
    mass.scorer.load_state_dict(Scorer.load(Path(folder) / "scorer").state_dict())


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
    problem = problem_of(folder)
    if problem is not None:
        raise CheckpointError(f"Checkpoint {folder} is incomplete: {problem}. Resume from an earlier one.")


def last_whole_checkpoint(output_dir: str | Path) -> str:
    """The newest whole checkpoint-N of a run.

    Raises:
        CheckpointError: If there is none.
    """
    folder = Path(output_dir)
    numbered = [
        (int(match.group(1)), path)
        for path in (folder.iterdir() if folder.is_dir() else [])
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    problems = []
    for _, path in sorted(numbered, reverse=True):
        problem = problem_of(path)
        if problem is None:
            return str(path)
        problems.append(f"{path.name}: {problem}")
    reasons = "; ".join(problems) if problems else "there is no checkpoint folder"
    raise CheckpointError(f"{folder} holds no whole checkpoint to resume from ({reasons}). Start without resuming.")
