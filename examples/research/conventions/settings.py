"""Settings that belong to the tiny base of the conventions world, apart from the defaults for real models."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

CONVENTIONS_INNER_RATES = (20.0, 40.0, 60.0, 80.0)
"""Grid from which every row of a results table takes its inner learning rate, on the validation split."""


def conventions_settings(**changes: Any) -> dict[str, Any]:
    """Keyword arguments of `MetaAdaptConfig` for the tiny base: 24 tasks a step, m = 8, k = 16, K = 1, one CPU.

    The inner rate is large because the base is: one SGD step of a fresh rank-8 LoRA on a model of width 64.
    """
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 192,
        "num_generations": 8,
        "max_completion_length": 6,
        "max_solution_length": 4,
        "max_length": 64,
        "num_solutions": 16,
        "max_steps": 80,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "scorer_learning_rate": 1e-2,
        "scorer_features": ["log_prob", "overlap", "agreement", "attribution"],
        "scorer_width": 16,
        "scale_rewards": "batch",
        "inner_steps": 1,
        "inner_learning_rate": 40.0,
        "inner_lora_r": 8,
        "inner_lora_alpha": 8,
        "inference_samples": 24,
        "attribution_temperature": 8.0,
        "attribution_rounds": 4,
        "beta": 0.0,
        "per_device_eval_batch_size": 50,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return {**settings, **changes}


def conventions_lora() -> LoraConfig:
    """The generator's (and, for the baseline, the solver's) LoRA on the tiny base."""
    return LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
