"""Settings of test-time training on few-shot tasks: how an adapter is trained, and how a task is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_mass.core.fitting import schedule_factor
from hf_mass.core.optimizers import InnerOptimizer, make_optimizer
from hf_mass.errors import ConfigError
from hf_mass.tasks.few_shot_format import LOSS_ON, FewShotFormat, resolve_format
from hf_mass.tasks.leave_one_out import DataConfig
from hf_mass.tasks.transformations import Identity, Transformation


@dataclass(frozen=True)
class FitConfig:
    """How the adapter of one task is trained. Defaults are the paper's for ARC (arXiv 2411.07279, appendix).

    Args:
        lora_rank: r.
        lora_alpha: Its alpha; updates are scaled by alpha / rank.
        target_modules: Names of linear modules, or "all-linear".
        learning_rate: Highest rate of the schedule.
        betas: β₁ and β₂ of AdamW.
        epsilon: ε of AdamW.
        epochs: Passes over the task's examples.
        batch_size: Examples of one step.
        lr_scheduler_type: "cosine", "linear" or "constant".
        warmup_ratio: Share of the steps in which the rate rises.
        weight_decay: Of AdamW.
        max_grad_norm: Longest gradient; None for no limit.
        loss_on: "query", "demonstrations", "outputs" or "all" (see `hf_mass.tasks.few_shot_format.LOSS_ON`).
        data: What examples to make.
        format: How they read.
    """

    lora_rank: int = 128
    lora_alpha: int = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    epochs: int = 2
    batch_size: int = 2
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    loss_on: str = "demonstrations"
    data: DataConfig = field(default_factory=DataConfig)
    format: FewShotFormat = field(default_factory=lambda: resolve_format("arc"))

    def __post_init__(self) -> None:
        for name in ("lora_rank", "lora_alpha", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"FitConfig.{name} is {getattr(self, name)}; choose at least 1.")
        if self.loss_on not in LOSS_ON:
            raise ConfigError(f"FitConfig.loss_on is {self.loss_on!r}; choose one of {list(LOSS_ON)}.")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"FitConfig.warmup_ratio is {self.warmup_ratio}; choose a share in [0, 1).")
        if self.max_grad_norm is not None and not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ConfigError(f"FitConfig.max_grad_norm is {self.max_grad_norm}; choose a number above 0, or None.")
        schedule_factor(self.lr_scheduler_type, 0, 1)
        self.make_optimizer()

    def make_optimizer(self) -> InnerOptimizer:
        """AdamW at the highest rate; the schedule scales its updates."""
        return make_optimizer(
            "adamw", self.learning_rate, betas=self.betas, epsilon=self.epsilon, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class PredictConfig:
    """How a task is asked.

    Args:
        transformations: Those to ask under; answers are mapped back.
        permutations: Views under each: the given order of the demonstrations, then random ones, as many as differ.
        recolour: Also recolour all views but the first of a transformation at random; then `permutations` views are
            made, however few orders there are.
        keep_background: Whether recolouring leaves colour 0 as it is.
        samples: Answers to each question; more than one needs a temperature.
        temperature: 0 for greedy answers.
        max_new_tokens: Longest answer.
        length_factor: Longest answer as a multiple of the task's longest demonstrated output, in tokens; None for
            `max_new_tokens` alone. An untrained model that never ends an answer then costs little.
        batch_size: Questions of one generation batch.
    """

    transformations: tuple[Transformation, ...] = (Identity(),)
    permutations: int = 1
    recolour: bool = False
    keep_background: bool = True
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 512
    length_factor: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("permutations", "samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PredictConfig.{name} is {getattr(self, name)}; choose at least 1.")
        if not self.transformations:
            raise ConfigError("PredictConfig.transformations is empty; (Identity(),) asks the task as it is.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"PredictConfig.temperature is {self.temperature}; choose a finite number, 0 or more.")
        if self.length_factor is not None and not (math.isfinite(self.length_factor) and self.length_factor >= 1):
            raise ConfigError(
                f"PredictConfig.length_factor is {self.length_factor}; choose a number of at least 1, or None."
            )
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"PredictConfig.samples is {self.samples} at temperature 0, where all are equal. Set a temperature."
            )
