"""Losses of many rows at stacked parameters, and the derivatives that the meta-gradient rules are made of.

A row is one training sequence that belongs to one task. With rows r = 1..R, tasks n = 1..N, parameters θ stacked over
tasks and coefficients c_r, everything here concerns

    L(θ) = Σ_r c_r ℓ_r(θ_{task(r)}),

which covers the inner loss (c = the weights s), the gold outer loss (c = 1), and the GRPO surrogate
(c = advantage / k), because the surrogate's gradient at ratio one is that of −advantage · log p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.trees import Tree
from hf_mass.errors import UnsupportedModelError


class RowLoss(Protocol):
    """ℓ_r(θ) for R rows, evaluated in microbatches."""

    row_task: Tensor  # [R] int64 in [0, N)

    def microbatches(self) -> Iterable[Tensor]:
        """Row indices [rows] int64, chunk after chunk; together they cover every row once."""

    def evaluate(
        self, params: Tree, rows: Tensor, row_task: Tensor, second_order: bool
    ) -> AbstractContextManager[Tensor]:
        """Context that gives ℓ [rows], row i taken at parameters `row_task[i]`. Differentiate inside the context.

        `second_order` says that the values will be differentiated twice, or once with forward-mode tangents.
        """


class OuterLoss(Protocol):
    """A loss of the adapted weights, differentiable in two ways."""

    def gradient(self, params: Tree) -> tuple[Tensor, Tree]:
        """(L of each task [N], ∂L/∂θ)."""

    def value(self, params: Tree) -> Tensor:
        """Σ over tasks of L, with a graph that can be differentiated."""


@dataclass(frozen=True)
class WeightedLoss:
    """L(θ) = Σ_r c_r ℓ_r(θ): rows with fixed coefficients.

    Args:
        loss: The R row losses.
        coefficients: [R] float, constants.
    """

    loss: RowLoss
    coefficients: Tensor

    def gradient(self, params: Tree) -> tuple[Tensor, Tree]:
        """(L of each task [N], ∂L/∂θ)."""
        values, gradient = weighted_gradient(self.loss, params, self.coefficients)
        return _per_task(values * self.coefficients, self.loss.row_task, trees.num_tasks(params)), gradient

    def value(self, params: Tree) -> Tensor:
        """Σ over tasks of L, with a graph that can be differentiated (no microbatches; for the unrolled rule)."""
        rows = torch.arange(self.loss.row_task.numel(), device=self.loss.row_task.device)
        with self.loss.evaluate(params, rows, self.loss.row_task, second_order=True) as values:
            return (values * self.coefficients.to(values.dtype)).sum()


@dataclass(frozen=True)
class MixtureLoss:
    """L(θ) = −Σ_g v_g log Σ_{r ∈ g} exp(−ℓ_r(θ)): each group of rows is one event that can come about in several ways.

    With ℓ_r the summed negative log-likelihood of "derivation r, then answer", a group is one answer, marginal over the
    derivations. The gradient is Σ_g v_g Σ_{r ∈ g} q_r ∇ℓ_r with the posterior q_r = exp(−ℓ_r) / Σ exp(−ℓ).

    Args:
        loss: The R row losses.
        row_group: [R] int64 in [0, G), rows of a group belong to one task.
        group_weights: v [G] float.
    """

    loss: RowLoss
    row_group: Tensor
    group_weights: Tensor

    def gradient(self, params: Tree) -> tuple[Tensor, Tree]:
        """(L of each task [N], ∂L/∂θ): one pass over the rows, or two where they come in several microbatches."""
        chunks = list(self.loss.microbatches())
        if len(chunks) > 1:
            values = row_values(self.loss, params)
            values, gradient = weighted_gradient(self.loss, params, self._posterior(values))
        else:
            values, gradient = _gradient(self.loss, params, chunks[0], lambda chunk: self._posterior(chunk.detach()))
        losses = _per_task(self._group_losses(values), self._group_task(), trees.num_tasks(params))
        return losses, gradient

    def value(self, params: Tree) -> Tensor:
        """Σ over tasks of L, with a graph that can be differentiated."""
        rows = torch.arange(self.loss.row_task.numel(), device=self.loss.row_task.device)
        with self.loss.evaluate(params, rows, self.loss.row_task, second_order=True) as values:
            return self._group_losses(values).sum()

    def _log_mixture(self, values: Tensor) -> Tensor:
        """log Σ_{r ∈ g} exp(−ℓ_r) [G], shifted by each group's largest term."""
        groups = self.group_weights.numel()
        floor = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
        peak = floor.scatter_reduce(0, self.row_group, -values.detach(), "amax")
        raised = torch.exp(-values - peak[self.row_group])
        return peak + values.new_zeros(groups).index_add(0, self.row_group, raised).log()

    def _group_losses(self, values: Tensor) -> Tensor:
        return -self.group_weights.to(values.dtype) * self._log_mixture(values)

    def _posterior(self, values: Tensor) -> Tensor:
        weights = self.group_weights.to(values.dtype)[self.row_group]
        return weights * torch.exp(-values - self._log_mixture(values)[self.row_group])

    def _group_task(self) -> Tensor:
        tasks = torch.zeros(self.group_weights.numel(), dtype=torch.long, device=self.row_group.device)
        return tasks.scatter(0, self.row_group, self.loss.row_task)


