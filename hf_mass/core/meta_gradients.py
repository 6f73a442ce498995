"""Exact meta-gradients of an inner loop: two rules that can be swapped, one result.

Both give the attributions ∂L_outer/∂s_r and, on request, ∂L_outer/∂θ_0 (arXiv 2603.03524, outer loop).

`AdjointRule` walks back through the stored states. With λ_K = ∇L_outer(θ_K), and ḡ_k the optimizer's pullback of
λ_{k+1} (−α λ_{k+1} for SGD):

    ∂L/∂s_r = Σ_k ⟨∇ℓ_r(θ_k), ḡ_k⟩,        λ_k = λ_{k+1} + H_k ḡ_k,        H_k = ∇² Σ_r s_r ℓ_r(θ_k).

The inner products of the last step come from its row gradients, so K = 1 needs no second-order pass; each earlier step
takes one dual-number pass that gives H_k ḡ_k and the inner products together. Memory does not grow with K beyond one
parameter tree per step.

`UnrolledRule` keeps the graph of the whole inner loop and differentiates it: the reference, and the costlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import OuterLoss, hessian_product
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class MetaGradient:
    """The derivative of an outer loss through an inner loop.

    Args:
        attributions: ∂L_outer/∂s_r [R].
        outer_losses: L_outer of each task at θ' [N].
        outer_gradient: ∇L_outer(θ') = λ_K, leaves [N, ...].
        start_gradient: ∂L_outer/∂θ_0, leaves [N, ...]; None unless asked for.
    """

    attributions: Tensor
    outer_losses: Tensor
    outer_gradient: Tree
    start_gradient: Tree | None


class MetaGradientRule(Protocol):
    """One way to differentiate through an inner loop."""

    def __call__(self, trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False) -> MetaGradient:
        """The meta-gradient of `outer` at the trajectory's adapted weights."""


@dataclass(frozen=True, slots=True)
class AdjointRule:
    """Reverse sweep over the stored states (see the module's docstring)."""

    def __call__(self, trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False) -> MetaGradient:
        """Go back through the trajectory; microbatches as the losses have them."""
        outer_losses, outer_gradient = outer.gradient(trajectory.adapted)
        params_bar, state_bar = outer_gradient, trees.zeros_like(trajectory.optimizer.init(trajectory.adapted))
        attributions = torch.zeros_like(trajectory.weights, dtype=next(iter(outer_gradient.values())).dtype)
        last = trajectory.num_steps - 1
        for step in range(last, -1, -1):
            gradient_bar, state_bar = trajectory.optimizer.pullback(params_bar, state_bar)
            if step == last:
                rows_bar = trees.gather_tasks(gradient_bar, trajectory.loss.row_task)
                attributions += trees.row_dot(trajectory.last_gradients, rows_bar)
                if step == 0 and not start_gradient:
                    break  # K = 1: nothing of second order is needed
            curvature, products = hessian_product(
                trajectory.loss, trajectory.states[step], trajectory.weights, gradient_bar
            )
            if step < last:
                attributions += products
            params_bar = trees.add(params_bar, curvature)
        return MetaGradient(attributions, outer_losses, outer_gradient, params_bar if start_gradient else None)


@dataclass(frozen=True, slots=True)
class UnrolledRule:
    """Reverse over reverse: the inner loop is run again with its graph kept. Microbatches are not used."""

    def __call__(self, trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False) -> MetaGradient:
        """Run the inner loop again, all rows at once, and differentiate the outer loss through it.

        Raises:
            UnsupportedModelError: If activation checkpointing is on: a step's graph cannot be recomputed when the
                updates of that step are no longer applied.
        """
        loss, optimizer = trajectory.loss, trajectory.optimizer
        rows = torch.arange(loss.row_task.numel(), device=loss.row_task.device)
        weights = trajectory.weights.clone().requires_grad_()
        start = trees.leaves(trajectory.states[0])
        point, state = start, optimizer.init(start)
        for _ in range(trajectory.num_steps):
            with loss.evaluate(point, rows, loss.row_task, second_order=True) as values:
                objective = (weights.to(values.dtype) * values).sum()
                gradient = torch.autograd.grad(objective, list(point.values()), create_graph=True)
            update, state = optimizer.update(dict(zip(point, gradient, strict=True)), state)
            point = trees.add(point, update)
        wanted = [weights, *start.values()] if start_gradient else [weights]
        try:
            derivatives = torch.autograd.grad(outer.value(point), wanted)
        except CheckpointError as error:
            raise UnsupportedModelError(
                'meta_gradient="unrolled" does not work with activation checkpointing. Put the model in evaluation '
                'mode, switch checkpointing off, or use meta_gradient="adjoint".'
            ) from error
        outer_losses, outer_gradient = outer.gradient(trees.detached(point))
        start_bar = dict(zip(start, derivatives[1:], strict=True)) if start_gradient else None
        return MetaGradient(derivatives[0].detach(), outer_losses, outer_gradient, start_bar)


RULES: dict[str, MetaGradientRule] = {"adjoint": AdjointRule(), "unrolled": UnrolledRule()}


def get_rule(name: str) -> MetaGradientRule:
    """The rule called `name`.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in RULES:
        raise ConfigError(f"meta_gradient is {name!r}; choose one of {sorted(RULES)}.")
    return RULES[name]
