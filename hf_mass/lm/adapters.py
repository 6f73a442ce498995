"""Adapted weights as one ordinary PEFT adapter, and a saved adapter as weights for a model.

A task is answered by the base with up to two low-rank updates on top of each other: the generator's adapter and the
inner one. Their sum is a low-rank update too: s₁B₁A₁ + s₂B₂A₂ = [s₁B₁, s₂B₂] [A₁; A₂], of rank r₁ + r₂ and scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hf_mass.core.trees import Tree
from hf_mass.errors import CheckpointError, DataError
from hf_mass.lm.binding import BoundLora
from hf_mass.store.storage import ADAPTER_FILES, read_json

Part = tuple[BoundLora, Tree]
"""An adapter with the matrices [1, ...] that it has for one task."""


def changes_something(part: Part) -> bool:
    """Whether an update is not zero everywhere, as LoRA starts."""
    lora, tree = part
    return any(bool(tree[site.b].any()) for site in lora.function.sites.values())


def combined_adapter(parts: Sequence[Part]) -> tuple[PeftConfig, dict[str, Tensor]]:
    """The sum of low-rank updates of one model as (config, weights under PEFT's names, float32).

    A part that changes nothing (all of its B are zero) is left out, and a single part stays as it is.

    Args:
        parts: Adapters of one PEFT model with their matrices.

    Raises:
        DataError: If no part changes anything.
    """
    active = [part for part in parts if changes_something(part)]
    if not active:
        raise DataError("The adapted weights are those of the base: there is nothing to save. Adapt first.")
    if len(active) == 1:
        lora, tree = active[0]
        return lora.model.peft_config[lora.adapter], lora.state_dict(tree, 0)
    layers = list(dict.fromkeys(name for lora, _ in active for name in lora.layers))
    ranks = [max(tree[site.a].shape[1] for site in lora.function.sites.values()) for lora, tree in active]
    weights = {}
    for name in layers:
        downs, ups = zip(*(_matrices(part, name, rank) for part, rank in zip(active, ranks, strict=True)), strict=True)
        example = next((a, b) for a, b in zip(downs, ups, strict=True) if a is not None and b is not None)
        wide, high = example[0].shape[1], example[1].shape[0]
        weights[f"{name}.lora_A.weight"] = torch.cat(
            [example[0].new_zeros(rank, wide) if a is None else a for a, rank in zip(downs, ranks, strict=True)]
        )
        weights[f"{name}.lora_B.weight"] = torch.cat(
            [example[1].new_zeros(high, rank) if b is None else b for b, rank in zip(ups, ranks, strict=True)], dim=1
        )
    return _config(active[0][0], layers, sum(ranks)), weights


def _matrices(part: Part, layer: str, rank: int) -> tuple[Tensor | None, Tensor | None]:
    """(A [rank, in], scaled B [out, rank]) of a layer, filled up with zeros to the adapter's largest rank."""
    lora, tree = part
    site = lora.function.sites.get(layer)
    if site is None:
        return None, None
    down, up = tree[site.a][0].detach().float(), site.scaling * tree[site.b][0].detach().float()
    missing = rank - down.shape[0]
    return (
        torch.nn.functional.pad(down, (0, 0, 0, missing)),
        torch.nn.functional.pad(up, (0, missing)),
    )


def _config(lora: BoundLora, layers: Sequence[str], rank: int) -> LoraConfig:
    settings = lora.model.peft_config[lora.adapter]
    prefix = "base_model.model."
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name.removeprefix(prefix) for name in layers],
        fan_in_fan_out=getattr(settings, "fan_in_fan_out", False),
        base_model_name_or_path=settings.base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def read_adapter(folder: Path, lora: BoundLora) -> Tree:
    """The matrices [1, ...] of a saved adapter, for a model whose adapter has the same shape.

    Args:
        folder: A PEFT adapter.
        lora: The model's adapter, which is not changed.

    Raises:
        CheckpointError: If a file is damaged, or the adapter is of another kind, scale or shape.
    """
    path = folder / ADAPTER_FILES[1]
    settings, expected = read_json(folder / ADAPTER_FILES[0]), lora.model.peft_config[lora.adapter]
    cure = "Load it with the base and the LoRA settings that it was trained with."
    for name in ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        value = getattr(expected, name)
        if settings.get(name, value) != value:
            raise CheckpointError(f"{folder}: {name} is {settings[name]!r}, and {value!r} in this model. {cure}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Save or download it again.") from error
    tree = {}
    for name, leaf in lora.start(1).items():
        matrix = weights.pop(name.replace(f".{lora.adapter}.", "."), None)
        if matrix is None or matrix.shape != leaf.shape[1:]:
            shape = "missing" if matrix is None else f"of shape {tuple(matrix.shape)}"
            raise CheckpointError(f"{path}: {name} is {shape}, and {tuple(leaf.shape[1:])} in this model. {cure}")
        tree[name] = matrix.to(leaf)[None]
    if weights:
        raise CheckpointError(f"{path}: this model has no {sorted(weights)[0]}. {cure}")
    return tree
