"""Row losses of language models and their derivatives, row by row, in microbatches, with checkpointing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny_models import (
    ToyLoss,
    base_model,
    lora_model,
    random_batch,
    random_tree,
    relative_error,
    tree_error,
)
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from hf_mass.core import trees
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.kernels import twice_differentiable
from hf_mass.core.losses import (
    WeightedLoss,
    row_values,
    sample_gradients,
    weighted_gradient,
)
from hf_mass.core.memory import FAST, LEAN, MemoryPlan
from hf_mass.core.meta_gradients import get_rule
from hf_mass.core.optimizers import SGD
from hf_mass.core.second_order import hessian_product, require_second_derivatives
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss, token_log_probs
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError, UnsupportedModelError
from hf_mass.lm.binding import BoundLora

EXACT = 1e-12


@functools.cache
def adapted_model(kind: str) -> tuple[PeftModel, BoundLora]:
    """A model whose bound adapter is not active, so that only the core applies it."""
    model = lora_model(kind, adapters=("generator", "inner"))
    return model, BoundLora(model, "inner")


def problem(
    kind: str, row_task: list[int], side: str = "right", microbatch: int | None = None, seed: int = 0
) -> tuple[TokenLoss, Tree, torch.Generator]:
    model, lora = adapted_model(kind)
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(row_task, generator, side)
    start = lora.start(max(row_task) + 1)
    return (
        TokenLoss(model, lora.function, batch, microbatch),
        trees.add(start, random_tree(start, generator, 0.1)),
        generator,
    )


def row(batch: TokenBatch, index: int) -> TokenBatch:
    """One row as a batch of its own, without padding, for task 0."""
    real = batch.attention_mask[index].bool()
    parts = (x[index][real][None] for x in (batch.input_ids, batch.attention_mask, batch.labels))
    return TokenBatch(*parts, torch.zeros(1, dtype=torch.int64))


# -- values ------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["llama", "gpt2"]),
    row_task=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    microbatch=st.sampled_from([None, 1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_rows_in_a_batch_equal_rows_alone(
    kind: str, row_task: list[int], side: str, microbatch: int | None, seed: int
) -> None:
    """Values and every row's own gradient, against one unpadded row after the other."""
    loss, params, _ = problem(kind, row_task, side, microbatch, seed)
    model, lora = adapted_model(kind)
    values, gradients = sample_gradients(loss, params)
    assert relative_error(row_values(loss, params), values) < EXACT
    for index, task in enumerate(row_task):
        alone = TokenLoss(model, lora.function, row(loss.batch, index))
        own = trees.tree_map(lambda x, t=task: x[t : t + 1], params)
        value, gradient, _ = weighted_gradient(alone, own, torch.ones(1).double())
        assert relative_error(values[index : index + 1], value) < EXACT
        assert tree_error({name: leaf[index : index + 1] for name, leaf in gradients.items()}, gradient) < 1e-10


def test_mean_and_sum_of_token_losses_by_hand() -> None:
    loss, params, _ = problem("llama", [0, 1, 1], "left")
    model, lora = adapted_model("llama")
    summed = TokenLoss(model, lora.function, loss.batch, reduction="sum")
    with lora.function.applied(params, loss.row_task):
        log_p, mask = token_log_probs(model, loss.batch)
    for index in range(3):
        with lora.function.applied(
            trees.tree_map(lambda x, i=index: x[loss.row_task[i], None], params), torch.tensor([0])
        ):
            alone = row(loss.batch, index)
            logits = model(input_ids=alone.input_ids).logits[0]
        answers = (alone.labels[0, 1:] != IGNORED).nonzero().flatten()
        expected = functional.log_softmax(logits, -1)[answers, alone.input_ids[0, answers + 1]]
        assert relative_error(log_p[index][mask[index]], expected) < EXACT
        assert relative_error(row_values(loss, params)[index], -expected.mean()) < EXACT
        assert relative_error(row_values(summed, params)[index], -expected.sum()) < EXACT


def test_half_precision_logits_are_widened() -> None:
    model = base_model("llama", torch.bfloat16)
    log_p, _ = token_log_probs(model, random_batch([0, 0], torch.Generator().manual_seed(0)))
    assert log_p.dtype == torch.float32


