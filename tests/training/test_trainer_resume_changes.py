"""A run is resumed with other settings than it was begun with: they take effect, or they are refused by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from trainer_fixtures import M, largest_difference, logged, make_trainer, trained_values, world

from hf_mass.errors import ConfigError
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from research.conventions.settings import conventions_lora

RUN = {"outer_loss": "gold", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MetaAdaptTrainer:
    """Four steps, with checkpoints after two and four."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), **RUN)
    trainer.train()
    return trainer


def test_rates_are_those_of_the_resumed_run(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    """The Trainer would go on with those of the checkpoint, and not say so."""
    changed = {"learning_rate": 3e-4, "scorer_learning_rate": 0.5, "weight_decay": 0.25, "adam_beta1": 0.5}
    resumed = make_trainer(tmp_path, **{**RUN, **changed, "adam_epsilon": 1e-3, "max_steps": 8, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=Path(run.args.output_dir) / "checkpoint-2")
    assert logged(resumed, "learning_rate")[2:] == pytest.approx([3e-4 * (8 - step) / 8 for step in range(2, 8)])
    *lora, scorer = resumed.optimizer.param_groups
    assert {group["initial_lr"] for group in lora} == {3e-4} and scorer["initial_lr"] == 0.5
    assert lora[0]["weight_decay"] == 0.25 and scorer["weight_decay"] == 0
    assert all(group["betas"] == (0.5, 0.999) and group["eps"] == 1e-3 for group in (*lora, scorer))
    unchanged = make_trainer(tmp_path, **{**RUN, "save_strategy": "no"})
    unchanged.train(resume_from_checkpoint=Path(run.args.output_dir) / "checkpoint-2")
    assert largest_difference(trained_values(unchanged), trained_values(run)) == 0


def lora(**changes: Any) -> dict[str, Any]:
    known = conventions_lora()
    for name, value in changes.items():
        setattr(known, name, value)
    return {"options": {"peft_config": known}}


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("seed = 42", {"seed": 7}),
    ("num_generations = 4", {"num_generations": 2}),
    ("generation_batch_size = 12", {"per_device_train_batch_size": 2 * M}),
    ("gradient_accumulation_steps = 1", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}),
    ("optim = 'adamw", {"optim": "sgd"}),
    ("scorer_features = ", {"scorer_features": ["log_prob"]}),
    ("scorer_width = 16", {"scorer_width": 4}),
    ("inner_lora_r = 8", {"inner_lora_r": 4}),
    ("inner_lora_alpha = 8", {"inner_lora_alpha": 80}),
    ("inner_target_modules = ", {"inner_target_modules": ["q_proj"]}),
    ("peft_config.r = 16", lora(r=8)),
    ("peft_config.lora_alpha = 16", lora(lora_alpha=160)),
    ("peft_config.target_modules = ", lora(target_modules=["q_proj"])),
    ("peft_config.use_rslora = False", lora(use_rslora=True)),
    ("on other tasks, or on these in another order", {"options": {"train_dataset": world().tasks("train", 3)[::-1]}}),
    ("on other tasks, or on these in another order", {"options": {"train_dataset": world().tasks("train", 4)}}),
]


@pytest.mark.parametrize(("told", "changes"), CHANGES)
def test_what_a_run_keeps_to_its_end(run: MetaAdaptTrainer, tmp_path: Path, told: str, changes: dict[str, Any]) -> None:
    other = make_trainer(tmp_path, **{**RUN, **changes})
    with pytest.raises(ConfigError, match=rf"checkpoint-2 is of a run (with )?{re.escape(told)}.*begin another run"):
        other.train(resume_from_checkpoint=Path(run.args.output_dir) / "checkpoint-2")


def test_a_checkpoint_of_an_earlier_release_is_taken(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    copied = shutil.copytree(run.args.output_dir, tmp_path / "copy")
    base = copied / "checkpoint-2" / "base.json"
    base.write_text(json.dumps({"weights": json.loads(base.read_text())["weights"]}))
    resumed = make_trainer(copied, **RUN)
    resumed.train(resume_from_checkpoint=copied / "checkpoint-2")
    assert largest_difference(trained_values(run), trained_values(resumed)) == 0
