"""What a model's passes run on: the kernel of attention, the kind of checkpointing, the type of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating-point type that a model computes in."""
    given = getattr(model, "dtype", None)
    return given if given is not None else next(x.dtype for x in model.parameters() if x.is_floating_point())


@contextmanager
def recomputing_without_reentry(model: nn.Module) -> Iterator[None]:
    """Within this context reentrant checkpointing is the other kind.

    transformers' reentrant one gives no gradient to weights whose layer gets inputs without one, as behind a frozen
    embedding, and refuses `torch.autograd.grad`.
    """
    key, swapped = "_gradient_checkpointing_func", dict[nn.Module, Any]()
    try:
        for module in model.modules():
            function = vars(module).get(key)
            if module.training and isinstance(function, partial) and function.keywords.get("use_reentrant", True):
                swapped[module] = function
                other = partial(function.func, *function.args, **{**function.keywords, "use_reentrant": False})
                setattr(module, key, other)
        yield
    finally:
        for module, function in swapped.items():
            setattr(module, key, function)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Within this context attention runs on the math kernel, whatever implementation the model is set to.

    Fused kernels (sdpa's on a CPU, flash, flex) have no double-backward rule. The values agree up to rounding. The
    backward passes must run inside the context too: recomputation happens there.
    """
    substitutes: dict[int, str] = {}  # by configuration: what takes the place of a fused kernel
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
            if getattr(module, "_supports_sdpa", False):
                substitutes[id(config)] = "sdpa"
    fused = [(c, c._attn_implementation) for c in configs.values() if c._attn_implementation not in _TWICE]
    try:
        for config, _ in fused:
            config._attn_implementation = substitutes.get(id(config), "eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for config, implementation in fused:
            config._attn_implementation = implementation


_TWICE = ("sdpa", "eager", None)
SHORT = 192
"""Tokens of a row up to which sdpa's math kernel is the faster one on a CPU in bfloat16."""


def fused_is_slower(model: nn.Module, positions: Tensor) -> bool:
    """Whether the fused attention of a CPU would take longer than plain products, over rows at positions [R, S].

    Its backward pass in half precision is slow (9 heads of 64, 2 rows, forward and backward: 12 ms against 7 of the
    math kernel at 135 tokens, 5 against 3 at 64, 22 against 37 at 300). In float32 they are alike.
    """
    half = getattr(model, "dtype", None) in (torch.bfloat16, torch.float16)
    return half and positions.device.type == "cpu" and positions.shape[1] <= SHORT and torch.is_grad_enabled()
