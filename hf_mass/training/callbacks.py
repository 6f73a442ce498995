"""Callbacks of `MetaAdaptTrainer`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from hf_mass.methods.scorer import Scorer


class ScorerCallback(TrainerCallback):
    """The Trainer clips and clears the model's gradients; this does it for the scorer's, which is not part of it.

    Args:
        scorer: The scorer that is trained.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip the scorer's gradient to `max_grad_norm`, apart from the generator's."""
        parameters = [p for p in self.scorer.parameters() if p.grad is not None]
        if parameters and args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clear the scorer's gradient after the step."""
        for parameter in self.scorer.parameters():
            parameter.grad = None
