"""`MetaAdaptConfig`: TRL's `GRPOConfig` plus the settings of MASS, each checked where it is set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from hf_mass.errors import ConfigError
from hf_mass.methods.mass_settings import AttributionConfig, InnerConfig, MassConfig, ScorerConfig
from hf_mass.tasks.formats import FORMATS, PromptFormat

OUTER_LOSSES = ("gold", "verifier")
GENERATOR_REWARDS = ("logit", "sample")


@dataclass
class MetaAdaptConfig(GRPOConfig):
    """Settings of `MetaAdaptTrainer` (arXiv 2603.03524). TRL's own settings keep their meaning; one group is the
    `num_generations` (m) auxiliary samples of one task.

    Args:
        outer_loss: "verifier" (k solutions sampled at each task's adapted weights, GRPO surrogate) or "gold"
            (cross-entropy on the gold solution).
        num_solutions: k, solutions of one task in verifier mode, at least 2.
        solution_temperature: Their sampling temperature.
        max_solution_length: Their longest length in tokens.
        solve_coefficient: γ ≥ 0 of γ·L_solve, the outer loss at the adapted weights as a loss of the generator's
            adapter.
        solve_gradient: "direct" for its gradient at fixed adapted weights, "full" to follow the inner steps as well
            (one more second-order pass per inner step).
        generator_reward: "logit", w_i (R_i − Σ w R) at a softmax scorer's logit, or "sample", R_i = −∂L/∂s_i.
        inner_steps: K in training.
        inner_learning_rate: α of the inner loop.
        inner_optimizer: "sgd", "momentum" or "adamw".
        inner_momentum: For "momentum".
        inner_adam_beta1: For "adamw".
        inner_adam_beta2: For "adamw".
        inner_adam_epsilon: For "adamw".
        inner_weight_decay: For "adamw".
        inner_lora_r: Rank of the inner adapter.
        inner_lora_alpha: Its alpha.
        inner_target_modules: Its target modules, "all-linear" or names.
        inner_lora_dropout: Dropout of the inner adapter's low-rank path, in the inner loop only.
        inner_microbatch: Rows in one pass of the inner loop.
        inner_memory: "fast" (all activations kept), "lean" (one layer of a few rows at a time) or "auto".
        meta_gradient: "adjoint" or "unrolled".
        inference_steps: K at inference (evaluation and the saved model).
        inference_samples: m at inference.
        scorer_features: See `ScorerConfig`.
        scorer_width: See `ScorerConfig`.
        score_normalization: "softmax", "sigmoid" or "none".
        scorer_learning_rate: The scorer's own learning rate.
        train_scorer: False keeps all weights equal (the "uniform" ablation).
        attribution_temperature: τ of test-time attribution.
        attribution_rounds: Its rounds.
        weigh_by: How evaluation and the saved model weigh samples: "scorer", "demonstrations" or "uniform".
        prompt_format: Name in `hf_mass.tasks.formats.FORMATS`; a `PromptFormat` can be given to the trainer instead.
        verifier: Verifier of tasks made from dataset columns.
        max_length: Longest training row of the inner loop and the outer loss.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the generator's LoRA adapter."})
    # TRL wants whole groups in a generation batch, and its own default of 8 rows holds none of m = 12.
    per_device_train_batch_size: int = field(default=12, metadata={"help": "Auxiliary samples of one pass."})
    num_generations: int | None = field(default=12, metadata={"help": "m, auxiliary samples of one task."})
    # Evaluation adapts and solves; TRL's own, in groups of this size, is not used and must not constrain batch sizes.
    num_generations_eval: int | None = field(default=1, metadata={"help": "Not used; evaluation has no groups."})
    log_completions: bool = field(default=False, metadata={"help": "Log samples with weight and attribution."})
    outer_loss: str = field(default="verifier", metadata={"help": "'verifier' or 'gold'."})
    num_solutions: int = field(default=8, metadata={"help": "k, solutions sampled at each task's adapted weights."})
    solution_temperature: float = field(default=1.0, metadata={"help": "Temperature of those solutions."})
    max_solution_length: int = field(default=512, metadata={"help": "Longest solution in tokens."})
    solve_coefficient: float = field(default=0.1, metadata={"help": "γ of γ·L_solve."})
    solve_gradient: str = field(default="direct", metadata={"help": "'direct' or 'full'."})
    generator_reward: str = field(default="logit", metadata={"help": "'logit' or 'sample'."})
    inner_steps: int = field(default=2, metadata={"help": "K, inner steps in training."})
    inner_learning_rate: float = field(default=0.1, metadata={"help": "α of the inner loop."})
    inner_optimizer: str = field(default="sgd", metadata={"help": "'sgd', 'momentum' or 'adamw'."})
    inner_momentum: float = field(default=0.9, metadata={"help": "Momentum of the inner optimizer."})
    inner_adam_beta1: float = field(default=0.9, metadata={"help": "β₁ of the inner AdamW."})
    inner_adam_beta2: float = field(default=0.999, metadata={"help": "β₂ of the inner AdamW."})
    inner_adam_epsilon: float = field(default=1e-8, metadata={"help": "ε of the inner AdamW."})
    inner_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the inner AdamW."})
    inner_lora_r: int = field(default=16, metadata={"help": "Rank of the inner LoRA."})
    inner_lora_alpha: int = field(default=32, metadata={"help": "Alpha of the inner LoRA."})
    inner_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear modules."})
    inner_lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the inner LoRA, inner loop only."})
    inner_microbatch: int | None = field(default=None, metadata={"help": "Rows in one pass of the inner loop."})
    inner_memory: str = field(default="auto", metadata={"help": "'fast', 'lean' or 'auto'."})
    meta_gradient: str = field(default="adjoint", metadata={"help": "'adjoint' or 'unrolled'."})
    inference_steps: int = field(default=1, metadata={"help": "K at inference."})
    inference_samples: int = field(default=6, metadata={"help": "m at inference."})
    scorer_features: list[str] = field(
        default_factory=lambda: ["hidden", "log_prob", "overlap", "agreement"], metadata={"help": "Scorer inputs."}
    )
    scorer_width: int = field(default=64, metadata={"help": "Hidden units of the scorer; 0 for a linear one."})
    score_normalization: str = field(default="softmax", metadata={"help": "'softmax', 'sigmoid' or 'none'."})
    scorer_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the scorer."})
    train_scorer: bool = field(default=True, metadata={"help": "False keeps all weights equal."})
    attribution_temperature: float = field(default=3.0, metadata={"help": "τ of test-time attribution."})
    attribution_rounds: int = field(default=2, metadata={"help": "Rounds of test-time attribution."})
    weigh_by: str = field(default="scorer", metadata={"help": "'scorer', 'demonstrations' or 'uniform'."})
    prompt_format: str = field(default="default", metadata={"help": f"One of {sorted(FORMATS)}."})
    verifier: str = field(default="exact_match", metadata={"help": "Verifier of the answers."})
    max_length: int = field(default=2048, metadata={"help": "Longest training row in tokens."})

    def __post_init__(self) -> None:
        if self.num_generations is None or self.num_generations < 2:
            raise ConfigError(
                f"MetaAdaptConfig.num_generations is {self.num_generations}; m must be at least 2, since the samples "
                "of a task are compared with each other."
            )
        if self.fp16:
            raise ConfigError(
                "MetaAdaptConfig.fp16 is True; its loss scaling would not reach the scorer. Use bf16=True, or float32."
            )
        if getattr(self, "bf16", None) is None and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default of True is refused by a machine without such an accelerator
        self._check_choice("outer_loss", OUTER_LOSSES)
        self._check_choice("generator_reward", GENERATOR_REWARDS)
        self._check_choice("solve_gradient", ("direct", "full"))
        self._check_choice("prompt_format", tuple(sorted(FORMATS)))
        if self.outer_loss == "verifier" and self.num_solutions < 2:
            raise ConfigError(
                f"MetaAdaptConfig.num_solutions is {self.num_solutions}; outer_loss='verifier' compares at least 2."
            )
        if self.generator_reward == "logit" and self.score_normalization != "softmax":
            raise ConfigError(
                f"MetaAdaptConfig.generator_reward='logit' is defined for softmax weights, but score_normalization is "
                f"{self.score_normalization!r}. Use generator_reward='sample'."
            )
        for name in ("inner_steps", "inference_steps", "inference_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"MetaAdaptConfig.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("solve_coefficient", "scorer_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"MetaAdaptConfig.{name} is {getattr(self, name)}; choose a finite number, at least 0."
                )
        if not 0 < self.solution_temperature < math.inf:
            raise ConfigError(
                f"MetaAdaptConfig.solution_temperature is {self.solution_temperature}; choose a finite number above 0."
            )
        self.mass_config(PromptFormat())  # checks everything else by building it
        super().__post_init__()

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ConfigError(f"MetaAdaptConfig.{name} is {getattr(self, name)!r}; choose one of {list(choices)}.")

    def mass_config(self, fmt: PromptFormat, training: bool = False) -> MassConfig:
        """The settings as a `MassConfig`: of the saved model, or (training=True) with K and m of training."""
        targets = self.inner_target_modules or "all-linear"
        return MassConfig(
            samples=int(self.num_generations or 0) if training else self.inference_samples,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_sample_tokens=self.max_completion_length or 512,
            max_answer_tokens=self.max_solution_length,
            max_length=self.max_length,
            weigh_by=self.weigh_by,
            format=fmt,
            inner=InnerConfig(
                steps=self.inner_steps if training else self.inference_steps,
                learning_rate=self.inner_learning_rate,
                optimizer=self.inner_optimizer,
                momentum=self.inner_momentum,
                betas=(self.inner_adam_beta1, self.inner_adam_beta2),
                epsilon=self.inner_adam_epsilon,
                weight_decay=self.inner_weight_decay,
                lora_rank=self.inner_lora_r,
                lora_alpha=self.inner_lora_alpha,
                target_modules=targets if isinstance(targets, str) else tuple(targets),
                dropout=self.inner_lora_dropout,
                microbatch=self.inner_microbatch,
                memory=self.inner_memory,
                rule=self.meta_gradient,
            ),
            scorer=ScorerConfig(tuple(self.scorer_features), self.scorer_width, self.score_normalization),
            attribution=AttributionConfig(self.attribution_temperature, self.attribution_rounds),
        )
