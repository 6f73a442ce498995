"""The inner optimizers: one suite over all of them, and each against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_tree, tree_error

from hf_mass.core import trees
from hf_mass.core.optimizers import SGD, InnerOptimizer, Momentum, make_optimizer
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError

OPTIMIZERS = [SGD(0.3), Momentum(0.3, 0.9), Momentum(2.0, 0.0)]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def shapes(tasks: int) -> Tree:
    return {"a": torch.zeros(tasks, 2, 3).double(), "b": torch.zeros(tasks, 4).double()}


@every_optimizer
@given(tasks=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_pullback_is_the_adjoint_of_a_step(optimizer: InnerOptimizer, tasks: int, seed: int) -> None:
    """Against autograd: (g, state) → (θ + u, state') pulled back along random cotangents (λ', μ')."""
    generator = torch.Generator().manual_seed(seed)
    params, gradient, params_bar = (random_tree(shapes(tasks), generator, 1.0) for _ in range(3))
    state = random_tree(optimizer.init(params), generator, 1.0)
    state_bar = random_tree(state, generator, 1.0)
    gradient, state = trees.leaves(gradient), trees.leaves(state)
    update, new_state = optimizer.update(gradient, state)
    outputs = [*trees.add(params, update).values(), *new_state.values()]
    expected = torch.autograd.grad(
        outputs,
        [*gradient.values(), *state.values()],
        [*params_bar.values(), *state_bar.values()],
    )
    gradient_bar, old_state_bar = optimizer.pullback(params_bar, state_bar)
    assert tree_error(gradient_bar, dict(zip(gradient, expected[: len(gradient)], strict=True))) < 1e-12
    if state:
        assert tree_error(old_state_bar, dict(zip(state, expected[len(gradient) :], strict=True))) < 1e-12
    else:
        assert old_state_bar == {}


@every_optimizer
def test_steps_are_those_of_torch(optimizer: InnerOptimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    params = random_tree(shapes(2), generator, 1.0)
    reference = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    theirs = torch.optim.SGD(
        list(reference.values()), lr=optimizer.learning_rate, momentum=getattr(optimizer, "momentum", 0.0)
    )
    state = optimizer.init(params)
    for _ in range(4):
        gradient = random_tree(params, generator, 1.0)
        update, state = optimizer.update(gradient, state)
        params = trees.add(params, update)
        for name, leaf in reference.items():
            leaf.grad = gradient[name]
        theirs.step()
    assert tree_error(params, trees.detached(reference)) < 1e-12


@every_optimizer
def test_arguments_are_not_changed(optimizer: InnerOptimizer) -> None:
    generator = torch.Generator().manual_seed(2)
    params, gradient = random_tree(shapes(1), generator), random_tree(shapes(1), generator)
    state = random_tree(optimizer.init(params), generator)
    copies = [trees.tree_map(torch.clone, tree) for tree in (params, gradient, state)]
    optimizer.update(gradient, state)
    optimizer.pullback(params, state)
    for tree, copy in zip((params, gradient, state), copies, strict=True):
        assert all(torch.equal(tree[name], copy[name]) for name in tree)


def test_made_by_name() -> None:
    assert make_optimizer("sgd", 0.1) == SGD(0.1)
    assert make_optimizer("momentum", 0.1, 0.5) == Momentum(0.1, 0.5)
    with pytest.raises(ConfigError, match="inner_optimizer is 'adam'; choose 'sgd' or 'momentum'"):
        make_optimizer("adam", 0.1)


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