def test_no_graph_is_kept_for_values() -> None:
    loss, params, _ = problem("gpt2", [0, 0])
    assert not row_values(loss, trees.leaves(params)).requires_grad


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [None, 1, 2])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_derivatives_against_autograd(kind: str, microbatch: int | None) -> None:
    loss, params, generator = problem(kind, [0, 1, 1], "left", microbatch)
    c = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
    direction = random_tree(params, generator, 1.0)
    leaves = trees.leaves(params)
    with loss.evaluate(leaves, torch.arange(3), loss.row_task, second_order=True) as values:
        names = list(leaves)
        slopes = torch.autograd.grad((c * values).sum(), list(leaves.values()), create_graph=True)
        along = sum((g * direction[n]).sum() for n, g in zip(names, slopes, strict=True))
        curvature = torch.autograd.grad(along, list(leaves.values()), retain_graph=True)
        rows = [torch.autograd.grad(v, list(leaves.values()), retain_graph=True) for v in values]
    expected = {name: g.detach() for name, g in zip(names, slopes, strict=True)}
    found_values, gradient, _ = weighted_gradient(loss, params, c)
    assert relative_error(found_values, values.detach()) < EXACT
    assert tree_error(gradient, expected) < EXACT
    hessian, products, _ = hessian_product(loss, params, c, direction)
    assert tree_error(hessian, dict(zip(names, curvature, strict=True))) < 1e-11
    by_row = [sum((g * direction[n]).sum() for n, g in zip(names, row, strict=True)) for row in rows]
    assert relative_error(products, torch.stack(by_row)) < 1e-11


class ShuffledLoss(ToyLoss):
    """Rows in chunks of several sizes and in an order of its own."""

    def microbatches(self, second_order: bool = False) -> Iterator[Tensor]:
        yield from torch.tensor([3, 0, 4, 1, 5, 2]).split([2, 1, 3])


def test_microbatches_may_come_in_any_order() -> None:
    rows = (torch.randn(6, 3).double(), torch.randn(6).double(), torch.tensor([0, 1, 1, 0, 0, 1]))
    shuffled, plain = ShuffledLoss(*rows, curve=torch.tanh), ToyLoss(*rows, curve=torch.tanh)
    params = {"w": torch.randn(2, 3).double(), "b": torch.randn(2).double()}
    direction, c = random_tree(params, torch.Generator().manual_seed(0)), torch.randn(6).double()
    assert relative_error(row_values(shuffled, params), row_values(plain, params)) < EXACT
    for found, expected in (
        (weighted_gradient(shuffled, params, c)[:2], weighted_gradient(plain, params, c)[:2]),
        (sample_gradients(shuffled, params), sample_gradients(plain, params)),
        *[
            ((found[1], found[0]), (expected[1], expected[0]))
            for found, expected in [[hessian_product(x, params, c, direction) for x in (shuffled, plain)]]
        ],
    ):
        assert relative_error(found[0], expected[0]) < EXACT
        assert tree_error(found[1], expected[1]) < EXACT


def test_outer_losses_are_kept_by_task() -> None:
    loss, params, _ = problem("gpt2", [1, 0, 1], microbatch=2)
    c = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    values = row_values(loss, params)
    by_task = WeightedLoss(loss, c).gradient(params).losses
    assert relative_error(by_task, torch.stack([-values[1], 2 * values[0] + 0.5 * values[2]])) < EXACT
    assert relative_error(WeightedLoss(loss, c).value(params), by_task.sum()) < EXACT


def test_shared_start_needs_no_copies() -> None:
    """The same matrices for every task, as expanded views, in every derivative."""
    loss, _, generator = problem("gpt2", [0, 1, 1])
    start = adapted_model("gpt2")[1].start(2)
    assert all(leaf.stride(0) == 0 for leaf in start.values())
    copies = trees.tree_map(lambda x: x.contiguous(), start)
    direction, c = random_tree(start, generator), torch.ones(3).double()
    shared, own = (hessian_product(loss, x, c, direction)[0] for x in (start, copies))
    assert tree_error(shared, own) == 0
    assert tree_error(weighted_gradient(loss, start, c)[1], weighted_gradient(loss, copies, c)[1]) == 0
    assert tree_error(sample_gradients(loss, start)[1], sample_gradients(loss, copies)[1]) == 0


