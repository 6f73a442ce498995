"""Minibatch training of low-rank parameters for many tasks side by side, each by its own plan.

The inner loop of `hf_mass.core.inner_loop` goes over all rows at once and can be differentiated; this one takes as many
minibatch steps as test-time training asks for (arXiv 2411.07279: epochs over leave-one-out data) and cannot. Tasks
share every pass over the base; nothing else is shared, so each ends where it would have ended alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.losses import RowLoss, weighted_gradient
from hf_mass.core.optimizers import InnerOptimizer
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError

SCHEDULES = ("cosine", "linear", "constant")


def schedule_factor(name: str, step: int, total: int, warmup: float = 0.0) -> float:
    """The share of the learning rate at step 0, 1, … of `total`: up over the first `warmup` share of them, then down.

    Raises:
        ConfigError: If the schedule is unknown.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"lr_scheduler_type is {name!r}; choose one of {list(SCHEDULES)}.")
    warmup_steps = math.ceil(warmup * total)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if name == "linear" else 1.0


@dataclass(frozen=True)
class FitStep:
    """One step of all tasks that are still training.

    Args:
        loss: The rows of this step, R of them.
        coefficients: [R], such as 1 / rows of the task for a mean.
        rates: [N] share of the learning rate; 0 for a task that is done, which then keeps its parameters.
    """

    loss: RowLoss
    coefficients: Tensor
    rates: Tensor


def fit(
    steps: Iterable[FitStep],
    start: Tree,
    optimizer: InnerOptimizer,
    max_norm: float | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tree:
    """Train N tasks.

    Args:
        steps: What to do in each step; a task that is done stays done.
        start: θ_0, leaves [N, ...].
        optimizer: A pure optimizer, whose updates are proportional to its learning rate.
        max_norm: Longest gradient of a task; longer ones are scaled down to it. None for no limit.
        on_step: Called after each step with its number and the losses [R].

    Returns:
        The trained parameters, leaves [N, ...]. Where a loss was not finite, the task's parameters are not either.
    """
    params, state = trees.detached(start), optimizer.init(start)
    for index, step in enumerate(steps):
        values, gradient, _ = weighted_gradient(step.loss, params, step.coefficients)
        if max_norm is not None:
            gradient = clipped(gradient, max_norm)
        target, state = optimizer.update(params, gradient, state, index)
        params = _partly(params, target, step.rates)
        if on_step is not None:
            on_step(index, values)
    return params


def clipped(gradient: Tree, max_norm: float) -> Tree:
    """Each task's gradient, scaled down to `max_norm` where it is longer (over all its leaves)."""
    norms = trees.row_dot(gradient, gradient).sqrt()  # [N]
    return trees.scale_rows(gradient, (max_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0))


def _partly(before: Tree, after: Tree, rates: Tensor) -> Tree:
    """before + rate · (after − before) for each task, and exactly `before` where the rate is 0."""

    def move(old: Tensor, new: Tensor) -> Tensor:
        rate = rates.to(old.dtype).view(-1, *([1] * (old.dim() - 1)))
        return torch.where(rate == 0, old, old + rate * (new - old))

    return trees.tree_map(move, before, after)
