"""The meta-gradient rules without a language model: closed forms, finite differences, and what they ask of a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ToyLoss, random_tree, relative_error
from torch import Tensor

from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import RowLoss, WeightedLoss
from hf_mass.core.meta_gradients import RULES, MetaGradientRule, get_rule
from hf_mass.core.optimizers import SGD, make_optimizer
from hf_mass.core.second_order import hessian_product
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError, UnsupportedModelError

both_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
EXACT = 1e-9


# -- without a language model: a quadratic inner problem has a closed form ---------------------------------------------


def toy(rows: int, tasks: int, seed: int, **changes: object) -> ToyLoss:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(rows, generator=generator, dtype=torch.float64)
    return ToyLoss(inputs, targets, torch.randint(tasks, (rows,), generator=generator), **changes)


def toy_start(tasks: int, seed: int) -> Tree:
    return random_tree(
        {"w": torch.zeros(tasks, 3, dtype=torch.float64), "b": torch.zeros(tasks, dtype=torch.float64)},
        torch.Generator().manual_seed(seed),
        1.0,
    )


def closed_form(inner: ToyLoss, outer: ToyLoss, c: Tensor, steps: int, rate: float) -> Callable[..., Tensor]:
    """(s, w_0, b_0) → L_outer: gradient descent on least squares, θ_K = M^K θ_0 + α Σ_{j<K} M^j Σ s y x, M = I − αH."""

    def with_one(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_ones(len(x), 1)], 1)

    def loss(s: Tensor, w: Tensor, b: Tensor) -> Tensor:
        total = s.new_zeros(())
        for task in range(len(b)):
            mine, its = inner.row_task == task, outer.row_task == task
            x, z = with_one(inner.inputs[mine]), with_one(outer.inputs[its])
            m = torch.eye(4, dtype=s.dtype) - rate * x.T @ (s[mine, None] * x)
            powers = [torch.linalg.matrix_power(m, j) for j in range(steps + 1)]
            pull = rate * x.T @ (s[mine] * inner.targets[mine])
            theta = powers[steps] @ torch.cat([w[task], b[task, None]]) + sum(p @ pull for p in powers[:steps])
            total = total + (c[its] * 0.5 * (z @ theta - outer.targets[its]).square()).sum()
        return total

    return loss


@both_rules
@given(
    rows=st.integers(1, 7),
    tasks=st.integers(1, 3),
    steps=st.integers(1, 5),
    microbatch=st.sampled_from([None, 1, 2, 3]),
    zeros=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_least_squares_has_a_closed_form(
    rule: MetaGradientRule, rows: int, tasks: int, steps: int, microbatch: int | None, zeros: int, seed: int
) -> None:
    inner, outer = toy(rows, tasks, seed, microbatch=microbatch), toy(4, tasks, seed + 1, microbatch=microbatch)
    generator = torch.Generator().manual_seed(seed)
    s = torch.rand(rows, generator=generator, dtype=torch.float64)
    s[:zeros] = 0
    c = torch.randn(4, generator=generator, dtype=torch.float64)
    start, rate = toy_start(tasks, seed), 0.1
    inputs = [x.clone().requires_grad_() for x in (s, start["w"], start["b"])]
    expected_loss = closed_form(inner, outer, c, steps, rate)(*inputs)
    expected = torch.autograd.grad(expected_loss, inputs)
    result = rule(InnerLoop(steps, SGD(rate)).run(inner, start, s), WeightedLoss(outer, c), start_gradient=True)
    assert result.start_gradient is not None
    assert relative_error(result.outer_losses.sum(), expected_loss.detach()) < EXACT
    for found, wanted in zip(
        (result.attributions, result.start_gradient["w"], result.start_gradient["b"]), expected, strict=True
    ):
        assert relative_error(found, wanted) < EXACT


@both_rules
@pytest.mark.parametrize(("steps", "momentum"), list(itertools.product([1, 2, 4], [0.0, 0.8])))
def test_curved_toy_against_finite_differences(steps: int, momentum: float, rule: MetaGradientRule) -> None:
    inner, outer = toy(5, 2, 1, curve=torch.tanh, microbatch=2), toy(3, 2, 2, curve=torch.tanh)
    s, c, start = torch.rand(5).double(), torch.ones(3).double(), toy_start(2, 3)
    loop = InnerLoop(steps, make_optimizer("momentum", 0.4, momentum))

    def outer_loss(s: Tensor) -> Tensor:
        return WeightedLoss(outer, c).value(loop.run(inner, start, s).adapted)

    h = 1e-5 * torch.eye(5, dtype=torch.float64)
    expected = torch.stack([(outer_loss(s + step) - outer_loss(s - step)) / 2e-5 for step in h])
    found = rule(loop.run(inner, start, s), WeightedLoss(outer, c)).attributions
    assert relative_error(found, expected) < 1e-7


# -- what the rules ask of a loss, and refuse --------------------------------------------------------------------------


def test_one_step_needs_no_second_order_pass() -> None:
    inner, outer, s = toy(4, 2, 0), toy(2, 2, 1), torch.rand(4).double()
    trajectory = InnerLoop(1, SGD(0.1)).run(inner, toy_start(2, 0), s)
    result = get_rule("adjoint")(trajectory, WeightedLoss(outer, torch.ones(2).double()))
    assert result.start_gradient is None
    assert inner.second_order == [False] and outer.second_order == [False]


@pytest.mark.parametrize(("steps", "start_gradient", "passes"), [(1, True, 1), (3, False, 2), (3, True, 3)])
def test_one_second_order_pass_for_each_step_gone_back_through(steps: int, start_gradient: bool, passes: int) -> None:
    inner, outer = toy(4, 2, 0), toy(2, 2, 1)
    trajectory = InnerLoop(steps, SGD(0.1)).run(inner, toy_start(2, 0), torch.rand(4).double())
    get_rule("adjoint")(trajectory, WeightedLoss(outer, torch.ones(2).double()), start_gradient)
    assert inner.second_order == [False] * steps + [True] * passes


@both_rules
def test_gradients_do_not_leak_into_the_arguments(rule: MetaGradientRule) -> None:
    inner, outer = toy(4, 2, 0, curve=torch.tanh), toy(2, 2, 1, curve=torch.tanh)
    start = {name: leaf.requires_grad_() for name, leaf in toy_start(2, 0).items()}
    s = torch.rand(4).double().requires_grad_()
    trajectory = InnerLoop(2, SGD(0.1)).run(inner, start, s)
    before = {name: leaf.detach().clone() for name, leaf in start.items()}
    result = rule(trajectory, WeightedLoss(outer, torch.ones(2).double()), start_gradient=True)
    assert result.start_gradient is not None
    for tensor in (result.attributions, *result.outer_gradient.values(), *result.start_gradient.values()):
        assert not tensor.requires_grad
    assert not any(leaf.requires_grad for state in trajectory.states for leaf in state.values())
    assert s.grad is None and all(leaf.grad is None for leaf in start.values())
    assert all(torch.equal(start[name].detach(), leaf) for name, leaf in before.items())


class OnlyOnce(torch.autograd.Function):
    """x², with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * context.saved_tensors[0] * gradient


