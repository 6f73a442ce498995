"""The inner optimizers: one suite over all of them, and each against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_tree, relative_error, tree_error

from hf_mass.core import trees
from hf_mass.core.optimizers import SGD, AdamW, InnerOptimizer, Momentum, make_optimizer
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError

OPTIMIZERS = [SGD(0.3), Momentum(0.3, 0.9), Momentum(2.0, 0.0), AdamW(0.1), AdamW(0.3, 0.0, 0.5, 0.1, 0.2)]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def shapes(tasks: int) -> Tree:
    return {"a": torch.zeros(tasks, 2, 3).double(), "b": torch.zeros(tasks, 4).double()}


def random_state(optimizer: InnerOptimizer, params: Tree, generator: torch.Generator) -> Tree:
    """A state that steps could have led to: second moments are not negative."""
    state = random_tree(optimizer.init(params), generator, 1.0)
    return {name: leaf.abs() if name.startswith("v/") else leaf for name, leaf in state.items()}


@every_optimizer
@given(tasks=st.integers(1, 3), step=st.integers(0, 5), seed=st.integers(0, 10_000))
def test_pullback_is_the_adjoint_of_a_step(optimizer: InnerOptimizer, tasks: int, step: int, seed: int) -> None:
    """Against autograd: (g, θ, state) → (θ', state') pulled back along random cotangents (λ', μ')."""
    generator = torch.Generator().manual_seed(seed)
    params, gradient, params_bar = (random_tree(shapes(tasks), generator, 1.0) for _ in range(3))
    state = random_state(optimizer, params, generator)
    state_bar = random_tree(state, generator, 1.0)
    inputs = [trees.leaves(tree) for tree in (gradient, params, state)]
    moved, new_state = optimizer.update(inputs[1], inputs[0], inputs[2], step)
    expected = torch.autograd.grad(
        [*moved.values(), *new_state.values()],
        [leaf for tree in inputs for leaf in tree.values()],
        [*params_bar.values(), *(state_bar[name] for name in new_state)],
        materialize_grads=True,
    )
    found = optimizer.pullback(None if optimizer.linear else gradient, state, step, params_bar, state_bar)
    leaves = [tree[name] for tree, like in zip(found, inputs, strict=True) for name in like]
    for mine, theirs in zip(leaves, expected, strict=True):
        assert relative_error(mine, theirs) < 1e-11
    assert [tree.keys() for tree in found] == [tree.keys() for tree in inputs]


@every_optimizer
def test_steps_are_those_of_torch(optimizer: InnerOptimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    params = random_tree(shapes(2), generator, 1.0)
    reference = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    if isinstance(optimizer, AdamW):
        theirs: torch.optim.Optimizer = torch.optim.AdamW(
            list(reference.values()),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )
    else:
        momentum = getattr(optimizer, "momentum", 0.0)
        theirs = torch.optim.SGD(list(reference.values()), lr=optimizer.learning_rate, momentum=momentum)
    state = optimizer.init(params)
    for step in range(4):
        gradient = random_tree(params, generator, 1.0)
        params, state = optimizer.update(params, gradient, state, step)
        for name, leaf in reference.items():
            leaf.grad = gradient[name]
        theirs.step()
    assert tree_error(params, trees.detached(reference)) < 1e-12


@every_optimizer
def test_arguments_are_not_changed(optimizer: InnerOptimizer) -> None:
    generator = torch.Generator().manual_seed(2)
    params, gradient = random_tree(shapes(1), generator), random_tree(shapes(1), generator)
    state = random_state(optimizer, params, generator)
    copies = [trees.tree_map(torch.clone, tree) for tree in (params, gradient, state)]
    optimizer.update(params, gradient, state, 1)
    optimizer.pullback(gradient, state, 1, params, state)
    for tree, copy in zip((params, gradient, state), copies, strict=True):
        assert all(torch.equal(tree[name], copy[name]) for name in tree)


def test_a_coordinate_that_never_had_a_gradient() -> None:
    """LoRA's A at B = 0: AdamW's root has a kink there, and neither rule may answer with NaN."""
    optimizer, zero = AdamW(0.1), {"a": torch.zeros(1, 3).double()}
    gradient, state = trees.leaves(zero), optimizer.init(zero)
    moved, _ = optimizer.update(zero, gradient, state, 0)
    assert torch.equal(moved["a"], zero["a"])
    bar, state_bar = {"a": torch.ones(1, 3).double()}, optimizer.init(zero)
    (expected,) = torch.autograd.grad(moved["a"].sum(), gradient["a"])
    found = optimizer.pullback(trees.detached(gradient), state, 0, bar, state_bar)
    assert relative_error(found[0]["a"], expected) < 1e-12
    assert all(leaf.isfinite().all() for tree in found for leaf in tree.values())


def test_made_by_name() -> None:
    assert make_optimizer("sgd", 0.1) == SGD(0.1)
    assert make_optimizer("momentum", 0.1, 0.5) == Momentum(0.1, 0.5)
    assert make_optimizer("adamw", 0.1, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.1) == AdamW(
        0.1, 0.8, 0.9, 1e-6, 0.1
    )
    with pytest.raises(ConfigError, match=r"inner_optimizer is 'adam'; choose one of \['sgd', 'momentum', 'adamw'\]"):
        make_optimizer("adam", 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta1": 1.0}, r"AdamW.beta1 is 1.0; choose a value in \[0, 1\)"),
        ({"beta2": -0.1}, r"AdamW.beta2 is -0.1"),
        ({"epsilon": 0.0}, r"AdamW.epsilon is 0.0; choose a finite number above 0"),
        ({"weight_decay": -1.0}, r"AdamW.weight_decay is -1.0"),
    ],
)
def test_settings_of_adamw_are_checked(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdamW(0.1, **changes)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rate_is_checked(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"SGD.learning_rate is .*above 0"):
        SGD(rate)
    with pytest.raises(ConfigError, match=r"Momentum.learning_rate is .*above 0"):
        Momentum(rate)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_is_checked(momentum: float) -> None:
    with pytest.raises(ConfigError, match=r"Momentum.momentum is .*\[0, 1\)"):
        Momentum(0.1, momentum)
