"""What a setting of TRL or transformers would be expected to do and does not: refused by name, never left out silently.

The trainers take over TRL's settings, but not everything that TRL and transformers do with them happens here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from hf_mass.errors import ConfigError, DataError

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation"),
    *("use_vllm", "use_transformers_continuous_batching", "mask_truncated_completions", "log_completions"),
    *("num_generations", "ttt_reward", "num_iterations", "reward_weights", "scale_rewards"),
)
"""Settings of TRL's sampling and of what becomes of its rewards."""
POLICY_LOSS = (
    *("beta", "epsilon", "epsilon_high", "delta", "loss_type", "importance_sampling_level", "sync_ref_model"),
    *("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "off_policy_mask_threshold"),
)
"""Settings of TRL's loss of a policy."""
_EVENTS = ("eval_strategy", "eval_on_start", "save_strategy", "load_best_model_at_end")
_CURES = {
    "the base keeps the precision that it was loaded in, the LoRA and AdamW are float32. Load the model with "
    "torch_dtype=torch.bfloat16": ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"),
    "what is kept for the backward pass is chosen by the free memory": (
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
    ),
    "it trains with AdamW at the schedule that lr_scheduler_type names": (
        *("optim", "optim_args", "optim_target_modules", "lr_scheduler_kwargs"),
    ),
    "raise per_device_train_batch_size": ("gradient_accumulation_steps", "auto_find_batch_size"),
    "it counts num_train_epochs over max_examples": ("max_steps",),
    "each task's training is short: it is answered and saved at its end, and nothing happens on the way": _EVENTS,
    "nothing is sampled while it trains. Use objective='grpo'": (*SAMPLING, *POLICY_LOSS),
    "its loss is the plain cross-entropy": ("label_smoothing_factor", "neftune_noise_alpha"),
    "the model runs as it is": ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel"),
}
SFT = {name: cure for cure, names in _CURES.items() for name in names}
"""Setting without effect on `TTTTrainer`'s objective "sft" → what there is instead."""
GRPO = {
    "lora_dropout": "TRL's loop samples and learns at the same weights. Set lora_dropout=0",
    "loss_on": "the reward is on the query's answer",
}
"""The same of "grpo"."""
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "no")


def refuse(config: Any, cures: Mapping[str, str], where: str) -> None:
    """Checks that no setting without effect was changed.

    Args:
        config: A dataclass, before TRL has filled in what was left open.
        cures: Setting to check → what there is instead; those that this version of TRL does not have are passed over.
        where: What has no such effect, for the message.

    Raises:
        ConfigError: If one differs from its default.
    """
    known = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(config)}
    for name in (name for name in cures if name in known):
        value, default = getattr(config, name), known[name]
        off = any(value is each or (type(value) is type(each) and value == each) for each in _OFF)
        if (off and any(default is each or default == each for each in _OFF)) or _plain(value) == _plain(default):
            continue
        raise ConfigError(
            f"{type(config).__name__}.{name} is {_plain(value)!r:.100}, which has no effect with {where}: "
            f"{cures[name]}."
        )


def _plain(value: Any) -> Any:
    """An enumeration's own value."""
    return getattr(value, "value", value)


def require_whole_model(accelerator: Accelerator) -> None:
    """Checks that every process holds the whole model, as the inner loop needs.

    Raises:
        ConfigError: If it is sharded.
    """
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if accelerator.distributed_type in sharded or asked:
        name = accelerator.distributed_type.value if accelerator.distributed_type in sharded else "FSDP"
        raise ConfigError(
            f"The run is launched with {name}, which shards the model; adapting reads whole weights in every process. "
            "Launch it with plain data parallelism (accelerate launch --multi_gpu, or torchrun)."
        )


def require_some_steps(prompts: int, per_step: int, rows: int, per_prompt: int) -> None:
    """Checks that an epoch has a step: TRL leaves out what does not fill one.

    Args:
        prompts: Prompts of an epoch.
        per_step: Prompts that are sampled for together.
        rows: Samples of these.
        per_prompt: Samples of one prompt.

    Raises:
        DataError: If there are too few.
    """
    if prompts < per_step:
        raise DataError(
            f"Nothing would be trained: there are {prompts} prompts, and a step samples for {per_step} together: "
            f"generation_batch_size is {rows} (per_device_train_batch_size × processes × steps_per_generation, which "
            f"follows gradient_accumulation_steps), num_generations {per_prompt}. Give more tasks, or lower these."
        )
