"""Small trainers of test-time training on bytes, and a base that knows how answers look but not which one is right."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from model_fixtures import byte_base, byte_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from hf_mass.methods.ttt import FewShotAdapter
from hf_mass.methods.ttt_settings import FitConfig, PredictConfig
from hf_mass.tasks.few_shot_format import resolve_format
from hf_mass.tasks.leave_one_out import DataConfig
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_trainer import TTTTrainer

ROWS = ("1 0", "0 2", "3 3")


def strip_task(
    name: str, answers: str = "444", rows: tuple[str, ...] = ROWS, query: str = "0 4", **fields: str
) -> Task:
    """Rows of two cells to one cell each; by default always the same one, which is the answer too."""
    pairs = tuple(Demonstration(row, answer) for row, answer in zip(rows, answers, strict=True))
    return Task(query, pairs, answer=answers[0], id=name, fields=fields)


@cache
def _guessing() -> PreTrainedModel:
    torch.manual_seed(0)
    base = byte_base()
    with torch.no_grad():
        base.lm_head.weight.mul_(5)  # the byte model's own logits are too small for any certainty
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    data = DataConfig(leave_two_out=False)
    fit = FitConfig(8, 16, learning_rate=0.01, epochs=15, batch_size=6, data=data, format=resolve_format("compact"))
    few = FewShotAdapter(get_peft_model(base, lora).eval(), byte_tokenizer(), fit, PredictConfig())
    tasks = [strip_task(answers, answers) for answers in ("454", "545", "445", "554", "455", "544")]
    few.lora.load(few.adapt(tasks, shared=True)[0].params or {})
    return few.model.merge_and_unload().eval()


def guessing_base() -> PreTrainedModel:
    """Answers "4;" or "5;", whatever is asked and shown."""
    return copy.deepcopy(_guessing())


def start_adapter(scale: float = 0.05) -> PeftModel:
    """The guessing base with an adapter that changes it already."""
    torch.manual_seed(1)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(guessing_base(), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, scale)
    return model


def settings(folder: Path | str, **changes: Any) -> TTTConfig:
    """Four steps on three examples, one greedy view."""
    small: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "few_shot_format": "compact",
        "lora_r": 4,
        "lora_alpha": 8,
        "learning_rate": 0.02,
        "transformations": ["none"],
        "colour_permutations": 0,
        "leave_two_out": False,
        "predict_transformations": ["none"],
        "predict_permutations": 1,
        "max_completion_length": 3,
        "vote": "flat",
    }
    return TTTConfig(**{**small, **changes})


def make_trainer(
    folder: Path | str, model: Any = None, options: dict[str, Any] | None = None, **changes: Any
) -> TTTTrainer:
    """A trainer of the guessing base; `options` go to the trainer and `changes` to its settings."""
    given = {"processing_class": byte_tokenizer(), **(options or {})}
    return TTTTrainer(model if model is not None else guessing_base(), settings(folder, **changes), **given)


def reinforced(
    folder: Path | str, model: Any = None, options: dict[str, Any] | None = None, **changes: Any
) -> TTTTrainer:
    """Twenty steps of eight answers of two tokens."""
    grpo: dict[str, Any] = {
        "objective": "grpo",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "max_completion_length": 2,
        "max_steps": 20,
        "logging_steps": 1,
    }
    return make_trainer(folder, model, options, **{**grpo, **changes})
