"""Exact everywhere: rules × memory plans × architectures × settings, against a graph unrolled by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model
from tiny_models import (
    ARCHITECTURES,
    VOCABULARY,
    base_model,
    lora_config,
    lora_model,
    random_tree,
    randomise_lora,
    relative_error,
    tree_error,
)
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM
from unrolled import (
    PLANS,
    S,
    batches,
    model_of,
    row_loss,
    solve,
    tolerance,
    unroll,
)

from hf_mass.core import trees
from hf_mass.core.memory import FAST, LEAN
from hf_mass.core.second_order import double_backward
from hf_mass.core.token_loss import TokenBatch, TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.errors import UnsupportedModelError
from hf_mass.lm.binding import BoundLora, decoder_layers

# -- architectures -----------------------------------------------------------------------------------------------------


@functools.cache
def reference(kind: str, side: str, steps: int, optimizer: str) -> tuple[Tree, Tensor, Tree]:
    return unroll(model_of(kind), side, steps, optimizer)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_two_steps_against_the_unrolled_graph(kind: str, side: str, plan: str) -> None:
    adapted, found = solve(model_of(kind), PLANS[plan], side)
    expected = reference(kind, side, 2, "sgd")
    assert found.start_gradient is not None and (expected[1].abs() > 1e-6).all()
    assert tree_error(adapted, expected[0]) < tolerance(kind)
    assert relative_error(found.attributions, expected[1]) < tolerance(kind)
    assert tree_error(found.start_gradient, expected[2]) < tolerance(kind)


@pytest.mark.parametrize("plan", ["fast", "lean", "lean, no row gradients"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_and_optimizers(optimizer: str, steps: int, plan: str) -> None:
    adapted, found = solve(model_of("llama"), PLANS[plan], steps=steps, optimizer=optimizer)
    expected = reference("llama", "right", steps, optimizer)
    assert found.start_gradient is not None
    assert tree_error(adapted, expected[0]) < 1e-8
    assert relative_error(found.attributions, expected[1]) < 1e-7
    assert tree_error(found.start_gradient, expected[2]) < 1e-6
    _, without = solve(model_of("llama"), PLANS[plan], steps=steps, optimizer=optimizer, start_gradient=False)
    assert without.start_gradient is None
    assert relative_error(without.attributions, expected[1]) < 1e-7


@pytest.mark.parametrize("plan", ["fast", "lean"])
def test_tied_embeddings_and_an_adapted_head(plan: str) -> None:
    """The head belongs to no layer: its update has its share of the second-order pass, and sees every position."""
    base = base_model("llama", tie_word_embeddings=True)
    targets = ["q_proj", "down_proj", "lm_head"]
    config = lora_config("llama", target_modules=targets, ensure_weight_tying=False)
    model = get_peft_model(base, config, adapter_name="inner").eval()
    randomise_lora(model)
    assert any("lm_head" in name for name in BoundLora(model, "inner").function.sites)
    adapted, found = solve(model, PLANS[plan])
    expected = unroll(model, "right", 2, "sgd")
    assert found.start_gradient is not None
    assert tree_error(adapted, expected[0]) < 1e-9
    assert relative_error(found.attributions, expected[1]) < 1e-9
    assert tree_error(found.start_gradient, expected[2]) < 1e-9


@pytest.mark.parametrize(("attention", "bound"), [("sdpa", 1e-9), ("eager", 2e-5)])  # eager: a float32 softmax
@pytest.mark.parametrize("plan", ["fast", "lean"])
def test_attention_implementations(plan: str, attention: str, bound: float) -> None:
    model = lora_model("llama")
    model.get_base_model().set_attn_implementation(attention)
    expected = reference("llama", "right", 2, "sgd")
    _, found = solve(model, PLANS[plan])
    assert relative_error(found.attributions, expected[1]) < bound


@pytest.mark.parametrize("plan", ["fast", "lean"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_bfloat16_base(kind: str, plan: str) -> None:
    """float32 LoRA, adjoints and sums on a bfloat16 base. Bound: cosine to float64 above 0.99, norm within a tenth."""
    model = lora_model(kind, torch.bfloat16)
    adapted, found = solve(model, PLANS[plan], rate=0.01)
    _, exact = solve(model_of(kind), FAST, rate=0.01)
    assert found.start_gradient is not None and exact.start_gradient is not None
    for tree in (adapted, found.outer_gradient, found.start_gradient):
        assert {leaf.dtype for leaf in tree.values()} == {torch.float32}
    for mine, theirs in (
        (found.attributions, exact.attributions),
        (flat(found.start_gradient), flat(exact.start_gradient)),
    ):
        assert functional.cosine_similarity(mine.double(), theirs, dim=0) > 0.99
        assert abs(mine.norm() / theirs.norm() - 1) < 0.1


def flat(tree: Tree) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.values()])


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropout_masks_are_the_same_on_the_way_back(kind: str, plan: str) -> None:
    """Every plan draws the masks of the unrolled graph; without their replay the numbers differ."""
    _, expected = solve(model_of(kind), FAST, "left", rule="unrolled", dropout=0.3)
    _, found = solve(model_of(kind), PLANS[plan], "left", dropout=0.3)
    _, plain = solve(model_of(kind), PLANS[plan], "left")
    assert found.start_gradient is not None and expected.start_gradient is not None
    assert relative_error(found.attributions, expected.attributions) < 1e-9
    assert tree_error(found.start_gradient, expected.start_gradient) < 1e-9
    assert relative_error(plain.attributions, expected.attributions) > 1e-2


def test_dropout_is_what_it_says() -> None:
    """Rows alone, unpadded, with the masks multiplied onto PEFT's own low-rank path."""
    model, (inner, _) = lora_model("llama"), batches("left")
    lora = BoundLora(model, "inner")
    start = lora.start(2)
    loss = TokenLoss(model, lora.function, inner, dropout=0.4, seed=5).at_step(1)
    with lora.inactive(), loss.evaluate(start, torch.arange(5), inner.row_task, False) as values:
        found = values.detach()
    assert loss.dropout is not None
    for row, key in enumerate([0, 0, 1, 1, 2]):
        assert int(loss.dropout.row_keys[row]) == key
        with masked(lora, loss.dropout, row, int(inner.attention_mask[row].sum())):
            expected = row_loss(model, {}, inner, row).detach()
        assert relative_error(found[row], expected) < 1e-12
        assert relative_error(row_loss(model, {}, inner, row).detach(), expected) > 1e-4


