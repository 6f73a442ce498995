"""`TTTConfig`: TRL's `GRPOConfig` plus the settings of test-time training on few-shot tasks, with presets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType
from transformers.trainer_utils import SaveStrategy
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from hf_mass.errors import ConfigError
from hf_mass.methods.settings import build, check, declares, flat, setting
from hf_mass.methods.ttt_settings import TTTSettings, preset_values
from hf_mass.training.trl_settings import check_types, refused_by_trl
from hf_mass.training.without_effect import GRPO, POLICY_LOSS, SAMPLING, SFT, refuse

OBJECTIVES = ("sft", "grpo")
REWARDS = ("exact_match", "majority")
# Settings that TRL has under the same names.
_OF_TRL = (
    *("weight_decay", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "max_completion_length"),
)
_REDEFINED = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type")


@dataclass
@declares(TTTSettings, without=(*_OF_TRL, *_REDEFINED))
class TTTConfig(GRPOConfig):
    """Settings of `TTTTrainer` (arXiv 2411.07279). TRL's own keep their meaning: `learning_rate`, `num_train_epochs`,
    `per_device_train_batch_size`, `lr_scheduler_type`, `warmup_steps` (a share below 1), `weight_decay`, `adam_*` and
    `max_grad_norm` are those of one task's training, `max_completion_length` the longest answer. The others are those
    of `TTTSettings`. Each setting is described by its help text.

    `TTTConfig.preset` gives those that go by a name, the paper's among them.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Highest learning rate of one task's training."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over one task's examples."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Examples of one step of one task."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "'cosine', 'linear' or 'constant'."}
    )
    num_generations: int = setting(8, "Answers of one GRPO group; not used by 'sft'.", least=2, most=4096)
    num_generations_eval: int | None = field(default=1, metadata={"help": "Not used."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "As in TRL."})
    save_strategy: SaveStrategy | str = field(
        default="no", metadata={"help": "Each finished task is saved, steps are not."}
    )
    objective: str = setting(
        "sft",
        "'sft' (leave-one-out training) or 'grpo' (reinforcement learning at test time by TRL's loop).",
        choices=OBJECTIVES,
    )
    ttt_reward: str = setting(
        "exact_match",
        "For 'grpo': 'exact_match' on left-out demonstrations, or 'majority', agreement with the most frequent answer "
        "to the task's own, unlabelled query.",
        choices=REWARDS,
    )
    guard: bool = setting(
        False,
        "For 'sft': let left-out demonstrations decide how strongly to adapt to each task, and whether at all.",
    )
    tasks_per_pass: int = setting(8, "Tasks trained and answered side by side.", least=1, most=65_536)
    keep_adapters: bool = setting(False, "Save each task's adapter under output_dir.")

    if TYPE_CHECKING:  # what `declares` adds

        def __init__(self, **settings: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self) -> None:
        check(self)
        check_types(self)
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ConfigError(f"TTTConfig.max_completion_length is {self.max_completion_length}; choose at least 1.")
        self._check_objective()
        if getattr(self, "bf16", None) is None and (self.objective == "sft" or not is_torch_bf16_gpu_available()):
            self.bf16 = False  # TRL's default of True is refused by a machine without such an accelerator
        self.settings()  # checks everything else by building it
        if getattr(self, "steps_per_generation", None) is None and self.generation_batch_size is None:
            # TRL wants whole groups in a generation batch, which the small batches of one task's training do not hold.
            share = math.gcd(self.per_device_train_batch_size, self.num_generations)
            self.steps_per_generation = self.num_generations // share
        with refused_by_trl(self):
            super().__post_init__()

    def _check_objective(self) -> None:
        epochs, share = self.num_train_epochs, self.warmup_steps
        refused = {
            "num_train_epochs": (epochs != int(epochs), "takes whole passes"),
            "warmup_steps": (not 0 <= share < 1, "takes a share of the steps in [0, 1)"),
        }
        for name, (is_wrong, why) in refused.items() if self.objective == "sft" else ():
            if is_wrong:
                raise ConfigError(f"TTTConfig.{name} is {getattr(self, name)}; objective='sft' {why}.")
        without = SFT if self.objective == "sft" else GRPO
        refuse(self, without, f"objective={self.objective!r}")
        if self.guard and self.objective != "sft":
            raise ConfigError(
                f"TTTConfig.guard is True, and objective={self.objective!r} has no strengths to choose from. Use "
                "objective='sft', or leave the guard off."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TTTConfig:
        """The settings called `name` in `TTT_PRESETS`, with changes.

        Raises:
            ConfigError: If there is no such preset or setting.
        """
        values = preset_values(name, {f.name for f in fields(cls)}, **changes)
        if changes.get("objective") == "grpo":  # a preset has settings for both
            values = {key: value for key, value in values.items() if key not in GRPO or key in changes}
        return cls(**values)

    def settings(self) -> TTTSettings:
        """The settings of one task's training and of answering, for the engine."""
        values = {name: getattr(self, name) for name in flat(TTTSettings)}
        values["max_grad_norm"] = self.max_grad_norm or None
        values["lora_target_modules"] = self.lora_target_modules or "all-linear"
        if self.objective == "sft":
            values["num_train_epochs"] = int(self.num_train_epochs)
            values["lr_scheduler_type"] = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        else:  # the schedule is TRL's then
            values |= {"num_train_epochs": 1, "lr_scheduler_type": "constant", "warmup_steps": 0.0}
        return build(TTTSettings, values)

    def result_settings(self) -> dict[str, Any]:
        """The settings that results depend on, as JSON values: a run may be resumed with the same ones only."""
        names = {*flat(TTTSettings), "objective", "guard", "seed", "chat_template_kwargs"} - {"predict_batch_size"}
        if self.objective == "grpo":
            names |= {"ttt_reward", "num_generations", *_OF_GRPO} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in sorted(names)}
        return json.loads(json.dumps(values, default=lambda value: getattr(value, "value", str(value))))


# What TRL's loop depends on beside the settings above.
_OF_GRPO = (
    *("steps_per_generation", "generation_batch_size", "shuffle_dataset", "data_seed", "disable_dropout"),
    *SAMPLING,
    *POLICY_LOSS,
    *("max_steps", "gradient_accumulation_steps", "bf16", "fp16", "label_smoothing_factor", "neftune_noise_alpha"),
    *("optim", "optim_args", "optim_target_modules", "lr_scheduler_kwargs", "use_liger_kernel"),
)
