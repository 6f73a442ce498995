"""`TTTConfig`: TRL's `GRPOConfig` plus the settings of test-time training on few-shot tasks, with presets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import SchedulerType
from transformers.trainer_utils import SaveStrategy
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from hf_mass.errors import ConfigError
from hf_mass.methods.ttt_settings import FitConfig, PredictConfig
from hf_mass.tasks.answers import VOTES
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS, FewShotFormat, resolve_format
from hf_mass.tasks.leave_one_out import DataConfig
from hf_mass.tasks.transformations import resolve_transformations

OBJECTIVES = ("sft", "grpo")
REWARDS = ("exact_match", "majority")
ADAPTERS = ("per_task", "shared")


@dataclass
class TTTConfig(GRPOConfig):
    """Settings of `TTTTrainer` (arXiv 2411.07279). TRL's own keep their meaning: `learning_rate`, `num_train_epochs`,
    `per_device_train_batch_size`, `lr_scheduler_type`, `warmup_steps` (a share below 1), `weight_decay`, `adam_*` and
    `max_grad_norm` are those of one task's training, `max_completion_length` the longest answer.

    The defaults are the paper's for ARC. `TTTConfig.preset` gives them and others by name.

    Args:
        objective: "sft" (leave-one-out training) or "grpo" (reinforcement learning at test time by TRL's loop).
        ttt_reward: For "grpo": "exact_match" on left-out demonstrations, or "majority": agreement with the most
            frequent answer to the task's own, unlabelled query.
        adapters: "per_task", or "shared": one for all tasks.
        lora_r: Rank.
        lora_alpha: Alpha; updates are scaled by alpha / rank.
        lora_target_modules: Names of linear modules; None for all.
        few_shot_format: How tasks read, one of `hf_mass.tasks.few_shot_format.FEW_SHOT_FORMATS`.
        chat: Whether they go through the tokenizer's chat template.
        loss_on: "query", "demonstrations", "outputs" or "all".
        leave_two_out: See `DataConfig`.
        direct: See `DataConfig`.
        permutations: See `DataConfig`.
        transformations: Names of what to do to training examples (see `resolve_transformations`).
        colour_permutations: See `DataConfig`.
        keep_background: Whether recolouring leaves colour 0 as it is.
        max_examples: Examples of one task at most.
        max_grid_side: Examples with a larger grid are dropped.
        max_length: Examples with more tokens are dropped; None for no limit.
        single_demonstration: "direct" or "refuse" for a task of one demonstration.
        predict_transformations: Names of what to ask tasks under.
        predict_permutations: Views under each (see `PredictConfig`).
        predict_recolour: Whether all views but the first of a transformation are recoloured.
        predict_samples: Answers to each view; more than one needs a temperature.
        predict_temperature: 0 for greedy answers.
        predict_length_factor: Longest answer as a multiple of the longest demonstrated output; None for no such limit.
        predict_batch_size: Views that are answered together.
        vote: One of `hf_mass.tasks.answers.VOTES`.
        vote_within: Answers that each transformation puts forward in the hierarchical vote.
        tasks_per_pass: Tasks trained and answered side by side.
        keep_adapters: Whether adapters are saved under `output_dir`, or thrown away once their task is answered.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Highest learning rate of one task's training."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over one task's examples."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Examples of one step of one task."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "'cosine', 'linear' or 'constant'."}
    )
    num_generations: int | None = field(default=8, metadata={"help": "Answers of one GRPO group; not used by 'sft'."})
    num_generations_eval: int | None = field(default=1, metadata={"help": "Not used."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "As in TRL."})
    save_strategy: SaveStrategy | str = field(
        default="no", metadata={"help": "Each finished task is saved, steps are not."}
    )
    log_completions: bool = field(default=False, metadata={"help": "As in TRL."})
    objective: str = field(default="sft", metadata={"help": "'sft' or 'grpo'."})
    ttt_reward: str = field(default="exact_match", metadata={"help": "'exact_match' or 'majority'."})
    adapters: str = field(default="per_task", metadata={"help": "'per_task' or 'shared'."})
    lora_r: int = field(default=128, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA alpha."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear modules."})
    few_shot_format: str = field(default="arc", metadata={"help": f"One of {sorted(FEW_SHOT_FORMATS)}."})
    chat: bool = field(default=False, metadata={"help": "Use the tokenizer's chat template."})
    loss_on: str = field(default="demonstrations", metadata={"help": "'query', 'demonstrations', 'outputs' or 'all'."})
    leave_two_out: bool = field(default=True, metadata={"help": "Fill up with leave-two-out examples."})
    direct: bool = field(default=False, metadata={"help": "Train on single pairs without demonstrations."})
    permutations: int = field(default=1, metadata={"help": "Orders of the demonstrations for each query."})
    transformations: list[str] = field(default_factory=lambda: ["geometric"], metadata={"help": "Names."})
    colour_permutations: int = field(default=1, metadata={"help": "Recoloured copies of each example."})
    keep_background: bool = field(default=True, metadata={"help": "Recolouring leaves colour 0 as it is."})
    max_examples: int = field(default=250, metadata={"help": "Examples of one task at most."})
    max_grid_side: int = field(default=30, metadata={"help": "Largest grid side of an example."})
    max_length: int | None = field(default=None, metadata={"help": "Longest example in tokens."})
    single_demonstration: str = field(default="direct", metadata={"help": "'direct' or 'refuse'."})
    predict_transformations: list[str] = field(default_factory=lambda: ["inference"], metadata={"help": "Names."})
    predict_permutations: int = field(default=2, metadata={"help": "Views under each transformation."})
    predict_recolour: bool = field(default=False, metadata={"help": "Recolour all views but the first."})
    predict_samples: int = field(default=1, metadata={"help": "Answers to each view."})
    predict_temperature: float = field(default=0.0, metadata={"help": "0 for greedy answers."})
    predict_length_factor: float | None = field(default=None, metadata={"help": "Longest answer over longest output."})
    predict_batch_size: int = field(default=64, metadata={"help": "Views answered together."})
    vote: str = field(default="hierarchical", metadata={"help": f"One of {list(VOTES)}."})
    vote_within: int = field(default=3, metadata={"help": "Answers that each transformation puts forward."})
    tasks_per_pass: int = field(default=8, metadata={"help": "Tasks trained and answered side by side."})
    keep_adapters: bool = field(default=False, metadata={"help": "Save each task's adapter under output_dir."})

    def __post_init__(self) -> None:
        for name, choices in (
            ("objective", OBJECTIVES),
            ("ttt_reward", REWARDS),
            ("adapters", ADAPTERS),
            ("vote", VOTES),
            ("few_shot_format", tuple(sorted(FEW_SHOT_FORMATS))),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"TTTConfig.{name} is {getattr(self, name)!r}; choose one of {list(choices)}.")
        for name in ("tasks_per_pass", "vote_within"):
            if getattr(self, name) < 1:
                raise ConfigError(f"TTTConfig.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_generations is None or self.num_generations < 2:
            raise ConfigError(f"TTTConfig.num_generations is {self.num_generations}; a GRPO group has at least 2.")
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ConfigError(f"TTTConfig.max_completion_length is {self.max_completion_length}; choose at least 1.")
        self._check_sft()
        if getattr(self, "bf16", None) is None and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default of True is refused by a machine without such an accelerator
        self.fit_config(), self.predict_config()  # check everything else by building it
        if getattr(self, "steps_per_generation", None) is None and self.generation_batch_size is None:
            # TRL wants whole groups in a generation batch, which the small batches of one task's training do not hold.
            share = math.gcd(self.per_device_train_batch_size, self.num_generations)
            self.steps_per_generation = self.num_generations // share
        super().__post_init__()

    def _check_sft(self) -> None:
        if self.objective != "sft":
            return
        if self.num_train_epochs != int(self.num_train_epochs):
            raise ConfigError(
                f"TTTConfig.num_train_epochs is {self.num_train_epochs}; objective='sft' takes whole passes."
            )
        if not 0 <= self.warmup_steps < 1:
            raise ConfigError(
                f"TTTConfig.warmup_steps is {self.warmup_steps}; objective='sft' takes a share of the steps in [0, 1)."
            )
        if self.gradient_accumulation_steps != 1:
            raise ConfigError(
                f"TTTConfig.gradient_accumulation_steps is {self.gradient_accumulation_steps}, which objective='sft' "
                "does not have. Raise per_device_train_batch_size."
            )
        if self.max_steps > 0:
            raise ConfigError(
                f"TTTConfig.max_steps is {self.max_steps}; objective='sft' counts num_train_epochs over max_examples."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TTTConfig:
        """The settings called `name` in `TTT_PRESETS`, with changes.

        Raises:
            ConfigError: If there is no such preset or setting.
        """
        if name not in TTT_PRESETS:
            raise ConfigError(f"TTTConfig.preset {name!r} is unknown; choose one of {sorted(TTT_PRESETS)}.")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(changes) - known):
            raise ConfigError(f"TTTConfig has no setting {unknown[0]!r}.")
        return cls(**{**TTT_PRESETS[name], **changes})

    def result_settings(self) -> dict[str, Any]:
        """The settings that results depend on, as JSON values: a run may be resumed with the same ones only."""
        own = set(TTTConfig.__annotations__) - _WITHOUT_EFFECT - (_GRPO_ONLY if self.objective == "sft" else set())
        names = {*own, *("seed", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")}
        names |= {"max_grad_norm", "max_completion_length"}
        if self.objective == "grpo":
            names |= _OF_TRL
        values = {name: getattr(self, name) for name in sorted(names)}
        return json.loads(json.dumps(values, default=lambda value: getattr(value, "value", str(value))))

    @property
    def format(self) -> FewShotFormat:
        """How tasks read."""
        named = resolve_format(self.few_shot_format)
        values = {f.name: getattr(named, f.name) for f in fields(named)}
        return FewShotFormat(**{**values, "chat": self.chat or named.chat})

    def fit_config(self) -> FitConfig:
        """The settings of training, for the engine."""
        names = () if self.transformations in ([], ["none"]) else resolve_transformations(self.transformations)
        scheduler = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        return FitConfig(
            lora_rank=self.lora_r,
            lora_alpha=self.lora_alpha,
            target_modules="all-linear" if self.lora_target_modules is None else tuple(self.lora_target_modules),
            learning_rate=self.learning_rate,
            betas=(self.adam_beta1, self.adam_beta2),
            epsilon=self.adam_epsilon,
            epochs=int(self.num_train_epochs) if self.objective == "sft" else 1,
            batch_size=self.per_device_train_batch_size,
            lr_scheduler_type=scheduler if self.objective == "sft" else "constant",
            warmup_ratio=self.warmup_steps if self.objective == "sft" else 0.0,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm or None,
            loss_on=self.loss_on,
            data=DataConfig(
                leave_two_out=self.leave_two_out,
                direct=self.direct,
                permutations=self.permutations,
                transformations=names,
                colour_permutations=self.colour_permutations,
                keep_background=self.keep_background,
                limit=self.max_examples,
                max_side=self.max_grid_side,
                max_tokens=self.max_length,
                single=self.single_demonstration,  # type: ignore[arg-type]
            ),
            format=self.format,
        )

    def predict_config(self) -> PredictConfig:
        """The settings of prediction, for the engine."""
        return PredictConfig(
            transformations=resolve_transformations(self.predict_transformations),
            permutations=self.predict_permutations,
            recolour=self.predict_recolour,
            keep_background=self.keep_background,
            samples=self.predict_samples,
            temperature=self.predict_temperature,
            max_new_tokens=int(self.max_completion_length or 0),
            length_factor=self.predict_length_factor,
            batch_size=self.predict_batch_size,
        )


_WITHOUT_EFFECT = {"tasks_per_pass", "predict_batch_size", "keep_adapters", "num_generations_eval", "save_strategy"}
_WITHOUT_EFFECT |= {"gradient_checkpointing", "log_completions"}
_GRPO_ONLY = {"ttt_reward", "num_generations"}
# What TRL's loop depends on beside the settings above.
_OF_TRL = {"max_steps", "beta", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "scale_rewards"}
_OF_TRL |= {"loss_type", "epsilon", "epsilon_high", "num_iterations", "steps_per_generation", "shuffle_dataset"}
_OF_TRL |= {"gradient_accumulation_steps", "optim", "bf16", "fp16"}

_TEXT: dict[str, Any] = {"transformations": ["none"], "colour_permutations": 0, "predict_transformations": ["none"]}

TTT_PRESETS: dict[str, dict[str, Any]] = {
    "arc": {},
    "bbh": {
        **_TEXT,
        "few_shot_format": "questions",
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 5,
        "lora_r": 64,
        "lora_alpha": 64,
        "permutations": 4,
        "leave_two_out": False,
        "max_examples": 40,
        "max_completion_length": 50,
        "predict_permutations": 1,
        "vote": "flat",
    },
    "grids": {
        "few_shot_format": "compact",
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 4,
        "lora_r": 16,
        "lora_alpha": 32,
        "max_examples": 40,
        "max_grid_side": 64,  # strips are long
        "max_completion_length": 256,
        "predict_permutations": 2,
        "predict_recolour": True,
        "predict_length_factor": 2.0,
    },
    "text": {**_TEXT, "few_shot_format": "plain", "permutations": 4, "predict_permutations": 1, "vote": "flat"},
    "strings": {
        **_TEXT,
        "few_shot_format": "plain",
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 4,
        "lora_r": 16,
        "lora_alpha": 32,
        "permutations": 4,
        "max_examples": 40,
        "max_completion_length": 128,
        "predict_permutations": 4,
        "predict_length_factor": 3.0,
        "vote": "flat",
    },
}
"""The paper's settings for ARC (the defaults) and for BIG-Bench Hard (10 demonstrations × 4 orders = 40 sequences), the
ARC ones without grids for a few-shot file of texts, and those chosen for the bases that ship for grids and strings."""
