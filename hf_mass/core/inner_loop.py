"""The inner loop: K steps of weighted supervised training on low-rank parameters, for many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.losses import RowLoss, row_values, sample_gradients, weighted_gradient
from hf_mass.core.meter import tell_step
from hf_mass.core.optimizers import InnerOptimizer
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError

RowGradients = tuple[Tensor, Tree]  # (ℓ(θ_0) [R], ∇ℓ_r(θ_0) of every row, leaves [R, ...])


@dataclass(frozen=True)
class Trajectory:
    """What an inner loop did: everything that a meta-gradient rule needs to go back through it.

    Args:
        loss: The R row losses that were trained on.
        weights: s [R].
        states: θ_0 … θ_K, leaves [N, ...].
        optimizer: The optimizer that made the steps.
        optimizer_states: Its state before each step, K of them.
        gradients: Σ_r s_r ∇ℓ_r(θ_k) of each step; None where the optimizer is linear and nobody needs them.
        losses: ℓ(θ_k) [K, R].
        first: The row gradients of step 0, which do not depend on the weights; None where they were not kept.
    """

    loss: RowLoss
    weights: Tensor
    states: tuple[Tree, ...]
    optimizer: InnerOptimizer
    optimizer_states: tuple[Tree, ...]
    gradients: tuple[Tree | None, ...]
    losses: tuple[Tensor, ...]
    first: RowGradients | None

    @property
    def adapted(self) -> Tree:
        """θ' = θ_K."""
        return self.states[-1]

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.losses)

    def reweighted(self, weights: Tensor) -> Trajectory:
        """The trajectory under other weights. Where the row gradients were kept its first step costs no pass at all."""
        return InnerLoop(self.num_steps, self.optimizer).run(self.loss, self.states[0], weights, self.first)

    def final_losses(self) -> Tensor:
        """ℓ(θ_K) [R]: one forward pass more, for logs."""
        return row_values(self.loss, self.adapted)


@dataclass(frozen=True, slots=True)
class InnerLoop:
    """θ_{k+1} = θ_k + update(Σ_r s_r ∇ℓ_r(θ_k)), k < K (arXiv 2603.03524, inner loop).

    Args:
        num_steps: K ≥ 1.
        optimizer: A pure inner optimizer.
    """

    num_steps: int
    optimizer: InnerOptimizer

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"InnerLoop.num_steps is {self.num_steps}; the inner loop needs at least one step.")

    def run(self, loss: RowLoss, start: Tree, weights: Tensor, first: RowGradients | None = None) -> Trajectory:
        """Adapt N tasks.

        The first step keeps the row gradients apart where the loss allows it: its attributions are inner products with
        them. Going back through the later steps takes a second-order pass each, which gives theirs.

        Args:
            loss: R rows.
            start: θ_0, leaves [N, ...].
            weights: s [R] ≥ 0.
            first: Row gradients at θ_0, where they are known already.
        """
        weights = weights.detach()
        states, optimizer_states = [trees.detached(start)], [self.optimizer.init(start)]
        losses, gradients = list[Tensor](), list[Tree | None]()
        for step in range(self.num_steps):
            point = states[-1]
            if step == 0 and first is None and loss.keep_row_gradients:
                first = sample_gradients(loss.at_step(0), point)
            if step == 0 and first is not None:
                values, weighted = first[0], trees.scale_rows(first[1], weights)
                gradient = trees.scatter_rows(weighted, loss.row_task, trees.num_tasks(point))
            else:
                values, gradient, _ = weighted_gradient(loss.at_step(step), point, weights)
            state, optimizer_state = self.optimizer.update(point, gradient, optimizer_states[-1], step)
            states.append(state)
            optimizer_states.append(optimizer_state)
            gradients.append(None if self.optimizer.linear else gradient)
            losses.append(values)
            tell_step(partial(_mean_loss, values, weights))
        history = tuple(optimizer_states[:-1]), tuple(gradients), tuple(losses)
        return Trajectory(loss, weights, tuple(states), self.optimizer, *history, first)


def _mean_loss(values: Tensor, weights: Tensor) -> float:
    """Σ_r s_r ℓ_r / Σ_r s_r over the rows of all tasks."""
    return float((values * weights).sum() / weights.sum())
