"""Two inner steps through further architectures against a graph unrolled by hand, padded on either side."""

from __future__ import annotations

import functools

import pytest
from more_architectures import CONFIGS, WIDENED, further_model
from peft import PeftModel
from tiny_models import relative_error, tree_error
from torch import Tensor
from unrolled import PLANS, batches, solve, unroll

from hf_mass.core.memory import FAST, choose_plan
from hf_mass.core.token_loss import TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.errors import UnsupportedModelError
from hf_mass.lm.binding import BoundLora

ONCE = ("bloom", "recurrent_gemma")  # which have a custom function without a forward-mode rule


@functools.cache
def model_of(kind: str) -> PeftModel:
    return further_model(kind)


@functools.cache
def reference(kind: str, side: str) -> tuple[Tree, Tensor, Tree]:
    return unroll(model_of(kind), side, 2, "sgd")


@pytest.mark.parametrize(("plan", "side"), [("fast", "left"), ("lean", "left"), ("lean, no row gradients", "right")])
@pytest.mark.parametrize("kind", CONFIGS)
def test_two_steps_against_the_unrolled_graph(kind: str, plan: str, side: str) -> None:
    if kind in ONCE and "lean" in plan:
        with pytest.raises(UnsupportedModelError, match='Use memory="fast"'):
            solve(model_of(kind), PLANS[plan], side)
        return
    bound = 1e-9 if kind in WIDENED else 2e-5  # where transformers computes norms, angles and states in float32
    adapted, found = solve(model_of(kind), PLANS[plan], side)
    expected = reference(kind, side)
    assert found.start_gradient is not None and (expected[1].abs() > 1e-7).all()
    assert tree_error(adapted, expected[0]) < bound
    assert relative_error(found.attributions, expected[1]) < bound
    assert tree_error(found.start_gradient, expected[2]) < bound


@pytest.mark.parametrize("kind", CONFIGS)
def test_auto_takes_lean_passes_where_they_work(kind: str) -> None:
    """With next to no memory free; the plan that is chosen carries out what it was chosen for."""
    model = model_of(kind)
    lora, (inner, _) = BoundLora(model, "inner"), batches()
    with lora.inactive():
        loss = TokenLoss(model, lora.function, inner)
        for second_order in (False, True):
            sizes = 5, 10_000, 10_000, 20_000  # gradients of the rows would not fit
            plan = choose_plan("auto", *sizes, second_order=second_order, sweeps=lambda: loss.sweeps(lora.start(2)))
            assert plan.checkpoint == (not second_order or kind not in ONCE)
            steps = 2 if second_order else 1
            _, found = solve(model, plan, steps=steps, start_gradient=False)
            _, expected = solve(model, FAST, steps=steps, start_gradient=False)
            assert relative_error(found.attributions, expected.attributions) < 2e-5