def test_rows_of_one_task_do_not_move_another() -> None:
    """A task adapted beside others ends where it ends alone."""
    loss, params, _ = problem("llama", [0, 1, 0, 1])
    model, lora = adapted_model("llama")
    s = torch.rand(4).double()
    together = InnerLoop(2, SGD(0.3)).run(loss, params, s).adapted
    mine = loss.row_task == 1
    batch = loss.batch.select(mine.nonzero().flatten())
    alone = TokenLoss(
        model, lora.function, TokenBatch(batch.input_ids, batch.attention_mask, batch.labels, mine[mine] * 0)
    )
    own = InnerLoop(2, SGD(0.3)).run(alone, trees.tree_map(lambda x: x[1:], params), s[mine]).adapted
    assert tree_error(trees.tree_map(lambda x: x[1:], together), own) < 1e-10


def test_a_loss_that_is_not_finite_stays_in_its_task() -> None:
    inputs = torch.randn(4, 3).double()
    inputs[2] = float("nan")
    loss = ToyLoss(inputs, torch.randn(4).double(), torch.tensor([0, 0, 1, 1]))
    outer = ToyLoss(torch.randn(2, 3).double(), torch.randn(2).double(), torch.tensor([0, 1]))
    start = {"w": torch.randn(2, 3).double(), "b": torch.randn(2).double()}
    trajectory = InnerLoop(2, SGD(0.1)).run(loss, start, torch.ones(4).double())
    result = get_rule("adjoint")(trajectory, WeightedLoss(outer, torch.ones(2).double()), start_gradient=True)
    assert trajectory.adapted["w"][0].isfinite().all() and trajectory.adapted["w"][1].isnan().all()
    assert result.attributions.isfinite().tolist() == [True, True, False, False]
    assert result.outer_losses.isfinite().tolist() == [True, False]


# -- checkpointing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpointed() -> tuple[PeftModel, BoundLora, list[int]]:
    """A model in training mode that recomputes activations, and a count of its first layer's forward passes."""
    model = lora_model("llama", adapters=("generator", "inner"))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1

    model.get_base_model().model.layers[0].self_attn.register_forward_pre_hook(count)
    return model, BoundLora(model, "inner"), passes


def test_checkpointing_gives_the_same_derivatives(checkpointed: tuple[PeftModel, BoundLora, list[int]]) -> None:
    model, lora, passes = checkpointed
    plain, params, generator = problem("llama", [0, 1, 1], microbatch=2)
    loss = TokenLoss(model, lora.function, plain.batch, microbatch=2)
    c, direction = torch.rand(3).double(), random_tree(params, generator, 1.0)
    assert tree_error(weighted_gradient(loss, params, c)[1], weighted_gradient(plain, params, c)[1]) < EXACT
    assert passes == [4]  # two microbatches, each forward and again during backward
    assert tree_error(sample_gradients(loss, params)[1], sample_gradients(plain, params)[1]) < EXACT
    assert passes == [8]
    found, expected = (hessian_product(x, params, c, direction) for x in (loss, plain))
    assert passes[0] >= 8 + 2 * 3  # a microbatch a row, each forward and again during backward at least once
    assert tree_error(found[0], expected[0]) < EXACT and relative_error(found[1], expected[1]) < EXACT


@pytest.mark.parametrize("steps", [1, 2])
def test_rules_under_checkpointing(steps: int, checkpointed: tuple[PeftModel, BoundLora, list[int]]) -> None:
    model, lora, _ = checkpointed
    plain, params, _ = problem("llama", [0, 1, 1])
    loop, s, c = InnerLoop(steps, SGD(0.3)), torch.rand(3).double(), torch.ones(3).double()
    expected = get_rule("adjoint")(loop.run(plain, params, s), WeightedLoss(plain, c), start_gradient=True)
    loss = TokenLoss(model, lora.function, plain.batch)
    trajectory, outer = loop.run(loss, params, s), WeightedLoss(loss, c)
    found = get_rule("adjoint")(trajectory, outer, start_gradient=True)
    assert relative_error(found.attributions, expected.attributions) < EXACT
    assert found.start_gradient is not None and expected.start_gradient is not None
    assert tree_error(found.start_gradient, expected.start_gradient) < EXACT
    with pytest.raises(UnsupportedModelError, match=r'"unrolled" does not work with activation checkpointing'):
        get_rule("unrolled")(trajectory, outer)


