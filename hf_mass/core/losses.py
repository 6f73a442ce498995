"""Losses of many rows at stacked parameters, and the derivatives that the meta-gradient rules are made of.

A row is one training sequence that belongs to one task. With rows r = 1..R, tasks n = 1..N, parameters θ stacked over
tasks and coefficients c_r, everything here concerns

    L(θ) = Σ_r c_r ℓ_r(θ_{task(r)}),

which covers the inner loss (c = the weights s), the gold outer loss (c = 1), and the GRPO surrogate
(c = advantage / k), because the surrogate's gradient at ratio one is that of −advantage · log p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.trees import TaskSubset, Tree


@dataclass(frozen=True)
class Curvature:
    """What a second-order pass over some rows gives, with L = Σ_r c_r ℓ_r over them and a direction v.

    Args:
        product: ∇²L v, leaves [P, ...], of the P tasks that the rows belong to.
        subset: Which tasks these are.
        row_products: ⟨∇ℓ_r, v⟩ [rows].
        mixed: ∂/∂φ ⟨∇L, v⟩ for each further parameter φ that was asked for.
    """

    product: Tree
    subset: TaskSubset
    row_products: Tensor
    mixed: tuple[Tensor, ...] = ()


class RowLoss(Protocol):
    """ℓ_r(θ) for R rows, evaluated in microbatches."""

    row_task: Tensor  # [R] int64 in [0, N)

    @property
    def keep_row_gradients(self) -> bool:
        """Returns True if the inner loop may hold R trees of parameters."""

    def microbatches(self, second_order: bool = False) -> Iterable[Tensor]:
        """Row indices [rows] int64, chunk after chunk; together they cover every row once."""

    def evaluate(
        self, params: Tree, rows: Tensor, row_task: Tensor, second_order: bool
    ) -> AbstractContextManager[Tensor]:
        """Context that gives ℓ [rows], row i taken at parameters `row_task[i]`. Differentiate inside the context.

        `second_order` says that the values will be differentiated twice, or carry forward-mode tangents.
        """

    def at_step(self, step: int) -> RowLoss:
        """The losses as inner step `step` sees them: itself, unless there is noise to draw (dropout)."""

    def curvature(
        self, params: Tree, rows: Tensor, coefficients: Tensor, direction: Tree, also: Sequence[Tensor] = ()
    ) -> Curvature:
        """Second derivatives of Σ c_r ℓ_r over the rows given (see `hf_mass.core.second_order`)."""

    def require_second_order(self, params: Tree) -> None:
        """Raises UnsupportedModelError if the values, differentiated twice, would lack terms; `curvature` asks too."""


class OuterGradient(NamedTuple):
    """The first derivatives of an outer loss.

    Args:
        losses: L of each task [N].
        params: ∂L/∂θ, leaves [N, ...].
        also: Σ_n ∂L_n/∂φ for each further parameter φ that was asked for.
    """

    losses: Tensor
    params: Tree
    also: tuple[Tensor, ...] = ()


class OuterLoss(Protocol):
    """A loss of the adapted weights, differentiable in two ways."""

    def gradient(self, params: Tree, also: Sequence[Tensor] = ()) -> OuterGradient:
        """L of each task, ∂L/∂θ, and ∂L/∂φ for each further parameter φ of the model, from one pass."""

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

    def gradient(self, params: Tree, also: Sequence[Tensor] = ()) -> OuterGradient:
        """One backward pass per microbatch."""
        values, gradient, extra = weighted_gradient(self.loss, params, self.coefficients, also)
        losses = _per_task(values * self.coefficients, self.loss.row_task, trees.num_tasks(params))
        return OuterGradient(losses, gradient, extra)

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

    def gradient(self, params: Tree, also: Sequence[Tensor] = ()) -> OuterGradient:
        """One pass over the rows, or two where they come in several microbatches."""
        chunks = list(self.loss.microbatches())
        if len(chunks) > 1:
            posterior = self._posterior(row_values(self.loss, params))
            values, gradient, extra = weighted_gradient(self.loss, params, posterior, also)
        else:
            rows = chunks[0]
            values, gradient, extra = _gradient(
                self.loss, params, rows, self.loss.row_task[rows], lambda chunk: self._posterior(chunk.detach()), also
            )
        groups = torch.zeros(self.group_weights.numel(), dtype=torch.long, device=self.row_group.device)
        group_task = groups.scatter(0, self.row_group, self.loss.row_task)
        losses = _per_task(self._group_losses(values), group_task, trees.num_tasks(params))
        return OuterGradient(losses, gradient, extra)

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
        terms = torch.exp(-values - peak[self.row_group])
        return peak + values.new_zeros(groups).index_add(0, self.row_group, terms).log()

    def _group_losses(self, values: Tensor) -> Tensor:
        return -self.group_weights.to(values.dtype) * self._log_mixture(values)

    def _posterior(self, values: Tensor) -> Tensor:
        weights = self.group_weights.to(values.dtype)[self.row_group]
        return weights * torch.exp(-values - self._log_mixture(values)[self.row_group])


def _per_task(values: Tensor, row_task: Tensor, tasks: int) -> Tensor:
    return values.new_zeros(tasks).index_add_(0, row_task, values)


def counted_rows(loss: RowLoss, counted: Tensor | None, second_order: bool = False) -> Iterator[Tensor]:
    """The microbatches without the rows of tasks that do not count; `counted` [N] bool, None for all tasks."""
    for chunk in loss.microbatches(second_order):
        rows = chunk if counted is None else chunk[counted[loss.row_task[chunk]]]
        if rows.numel():
            yield rows


def row_values(loss: RowLoss, params: Tree) -> Tensor:
    """ℓ [R] without gradients."""
    values = row_buffer(loss, params)
    with torch.no_grad():
        for rows in loss.microbatches():
            with loss.evaluate(params, rows, loss.row_task[rows], second_order=False) as chunk:
                values[rows] = chunk.to(values.dtype)
    return values


def weighted_gradient(
    loss: RowLoss,
    params: Tree,
    coefficients: Tensor,
    also: Sequence[Tensor] = (),
    counted: Tensor | None = None,
) -> tuple[Tensor, Tree, tuple[Tensor, ...]]:
    """First order: (ℓ [R], ∂L/∂θ, ∂L/∂φ for φ in `also`) of L = Σ_r c_r ℓ_r(θ).

    One backward pass per microbatch, summed in the dtypes of θ and φ. A φ that the losses do not depend on gets zeros.
    `counted` [N] bool leaves out the rows of other tasks, whose numbers may be NaN: in the sum that ∂L/∂φ is, one NaN
    would take the others.
    """
    values, total = row_buffer(loss, params), trees.zeros_like(params)
    extra = tuple(torch.zeros_like(x) for x in also)
    for rows in counted_rows(loss, counted):
        subset = TaskSubset.of(loss.row_task[rows], trees.num_tasks(params))
        factors = coefficients[rows]
        chunk, gradients, more = _gradient(loss, subset.take(params), rows, subset.local, lambda _, c=factors: c, also)  # type: ignore[misc]
        values[rows] = chunk.to(values.dtype)
        subset.add_to(total, gradients)
        for sum_, gradient in zip(extra, more, strict=True):
            sum_ += gradient
    return values, total, extra


@torch.enable_grad()
def _gradient(
    loss: RowLoss,
    params: Tree,
    rows: Tensor,
    row_task: Tensor,
    coefficients: Callable[[Tensor], Tensor],
    also: Sequence[Tensor] = (),
) -> tuple[Tensor, Tree, tuple[Tensor, ...]]:
    """(ℓ of the rows, ∂/∂θ Σ c ℓ, ∂/∂φ) in one pass; the coefficients may be constants that depend on the values."""
    point = trees.leaves(params)
    with loss.evaluate(point, rows, row_task, second_order=False) as chunk:
        objective = (coefficients(chunk).to(chunk.dtype) * chunk).sum()
        inputs = [*point.values(), *also]
        gradients = torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
    return chunk.detach(), dict(zip(point, gradients[: len(point)], strict=True)), gradients[len(point) :]


@torch.enable_grad()
def sample_gradients(loss: RowLoss, params: Tree) -> tuple[Tensor, Tree]:
    """First order, kept apart: (ℓ [R], ∇ℓ_r(θ) for every row, leaves [R, ...]).

    Each row gets its own copy of its task's parameters, so one ordinary backward pass of Σ_r ℓ_r leaves every row's
    gradient in its own slot. For LoRA this costs the low-rank products alone: the base's share of the backward pass is
    that of plain training. Memory: R trees of parameters.
    """
    values, chunks, order = row_buffer(loss, params), [], []
    for rows in loss.microbatches():
        point = trees.leaves(trees.gather_tasks(params, loss.row_task[rows]))
        slots = torch.arange(rows.numel(), device=rows.device)
        with loss.evaluate(point, rows, slots, second_order=False) as chunk:
            gradients = torch.autograd.grad(
                chunk.sum(), list(point.values()), allow_unused=True, materialize_grads=True
            )
        values[rows] = chunk.detach().to(values.dtype)
        chunks.append(dict(zip(point, gradients, strict=True)))
        order.append(rows)
    inverse = torch.argsort(torch.cat(order))
    return values, trees.tree_map(lambda x: x.index_select(0, inverse), trees.concatenate_rows(chunks))


def row_buffer(loss: RowLoss, params: Tree) -> Tensor:
    """Zeros [R] in the dtype of the parameters."""
    leaf = next(iter(params.values()))
    return torch.zeros(loss.row_task.numel(), dtype=leaf.dtype, device=leaf.device)
