"""Weights in safetensors: their headers, their digests, and what is refused because nobody can have meant it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hf_mass.errors import CheckpointError

LARGEST = 1e6
"""The largest weight that is believed. Sums of products of larger ones soon overflow, and no training ends there."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What weights may be kept in: name in a header → dtype."""
_CURE = "Save it again from weights that are finite, or download it again."


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (kind of numbers, shape) of what a file holds; no weight is read.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return {name: (str(each.get_dtype()), tuple(each.get_shape())) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Save or download it again.") from error


def require_floats(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a file holds.

    Raises:
        CheckpointError: If it is damaged, or something in it is in no floating-point numbers.
    """
    header = read_header(path)
    for name, (kind, _) in header.items():
        if kind not in FLOATS:
            raise CheckpointError(f"{path}: {name} is in {kind}; weights are in one of {sorted(FLOATS)}. {_CURE}")
    return {name: shape for name, (_, shape) in header.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file.

    Raises:
        CheckpointError: If it is damaged, or weights are in whole numbers, not finite or beyond `LARGEST`.
    """
    require_floats(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Save or download it again.") from error
    require_finite(weights.items(), str(path))
    return weights


def require_finite(weights: Iterable[tuple[str, Tensor]], place: str) -> None:
    """Checks floating-point weights by name; others are let pass, as quantised ones are.

    Raises:
        CheckpointError: If one is not finite or beyond `LARGEST`; it names the first.
    """
    for name, weight in weights:
        if weight.dtype not in FLOATS.values() or not weight.numel() or weight.is_meta:
            continue
        low, high = (float(bound) for bound in torch.aminmax(weight.detach()))
        worst = max(low, high, key=abs)
        if math.isnan(worst) or abs(worst) > LARGEST:
            raise CheckpointError(f"{place}: {name} holds {worst:g}, which is no weight. {_CURE}")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of names, kinds, shapes and bits: equal weights have the same."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach()
        digest.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
