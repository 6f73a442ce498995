"""Settings of test-time training on few-shot tasks, and the sets of them that go by a name."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from hf_mass.errors import ConfigError
from hf_mass.lm.shapes import LoraShape
from hf_mass.methods.settings import check, require_targets, setting
from hf_mass.tasks.answers import VOTES
from hf_mass.tasks.checks import shown
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS, LOSS_ON, FewShotFormat, resolve_format
from hf_mass.tasks.grid_transformations import Transformation
from hf_mass.tasks.leave_one_out import DataConfig
from hf_mass.tasks.transformations import resolve_transformations

ADAPTERS = ("per_task", "shared")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TTTSettings:
    """How a LoRA is trained on a task's own demonstrations, and how the task is asked then.

    Names that TRL has mean what they mean there. The published settings (arXiv 2411.07279) are the presets "arc" and
    "bbh"; the defaults are those that any model can be trained with.
    """

    learning_rate: float = setting(
        5e-5, "Highest learning rate of one task's training.", above=0, most=1e300, metavar="RATE"
    )
    num_train_epochs: int = setting(2, "Passes over one task's examples.", least=1, most=10_000, metavar="N")
    per_device_train_batch_size: int = setting(
        2, "Examples of one step of one task.", least=1, most=65_536, metavar="N"
    )
    lr_scheduler_type: str = setting("cosine", "How the rate changes over the steps.", choices=SCHEDULES)
    warmup_steps: float = setting(0.0, "Share of the steps in which the rate rises.", least=0, below=1)
    weight_decay: float = setting(0.0, "Weight decay of AdamW.", least=0, most=1e6)
    adam_beta1: float = setting(0.9, "β₁ of AdamW.", least=0, below=1)
    adam_beta2: float = setting(0.999, "β₂ of AdamW.", least=0, below=1)
    adam_epsilon: float = setting(1e-8, "ε of AdamW.", above=0, most=1e6)
    max_grad_norm: float | None = setting(1.0, "Longest gradient of a task; None for no limit.", above=0, most=1e12)
    max_completion_length: int = setting(512, "Longest answer in tokens.", least=1, most=1_000_000)
    adapters: str = setting("per_task", "One adapter for each task, or one that all tasks share.", choices=ADAPTERS)
    lora_r: int = setting(128, "Rank of the LoRA.", least=1, most=4096)
    lora_alpha: int = setting(16, "Alpha of the LoRA; updates are scaled by alpha / rank.", least=1, most=1_000_000)
    lora_dropout: float = setting(
        0.0, "Share of the LoRA's inputs that is dropped while it trains on demonstrations.", least=0, below=1
    )
    lora_target_modules: str | tuple[str, ...] = setting("all-linear", "Names of linear modules; default: all.")
    few_shot_format: str = setting("arc", "How tasks read.", choices=tuple(sorted(FEW_SHOT_FORMATS)))
    chat: bool = setting(False, "Use the tokenizer's chat template.")
    loss_on: str = setting("demonstrations", "What the loss is on.", choices=tuple(LOSS_ON))
    leave_two_out: bool = setting(True, "Fill up with examples that lack two demonstrations.")
    direct: bool = setting(False, "Train on single pairs, without demonstrations before them.")
    permutations: int = setting(1, "Orders of the demonstrations for each query.", least=1, most=10_000)
    transformations: tuple[str, ...] = setting(("geometric",), "What to do to grids of training examples, by name.")
    colour_permutations: int = setting(1, "Recoloured copies of each example.", least=0, most=10_000)
    random_shift: int = setting(
        0,
        "Cells by which copies of examples are shifted at most, drawn for each task; 0: no such copies.",
        least=0,
        most=1000,
    )
    keep_background: bool = setting(True, "Recolouring leaves colour 0 as it is.")
    recolour_to_unused: bool = setting(False, "Recoloured copies have colours that the example has not, if possible.")
    reorder_recoloured: bool = setting(False, "Recoloured copies have their demonstrations in random orders.")
    max_examples: int = setting(250, "Training examples of one task at most.", least=1, most=1_000_000, metavar="N")
    max_grid_side: int = setting(30, "Examples with a larger grid are dropped.", least=1, most=10_000)
    max_length: int | None = setting(
        None, "Examples with more tokens are dropped; None for no limit.", least=1, most=10_000_000
    )
    single_demonstration: str = setting(
        "direct", "What to do with a task of one demonstration.", choices=("direct", "refuse")
    )
    predict_transformations: tuple[str, ...] = setting(("inference",), "What to ask tasks under, by name.")
    predict_permutations: int = setting(2, "Views under each: orders of the demonstrations.", least=1, most=10_000)
    predict_recolour: bool = setting(False, "Recolour all views but the first of a transformation.")
    predict_samples: int = setting(1, "Answers to each view; more than one needs a temperature.", least=1, most=10_000)
    predict_temperature: float = setting(0.0, "0 for greedy answers.", least=0, most=1e6)
    predict_length_factor: float | None = setting(
        None,
        "Longest answer over the longest demonstrated output, in tokens; None for no such limit.",
        least=1,
        most=1e6,
    )
    predict_batch_size: int = setting(64, "Views answered together.", least=1, most=65_536)
    vote: str = setting("hierarchical", "How answers to several views are ranked.", choices=VOTES)
    vote_within: int = setting(
        3, "Answers that each transformation puts forward in the hierarchical vote.", least=1, most=10_000
    )

    def __post_init__(self) -> None:
        check(self)
        require_targets("TTTSettings.lora_target_modules", self.lora_target_modules)
        if self.predict_samples > 1 and self.predict_temperature == 0:
            raise ConfigError(
                f"predict_samples is {self.predict_samples} at predict_temperature 0, where all answers are equal. Set "
                "a temperature."
            )
        self.data(), self.views()  # names of transformations are checked by resolving them

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TTTSettings:
        """The settings called `name` in `TTT_PRESETS`, with changes.

        Raises:
            ConfigError: If there is no such preset or setting.
        """
        return cls(**preset_values(name, {f.name for f in fields(cls)}, **changes))

    @property
    def format(self) -> FewShotFormat:
        """How tasks read."""
        form = resolve_format(self.few_shot_format)
        return replace(form, chat=self.chat or form.chat)

    @property
    def lora(self) -> LoraShape:
        """The adapter."""
        return LoraShape(self.lora_r, self.lora_alpha, self.lora_target_modules)

    def views(self) -> tuple[Transformation, ...]:
        """The transformations to ask tasks under."""
        return resolve_transformations(self.predict_transformations)

    def data(self) -> DataConfig:
        """What training examples to make."""
        none = self.transformations in ((), ("none",))
        return DataConfig(
            leave_two_out=self.leave_two_out,
            direct=self.direct,
            permutations=self.permutations,
            transformations=() if none else resolve_transformations(self.transformations),
            colour_permutations=self.colour_permutations,
            random_shift=self.random_shift,
            keep_background=self.keep_background,
            recolour_to_unused=self.recolour_to_unused,
            reorder_recoloured=self.reorder_recoloured,
            limit=self.max_examples,
            max_side=self.max_grid_side,
            max_tokens=self.max_length,
            single=self.single_demonstration,  # type: ignore[arg-type]
        )


def preset_values(name: str, known: set[str], **changes: Any) -> dict[str, Any]:
    """The values of a preset with changes; `known` are the names that may be changed.

    Raises:
        ConfigError: If there is no such preset or setting.
    """
    if not isinstance(name, str) or name not in TTT_PRESETS:
        raise ConfigError(f"TTT preset {shown(name)} is unknown; choose one of {sorted(TTT_PRESETS)}.")
    if unknown := sorted(set(changes) - known):
        near = get_close_matches(unknown[0], sorted(known))
        cure = f"Did you mean {' or '.join(map(repr, near))}?" if near else "TTTSettings lists and describes them."
        raise ConfigError(f"TTT has no setting {unknown[0]!r}. {cure}")
    return {**TTT_PRESETS[name], **changes}


ASKED_ONCE: dict[str, Any] = {
    "predict_transformations": ("none",),
    "predict_permutations": 1,
    "predict_recolour": False,
    "predict_samples": 1,
    "vote": "first",
}
"""Settings that ask a task as it is, once, without a vote."""
STRIPS: dict[str, Any] = {"transformations": ("strip",), "predict_transformations": ("strip",)}
"""Settings for grids of one row: their symmetries."""
_TEXT: dict[str, Any] = {
    "transformations": ["none"],
    "colour_permutations": 0,
    "predict_transformations": ["none"],
    "permutations": 4,
    "max_examples": 40,
    "vote": "flat",
}
_PUBLISHED: dict[str, Any] = {"lr_scheduler_type": "cosine", "weight_decay": 0.01, "max_grad_norm": None}
_MLP = ("gate_proj", "up_proj", "down_proj")
_PLAIN = {**_TEXT, "few_shot_format": "plain", "lora_r": 16, "lora_alpha": 32, "predict_length_factor": 3.0}

TTT_PRESETS: dict[str, dict[str, Any]] = {
    "arc": {
        **_PUBLISHED,
        "learning_rate": 5e-5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "warmup_steps": 0.1,
        "lora_r": 128,
        "lora_alpha": 16,
        "lora_target_modules": ["q_proj", "v_proj", *_MLP],
        "few_shot_format": "arc",
        "loss_on": "demonstrations",
        "transformations": ["paper"],
        "random_shift": 3,
        "colour_permutations": 1,
        "recolour_to_unused": True,
        "reorder_recoloured": True,
        "max_examples": 250,
        "max_grid_side": 30,
        "max_length": 8191,
        "max_completion_length": 8192,
        "predict_transformations": ["inference"],
        "predict_permutations": 2,
        "vote": "hierarchical",
        "vote_within": 3,
    },
    "bbh": {
        **_PUBLISHED,
        **_TEXT,
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 5,
        "lora_r": 64,
        "lora_alpha": 64,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj", "o_proj", *_MLP],
        "few_shot_format": "questions",
        "loss_on": "outputs",
        "leave_two_out": False,
        "permutations": 40,  # so many that the 40 examples are in random orders
        "max_completion_length": 50,
        "predict_permutations": 1,
    },
    "grids": {
        "few_shot_format": "compact",
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 4,
        "lora_r": 16,
        "lora_alpha": 32,
        "max_examples": 40,
        "max_grid_side": 128,  # strips are long: up to 93 cells in 1D-ARC
        "max_completion_length": 256,
        "predict_permutations": 2,
        "predict_recolour": True,
        "predict_length_factor": 2.0,
    },
    "text": {
        **_PLAIN,
        "max_examples": 20,
        "learning_rate": 5e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "predict_permutations": 1,
    },
    "strings": {
        **_PLAIN,
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 4,
        "max_completion_length": 128,
        "predict_permutations": 4,
    },
}
"""The published settings for ARC (github.com/ekinakyurek/marc) and BIG-Bench Hard (github.com/adamzweiger/Fewshot-TTT),
which tests/methods/test_ttt_presets.py compares one by one; those for texts that were chosen on a real model
(examples/benchmarks: the tuning tasks of real_models.py, and made_up_tasks.py); and those chosen for the bases that
ship for grids and strings.
"""
