"""∂L_outer/∂φ for the generator's adapter φ, which is active wherever the inner loop trains and the task is solved.

At fixed adapted weights this is an ordinary gradient. In full it also follows the inner steps: with the cotangents ḡ_k
of the inner gradients (see `hf_mass.core.meta_gradients`),

    dL/dφ = ∂L/∂φ|_{θ'} + Σ_k ∂/∂φ Σ_r s_r ⟨∇_θ ℓ_r(θ_k; φ), ḡ_k⟩,

where the second term comes out of the same second-order pass as the Hessian-vector product of the inner step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import WeightedLoss, weighted_gradient
from hf_mass.core.second_order import hessian_product
from hf_mass.core.trees import Tree
from hf_mass.methods.inner import Adapter


def direct_gradient(adapter: Adapter, outer: WeightedLoss, params: Tree, valid: Tensor) -> dict[str, Tensor]:
    """Σ_n ∂L_n/∂φ at fixed adapted weights, by name, over the parameters of the model that require gradients.

    Args:
        adapter: Holds the model.
        outer: The outer loss.
        params: The adapted weights, leaves [N, ...].
        valid: [N] bool: tasks that count; the others' numbers may be NaN.
    """
    parameters = trainable_parameters(adapter.model)
    with adapter.lora.inactive():
        _, _, gradients = weighted_gradient(outer.loss, params, outer.coefficients, list(parameters.values()), valid)
    return dict(zip(parameters, gradients, strict=True))


def inner_steps_gradient(
    adapter: Adapter, trajectory: Trajectory, outer_gradient: Tree, valid: Tensor
) -> dict[str, Tensor]:
    """What the inner steps add to `direct_gradient`: Σ_k ∂/∂φ Σ_r s_r ⟨∇_θ ℓ_r(θ_k; φ), ḡ_k⟩.

    Args:
        adapter: Holds the model.
        trajectory: The inner loop.
        outer_gradient: ∇L_outer(θ'), leaves [N, ...].
        valid: [N] bool: tasks that count.

    Raises:
        UnsupportedModelError: If an operation of the model cannot be differentiated twice.
    """
    parameters = trainable_parameters(adapter.model)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    optimizer, params_bar = trajectory.optimizer, outer_gradient
    state_bar = trees.zeros_like(optimizer.init(trajectory.adapted))
    with adapter.lora.inactive():
        for step in range(trajectory.num_steps - 1, -1, -1):
            gradient_bar, params_bar, state_bar = optimizer.pullback(
                trajectory.gradients[step], trajectory.optimizer_states[step], step, params_bar, state_bar
            )
            loss, point, also = trajectory.loss.at_step(step), trajectory.states[step], list(parameters.values())
            curvature, _, mixed = hessian_product(loss, point, trajectory.weights, gradient_bar, also, valid)
            total = {name: sum_ + part for (name, sum_), part in zip(total.items(), mixed, strict=True)}
            params_bar = trees.add(params_bar, curvature)
    return total


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
