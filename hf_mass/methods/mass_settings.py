"""Settings of a `MassModel`: everything besides weights that adapting depends on, saved as mass_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_mass.errors import ConfigError
from hf_mass.methods.settings import check, require_targets, setting
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.formats import PromptFormat

FEATURES = ("hidden", "log_prob", "overlap", "agreement", "attribution")
WEIGHINGS = ("scorer", "demonstrations", "matching", "uniform")
BY_DEMONSTRATIONS = ("demonstrations", "matching")
"""Weighings that need a task's own demonstrations."""
# Names that `hf_mass.core` gives; a test holds them equal, since that folder would bring torch in.
NORMALISATIONS = ("softmax", "sigmoid", "none")
OPTIMIZERS = ("sgd", "momentum", "adamw")
MEMORY_PREFERENCES = ("auto", "fast", "lean")
RULES = ("adjoint", "unrolled")


@dataclass(frozen=True)
class ScorerConfig:
    """The scorer s_η(T, p, a): what it sees, its size, and how scores become weights."""

    features: tuple[str, ...] = setting(
        FEATURES[:4],
        "What the scorer sees of a sample: 'hidden' (the backbone's last hidden state behind it, no gradient into the "
        "backbone), 'log_prob' (how likely the generator finds it), 'overlap' (of its tokens with the task), "
        "'agreement' (with the task's other samples), 'attribution' (how much training on it helps the task's own "
        "demonstrations; needs demonstrations).",
        name="scorer_features",
        choices=FEATURES,
    )
    width: int = setting(
        64,
        "Hidden units of the scorer, a two-layer perceptron; 0 for a linear one.",
        name="scorer_width",
        least=0,
        most=65_536,
    )
    normalization: str = setting(
        "softmax",
        "How scores become weights: 'softmax' (they sum to 1 over a task), 'sigmoid' or 'none' (each for itself).",
        name="score_normalization",
        choices=NORMALISATIONS,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class InnerConfig:
    """The inner loop: K steps of rate α on a fresh LoRA. Defaults are the paper's at inference (one step)."""

    steps: int = setting(
        1, "K, training steps on the samples of a task.", name="inner_steps", least=1, most=1000, metavar="K"
    )
    learning_rate: float = setting(
        0.1,
        "α, learning rate of these steps, on the weighted mean loss of a task's samples.",
        name="inner_learning_rate",
        above=0,
        most=1e300,
        metavar="RATE",
    )
    optimizer: str = setting(
        "sgd",
        "Optimizer of these steps, 'sgd', 'momentum' or 'adamw' (whose first step hardly depends on the weights of "
        "samples, so that weigh by attribution with another).",
        name="inner_optimizer",
        choices=OPTIMIZERS,
    )
    momentum: float = setting(
        0.9, "Share of the last update in the next one; for 'momentum'.", name="inner_momentum", least=0, below=1
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999),
        "Decay of the running mean of gradients (1) or of their squares (2); for 'adamw'.",
        name="inner_adam_beta",
        least=0,
        below=1,
    )
    epsilon: float = setting(
        1e-8, "What is added to the divisor; for 'adamw'.", name="inner_adam_epsilon", above=0, most=1e6
    )
    weight_decay: float = setting(
        0.0,
        "Decay of the weights in a step, times the rate; for 'adamw'.",
        name="inner_weight_decay",
        least=0,
        most=1e6,
    )
    lora_rank: int = setting(16, "Rank r of the inner LoRA.", name="inner_lora_r", least=1, most=4096)
    lora_alpha: int = setting(
        32,
        "Alpha of the inner LoRA; its update is scaled by alpha / rank.",
        name="inner_lora_alpha",
        least=1,
        most=1_000_000,
    )
    target_modules: str | tuple[str, ...] = setting(
        "all-linear", "Names of the linear modules with an inner LoRA; default: all.", name="inner_target_modules"
    )
    dropout: float = setting(
        0.0,
        "Probability that an entry is dropped on the inner LoRA's low-rank path, while it is trained.",
        name="inner_lora_dropout",
        least=0,
        below=1,
    )
    microbatch: int | None = setting(
        None,
        "Rows in one pass of the inner loop; default: as many as fit.",
        name="inner_microbatch",
        least=1,
        most=65_536,
    )
    memory: str = setting(
        "auto",
        "'fast' keeps all activations, 'lean' one layer of a few rows at a time; 'auto' goes by free memory.",
        name="inner_memory",
        choices=MEMORY_PREFERENCES,
    )
    rule: str = setting(
        "adjoint",
        "How gradients are taken through the inner loop: 'adjoint' step by step backwards, 'unrolled' by autograd "
        "through all steps at once (more memory, the same result).",
        name="meta_gradient",
        choices=RULES,
    )

    def __post_init__(self) -> None:
        check(self)
        require_targets("inner_target_modules", self.target_modules)