@pytest.mark.parametrize("plan", [LEAN, FAST])
def test_recomputation_sees_the_updates_only_inside_the_context(plan: MemoryPlan) -> None:
    """What a backward pass outside of it would give: the trap that the context is there for."""
    loss, params, _ = problem("llama", [0, 1, 1])
    loss.memory = plan
    expected = weighted_gradient(loss, params, torch.ones(3).double())[1]
    leaves = trees.leaves(params)
    with loss.evaluate(leaves, torch.arange(3), loss.row_task, second_order=False) as values:
        total = values.sum()
    if plan is FAST:  # nothing is recomputed
        outside = torch.autograd.grad(total, list(leaves.values()))
        assert tree_error(dict(zip(leaves, outside, strict=True)), expected) < EXACT
    else:
        with pytest.raises(CheckpointError):
            torch.autograd.grad(total, list(leaves.values()))


# -- what makes a model twice differentiable ---------------------------------------------------------------------------


def no_second_derivative(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **settings: object) -> Any:
    """Attention by a kernel that cannot be differentiated twice, as fused kernels are."""
    settings.pop("is_causal", None)
    return Once.apply(sdpa_attention_forward(module, q, k, v, mask, **settings)[0]), None


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient


def test_fused_attention_is_left_for_second_order_passes_only() -> None:
    plain, params, generator = problem("llama", [0, 1])
    model, _ = adapted_model("llama")
    c, direction = torch.rand(2).double(), random_tree(params, generator)
    expected = hessian_product(plain, params, c, direction)
    used = model.config._attn_implementation
    AttentionInterface.register("once", no_second_derivative)
    AttentionMaskInterface.register("once", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        model.config._attn_implementation = "once"
        with plain.evaluate(leaves := trees.leaves(params), torch.arange(2), plain.row_task, False) as values:
            slopes = torch.autograd.grad(values.sum(), list(leaves.values()), create_graph=True)
            with pytest.raises(UnsupportedModelError, match="once_differentiable"):
                require_second_derivatives(sum(g.sum() for g in slopes))
        found = hessian_product(plain, params, c, direction)
        assert model.config._attn_implementation == "once"
    finally:
        model.config._attn_implementation = used
    assert tree_error(found[0], expected[0]) < 1e-12


def test_attention_is_put_back_even_after_an_exception() -> None:
    model = base_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(RuntimeError, match="stop"), twice_differentiable(model):
        assert model.config._attn_implementation == "sdpa" and not torch.backends.cuda.flash_sdp_enabled()
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "flash_attention_2" and torch.backends.cuda.flash_sdp_enabled()


def test_hessian_product_leaves_no_hook_behind() -> None:
    loss, params, generator = problem("llama", [0])
    for memory in (FAST, LEAN):
        loss.memory = memory
        hessian_product(loss, params, torch.ones(1).double(), random_tree(params, generator))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loss.model.modules())
        assert not any("forward" in m.__dict__ for m in loss.lora.layers)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_selected_rows_are_cut_to_the_columns_they_use(side: str) -> None:
    batch = random_batch([0, 1, 0, 1], torch.Generator().manual_seed(3), side, longest=9)
    rows = batch.attention_mask.sum(1).argsort()[:2]
    cut = batch.select(rows)
    assert cut.input_ids.shape[1] == int(batch.attention_mask.sum(1).sort().values[1]) < 9
    assert torch.equal(cut.row_task, batch.row_task[rows])
    for new, old in zip((cut.input_ids, cut.labels), (batch.input_ids, batch.labels), strict=True):
        for index, source in enumerate(rows.tolist()):
            real = batch.attention_mask[source].bool()
            assert torch.equal(new[index][cut.attention_mask[index].bool()], old[source][real])


def test_batches_are_checked() -> None:
    batch = random_batch([0, 0], torch.Generator().manual_seed(0))
    empty = batch.labels.clone()
    empty[1] = IGNORED
    with pytest.raises(DataError, match=r"TokenBatch.labels: row 1 has no answer token.*weight 0"):
        TokenBatch(batch.input_ids, batch.attention_mask, empty, batch.row_task)
    with pytest.raises(DataError, match=r"attention_mask \(2, 6\).*must share one shape \[R, S\]"):
        TokenBatch(batch.input_ids, batch.attention_mask[:, 1:], batch.labels, batch.row_task)
    with pytest.raises(DataError, match=r"row_task \(1,\) must be \[R\]"):
        TokenBatch(batch.input_ids, batch.attention_mask, batch.labels, batch.row_task[:1])
