"""Settings that TRL declares: of the type they are declared with, and what TRL refuses told as our own are."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from accelerate.parallelism_config import ParallelismConfig
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

from hf_mass.errors import ConfigError, HFMassError
from hf_mass.tasks.checks import shown

_FLOAT_MAX: Any = sys.float_info.max  # NaN is not below it
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    dict: "a dict",
    list: "a list",
    ParallelismConfig: "a ParallelismConfig",
}


MOST = 10**12
"""No number of TRL's settings is meant to be larger."""
_LEAST = {
    **dict.fromkeys(("max_steps", "local_rank", "top_k"), -1),
    **dict.fromkeys(("temperature", "repetition_penalty"), 1e-6),
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("steps_per_generation", "generation_batch_size", "num_generations_eval", "num_iterations"),
            *("max_completion_length", "ref_model_sync_steps", "vllm_tensor_parallel_size"),
        ),
        1,
    ),
}
"""Setting → its least value, where that is not 0."""
_MOST = {
    **dict.fromkeys(("top_p", "min_p", "label_smoothing_factor", "ref_model_mixup_alpha", "top_entropy_quantile"), 1),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), 0.999999999),
    **dict.fromkeys(("seed", "data_seed"), 2**32 - 1),  # what NumPy's generator takes
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), 65_535),
    "vllm_gpu_memory_utilization": 1,
    "learning_rate": 1e300,  # one that ruins the weights is trained with, and told
}
"""Setting → its largest value, where that is not `MOST`."""
_OPEN = defaultdict[str, tuple[type, ...]](tuple, max_grad_norm=(NoneType,), debug=(NoneType,))
"""Setting → what else than its declared type stands for no limit here."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "vllm_mode": ("colocate", "server"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "cache_implementation": (None, *ALL_CACHE_IMPLEMENTATIONS),
}
"""Setting → the texts that TRL and transformers know, which they meet only while they train."""


_PATHS = ("accelerator_config", "deepspeed", "fsdp_config")
"""Settings that are dicts, of which a text names the file."""


@cache
def plain_kinds(cls: Any) -> dict[str, tuple[type, ...]]:
    """Field → its types, of those fields that are numbers, texts, switches or dicts and nothing else."""
    kinds = {}
    for name, hint in get_type_hints(cls).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = tuple(get_origin(member) or member for member in members)
        if all(member in (*_WORDS, NoneType) for member in plain):
            kinds[name] = plain
    return kinds


@cache
def enumerated(cls: Any) -> dict[str, tuple[str, ...]]:
    """Field → its values, of those fields that are enumerations of transformers."""
    members = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}
    enums = {
        name: [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
        for name, kinds in members.items()
    }
    return {name: tuple(each.value for each in kinds[0]) for name, kinds in enums.items() if kinds}


def check_types(config: Any) -> None:
    """Checks the fields of a trainer's config that are no settings of ours; None stands for what is left open.

    Raises:
        ConfigError: If a value is of another type than its field is declared with, out of range, or no choice.
    """
    cls: Any = type(config)
    kinds, ours = plain_kinds(cls), getattr(cls, "__settings__", {})
    for field in fields(cls):
        value = getattr(config, field.name, None)
        if field.name in ours or value is field.default:
            continue
        if (values := enumerated(cls).get(field.name)) is not None:
            if not isinstance(value, str | Enum) or getattr(value, "value", value) not in values:
                raise ConfigError(f"{cls.__name__}.{field.name} is {shown(value)}; choose one of {list(values)}.")
            continue
        known = CHOICES.get(field.name) or tuple(field.metadata.get("choices") or ())
        if known and not any(value is each or (type(value) is type(each) and value == each) for each in known):
            raise ConfigError(f"{cls.__name__}.{field.name} is {shown(value)}; choose one of {list(known)}.")
        if field.name not in kinds or known or (value is None and NoneType in (*kinds[field.name], *_OPEN[field.name])):
            continue
        if is_dataclass(value):  # what transformers makes of a dict or a text, where a config is made again
            continue
        if not any(_is_of(value, kind) for kind in kinds[field.name]):
            words = " or ".join(_WORDS[kind] for kind in kinds[field.name] if kind is not NoneType)
            raise ConfigError(f"{cls.__name__}.{field.name} is {shown(value, 200)}; choose {words}.")
        if dict in kinds[field.name] and isinstance(value, str) and field.name not in _PATHS and value[:1] != "{":
            raise ConfigError(f"{cls.__name__}.{field.name} is {shown(value, 200)}; choose a dict.")
        least, most = _LEAST.get(field.name, 0), _MOST.get(field.name, MOST)
        if type(value) is not bool and isinstance(value, Real) and not least <= float(value) <= most:
            raise ConfigError(f"{cls.__name__}.{field.name} is {shown(value)}; choose from {least} to {most}.")


@contextmanager
def refused_by_trl(config: Any) -> Iterator[None]:
    """Within this context what TRL or transformers refuse is a `ConfigError` of one line."""
    try:
        yield
    except HFMassError:
        raise
    except Exception as error:  # a value may be anything, and fail them anywhere
        raise ConfigError(f"{type(config).__name__}: {' '.join(str(error).split()):.600}") from error


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is float:
        return isinstance(value, Real) and bool(abs(value) < _FLOAT_MAX)
    others: dict[type, Any] = {str: str | Path, list: list | tuple}
    return isinstance(value, others.get(kind, kind))
