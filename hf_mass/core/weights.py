"""From scores z to weights s ≥ 0 of the auxiliary samples, and the derivative back."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mass.errors import ConfigError

NORMALISATIONS = ("softmax", "sigmoid", "none")


def normalise_scores(scores: Tensor, usable: Tensor, normalisation: str) -> Tensor:
    """s [N, m] from scores z [N, m]; samples that are not `usable` [N, m] get exactly 0.

    "softmax" sums to one over a task's usable samples; "sigmoid" is σ(z) / m; "none" is softplus(z) / m, which leaves
    the scale to the scorer. A task without a usable sample has zero weights.

    Raises:
        ConfigError: If the normalisation is unknown.
    """
    if normalisation == "softmax":
        masked = scores.masked_fill(~usable, -torch.inf)
        peak = masked.max(1, keepdim=True).values
        terms = torch.exp(masked - torch.where(peak.isfinite(), peak, torch.zeros_like(peak)).detach())
        return terms / terms.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    if normalisation == "sigmoid":
        return torch.sigmoid(scores) * usable / scores.shape[1]
    if normalisation == "none":
        return torch.nn.functional.softplus(scores) * usable / scores.shape[1]
    raise ConfigError(f"score_normalization is {normalisation!r}; choose one of {list(NORMALISATIONS)}.")


def uniform_weights(usable: Tensor) -> Tensor:
    """Equal weights over each task's usable samples [N, m], summing to one; zeros where there are none."""
    ones = usable.to(torch.get_default_dtype())
    return ones / ones.sum(1, keepdim=True).clamp(min=1)


def standardise(values: Tensor, usable: Tensor) -> Tensor:
    """Each task's values [N, m] shifted and scaled to mean 0 and deviation 1 over its usable samples; 0 elsewhere.

    A task whose values do not differ (or with a single usable sample) gets zeros, which a softmax turns into equal
    weights.
    """
    count = usable.sum(1, keepdim=True).clamp(min=1)
    masked = torch.where(usable, values, torch.zeros_like(values))
    centred = (masked - masked.sum(1, keepdim=True) / count) * usable
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    # Equal values differ from their own mean by rounding, which must not be taken for spread.
    rounding = count * torch.finfo(values.dtype).eps * masked.abs().amax(1, keepdim=True)
    return torch.where(deviation > rounding, centred / deviation.clamp(min=torch.finfo(values.dtype).tiny), 0)


def attribution_weights(attributions: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """softmax(τ · standardised(−∂L/∂s)) over each task's usable samples: no label and no scorer needed.

    Args:
        attributions: ∂L_outer/∂s [N, m], with the outer loss on the task's own demonstrations.
        usable: [N, m] bool.
        temperature: τ > 0; larger trusts the attributions more.
    """
    return normalise_scores(temperature * standardise(-attributions, usable), usable, "softmax")


def matching_weights(gram: Tensor, products: Tensor, ridge: float = 1e-6) -> Tensor:
    """w ≥ 0 [m] that minimises |Σ_i w_i ∇ℓ_i − g|², scaled to sum to one; zeros where no combination comes nearer to g.

    Single attributions are the wrong weights for a set: samples that are nearly alike share one gradient, and each of
    them would get all the weight that one of them deserves.

    Args:
        gram: ⟨∇ℓ_i, ∇ℓ_j⟩ [m, m], finite.
        products: ⟨∇ℓ_i, g⟩ [m].
        ridge: Added to the diagonal, as a share of its mean: equal samples share their weight.
    """
    wide, target = gram.double(), products.double()
    wide = wide + ridge * wide.diagonal().mean() * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    weights = nonnegative_minimum(wide, target)
    return (weights / weights.sum().clamp(min=torch.finfo(wide.dtype).tiny)).to(products.dtype)


def nonnegative_minimum(matrix: Tensor, target: Tensor) -> Tensor:
    """The w ≥ 0 [m] that minimises ½ wᵀ Q w − cᵀ w, by an active set (Lawson and Hanson, 1974, algorithm 23.10).

    Args:
        matrix: Q [m, m] float64, symmetric and positive definite.
        target: c [m] float64.
    """
    weights, free = torch.zeros_like(target), torch.zeros_like(target, dtype=torch.bool)
    tolerance = 1e-12 * float(target.abs().max()) if target.numel() else 0.0
    for _ in range(3 * len(target)):
        slope = torch.where(free, -torch.inf, target - matrix @ weights)
        if not slope.numel() or float(slope.max()) <= tolerance:
            break
        free[slope.argmax()] = True
        while free.any():
            solution = torch.zeros_like(weights)
            solution[free] = torch.linalg.solve(matrix[free][:, free], target[free])
            below = free & (solution <= 0)
            if not below.any():
                weights = solution
                break
            # As far as the first weight that would fall below zero, which leaves the set.
            step = (weights[below] / (weights[below] - solution[below])).min()
            weights = weights + step * (solution - weights)
            free &= weights > 1e-15 * weights.max()
            weights = torch.where(free, weights, torch.zeros_like(weights))
    return weights


def logit_attributions(attributions: Tensor, weights: Tensor) -> Tensor:
    """−∂L/∂z_i = w_i (R_i − Σ_j w_j R_j) [N, m] for softmax weights w, with R = −∂L/∂w."""
    rewards = -attributions
    return weights * (rewards - (weights * rewards).sum(1, keepdim=True))
