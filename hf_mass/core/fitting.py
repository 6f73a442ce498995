"""Minibatch training of low-rank parameters for many tasks side by side, each by its own plan.

The inner loop of `hf_mass.core.inner_loop` goes over all rows at once and can be differentiated; this one takes as many
minibatch steps as test-time training asks for (arXiv 2411.07279: epochs over leave-one-out data) and cannot. Tasks
share every pass over the base; nothing else is shared, so each ends where it would have ended alone.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class FitState:
    """Where the training of N tasks stands.

    Args:
        params: θ, leaves [N, ...]. Where a loss was not finite, the task's parameters are not either.
        moments: The optimizer's state.
        step: Number of steps made.
    """

    params: Tree
    moments: Tree
    step: int = 0


def begin_fit(start: Tree, optimizer: InnerOptimizer) -> FitState:
    """The state before the first step, at θ_0 with leaves [N, ...]."""
    return FitState(trees.detached(start), optimizer.init(start))


def fit_step(
    step: FitStep, state: FitState, optimizer: InnerOptimizer, max_norm: float | None = None
) -> tuple[FitState, Tensor]:
    """One minibatch step of N tasks.

    Args:
        step: What to do; a task that is done stays done.
        state: Where they stand.
        optimizer: A pure optimizer, whose updates are proportional to its learning rate.
        max_norm: Longest gradient of a task; longer ones are scaled down to it. None for no limit.

    Returns:
        (the state after it, the losses [R] before it).
    """
    values, gradient, _ = weighted_gradient(step.loss, state.params, step.coefficients)
    if max_norm is not None:
        gradient = clipped(gradient, max_norm)
    moved, moments = optimizer.update(state.params, gradient, state.moments, state.step)
    return FitState(_partly(state.params, moved, step.rates), moments, state.step + 1), values


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
