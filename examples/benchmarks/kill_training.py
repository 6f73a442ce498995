"""Kills training and answering at random points, goes on with what is left, and compares with an unbroken run.

    python -m benchmarks.kill_training --kills 100

Two runs: `MetaAdaptTrainer` on the base that ships, resumed from its newest whole checkpoint, which must end at the
weights of the unbroken run to the last bit; and `TTTTrainer.predict(resume=True)` on a model of random weights, whose
answers and adapters must be those of the unbroken run, with no leftover. Half of the kills come just before a file is
opened, moved or removed, half after a random time. What is resumed may be killed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.byte_model import build_model, build_tokenizer
from benchmarks.campaigns import campaign_arguments, changes_of, counted, counts, forked, report
from benchmarks.common import say
from hf_mass.cli.reading import read_set
from hf_mass.errors import CheckpointError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.lm.fingerprint import weights_digest
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_trainer import TTTTrainer
from research.conventions.settings import conventions_lora, conventions_settings

STEPS, GROUP, TASKS = 4, 4, 3
QUIET: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


@dataclass(frozen=True)
class Run:
    """Something that is killed.

    Args:
        name: What it is called.
        go: Does it in a folder, or goes on with what is there, to its end.
        came_to: What it came to, from the folder alone.
    """

    name: str
    go: Callable[[Path], object]
    came_to: Callable[[Path], str]


def meta_train(folder: Path) -> None:
    """Four steps of meta-training with a checkpoint after each, from the newest whole checkpoint."""
    settings = conventions_settings(
        **QUIET,
        output_dir=str(folder),
        per_device_train_batch_size=TASKS * GROUP,
        num_generations=GROUP,
        num_solutions=GROUP,
        outer_loss="gold",
        max_steps=STEPS,
        warmup_steps=0,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=1,
    )
    tasks = list(read_set("conventions:train", TASKS).tasks)
    trainer = MetaAdaptTrainer(
        str(ASSETS / "conventions-base"),
        MetaAdaptConfig(**settings),
        tasks,
        peft_config=conventions_lora(),
        prompt_format=CONVENTIONS_FORMAT,
    )
    try:
        trainer.train(resume_from_checkpoint=True)
    except CheckpointError as error:
        if "Start without resuming" not in str(error):
            raise
        trainer.train()
    trainer.save_model()


def trained_weights(folder: Path) -> str:
    """A digest of all weights that were saved at the end."""
    files = sorted(file for file in folder.rglob("*.safetensors") if "checkpoint" not in str(file.relative_to(folder)))
    weights = {f"{file.relative_to(folder)} {n}": w for file in files for n, w in load_file(file).items()}
    return weights_digest(weights)


def answer_tasks(folder: Path) -> None:
    """Adapt to five small tasks and answer each, keeping the adapters; what an earlier run finished is kept."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    args = TTTConfig(
        **QUIET,
        output_dir=str(folder),
        few_shot_format="compact",
        lora_r=2,
        lora_alpha=4,
        learning_rate=0.02,
        transformations=["none"],
        colour_permutations=0,
        predict_transformations=["none"],
        predict_permutations=1,
        max_completion_length=3,
        vote="flat",
        tasks_per_pass=1,
        keep_adapters=True,
    )
    trainer = TTTTrainer(build_model(tokenizer, 16, 1), args, processing_class=tokenizer)
    results = trainer.predict(few_shot_tasks(), resume=True)
    said = [[each.task.id, each.answers, each.reason, each.losses, each.examples] for each in results]
    (folder / "said.json").write_text(json.dumps(said))


def few_shot_tasks() -> list[Task]:
    """Five small tasks, each with demonstrations of its own."""
    rows = ("1 0", "0 2", "3 3")
    return [
        Task.from_pairs([(row, f"{n} {row[0]}") for row in rows], "0 4", "4 4", id=f"task-{n}") for n in range(1, 6)
    ]


def answered(folder: Path) -> str:
    """The answers that were given at the end, with a digest of each adapter."""
    kept = {
        str(file.relative_to(folder)): weights_digest(load_file(file))
        for file in sorted(folder.glob("tasks/*/adapter_model.safetensors"))
    }
    return json.dumps([json.loads((folder / "said.json").read_text()), kept])


RUNS = (Run("MetaAdaptTrainer", meta_train, trained_weights), Run("TTTTrainer.predict", answer_tasks, answered))


def killed(run: Run, folder: Path, point: int | None, seconds: float) -> bool:
    """Whether a process of the run was killed, before a change of files or after a time, and not at its end already."""

    def work() -> None:
        if point is not None:
            counted(point)
        run.go(folder)

    child = forked(work)
    if point is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # nobody has waited for it, so the id is still its own
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"{run.name} failed in {folder}")
    return os.WIFSIGNALED(status)


def campaign(run: Run, kills: int, draw: random.Random, place: Path) -> Counter[str]:
    """What there was after each run that was killed, once or several times, and went on to its end."""
    whole, found = place / "whole", Counter[str]()
    begun = time.monotonic()
    points = changes_of(partial(run.go, whole), place / "count")
    length, expected = time.monotonic() - begun, run.came_to(whole)
    say(f"{run.name}: {points} changes of files in {length:.1f} s")
    count, number = 0, 0
    while count < kills:
        number += 1
        folder = place / f"run-{number}"
        for _ in range(min(draw.choice((1, 1, 2, 3)), kills - count)):
            at_change = draw.random() < 0.5
            point = draw.randint(1, points) if at_change else None
            if killed(run, folder, point, draw.uniform(0.05, length)):
                count += 1
                found["kills before a change of files" if at_change else "kills after a time"] += 1
        found[_state(run, folder, expected)] += 1
        if number % 10 == 0:
            say(f"{count} of {kills} kills: {dict(found)}")
    return found


def _state(run: Run, folder: Path, expected: str) -> str:
    """The outcome of a run that was killed: it goes on to its end, and is compared."""
    try:
        killed(run, folder, 10**9, 0.0)
    except RuntimeError:
        return "it could not go on"
    if run.came_to(folder) != expected:
        return "it ended otherwise than the unbroken run"
    if leftovers := [file for file in folder.rglob("*") if file.name.startswith(".") or file.suffix == ".tmp"]:
        return f"left over: {leftovers[0].name}"
    beside = [each.name for each in folder.parent.iterdir() if each.name.startswith(f".{folder.name}")]
    return f"left over beside it: {beside[0]}" if beside else "runs that ended as the unbroken run did"


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    campaign_arguments(parser, "kill_training", kills=(100, "of each run"))
    parser.add_argument("--only", default="", help="the run whose name holds this")
    arguments = parser.parse_args()
    tables = {}
    with tempfile.TemporaryDirectory() as name:
        for run in RUNS:
            if arguments.only in run.name:
                place = Path(name) / run.name
                place.mkdir()
                found = campaign(run, arguments.kills, random.Random(arguments.seed), place)
                tables[run.name] = counts(run.name, found)
    report(arguments, "Killed while training and answering", tables)


if __name__ == "__main__":
    main()