@dataclass(frozen=True)
class AttributionConfig:
    """Test-time weighing by attribution to the task's own demonstrations."""

    temperature: float = setting(
        3.0,
        "τ of softmax(τ · standardised attributions): the higher, the more the best samples count.",
        name="attribution_temperature",
        above=0,
        most=1e6,
    )
    rounds: int = setting(
        2,
        "How often the weights are corrected at the weights they led to. For K = 1 a round costs one pass over the "
        "demonstrations, because the samples' gradients are reused.",
        name="attribution_rounds",
        least=1,
        most=1000,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class MassConfig:
    """Everything that a saved model needs besides its weights.

    `few_shot` is how tasks with demonstrations are asked, as test-time training asks them: prompt, views and vote; None
    for the prompts of `format` there too.
    """

    samples: int = setting(
        6, "m, samples that the model writes for a task (6 in arXiv 2603.03524).", least=1, most=4096, metavar="M"
    )
    temperature: float = setting(1.0, "Sampling temperature of the generator.", above=0, most=1e6)
    top_p: float = setting(
        1.0, "The generator samples from the likeliest tokens that together have this probability.", above=0, most=1
    )
    top_k: int = setting(
        0, "The generator samples from this many of the likeliest tokens; 0 for all.", least=0, most=10_000_000
    )
    max_sample_tokens: int = setting(512, "Longest sample in tokens.", least=1, most=1_000_000)
    max_answer_tokens: int = setting(512, "Longest solution in tokens.", least=1, most=1_000_000)
    max_length: int = setting(2048, "Longest training row in tokens, prompt included.", least=1, most=10_000_000)
    weigh_by: str = setting(
        "scorer",
        "What weighs the samples of a task: the trained 'scorer', the attribution of each to the task's own "
        "'demonstrations', all together by 'matching' the gradient of these, or nothing ('uniform').",
        choices=WEIGHINGS,
    )
    format: PromptFormat = setting(PromptFormat(), "Prompts, and patterns that read what the model wrote.")
    inner: InnerConfig = setting(InnerConfig(), "The inner loop.")
    scorer: ScorerConfig = setting(ScorerConfig(), "The scorer.")
    attribution: AttributionConfig = setting(AttributionConfig(), "Test-time attribution.")
    few_shot: TTTSettings | None = None

    def __post_init__(self) -> None:
        check(self)
        longest = max(self.max_sample_tokens, self.max_answer_tokens)
        if self.max_length <= longest:
            raise ConfigError(
                f"MassConfig.max_length is {self.max_length}, which leaves no prompt beside {longest} generated tokens "
                "(the larger of max_sample_tokens and max_answer_tokens). Raise max_length, or lower those."
            )

    @property
    def few_shot_format(self) -> FewShotFormat | None:
        """How tasks with demonstrations read; None for `format`."""
        return None if self.few_shot is None else self.few_shot.format

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable values; `from_dict` reads them back."""
        values = asdict(self)
        return values if self.few_shot else {name: each for name, each in values.items() if name != "few_shot"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MassConfig:
        """The settings that `to_dict` wrote.

        Raises:
            ConfigError: If a name is unknown or a value out of range.
        """
        parts: dict[str, Any] = {"inner": InnerConfig, "scorer": ScorerConfig, "attribution": AttributionConfig}
        if values.get("few_shot") is not None:
            parts["few_shot"] = TTTSettings

        def made(part: Any, entries: Mapping[str, Any]) -> Any:
            known = [f.name for f in fields(part)]
            if unknown := sorted(set(entries) - set(known)):
                raise ConfigError(f"{part.__name__} has no field {unknown[0]!r}. Known fields: {sorted(known)}.")
            return part(**entries)

        built = {name: made(parts[name], value) if name in parts else value for name, value in values.items()}
        if "format" in built:
            built["format"] = PromptFormat.from_dict(built["format"])
        return made(cls, built)
