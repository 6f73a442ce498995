"""Which precision a model runs in, and why: as asked, else bfloat16 where the device is faster at it, else its own."""

from __future__ import annotations

import logging
import re
from functools import cache
from timeit import repeat
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from hf_mass.errors import ConfigError
from hf_mass.tasks.checks import shown

logger = logging.getLogger(__name__)

FASTER = 1.3
"""How many times as fast a product must be."""
DTYPES = ("float32", "bfloat16", "float16")
"""Those that a model can be asked to run in."""


@cache
def reason_for_bfloat16(device: str) -> str | None:
    """Why the device had better run in bfloat16 than in float32, in words; None if it had not.

    Measured on a CPU, asked of a GPU.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return "which this GPU is faster at" if kind == "cuda" and torch.cuda.is_bf16_supported() else None
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    logger.info("A product in bfloat16 is %.1f times as fast as in float32 on this CPU.", ratio)
    return f"{ratio:.1f} times as fast as float32 on this CPU" if ratio >= FASTER else None


def _product_seconds(dtype: torch.dtype) -> float:
    """The fastest of several products of [64, 1024] and [1024, 1024]; no random number is drawn."""
    x, w = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    return min(repeat(lambda: linear(x, w), repeat=8, number=1)[1:])


def precision_of(model: Any) -> str:
    """What a model's weights are kept in: "float32", "bfloat16", or "8-bit torchao" and the like.

    Args:
        model: A model of transformers, with or without adapters.
    """
    if (settings := getattr(model.config, "quantization_config", None)) is not None:
        values = settings if isinstance(settings, dict) else {**vars(settings), "quant_method": settings.quant_method}
        method = values.get("quant_method")
        return f"{_bits(values)}{getattr(method, 'value', method)}"
    weights = (p for name, p in model.named_parameters() if "lora_" not in name and p.is_floating_point())
    return str(next(weights).dtype).removeprefix("torch.")


def _bits(values: dict[str, Any]) -> str:
    """The width of quantised weights as the beginning of a text; empty where it is not told."""
    if values.get("bits"):
        return f"{values['bits']}-bit "
    for bits in (4, 8):
        if values.get(f"load_in_{bits}bit") or values.get(f"_load_in_{bits}bit"):
            return f"{bits}-bit "
    kind = values.get("quant_type")  # torchao: an object whose class, or whose dtype, names the width
    width = re.search(r"(?i)(?:float|u?int)(\d+)", f"{type(kind).__name__} {getattr(kind, 'weight_dtype', '')} {kind}")
    return f"{width.group(1)}-bit " if width else ""


def require_dtype(dtype: Any) -> None:
    """Checks a precision that was asked for: a name, "auto" for the one that it is saved in, or torch's.

    Raises:
        ConfigError: If there is no such precision.
    """
    names = (*DTYPES, "auto")
    if isinstance(dtype, torch.dtype):
        if dtype.is_floating_point:
            return
    elif dtype in names:
        return
    raise ConfigError(f"dtype is {shown(dtype)}; choose one of {', '.join(names)}.")


def cast(base: PreTrainedModel, device: str, asked: Any, small: int) -> tuple[PreTrainedModel, str]:
    """A base in the precision that it is to run in, and why, in words.

    Args:
        base: The model as it was loaded.
        device: Where it will run.
        asked: The `dtype` that it was loaded with; None to choose.
        small: Number of parameters up to which nothing is gained.
    """
    if getattr(base.config, "quantization_config", None) is not None:
        return base, "as it is quantised"
    if asked is not None:
        return base, "as it is saved" if asked == "auto" else "as asked"
    if base.dtype != torch.float32 or base.num_parameters() <= small:
        return base, "as it is saved"
    if (reason := reason_for_bfloat16(device)) is not None:
        return base.to(torch.bfloat16), reason
    return base, "which this device is not slower at than bfloat16"
