"""Exact meta-gradients of an inner loop: two rules that can be swapped, one result.

Both give the attributions ∂L_outer/∂s_r and, on request, ∂L_outer/∂θ_0 (arXiv 2603.03524, outer loop).

`adjoint_rule` goes back over the stored states. With λ_K = ∇L_outer(θ_K), and (ḡ_k, θ̄_k) the optimizer's pullback of
λ_{k+1} ((−α λ_{k+1}, λ_{k+1}) for SGD):

    ∂L/∂s_r = Σ_k ⟨∇ℓ_r(θ_k), ḡ_k⟩,        λ_k = θ̄_k + H_k ḡ_k,        H_k = ∇² Σ_r s_r ℓ_r(θ_k).

Step 0 needs inner products alone: with the row gradients that the inner loop kept, or from one forward pass with
tangents. So K = 1 costs no second-order pass at all, and each later step takes one, which gives H_k ḡ_k and the inner
products together. Memory does not grow with K beyond one parameter tree per step.

`unrolled_rule` keeps the graph of the whole inner loop and differentiates it: the reference, and the costlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import OuterLoss
from hf_mass.core.second_order import hessian_product, require_second_derivatives, row_products
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
        also: Σ_n ∂L_n/∂φ at fixed adapted weights, for each further parameter φ of the model that was asked for.
    """

    attributions: Tensor
    outer_losses: Tensor
    outer_gradient: Tree
    start_gradient: Tree | None
    also: tuple[Tensor, ...] = ()


class MetaGradientRule(Protocol):
    """One way to differentiate through an inner loop."""

    def __call__(
        self, trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False, also: Sequence[Tensor] = ()
    ) -> MetaGradient:
        """The meta-gradient of `outer` at the trajectory's adapted weights."""


def adjoint_rule(
    trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False, also: Sequence[Tensor] = ()
) -> MetaGradient:
    """Goes back over the stored states (see the module's docstring), in microbatches as the losses have them."""
    gradient = outer.gradient(trajectory.adapted, also)
    optimizer, params_bar = trajectory.optimizer, gradient.params
    state_bar = trees.zeros_like(optimizer.init(trajectory.adapted))
    attributions = torch.zeros_like(trajectory.weights, dtype=next(iter(params_bar.values())).dtype)
    for step in range(trajectory.num_steps - 1, -1, -1):
        gradient_bar, params_bar, state_bar = optimizer.pullback(
            trajectory.gradients[step], trajectory.optimizer_states[step], step, params_bar, state_bar
        )
        if step == 0 and not start_gradient:
            attributions += _first_products(trajectory, gradient_bar)
            break
        loss, point = trajectory.loss.at_step(step), trajectory.states[step]
        curvature, products, _ = hessian_product(loss, point, trajectory.weights, gradient_bar)
        attributions += products
        params_bar = trees.add(params_bar, curvature)
    return MetaGradient(
        attributions, gradient.losses, gradient.params, params_bar if start_gradient else None, gradient.also
    )


def _first_products(trajectory: Trajectory, direction: Tree) -> Tensor:
    """⟨∇ℓ_r(θ_0), v⟩ [R]."""
    if trajectory.first is None:
        return row_products(trajectory.loss.at_step(0), trajectory.states[0], direction)
    return trees.row_dot(trajectory.first[1], trees.gather_tasks(direction, trajectory.loss.row_task))


def unrolled_rule(
    trajectory: Trajectory, outer: OuterLoss, start_gradient: bool = False, also: Sequence[Tensor] = ()
) -> MetaGradient:
    """Runs the inner loop again, all rows at once with its graph kept, and differentiates the outer loss through it.

    Raises:
        UnsupportedModelError: If activation checkpointing is on: a step's graph cannot be recomputed when the updates
            of that step are no longer applied.
    """
    loss, optimizer = trajectory.loss, trajectory.optimizer
    rows = torch.arange(loss.row_task.numel(), device=loss.row_task.device)
    weights = trajectory.weights.clone().requires_grad_()
    start = trees.leaves(trajectory.states[0])
    point, state = start, optimizer.init(start)
    if trajectory.num_steps > 1 or start_gradient:
        loss.require_second_order(start)
    for step in range(trajectory.num_steps):
        with loss.at_step(step).evaluate(point, rows, loss.row_task, second_order=True) as values:
            objective = (weights.to(values.dtype) * values).sum()
            gradient = torch.autograd.grad(
                objective, list(point.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
        point, state = optimizer.update(point, dict(zip(point, gradient, strict=True)), state, step)
    wanted = [weights, *start.values()] if start_gradient else [weights]
    value = outer.value(point)
    require_second_derivatives(value)
    try:
        derivatives = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
    except CheckpointError as error:
        raise UnsupportedModelError(
            'meta_gradient="unrolled" does not work with activation checkpointing. Put the model in evaluation '
            'mode, switch checkpointing off, or use meta_gradient="adjoint".'
        ) from error
    first = outer.gradient(trees.detached(point), also)
    start_bar = dict(zip(start, derivatives[1:], strict=True)) if start_gradient else None
    return MetaGradient(derivatives[0].detach(), first.losses, first.params, start_bar, first.also)


RULES: dict[str, MetaGradientRule] = {"adjoint": adjoint_rule, "unrolled": unrolled_rule}


def get_rule(name: str) -> MetaGradientRule:
    """The rule called `name`.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in RULES:
        raise ConfigError(f"meta_gradient is {name!r}; choose one of {sorted(RULES)}.")
    return RULES[name]
