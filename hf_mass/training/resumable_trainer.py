"""Runs that can be interrupted: what is resumed goes on as it was begun, and a full disk does not end training."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.utils import RepeatSampler

from hf_mass.errors import CheckpointError
from hf_mass.store.folders import writing
from hf_mass.tasks.task import Task
from hf_mass.training.checkpoints import ResumedSampler, last_whole_checkpoint, problem_of, require_whole
from hf_mass.training.publishing_trainer import PublishingTrainer

logger = logging.getLogger(__name__)

ORDER = (
    *("seed", "shuffle_dataset", "num_generations", "generation_batch_size", "steps_per_generation"),
    *("gradient_accumulation_steps", "num_iterations", "optim"),
)
"""Settings of TRL that a run keeps to its end: which tasks come when, and whose state is resumed."""
_LORA = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern")
_RATES = ("initial_lr", "weight_decay", "betas", "eps")


class ResumableTrainer(PublishingTrainer):
    """A trainer that takes up a checkpoint of its run; rates and decay are those that it is given now."""

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer; resuming takes the last whole checkpoint and refuses one that was cut off while saving."""
        if str(resume_from_checkpoint).lower() in ("true", "false"):
            resume_from_checkpoint = str(resume_from_checkpoint).lower() == "true"  # as a command line spells it
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, self._whole_steps())
        elif isinstance(resume_from_checkpoint, str | Path):
            require_whole(resume_from_checkpoint, self._whole_steps())
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _whole_steps(self) -> int:
        """Optimizer steps after which new samples are due."""
        passes = self.args.steps_per_generation * self.num_iterations  # of the model, for what was generated once
        return math.lcm(passes, self.args.gradient_accumulation_steps) // self.args.gradient_accumulation_steps

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """TRL's, which a resumed run takes up where it stood."""
        return ResumedSampler.of(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer, which takes one more step where a run is resumed that was at its end."""
        if self.state.global_step < self.state.max_steps:
            return super()._run_epoch(*args, **kwargs)
        self.control.should_training_stop = True
        return None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in the Trainer, which would go on with the checkpoint's rates and not say so."""
        given = [{name: group[name] for name in _RATES if name in group} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is None or not isinstance(scheduler, LambdaLR):
            return
        scheduler.base_lrs = [rates["initial_lr"] for rates in given]
        for group, rates, share in zip(self.optimizer.param_groups, given, scheduler.lr_lambdas, strict=True):
            group.update(rates, lr=rates["initial_lr"] * share(scheduler.last_epoch))
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in the Trainer, but one that cannot be written is warned about, and training goes on.

        Raises:
            CheckpointError: If it cannot be written and other processes wait for it.
        """
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        except CheckpointError as error:
            if self.accelerator.num_processes > 1:
                raise
            logger.warning("%s Training goes on.", error)
            if problem_of(folder) is not None:  # else it was what comes after it that failed
                shutil.rmtree(folder, ignore_errors=True)
                if self.state.best_model_checkpoint == str(folder):
                    self.state.best_model_checkpoint = None


def run_settings(args: Any, lora: PeftConfig, tasks: Sequence[Task], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps to its end, as JSON values.

    Args:
        args: The trainer's settings.
        lora: Those of the adapter that is trained.
        tasks: What it trains on, in order.
        own: Further values.
    """
    text = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    values = {
        **{name: getattr(args, name) for name in ORDER},
        **{f"peft_config.{name}": getattr(lora, name) for name in _LORA},
        **own,
        "train_dataset": hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
    }
    return {name: json.loads(json.dumps(value, default=_plain)) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
