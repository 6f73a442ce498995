"""`TTT_PRESETS`: what each comes to."""

from __future__ import annotations

from typing import Any

import pytest

from hf_mass.methods.ttt_settings import TTTSettings

NEUTRAL: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "adapters": "per_task",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "chat": False,
    "loss_on": "demonstrations",
    "leave_two_out": True,
    "direct": False,
    "random_shift": 0,
    "keep_background": True,
    "recolour_to_unused": False,
    "reorder_recoloured": False,
    "max_examples": 40,
    "max_length": None,
    "single_demonstration": "direct",
    "predict_samples": 1,
    "predict_temperature": 0.0,
    "predict_batch_size": 64,
    "vote_within": 3,
}
TEXTS: dict[str, Any] = {
    **NEUTRAL,
    "few_shot_format": "plain",
    "permutations": 4,
    "transformations": ("none",),
    "colour_permutations": 0,
    "max_grid_side": 30,
    "predict_transformations": ("none",),
    "predict_recolour": False,
    "predict_length_factor": 3.0,
    "vote": "flat",
}
OWN: dict[str, dict[str, Any]] = {
    "grids": {
        **NEUTRAL,
        "few_shot_format": "compact",
        "permutations": 1,
        "transformations": ("geometric",),
        "colour_permutations": 1,
        "max_grid_side": 64,
        "max_completion_length": 256,
        "predict_transformations": ("inference",),
        "predict_permutations": 2,
        "predict_recolour": True,
        "predict_length_factor": 2.0,
        "vote": "hierarchical",
    },
    "strings": {**TEXTS, "max_completion_length": 128, "predict_permutations": 4},
    "text": {
        **TEXTS,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 5,
        "max_completion_length": 512,
        "predict_permutations": 1,
    },
}
"""Presets of this package → all that they come to, whatever the defaults are."""


@pytest.mark.parametrize("name", OWN)
def test_the_packages_own_presets_stay_what_their_results_were_made_with(name: str) -> None:
    assert vars(TTTSettings.preset(name)) == OWN[name]
