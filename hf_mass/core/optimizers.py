"""Inner optimizers as pure functions: (θ, gradient, state) → (θ', state'), with the state as a value.

`pullback` is the exact adjoint of one step: from the cotangents λ' of θ' and μ' of the new state, those of the
gradient, of θ and of the old state. SGD and momentum are linear, so theirs needs no saved values; AdamW's is the
vector-Jacobian product of its elementwise update, written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError

OPTIMIZERS = ("sgd", "momentum", "adamw")


class InnerOptimizer(Protocol):
    """What the inner loop and the meta-gradient rules need of an optimizer."""

    linear: ClassVar[bool]  # whether `pullback` can do without the gradient of the step

    def init(self, params: Tree) -> Tree:
        """The state before the first step (an empty tree where there is none)."""

    def update(self, params: Tree, gradient: Tree, state: Tree, step: int) -> tuple[Tree, Tree]:
        """(θ', the new state) of step 0, 1, … Differentiable."""

    def pullback(
        self, gradient: Tree | None, state: Tree, step: int, params_bar: Tree, state_bar: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """(cotangents of the gradient, of θ, of the old state). `gradient` may be None where the step is linear."""


def _check_learning_rate(owner: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{owner}.learning_rate is {value}; the inner learning rate must be a finite number above 0.")


@dataclass(frozen=True, slots=True)
class SGD:
    """θ' = θ − α g."""

    learning_rate: float
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_learning_rate("SGD", self.learning_rate)

    def init(self, params: Tree) -> Tree:
        """The empty tree: plain SGD has no state."""
        return {}

    def update(self, params: Tree, gradient: Tree, state: Tree, step: int) -> tuple[Tree, Tree]:
        """(θ − α g, the empty tree)."""
        return trees.add(params, gradient, -self.learning_rate), state

    def pullback(
        self, gradient: Tree | None, state: Tree, step: int, params_bar: Tree, state_bar: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """ḡ = −α λ'; θ̄ = λ'; there is no state to pull back."""
        return trees.tree_map(lambda x: -self.learning_rate * x, params_bar), params_bar, state_bar


@dataclass(frozen=True, slots=True)
class Momentum:
    """v' = ρ v + g, θ' = θ − α v' (the heavy ball as `torch.optim.SGD(momentum=ρ)` has it, no dampening)."""

    learning_rate: float
    momentum: float = 0.9
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_learning_rate("Momentum", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"Momentum.momentum is {self.momentum}; choose a value in [0, 1).")

    def init(self, params: Tree) -> Tree:
        """v = 0."""
        return trees.zeros_like(params)

    def update(self, params: Tree, gradient: Tree, state: Tree, step: int) -> tuple[Tree, Tree]:
        """(θ − α v', v') with v' = ρ v + g."""
        velocity = trees.add(gradient, state, self.momentum)
        return trees.add(params, velocity, -self.learning_rate), velocity

    def pullback(
        self, gradient: Tree | None, state: Tree, step: int, params_bar: Tree, state_bar: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """v' feeds both θ' (−α) and the next state (1): v̄' = μ' − α λ'; then ḡ = v̄', θ̄ = λ', v̄ = ρ v̄'."""
        velocity_bar = trees.add(state_bar, params_bar, -self.learning_rate)
        return velocity_bar, params_bar, trees.tree_map(lambda v: self.momentum * v, velocity_bar)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay, step for step that of `torch.optim.AdamW` (arXiv 1711.05101, algorithm 2).

        m' = β₁ m + (1 − β₁) g,    v' = β₂ v + (1 − β₂) g²,
        θ' = (1 − α ω) θ − α (m' / (1 − β₁ᵗ)) / (√(v' / (1 − β₂ᵗ)) + ε),    t = step + 1.

    Where v' = 0 the root has a kink, and its derivative is taken as 0 there (no gradient was ever seen, as for LoRA's A
    at B = 0). The state holds m under "m/name" and v under "v/name".
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_learning_rate("AdamW", self.learning_rate)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"AdamW.{name} is {getattr(self, name)}; choose a value in [0, 1).")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(f"AdamW.epsilon is {self.epsilon}; choose a finite number above 0.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"AdamW.weight_decay is {self.weight_decay}; choose a finite number, 0 or more.")

    def init(self, params: Tree) -> Tree:
        """m = v = 0."""
        return {f"{part}/{name}": torch.zeros_like(leaf) for part in "mv" for name, leaf in params.items()}

    def update(self, params: Tree, gradient: Tree, state: Tree, step: int) -> tuple[Tree, Tree]:
        """(θ', (m', v'))."""
        new_params, new_state = {}, {}
        for name, theta in params.items():
            first, second = self._moments(gradient[name], state, name)
            new_state[f"m/{name}"], new_state[f"v/{name}"] = first, second
            scale = self.learning_rate / (1 - self.beta1 ** (step + 1))
            denominator = self._root(second, step) + self.epsilon
            new_params[name] = (1 - self.learning_rate * self.weight_decay) * theta - scale * first / denominator
        return new_params, new_state

    def pullback(
        self, gradient: Tree | None, state: Tree, step: int, params_bar: Tree, state_bar: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """With d = √(v'/c₂) + ε, c_i = 1 − β_iᵗ, and the update −α m' / (c₁ d):

        m̄' = μ_m − α λ' / (c₁ d),    v̄' = μ_v + α λ' m' / (c₁ d²) · 1 / (2 c₂ √(v'/c₂)),
        ḡ = (1 − β₁) m̄' + 2 (1 − β₂) g v̄',    m̄ = β₁ m̄',    v̄ = β₂ v̄',    θ̄ = (1 − α ω) λ'.
        """
        if gradient is None:
            raise ValueError("AdamW.pullback needs the gradient of the step; it is None.")
        gradient_bar, before = {}, {}
        scale, correction = self.learning_rate / (1 - self.beta1 ** (step + 1)), 1 - self.beta2 ** (step + 1)
        for name, bar in params_bar.items():
            first, second = self._moments(gradient[name], state, name)
            root = self._root(second, step)
            denominator = root + self.epsilon
            first_bar = state_bar[f"m/{name}"] - scale * bar / denominator
            slope = torch.where(second > 0, 0.5 / (correction * root.clamp(min=torch.finfo(root.dtype).tiny)), 0)
            second_bar = state_bar[f"v/{name}"] + scale * bar * first / denominator.square() * slope
            gradient_bar[name] = (1 - self.beta1) * first_bar + 2 * (1 - self.beta2) * gradient[name] * second_bar
            before[f"m/{name}"], before[f"v/{name}"] = self.beta1 * first_bar, self.beta2 * second_bar
        decay = 1 - self.learning_rate * self.weight_decay
        return gradient_bar, trees.tree_map(lambda x: decay * x, params_bar), before

    def _moments(self, gradient: Tensor, state: Tree, name: str) -> tuple[Tensor, Tensor]:
        first = self.beta1 * state[f"m/{name}"] + (1 - self.beta1) * gradient
        return first, self.beta2 * state[f"v/{name}"] + (1 - self.beta2) * gradient * gradient

    def _root(self, second: Tensor, step: int) -> Tensor:
        """√(v'/c₂), with derivative 0 where v' = 0."""
        correction = 1 - self.beta2 ** (step + 1)
        if not (torch.is_grad_enabled() and second.requires_grad):  # plain training: the value alone
            return (second / correction).sqrt()
        positive = second > 0
        safe = torch.where(positive, second / correction, torch.ones_like(second))
        return torch.where(positive, safe.sqrt(), torch.zeros_like(second))


def make_optimizer(
    name: str,
    learning_rate: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> InnerOptimizer:
    """The optimizer called `name` ("sgd", "momentum" or "adamw"); each takes the settings that it knows.

    Raises:
        ConfigError: If there is none of that name, or a value is out of range.
    """
    if name == "sgd":
        return SGD(learning_rate)
    if name == "momentum":
        return Momentum(learning_rate, momentum)
    if name == "adamw":
        return AdamW(learning_rate, *betas, epsilon, weight_decay)
    raise ConfigError(f"inner_optimizer is {name!r}; choose one of {list(OPTIMIZERS)}.")