@contextmanager
def masked(lora: BoundLora, dropout: Any, row: int, length: int) -> Iterator[None]:
    """PEFT's dropout modules multiply by one row's masks."""
    for index, layer in enumerate(lora.layers.values()):
        mask = dropout.mask(index, layer.in_features)[row, :length]
        layer.lora_dropout["inner"] = Multiply(mask.double())
    try:
        yield
    finally:
        for layer in lora.layers.values():
            layer.lora_dropout["inner"] = nn.Identity()


class Multiply(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_masks_keep_the_right_share_and_differ() -> None:
    inner, _ = batches()
    model = model_of("llama")
    wide = TokenBatch(
        *(x.repeat(40, 20) for x in (inner.input_ids, inner.attention_mask * 0 + 1, inner.labels)),
        row_task=torch.zeros(200, dtype=torch.int64),
    )
    dropout = TokenLoss(model, BoundLora(model, "inner").function, wide, dropout=0.3).dropout
    assert dropout is not None
    mask = dropout.mask(0, 16)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    share = (mask == 0).double()
    for dims in ((0, 1), (0, 2), (1, 2), (0, 1, 2)):
        assert ((share.mean(dims) - 0.3).abs() < 5 * (0.21 / (share.numel() / share.mean(dims).numel())) ** 0.5).all()
    for other in (dropout.mask(1, 16), dropout.at_step(1).mask(0, 16)):
        assert abs(float(((mask == 0) == (other == 0)).double().mean()) - 0.58) < 0.01


# -- what is refused ---------------------------------------------------------------------------------------------------


def curvature(model: PeftModel) -> None:
    lora, (inner, _) = BoundLora(model, "inner"), batches()
    with lora.inactive():
        loss = TokenLoss(model, lora.function, inner, memory=LEAN)
        start = lora.start(2)
        loss.curvature(start, torch.arange(5), S, random_tree(start, torch.Generator().manual_seed(0)))


def test_a_model_without_layers_is_refused() -> None:
    model = lora_model("llama")
    lora = BoundLora(model, "inner")
    lora.function.layers = ()
    with pytest.raises(UnsupportedModelError, match=r'memory="lean" takes one decoder layer.*has none'):
        TokenLoss(model, lora.function, batches()[0], memory=LEAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, x, out: x + out, "LlamaDecoderLayer is not called with the output of the layer before it"),
        (lambda layer, x, out: out * 1.0, "is not called with the output of the layer before it"),
    ],
)
def test_what_happens_between_layers_is_not_left_out(change: Any, message: str) -> None:
    model = lora_model("llama")
    first = decoder_layers(model)[0]
    first.register_forward_hook(lambda module, inputs, output: change(module, inputs[0], output))
    with pytest.raises(UnsupportedModelError, match=message):
        curvature(model)


