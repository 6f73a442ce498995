"""`MetaAdaptConfig`: TRL's `GRPOConfig` plus the settings of MASS, each checked where it is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from hf_mass.errors import ConfigError
from hf_mass.methods.mass_settings import InnerConfig, MassConfig
from hf_mass.methods.settings import build, check, declares, setting
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.training.trl_settings import check_types, refused_by_trl

OUTER_LOSSES = ("gold", "verifier")
GENERATOR_REWARDS = ("logit", "sample")
# Settings of MASS that this trainer takes from TRL's of the same meaning, or has once for training and once for later.
_OTHERWISE = ("samples", "temperature", "top_p", "top_k", "max_sample_tokens", "max_answer_tokens")


@dataclass
@declares(MassConfig, without=_OTHERWISE, inner_steps=2)
class MetaAdaptConfig(GRPOConfig):
    """Settings of `MetaAdaptTrainer` (arXiv 2603.03524). TRL's own settings keep their meaning; one group is the
    `num_generations` (m) auxiliary samples of one task, of at most `max_completion_length` tokens. Those of MASS are
    those of `MassConfig` and of its parts, each under a name of its own (`InnerConfig.steps` is `inner_steps`, K in
    training). Each setting is described by its help text.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the generator's LoRA adapter."})
    # TRL wants whole groups in a generation batch, and its own default of 8 rows holds none of m = 12.
    per_device_train_batch_size: int = field(default=12, metadata={"help": "Auxiliary samples of one pass."})
    num_generations: int = setting(
        12, "m, auxiliary samples of one task, which are compared with each other.", least=2, most=4096
    )
    # Evaluation adapts and solves; TRL's own, in groups of this size, is not used and must not constrain batch sizes.
    num_generations_eval: int | None = field(default=1, metadata={"help": "Not used; evaluation has no groups."})
    outer_loss: str = setting(
        "verifier",
        "What adapting is judged by: 'verifier' samples solutions at each task's adapted weights and verifies them "
        "(the GRPO surrogate), 'gold' is the cross-entropy of the gold solution.",
        choices=OUTER_LOSSES,
    )
    num_solutions: int = setting(
        8,
        "k, solutions sampled at each task's adapted weights; at least 2 for outer_loss 'verifier'.",
        least=1,
        most=4096,
    )
    solution_temperature: float = setting(1.0, "Sampling temperature of those solutions.", above=0, most=1e6)
    max_solution_length: int = setting(
        MassConfig.max_answer_tokens, "Longest solution in tokens.", least=1, most=1_000_000
    )
    solve_coefficient: float = setting(
        0.1, "γ of γ·L_solve: how much the outer loss itself trains the generator's adapter.", least=0, most=1e6
    )
    solve_gradient: str = setting(
        "direct",
        "'direct' takes the gradient of L_solve at fixed adapted weights; 'full' follows the inner steps as well (one "
        "more second-order pass per inner step).",
        choices=("direct", "full"),
    )
    generator_reward: str = setting(
        "logit",
        "Reward of a sample: 'logit' is w_i (R_i − Σ w R), at a softmax scorer's logit; 'sample' is R_i = −∂L/∂s_i.",
        choices=GENERATOR_REWARDS,
    )
    inference_steps: int = setting(
        InnerConfig.steps, "K at inference: in evaluation and of the saved model.", least=1, most=1000
    )
    inference_samples: int = setting(MassConfig.samples, "m at inference.", least=1, most=4096)
    scorer_learning_rate: float = setting(1e-3, "Learning rate of the scorer.", least=0, most=1e6)
    train_scorer: bool = setting(True, "False keeps all weights equal (the 'uniform' ablation).")
    prompt_format: str = setting(
        "default",
        "Name of the prompts, in `hf_mass.FORMATS`; a `PromptFormat` can be given to the trainer instead.",
        choices=tuple(sorted(FORMATS)),
    )
    verifier: str = setting("exact_match", "Verifier of tasks made from dataset columns.")

    if TYPE_CHECKING:  # the settings of MASS are no text of this class

        def __init__(self, **settings: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self) -> None:
        check(self)
        check_types(self)
        if self.fp16:
            raise ConfigError(
                "MetaAdaptConfig.fp16 is True; its loss scaling would not reach the scorer. Use bf16=True, or float32."
            )
        if self.use_liger_kernel and (self.inner_steps > 1 or self.solve_gradient == "full"):
            raise ConfigError(
                f"MetaAdaptConfig.use_liger_kernel is True; such kernels lose second-order terms, which inner_steps="
                f"{self.inner_steps} and solve_gradient={self.solve_gradient!r} need. Set use_liger_kernel=False, or "
                "inner_steps=1 and solve_gradient='direct'."
            )
        if getattr(self, "bf16", None) is None and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default of True is refused by a machine without such an accelerator
        if self.outer_loss == "verifier" and self.num_solutions < 2:
            raise ConfigError(
                f"MetaAdaptConfig.num_solutions is {self.num_solutions}; outer_loss='verifier' compares at least 2."
            )
        if self.generator_reward == "logit" and self.score_normalization != "softmax":
            raise ConfigError(
                f"MetaAdaptConfig.generator_reward='logit' is defined for softmax weights, but score_normalization is "
                f"{self.score_normalization!r}. Use generator_reward='sample'."
            )
        self.mass_config(PromptFormat())  # checks what contradicts by building it
        with refused_by_trl(self):
            super().__post_init__()

    def mass_config(self, fmt: PromptFormat, training: bool = False) -> MassConfig:
        """The settings as a `MassConfig`: of the saved model, or (training=True) with K and m of training."""
        values = {
            **vars(self),
            "samples": self.num_generations if training else self.inference_samples,
            "inner_steps": self.inner_steps if training else self.inference_steps,
            "max_sample_tokens": self.max_completion_length and int(self.max_completion_length),
            "max_answer_tokens": self.max_solution_length,
            "format": fmt,
        }
        return build(MassConfig, values)
