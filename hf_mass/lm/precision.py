"""Which precision a base runs in where nobody says: bfloat16 where the device is faster at it, else its own."""

from __future__ import annotations

import logging
from functools import cache
from timeit import repeat

import torch
from torch.nn.functional import linear

logger = logging.getLogger(__name__)

FASTER = 1.3
"""How many times as fast a product must be."""


@cache
def prefers_bfloat16(device: str) -> bool:
    """Whether the device multiplies matrices of bfloat16 faster than of float32: measured on a CPU, asked of a GPU."""
    kind = torch.device(device).type
    if kind != "cpu":
        return kind == "cuda" and torch.cuda.is_bf16_supported()
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    logger.info("A product in bfloat16 is %.1f times as fast as in float32 on this CPU.", ratio)
    return ratio >= FASTER


def _product_seconds(dtype: torch.dtype) -> float:
    """The fastest of several products of [64, 1024] and [1024, 1024]; no random number is drawn."""
    x, w = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    return min(repeat(lambda: linear(x, w), repeat=8, number=1)[1:])
