"""Minibatch training of many tasks side by side, against torch's own optimizers on one task at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ToyLoss, lora_model, random_batch, random_tree, relative_error, tree_error
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.fitting import FitStep, begin_fit, clipped, fit_step, schedule_factor
from hf_mass.core.optimizers import AdamW, InnerOptimizer, make_optimizer
from hf_mass.core.token_loss import TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError
from hf_mass.lm.binding import BoundLora


def rows_of(task: Tensor, seed: int) -> ToyLoss:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(task), 3, generator=generator, dtype=torch.float64)
    return ToyLoss(inputs, torch.randn(len(task), generator=generator, dtype=torch.float64), task, curve=torch.tanh)


def start_of(tasks: int) -> Tree:
    empty = {"w": torch.zeros(tasks, 3, dtype=torch.float64), "b": torch.zeros(tasks, dtype=torch.float64)}
    return random_tree(empty, torch.Generator().manual_seed(9), 1.0)


def fit(
    steps: Sequence[FitStep], start: Tree, optimizer: InnerOptimizer, max_norm: float | None = None
) -> tuple[Tree, list[Tensor]]:
    """(parameters after all steps, losses of each)."""
    state, losses = begin_fit(start, optimizer), []
    for step in steps:
        state, values = fit_step(step, state, optimizer, max_norm)
        losses.append(values)
    assert state.step == len(steps)
    return state.params, losses


def with_torch(losses: list[ToyLoss], rates: list[float], start: Tree, max_norm: float | None) -> Tree:
    """One task, with torch.optim.AdamW, its own clipping, and the learning rate set before each step."""
    point = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    optimizer = torch.optim.AdamW(list(point.values()), lr=0.1, weight_decay=0.05)
    for loss, rate in zip(losses, rates, strict=True):
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.zero_grad()
        with loss.evaluate(point, torch.arange(len(loss.targets)), loss.row_task * 0, False) as values:
            values.mean().backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(point.values()), max_norm)
        optimizer.step()
    return trees.detached(point)


@pytest.mark.parametrize("max_norm", [None, 0.1])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_each_task_ends_where_it_would_alone(max_norm: float | None, lengths: list[int], seed: int) -> None:
    """Tasks of different numbers of steps and rows, in one run, against torch on each."""
    start = start_of(len(lengths))
    plans = [[rows_of(torch.full((2 + n,), n), seed + 10 * n + k) for k in range(t)] for n, t in enumerate(lengths)]
    rates = [[schedule_factor("cosine", k, t) for k in range(t)] for t in lengths]
    steps = []
    for k in range(max(lengths)):
        present = [n for n, total in enumerate(lengths) if k < total]
        parts = [plans[n][k] for n in present]
        steps.append(
            FitStep(
                ToyLoss(
                    torch.cat([p.inputs for p in parts]),
                    torch.cat([p.targets for p in parts]),
                    torch.cat([p.row_task for p in parts]),
                    curve=torch.tanh,
                ),
                torch.cat([torch.full((len(p.targets),), 1 / len(p.targets), dtype=torch.float64) for p in parts]),
                torch.tensor([rates[n][k] if n in present else 0.0 for n in range(len(lengths))], dtype=torch.float64),
            )
        )
    found, _ = fit(steps, start, AdamW(0.1, weight_decay=0.05), max_norm)
    for n, plan in enumerate(plans):
        one = trees.tree_map(lambda x, n=n: x[n : n + 1], start)
        expected = with_torch(plan, rates[n], one, max_norm)
        # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
        tolerance = 1e-10 if max_norm is None else 1e-4
        assert tree_error(trees.tree_map(lambda x, n=n: x[n : n + 1], found), expected) < tolerance


def test_a_language_model_learns_its_rows() -> None:
    model = lora_model("llama")
    lora = BoundLora(model, "inner")
    batch = random_batch([0, 0, 1, 1], torch.Generator().manual_seed(0))
    loss = TokenLoss(model, lora.function, batch)
    step = FitStep(loss, torch.full((4,), 0.5).double(), torch.ones(2))
    with lora.inactive():
        _, losses = fit([step] * 30, lora.start(2), make_optimizer("adamw", 0.03), 1.0)
    assert len(losses) == 30 and losses[-1].mean() < 0.3 * losses[0].mean()


def test_a_task_without_a_number_does_not_take_the_others() -> None:
    loss = rows_of(torch.tensor([0, 1, 1]), 0)
    loss.inputs[0] = torch.nan
    found, _ = fit([FitStep(loss, torch.ones(3).double(), torch.ones(2))] * 3, start_of(2), AdamW(0.1), max_norm=1.0)
    assert found["w"][0].isnan().any() and found["w"][1].isfinite().all()


def test_a_task_that_is_done_is_not_touched() -> None:
    start, loss = start_of(2), rows_of(torch.tensor([0, 1]), 0)
    step = FitStep(loss, torch.ones(2).double(), torch.tensor([1.0, 0.0]))
    found, _ = fit([step] * 3, start, AdamW(0.1, weight_decay=1))
    assert torch.equal(found["w"][1], start["w"][1]) and not torch.equal(found["w"][0], start["w"][0])


def test_clipping_is_by_task() -> None:
    gradient = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "b": torch.zeros(2)}
    found = clipped(gradient, 1.0)
    assert relative_error(found["w"], torch.tensor([[0.6, 0.8], [0.3, 0.4]])) < 1e-6
    assert clipped({"w": torch.zeros(2, 2)}, 1.0)["w"].abs().sum() == 0


def test_schedules() -> None:
    assert [schedule_factor("constant", k, 4) for k in range(4)] == [1.0] * 4
    assert [schedule_factor("linear", k, 4) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = [schedule_factor("cosine", k, 10, warmup=0.2) for k in range(10)]
    assert cosine[0] == pytest.approx(1 / 3) and cosine[2] == 1.0 and cosine[-1] < 0.05
    assert all(a > b for a, b in pairwise(cosine[2:]))
    with pytest.raises(ConfigError, match=r"lr_scheduler_type is 'step'; choose one of \['cosine', 'linear'"):
        schedule_factor("step", 0, 4)
