"""The inner loop: K steps of weighted supervised training on low-rank parameters, for many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.losses import RowLoss, row_values, sample_gradients, weighted_gradient
from hf_mass.core.optimizers import InnerOptimizer
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError


@dataclass(frozen=True)
class Trajectory:
    """What an inner loop did: everything that a meta-gradient rule needs to go back through it.

    Args:
        loss: The R row losses that were trained on.
        weights: s [R].
        states: θ_0 … θ_K, leaves [N, ...].
        optimizer: The optimizer that made the steps.
        optimizer_states: Its state before each step, K of them.
        losses: ℓ(θ_k) [K, R].
        last_gradients: ∇ℓ_r(θ_{K−1}) of every row, leaves [R, ...].
    """

    loss: RowLoss
    weights: Tensor
    states: tuple[Tree, ...]
    optimizer: InnerOptimizer
    optimizer_states: tuple[Tree, ...]
    losses: tuple[Tensor, ...]
    last_gradients: Tree

    @property
    def adapted(self) -> Tree:
        """θ' = θ_K."""
        return self.states[-1]

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.losses)

    def reweighted(self, weights: Tensor) -> Trajectory:
        """The trajectory under other weights. For K = 1 the row gradients are reused, so it costs no pass at all."""
        if self.num_steps > 1:
            return InnerLoop(self.num_steps, self.optimizer).run(self.loss, self.states[0], weights)
        start = self.states[0]
        gradient = trees.scatter_rows(
            trees.scale_rows(self.last_gradients, weights), self.loss.row_task, trees.num_tasks(start)
        )
        update, _ = self.optimizer.update(gradient, self.optimizer_states[0])
        return replace(self, weights=weights, states=(start, trees.add(start, update)))

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

    def run(self, loss: RowLoss, start: Tree, weights: Tensor) -> Trajectory:
        """Adapt N tasks.

        The last step keeps the row gradients apart (K = 1 attributions are inner products with them); earlier steps
        only keep their sum.

        Args:
            loss: R rows.
            start: θ_0, leaves [N, ...].
            weights: s [R] ≥ 0.
        """
        weights = weights.detach()
        states, optimizer_states, losses = [trees.detached(start)], [self.optimizer.init(start)], []
        gradients: Tree = {}
        for step in range(self.num_steps):
            point = states[-1]
            if step == self.num_steps - 1:
                values, gradients = sample_gradients(loss, point)
                gradient = trees.scatter_rows(
                    trees.scale_rows(gradients, weights), loss.row_task, trees.num_tasks(point)
                )
            else:
                values, gradient = weighted_gradient(loss, point, weights)
            update, optimizer_state = self.optimizer.update(gradient, optimizer_states[-1])
            states.append(trees.add(point, update))
            optimizer_states.append(optimizer_state)
            losses.append(values)
        return Trajectory(
            loss, weights, tuple(states), self.optimizer, tuple(optimizer_states[:-1]), tuple(losses), gradients
        )