def test_a_way_around_the_layers_is_not_left_out() -> None:
    """The final norm adds what the first layer gave: the loss depends on it by a second way."""
    model, kept = lora_model("llama"), list[Tensor]()
    base = model.get_base_model().model
    base.layers[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    base.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + kept[-1],))
    with pytest.raises(UnsupportedModelError, match="is not the only way from the layers to the loss"):
        curvature(model)


def test_an_update_before_the_layers_is_not_left_out() -> None:
    model = lora_model("llama")
    layer = BoundLora(model, "inner").layers[
        next(name for name in BoundLora(model, "inner").layers if "layers.0.self_attn.q_proj" in name)
    ]
    base = model.get_base_model().model
    base.embed_tokens.register_forward_hook(lambda module, inputs, output: output + layer(output))
    with pytest.raises(UnsupportedModelError, match="is the first one, and what it gets depends on the adapted"):
        curvature(model)


def test_a_site_before_the_layers_is_not_left_out() -> None:
    """OPT projects its embeddings: an update there reaches the loss through the layers, below which a sweep stops."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=8, max_position_embeddings=32, init_std=0.3))
    config = lora_config("llama", target_modules=["project_in", "q_proj", "v_proj"])
    model = get_peft_model(base.double(), config, adapter_name="inner").eval()
    randomise_lora(model)
    with pytest.raises(UnsupportedModelError, match="is the first one, and what it gets depends on the adapted"):
        curvature(model)
    solve(model, FAST)


@pytest.mark.parametrize("layers", [[0], [2], [0, 2]])
def test_layers_without_a_site(layers: list[int]) -> None:
    base = base_model("llama", layers=3)
    config = lora_config("llama", layers_to_transform=layers)
    model = get_peft_model(base, config, adapter_name="inner").eval()
    randomise_lora(model)
    for plan in ("lean", "lean, no row gradients"):
        _, found = solve(model, PLANS[plan])
        _, expected = solve(model, FAST)
        assert found.start_gradient is not None and expected.start_gradient is not None
        assert relative_error(found.attributions, expected.attributions) < 1e-9
        assert tree_error(found.start_gradient, expected.start_gradient) < 1e-9


@pytest.fixture
def bf16_accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """As in a process of its own: in this one, a trainer that ran before has settled the precision of all."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    return Accelerator(cpu=True, mixed_precision="bf16")


@pytest.mark.parametrize("zero_b", [False, True])
@pytest.mark.parametrize("plan", ["fast", "lean"])
def test_a_model_under_autocast_keeps_its_low_rank_path_in_float32(
    bf16_accelerator: Accelerator, plan: str, zero_b: bool
) -> None:
    """As a trainer with bf16=True prepares it: forward runs under autocast, backward outside of it."""
    plain, wrapped = (lora_model("llama", torch.float32) for _ in range(2))
    for model in (plain, wrapped) if zero_b else ():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
    wrapped = bf16_accelerator.prepare_model(wrapped, evaluation_mode=True)
    adapted, found = solve(wrapped, PLANS[plan], rate=0.01)
    expected, exact = solve(plain, FAST, rate=0.01)
    assert {leaf.dtype for leaf in adapted.values()} == {torch.float32}
    assert functional.cosine_similarity(found.attributions, exact.attributions, dim=0) > 0.99
    moved = [flat(adapted) - flat(start_of(plain)), flat(expected) - flat(start_of(plain))]
    assert functional.cosine_similarity(*moved, dim=0) > 0.99


def start_of(model: PeftModel) -> Tree:
    return trees.tree_map(torch.clone, BoundLora(model, "inner").start(2))


def test_the_sweep_equals_the_whole_graph_for_any_direction() -> None:
    model, (inner, _) = model_of("gpt2"), batches("left")
    lora = BoundLora(model, "inner")
    start = trees.tree_map(torch.clone, lora.start(2))
    generator = torch.Generator().manual_seed(2)
    with lora.inactive():
        for seed in range(3):
            direction, c = random_tree(start, generator), torch.randn(5, generator=generator).double()
            rows = torch.randperm(5, generator=torch.Generator().manual_seed(seed))[: 3 + seed % 2]
            lean = TokenLoss(model, lora.function, inner, memory=LEAN)
            found = lean.curvature(start, rows, c[rows], direction)
            expected = double_backward(lean, start, rows, c[rows], direction)
            assert tree_error(found.product, expected.product) < 1e-10
            assert relative_error(found.row_products, expected.row_products) < 1e-10
