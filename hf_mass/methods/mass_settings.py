"""Settings of a `MassModel`: everything besides weights that adapting depends on, saved as mass_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_mass.core.memory import PREFERENCES
from hf_mass.core.meta_gradients import get_rule
from hf_mass.core.optimizers import InnerOptimizer, make_optimizer
from hf_mass.core.weights import NORMALISATIONS
from hf_mass.errors import ConfigError
from hf_mass.tasks.formats import PromptFormat

FEATURES = ("hidden", "log_prob", "overlap", "agreement", "attribution")
WEIGHINGS = ("scorer", "demonstrations", "uniform")


@dataclass(frozen=True)
class ScorerConfig:
    """The scorer s_η(T, p, a): what it sees, its size, and how scores become weights.

    Args:
        features: Which of "hidden" (the backbone's last hidden state behind the sample, no gradient into the backbone),
            "log_prob" (of the sample under the generator), "overlap" (of its tokens with the task), "agreement" (with
            the task's other samples), "attribution" (to the task's own demonstrations; needs demonstrations).
        width: Hidden units of the two-layer perceptron; 0 for a linear scorer.
        normalization: "softmax", "sigmoid" or "none".
    """

    features: tuple[str, ...] = ("hidden", "log_prob", "overlap", "agreement")
    width: int = 64
    normalization: str = "softmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features:
            raise ConfigError(f"scorer_features is {list(self.features)}; choose at least one of {list(FEATURES)}.")
        if self.normalization not in NORMALISATIONS:
            raise ConfigError(f"score_normalization is {self.normalization!r}; choose one of {list(NORMALISATIONS)}.")
        if self.width < 0:
            raise ConfigError(f"scorer_width is {self.width}; choose 0 (linear) or more.")


@dataclass(frozen=True)
class InnerConfig:
    """The inner loop: K steps of rate α on a fresh LoRA. Defaults are the paper's at inference (one step).

    Args:
        steps: K ≥ 1.
        learning_rate: α > 0, applied to the weighted mean loss of a task's samples.
        optimizer: "sgd", "momentum" or "adamw".
        momentum: For "momentum".
        betas: For "adamw".
        epsilon: For "adamw".
        weight_decay: For "adamw".
        lora_rank: r of the inner adapter.
        lora_alpha: Its alpha; updates are scaled by alpha / rank.
        target_modules: Names of linear modules, or "all-linear".
        dropout: Probability that an entry is dropped on the low-rank path, in the inner loop only.
        microbatch: Rows in one pass; None leaves it to `memory`.
        memory: "fast" (all activations kept), "lean" (one layer of a few rows at a time) or "auto" (by free memory).
        rule: "adjoint" or "unrolled", how meta-gradients are computed.
    """

    steps: int = 1
    learning_rate: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    lora_rank: int = 16
    lora_alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    microbatch: int | None = None
    memory: str = "auto"
    rule: str = "adjoint"

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2:
            raise ConfigError(f"inner betas are {self.betas}; give two, β₁ and β₂ of AdamW.")
        if self.steps < 1:
            raise ConfigError(f"inner_steps is {self.steps}; the inner loop needs K ≥ 1.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"inner_learning_rate is {self.learning_rate}; choose a finite number above 0.")
        if self.lora_rank < 1 or self.lora_alpha <= 0:
            raise ConfigError(
                f"inner_lora_r is {self.lora_rank} and inner_lora_alpha {self.lora_alpha}; both must be above 0."
            )
        if self.microbatch is not None and self.microbatch < 1:
            raise ConfigError(f"inner_microbatch is {self.microbatch}; choose at least 1 row, or None for all.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"inner_lora_dropout is {self.dropout}; choose a probability in [0, 1).")
        if self.memory not in PREFERENCES:
            raise ConfigError(f"inner_memory is {self.memory!r}; choose one of {list(PREFERENCES)}.")
        self.make_optimizer()
        get_rule(self.rule)

    def make_optimizer(self) -> InnerOptimizer:
        """The inner optimizer."""
        return make_optimizer(
            self.optimizer, self.learning_rate, self.momentum, self.betas, self.epsilon, self.weight_decay
        )


@dataclass(frozen=True)
class AttributionConfig:
    """Test-time weighing by attribution to the task's own demonstrations.

    Args:
        temperature: τ of softmax(τ · standardised attributions).
        rounds: How often the weights are corrected at the weights they led to. For K = 1 a round costs one pass over
            the demonstrations, because the samples' gradients are reused.
    """

    temperature: float = 3.0
    rounds: int = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"attribution_temperature is {self.temperature}; choose a finite number above 0.")
        if self.rounds < 1:
            raise ConfigError(f"attribution_rounds is {self.rounds}; choose at least 1.")


@dataclass(frozen=True)
class MassConfig:
    """Everything that a saved model needs besides its weights.

    Args:
        samples: m, auxiliary samples of one task at inference (6 in arXiv 2603.03524).
        temperature: Sampling temperature of the generator.
        top_p: Nucleus mass that the generator samples from.
        top_k: Number of tokens that it samples from; 0 for all.
        max_sample_tokens: Longest auxiliary sample.
        max_answer_tokens: Longest solution.
        max_length: Longest training row.
        weigh_by: Default of `MassModel.adapt`: "scorer", "demonstrations" or "uniform".
        format: Prompts and patterns.
        inner: The inner loop.
        scorer: The scorer.
        attribution: Test-time attribution.
    """

    samples: int = 6
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_sample_tokens: int = 512
    max_answer_tokens: int = 512
    max_length: int = 2048
    weigh_by: str = "scorer"
    format: PromptFormat = field(default_factory=PromptFormat)
    inner: InnerConfig = field(default_factory=InnerConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)

    def __post_init__(self) -> None:
        for name in ("samples", "max_sample_tokens", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"MassConfig.{name} is {getattr(self, name)}; choose at least 1.")
        longest = max(self.max_sample_tokens, self.max_answer_tokens)
        if self.max_length <= longest:
            raise ConfigError(
                f"MassConfig.max_length is {self.max_length}, which leaves no prompt beside {longest} generated tokens "
                "(the larger of max_sample_tokens and max_answer_tokens). Raise max_length, or lower those."
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"MassConfig.temperature is {self.temperature}; choose a finite number above 0.")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(f"MassConfig.top_p is {self.top_p} and top_k {self.top_k}; choose 0 < p ≤ 1 and k ≥ 0.")
        if self.weigh_by not in WEIGHINGS:
            raise ConfigError(f"weigh_by is {self.weigh_by!r}; choose one of {list(WEIGHINGS)}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MassConfig:
        """The settings that `to_dict` wrote.

        Raises:
            ConfigError: If a name is unknown or a value out of range.
        """
        parts: dict[str, Any] = {"inner": InnerConfig, "scorer": ScorerConfig, "attribution": AttributionConfig}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"MassConfig has no field {unknown[0]!r}. Known fields: {sorted(known)}.")
        built = dict(values)
        for name, part in parts.items():
            if name in built:
                extra = sorted(set(built[name]) - {f.name for f in fields(part)})
                if extra:
                    raise ConfigError(f"MassConfig.{name} has no field {extra[0]!r}.")
                built[name] = part(**built[name])
        if "format" in built:
            built["format"] = PromptFormat.from_dict(built["format"])
        return cls(**built)