def _per_task(values: Tensor, row_task: Tensor, tasks: int) -> Tensor:
    return values.new_zeros(tasks).index_add_(0, row_task, values)


def row_values(loss: RowLoss, params: Tree) -> Tensor:
    """ℓ [R] without gradients."""
    values = _row_buffer(loss, params)
    with torch.no_grad():
        for rows in loss.microbatches():
            with loss.evaluate(params, rows, loss.row_task[rows], second_order=False) as chunk:
                values[rows] = chunk.to(values.dtype)
    return values


def weighted_gradient(loss: RowLoss, params: Tree, coefficients: Tensor) -> tuple[Tensor, Tree]:
    """First order: (ℓ [R], ∂/∂θ Σ_r c_r ℓ_r(θ)), one backward pass per microbatch, summed in the dtype of θ."""
    values, total = _row_buffer(loss, params), trees.zeros_like(params)
    for rows in loss.microbatches():
        chunk, gradients = _gradient(loss, params, rows, lambda _, rows=rows: coefficients[rows])  # type: ignore[misc]
        values[rows] = chunk.to(values.dtype)
        for name, gradient in gradients.items():
            total[name] += gradient
    return values, total


@torch.enable_grad()
def _gradient(
    loss: RowLoss, params: Tree, rows: Tensor, coefficients: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tree]:
    """(ℓ of the rows, ∂/∂θ Σ c ℓ) in one pass; the coefficients may be constants that depend on the values."""
    point = trees.leaves(params)
    with loss.evaluate(point, rows, loss.row_task[rows], second_order=False) as chunk:
        objective = (coefficients(chunk).to(chunk.dtype) * chunk).sum()
        gradients = torch.autograd.grad(objective, list(point.values()))
    return chunk.detach(), dict(zip(point, gradients, strict=True))


@torch.enable_grad()
def sample_gradients(loss: RowLoss, params: Tree) -> tuple[Tensor, Tree]:
    """First order, kept apart: (ℓ [R], ∇ℓ_r(θ) for every row, leaves [R, ...]).

    Each row gets its own copy of its task's parameters, so one ordinary backward pass of Σ_r ℓ_r leaves every row's
    gradient in its own slot. For LoRA this costs the low-rank products alone: the base's share of the backward pass is
    that of plain training. Memory: R trees of parameters.
    """
    values, chunks, order = _row_buffer(loss, params), [], []
    for rows in loss.microbatches():
        point = trees.leaves(trees.gather_tasks(params, loss.row_task[rows]))
        own = torch.arange(rows.numel(), device=rows.device)
        with loss.evaluate(point, rows, own, second_order=False) as chunk:
            gradients = torch.autograd.grad(chunk.sum(), list(point.values()))
        values[rows] = chunk.detach().to(values.dtype)
        chunks.append(dict(zip(point, gradients, strict=True)))
        order.append(rows)
    back = torch.argsort(torch.cat(order))
    return values, trees.tree_map(lambda x: x.index_select(0, back), trees.concatenate_rows(chunks))


@torch.enable_grad()
def hessian_product(loss: RowLoss, params: Tree, coefficients: Tensor, direction: Tree) -> tuple[Tree, Tensor]:
    """Second order, forward over reverse: (H v, ⟨∇ℓ_r, v⟩ [R]) with H the Hessian of Σ_r c_r ℓ_r and v [N, ...].

    θ is made dual, θ + εv. The ε-part of ℓ_r is ⟨∇ℓ_r, v⟩, and the ε-part of the gradient of Σ c_r ℓ_r is H v, both
    from one forward and one backward pass. Each microbatch has a dual level of its own: tangents that require
    gradients are only freed when their level ends.

    Raises:
        UnsupportedModelError: If an operation of the model has no forward-mode rule.
    """
    products, total = _row_buffer(loss, params), trees.zeros_like(params)
    for rows in loss.microbatches():
        with forward_ad.dual_level():
            # Contiguous: θ_0 is an expanded view where tasks share it, and dual tensors may not overlap themselves.
            point = {
                name: forward_ad.make_dual(
                    leaf.detach().contiguous().requires_grad_(), direction[name].detach().clone()
                )
                for name, leaf in params.items()
            }
            try:
                with loss.evaluate(point, rows, loss.row_task[rows], second_order=True) as chunk:
                    products[rows] = _tangent(chunk).detach().to(products.dtype)
                    objective = (coefficients[rows].to(chunk.dtype) * chunk).sum()
                    gradients = torch.autograd.grad(objective, list(point.values()))
            except NotImplementedError as error:
                raise UnsupportedModelError(
                    f"An operation of the model has no forward-mode derivative, which K > 1 needs: {error} "
                    'Use meta_gradient="unrolled", inner_steps=1, or attn_implementation="eager".'
                ) from error
            for sum_, gradient in zip(total.values(), gradients, strict=True):
                sum_ += _tangent(gradient).detach()
    return total, products


def _tangent(dual: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(dual).tangent
    return torch.zeros_like(dual) if tangent is None else tangent


def _row_buffer(loss: RowLoss, params: Tree) -> Tensor:
    leaf = next(iter(params.values()))
    return torch.zeros(loss.row_task.numel(), dtype=leaf.dtype, device=leaf.device)
