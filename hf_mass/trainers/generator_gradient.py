"""∂L_outer/∂φ for the generator's adapter φ, which is active wherever the inner loop trains and the task is solved.

At fixed adapted weights this is an ordinary gradient. In full it also follows the inner steps: with the cotangents ḡ_k
of the inner gradients (see `hf_mass.core.meta_gradients`),

    dL/dφ = ∂L/∂φ|_{θ'} + Σ_k ∂/∂φ Σ_r s_r ⟨∇_θ ℓ_r(θ_k; φ), ḡ_k⟩,

and the inner product is the forward-mode tangent of Σ_r s_r ℓ_r along ḡ_k, so one dual forward pass and one backward
pass per inner step give the second term.
"""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import RowLoss, WeightedLoss, hessian_product
from hf_mass.core.meta_gradients import MetaGradient
from hf_mass.core.trees import Tree
from hf_mass.models.adaptation import Adapter


def generator_gradient(
    adapter: Adapter, trajectory: Trajectory, outer: WeightedLoss, meta: MetaGradient, full: bool
) -> dict[str, Tensor]:
    """Σ_n ∂L_n/∂φ by parameter name, over the parameters of the model that require gradients.

    Args:
        adapter: Holds the model.
        trajectory: The inner loop.
        outer: The outer loss at its adapted weights.
        meta: Its meta-gradient.
        full: Whether to follow the inner steps too.
    """
    parameters = {name: p for name, p in adapter.model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with adapter.lora.inactive():
        _add_plain(total, parameters, outer.loss, trajectory.adapted, outer.coefficients)
        if full:
            _add_inner_steps(total, parameters, trajectory, meta)
    return total


def _add_plain(
    total: dict[str, Tensor], parameters: dict[str, Tensor], loss: RowLoss, params: Tree, coefficients: Tensor
) -> None:
    for rows in loss.microbatches():
        with loss.evaluate(params, rows, loss.row_task[rows], second_order=False) as values:
            _accumulate(total, parameters, (coefficients[rows].to(values.dtype) * values).sum())


def _add_inner_steps(
    total: dict[str, Tensor], parameters: dict[str, Tensor], trajectory: Trajectory, meta: MetaGradient
) -> None:
    loss, weights = trajectory.loss, trajectory.weights
    params_bar = meta.outer_gradient
    state_bar = trees.zeros_like(trajectory.optimizer.init(trajectory.adapted))
    for step in range(trajectory.num_steps - 1, -1, -1):
        gradient_bar, state_bar = trajectory.optimizer.pullback(params_bar, state_bar)
        point = trajectory.states[step]
        for rows in loss.microbatches():
            with forward_ad.dual_level():
                dual = {n: forward_ad.make_dual(point[n].detach(), gradient_bar[n].detach().clone()) for n in point}
                with loss.evaluate(dual, rows, loss.row_task[rows], second_order=True) as values:
                    tangent = forward_ad.unpack_dual(values).tangent
                    _accumulate(total, parameters, (weights[rows].to(tangent.dtype) * tangent).sum())
        if step > 0:
            curvature, _ = hessian_product(loss, point, weights, gradient_bar)
            params_bar = trees.add(params_bar, curvature)


def _accumulate(total: dict[str, Tensor], parameters: dict[str, Tensor], value: Tensor) -> None:
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            total[name] += gradient
