"""Adapted weights as one ordinary PEFT adapter, and a saved adapter as weights for a model.

A task is answered by the base with up to two low-rank updates on top of each other: the generator's adapter and the
inner one. Their sum is a low-rank update too: s₁B₁A₁ + s₂B₂A₂ = [s₁B₁, s₂B₂] [A₁; A₂], of rank r₁ + r₂ and scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from hf_mass.core.trees import Tree
from hf_mass.errors import CheckpointError, DataError
from hf_mass.lm.binding import BoundLora
from hf_mass.store.adapters import ADAPTER_FILES, read_checked

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
        return lora.config, lora.state_dict(tree, 0)
    layers = list(dict.fromkeys(name for lora, _ in active for name in lora.layers))
    ranks = [max(tree[site.a].shape[1] for site in lora.function.sites.values()) for lora, tree in active]
    weights: dict[str, Tensor] = {}
    for name in layers:
        adapting = [
            (n, lora.function.sites[name], tree) for n, (lora, tree) in enumerate(active) if name in lora.layers
        ]
        _, site, tree = adapting[0]
        down = tree[site.a].new_zeros(sum(ranks), tree[site.a].shape[2], dtype=torch.float32)
        up = tree[site.b].new_zeros(tree[site.b].shape[1], sum(ranks), dtype=torch.float32)
        for n, site, tree in adapting:
            place = slice(sum(ranks[:n]), sum(ranks[:n]) + tree[site.a].shape[1])
            down[place] = tree[site.a][0].detach()
            up[:, place] = site.scaling * tree[site.b][0].detach().float()
        weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    settings = active[0][0].config
    config = LoraConfig(
        r=sum(ranks),
        lora_alpha=sum(ranks),
        target_modules=[name.removeprefix("base_model.model.") for name in layers],
        fan_in_fan_out=getattr(settings, "fan_in_fan_out", False),
        base_model_name_or_path=settings.base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    return config, weights


def read_adapter(folder: Path, lora: BoundLora) -> Tree:
    """The matrices [1, ...] of a saved adapter, for a model whose adapter has the same shape.

    Args:
        folder: A PEFT adapter.
        lora: The model's adapter, which is not changed.

    Raises:
        CheckpointError: If a file is damaged, or the adapter is of another kind, scale or shape.
    """
    path = folder / ADAPTER_FILES[1]
    (settings, weights), expected = read_checked(folder), lora.config
    cure = "Load it with the base and the LoRA settings that it was trained with."
    for name in ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        value = getattr(expected, name)
        if settings.get(name, value) != value:
            raise CheckpointError(f"{folder}: {name} is {settings[name]!r}, and {value!r} in this model. {cure}")
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
