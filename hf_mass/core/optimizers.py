"""Inner optimizers as pure functions: (gradient, state) → (update, state), with the state as a value.

`pullback` is the exact adjoint of one step. With θ' = θ + u(g, state), a cotangent λ' of θ' and μ' of the new state, it
returns the cotangents of g and of the old state. Both optimizers are linear, so the pullback needs no saved values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from hf_mass.core import trees
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError


class InnerOptimizer(Protocol):
    """What the inner loop and the meta-gradient rules need of an optimizer."""

    def init(self, params: Tree) -> Tree:
        """The state before the first step (an empty tree where there is none)."""

    def update(self, gradient: Tree, state: Tree) -> tuple[Tree, Tree]:
        """(the change of θ, the new state). Differentiable."""

    def pullback(self, params_bar: Tree, state_bar: Tree) -> tuple[Tree, Tree]:
        """(cotangent of the gradient, cotangent of the old state)."""


def _check_learning_rate(owner: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{owner}.learning_rate is {value}; the inner learning rate must be a finite number above 0.")


@dataclass(frozen=True, slots=True)
class SGD:
    """u = −α g."""

    learning_rate: float

    def __post_init__(self) -> None:
        _check_learning_rate("SGD", self.learning_rate)

    def init(self, params: Tree) -> Tree:
        """The empty tree: plain SGD has no state."""
        return {}

    def update(self, gradient: Tree, state: Tree) -> tuple[Tree, Tree]:
        """(−α g, the empty tree)."""
        return trees.tree_map(lambda g: -self.learning_rate * g, gradient), state

    def pullback(self, params_bar: Tree, state_bar: Tree) -> tuple[Tree, Tree]:
        """ḡ = −α λ'; there is no state to pull back."""
        return trees.tree_map(lambda x: -self.learning_rate * x, params_bar), state_bar


@dataclass(frozen=True, slots=True)
class Momentum:
    """v' = ρ v + g, u = −α v' (the heavy ball as `torch.optim.SGD(momentum=ρ)` has it, no dampening)."""

    learning_rate: float
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_learning_rate("Momentum", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"Momentum.momentum is {self.momentum}; choose a value in [0, 1).")

    def init(self, params: Tree) -> Tree:
        """v = 0."""
        return trees.zeros_like(params)

    def update(self, gradient: Tree, state: Tree) -> tuple[Tree, Tree]:
        """(−α v', v') with v' = ρ v + g."""
        velocity = trees.add(gradient, state, self.momentum)
        return trees.tree_map(lambda v: -self.learning_rate * v, velocity), velocity

    def pullback(self, params_bar: Tree, state_bar: Tree) -> tuple[Tree, Tree]:
        """v' feeds both the update (−α) and the next state (1): v̄' = μ' − α λ'; then ḡ = v̄', v̄ = ρ v̄'."""
        velocity_bar = trees.add(state_bar, params_bar, -self.learning_rate)
        return velocity_bar, trees.tree_map(lambda v: self.momentum * v, velocity_bar)


def make_optimizer(name: str, learning_rate: float, momentum: float = 0.9) -> InnerOptimizer:
    """The optimizer called `name` ("sgd" or "momentum").

    Raises:
        ConfigError: If there is none of that name, or a value is out of range.
    """
    if name == "sgd":
        return SGD(learning_rate)
    if name == "momentum":
        return Momentum(learning_rate, momentum)
    raise ConfigError(f"inner_optimizer is {name!r}; choose 'sgd' or 'momentum'.")