def test_an_operation_without_a_second_derivative_is_named() -> None:
    inner: RowLoss = toy(4, 1, 0, curve=OnlyOnce.apply)
    outer = WeightedLoss(toy(2, 1, 1), torch.ones(2).double())
    one, two = (InnerLoop(k, SGD(0.1)).run(inner, toy_start(1, 0), torch.rand(4).double()) for k in (1, 2))
    get_rule("adjoint")(one, outer)
    with pytest.raises(UnsupportedModelError, match=r"no second derivative, which K > 1.*once_differentiable"):
        get_rule("adjoint")(two, outer)


def test_an_operation_without_a_forward_mode_rule_is_named() -> None:
    inner: RowLoss = toy(4, 1, 0, curve=OnlyOnce.apply, keep_row_gradients=False)
    outer = WeightedLoss(toy(2, 1, 1), torch.ones(2).double())
    with pytest.raises(UnsupportedModelError, match=r"no second derivative"):
        get_rule("adjoint")(InnerLoop(1, SGD(0.1)).run(inner, toy_start(1, 0), torch.rand(4).double()), outer)


def test_errors_of_another_kind_pass() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("CUDA out of memory")

    loss = toy(4, 1, 0, curve=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        hessian_product(loss, toy_start(1, 0), torch.rand(4).double(), toy_start(1, 1))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"InnerLoop.num_steps is 0"):
        InnerLoop(0, SGD(0.1))
    with pytest.raises(ConfigError, match=r"meta_gradient is 'exact'; choose one of \['adjoint', 'unrolled'\]"):
        get_rule("exact")
