"""Resuming: telling a whole checkpoint from one that was cut off, and the order of tasks from where it stood."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from trl.trainer.utils import RepeatSampler

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.store.json_files import read_json
from hf_mass.tasks.checks import shown

TENSORS = ("adapter_model.safetensors", "inner/adapter_model.safetensors", "scorer/scorer.safetensors")
BASE = "base.json"
VALUES = ("adapter_config.json", "inner/adapter_config.json", "scorer/scorer_config.json", BASE, "trainer_state.json")


class ResumedSampler(RepeatSampler):
    """TRL's order of prompts, which a resumed run takes up in the epoch that it is in.

    TRL's sampler draws one epoch's order after the other from one generator, and starts anew in every run: resumed in
    epoch k, it would give the order of the first. This one draws the orders of the epochs before first.

    Args:
        epoch: Whole epochs before the one that begins, asked when it does.
        how: As TRL's.
    """

    def __init__(self, *how: Any, epoch: Callable[[], int], **named: Any) -> None:
        super().__init__(*how, **named)
        self.epoch = epoch

    @classmethod
    def of(cls, sampler: RepeatSampler, epoch: Callable[[], int]) -> ResumedSampler:
        """One that is as TRL's sampler in everything else."""
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return cls(*(getattr(sampler, name) for name in names), epoch=epoch)

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


def problem_of(folder: str | Path, whole_steps: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole.

    trainer_state.json is the last file that the Trainer writes, so a checkpoint that has it was written to its end;
    what was cut off afterwards shows in each file's own structure.

    Args:
        folder: The checkpoint.
        whole_steps: Optimizer steps that share what was generated once. It is not in a checkpoint, so one between
            such steps could not be resumed from to the same end.
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
    step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")).get("global_step", 0)
    if step % whole_steps:
        return (
            f"step {step} stands between steps that share their samples, which are not saved; choose save_steps so "
            f"that it is a multiple of {whole_steps}"
        )
    return None


def write_base(folder: str | Path, digest: str, settings: Mapping[str, Any]) -> None:
    """Note in a checkpoint what base it was trained on (its digest, see `base_digest`), and with what settings."""
    values = {"weights": digest, "settings": dict(settings)}
    (Path(folder) / BASE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def require_base(folder: str | Path, digest: str) -> None:
    """Checks that a checkpoint was trained on the base with this digest.

    Raises:
        CheckpointError: If it was not.
    """
    trained_on = read_json(Path(folder) / BASE).get("weights")
    if trained_on != digest:
        raise CheckpointError(
            f"Checkpoint {folder} was trained on another base: its weights, settings or tokenizer have the digest "
            f"{trained_on!r:.60}, and those of this model {digest!r}. Resume with the model that the run was begun "
            "with, or start without resuming."
        )


def require_same_run(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Checks that a checkpoint is of a run with these settings, where it says so.

    Raises:
        ConfigError: If it is not.
    """
    earlier = read_json(Path(folder) / BASE).get("settings")
    if not isinstance(earlier, dict):  # of an earlier release
        return
    name = min((k for k in settings if k in earlier and earlier[k] != settings[k]), default=None)
    if name is None:
        return
    what = f"with {name} = {shown(earlier[name], 200)}, and this one has {shown(settings[name], 200)}"
    if name == "train_dataset":
        what = "on other tasks, or on these in another order"
    raise ConfigError(
        f"Checkpoint {folder} is of a run {what}. Resume with what the run was begun with; or begin another run, with "
        "the checkpoint's adapter in a PeftModel as its model."
    )


def require_whole(folder: str | Path, whole_steps: int = 1) -> None:
    """Checks that a checkpoint is whole, see `problem_of`.

    Raises:
        CheckpointError: If it is not.
    """
    if (problem := problem_of(folder, whole_steps)) is not None:
        raise CheckpointError(f"Checkpoint {folder} is incomplete: {problem}. Resume from an earlier one.")


def last_whole_checkpoint(output_dir: str | Path, whole_steps: int = 1) -> str:
    """The newest whole checkpoint-N of a run.

    Raises:
        CheckpointError: If there is none.
    """
    folder, problems = Path(output_dir), []
    names = [path.name for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for name in sorted(names, key=lambda name: int(name.partition("-")[2]), reverse=True):
        if (problem := problem_of(folder / name, whole_steps)) is None:
            return str(folder / name)
        problems.append(f"{name}: {problem}")
    reasons = "; ".join(problems) or "there is no checkpoint folder"
    raise CheckpointError(f"{folder} holds no whole checkpoint to resume from ({reasons}). Start without resuming.")
