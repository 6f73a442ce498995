"""Second derivatives that lack terms are refused by the module's name; those that are whole are not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import ARCHITECTURES, lora_model, relative_error
from torch import Tensor, nn
from unrolled import C, S, batches, solve

from hf_mass.core import symmetry
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.memory import FAST, LEAN
from hf_mass.core.meta_gradients import adjoint_rule
from hf_mass.core.meter import metered
from hf_mass.core.optimizers import make_optimizer
from hf_mass.core.token_loss import TokenBatch, TokenLoss
from hf_mass.errors import UnsupportedModelError
from hf_mass.lm.binding import BoundLora

# -- norms as kernels are written: the first derivative is right in all of them ----------------------------------------


def statistic(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def backward_of(x: Tensor, r: Tensor, gradient: Tensor) -> Tensor:
    return r * gradient - r**3 * x * (gradient * x).mean(-1, keepdim=True)


class SavedStatistic(torch.autograd.Function):
    """The usual fused norm: its backward pass takes the statistic that the forward pass saved."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        r = statistic(x)
        context.save_for_backward(x, r)
        return x * r

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return backward_of(*context.saved_tensors, gradient)


class RawKernel(SavedStatistic):
    """Its backward pass fills a buffer, as a kernel does, of which autograd sees nothing."""

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        x, r = context.saved_tensors
        return torch.empty_like(gradient).copy_(backward_of(x.detach(), r, gradient.detach()))


class WholeFunction(SavedStatistic):
    """Computes the statistic anew, so that it can be differentiated twice."""

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        x, _ = context.saved_tensors
        return backward_of(x, statistic(x), gradient)


class Norm(nn.Module):
    def __init__(self, weight: Tensor, function: Any) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(weight.detach().clone(), requires_grad=False), function

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.function.apply(x)


def fused(kind: str, function: Any, dtype: torch.dtype = torch.float64, where: str = "") -> PeftModel:
    """A model whose norms, those with `where` in their names, are a custom function."""
    model = lora_model(kind, dtype)
    for name, parent in list(model.named_modules()):
        for child, module in list(parent.named_children()):
            if "RMSNorm" in type(module).__name__ and where in f"{name}.{child}":
                setattr(parent, child, Norm(module.weight, function))
    return model.eval()


def check(model: PeftModel) -> None:
    lora, (inner, _) = BoundLora(model, "inner"), batches()
    with lora.inactive():
        TokenLoss(model, lora.function, inner).require_second_order(lora.start(2))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [SavedStatistic, RawKernel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("", r"layers\.0\.input_layernorm \(Norm\)"),
        ("layers.1.post_attention_layernorm", r"layers\.1\.post_attention_layernorm \(Norm\)"),
        ("model.norm", r"model\.norm \(Norm\)"),
    ],
)
def test_a_fused_norm_is_refused_by_name(function: Any, dtype: torch.dtype, where: str, name: str) -> None:
    for kind in ("llama", "mistral"):
        with pytest.raises(UnsupportedModelError, match=rf"{name} are wrong.*use_liger_kernel=False.*inner_steps=1"):
            check(fused(kind, function, dtype, where))


@pytest.mark.parametrize("plan", [FAST, LEAN])
@pytest.mark.parametrize("rule", ["adjoint", "unrolled"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_wherever_second_order_is_used(rule: str, steps: int, plan: Any) -> None:
    model = fused("llama", SavedStatistic)
    with pytest.raises(UnsupportedModelError, match="leaves terms out"):
        solve(model, plan, rule=rule, steps=steps, start_gradient=True)
    if steps == 1:  # first order alone: nothing is missing
        _, found = solve(model, plan, rule=rule, steps=1, start_gradient=False)
        _, expected = solve(lora_model("llama"), plan, rule=rule, steps=1, start_gradient=False)
        assert relative_error(found.attributions, expected.attributions) < 1e-8


def test_gradients_into_further_parameters() -> None:
    model = lora_model("llama", adapters=("default", "inner"))
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if type(module).__name__ == "WideRMSNorm":
                setattr(parent, child, Norm(module.weight, SavedStatistic))
    lora, (inner, outer) = BoundLora(model, "inner"), batches()
    also = [p for name, p in model.named_parameters() if "lora_A.default" in name]
    start = lora.start(2)
    trajectory = InnerLoop(1, make_optimizer("sgd", 0.1)).run(TokenLoss(model, lora.function, inner), start, S)
    judge = WeightedLoss(TokenLoss(model, lora.function, outer), C)
    adjoint_rule(trajectory, judge, False, also)
    with pytest.raises(UnsupportedModelError, match="leaves terms out"):
        trajectory.loss.curvature(start, torch.arange(5), S, start, also)


def exchange_module(model: PeftModel) -> None:
    layer = model.get_base_model().model.layers[1]
    layer.input_layernorm = Norm(layer.input_layernorm.weight, SavedStatistic)


def exchange_method(model: PeftModel) -> None:
    norm = model.get_base_model().model.norm
    norm.forward = lambda x: norm.weight * SavedStatistic.apply(x)


def exchange_activation(model: PeftModel) -> None:
    model.get_base_model().model.layers[0].mlp.act_fn = lambda x: SavedStatistic.apply(x)


def add_hook(model: PeftModel) -> None:
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.register_forward_hook(lambda module, inputs, output: SavedStatistic.apply(output))


@pytest.mark.parametrize("exchange", [exchange_module, exchange_method, exchange_activation, add_hook])
def test_again_when_a_part_was_exchanged(exchange: Callable[[PeftModel], None]) -> None:
    model = lora_model("llama")
    check(model)
    if exchange is exchange_activation:
        for layer in model.get_base_model().model.layers:
            del layer.mlp.act_fn
            layer.mlp.act_fn = nn.functional.silu
        check(model)
    exchange(model)
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(UnsupportedModelError, match="leaves terms out"):
            check(model)


def test_a_function_of_the_source_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels are put in the place of functions of a modeling file."""
    from transformers.models.llama import modeling_llama

    model = lora_model("llama")
    check(model)
    rotary = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda *a, **k: [SavedStatistic.apply(x) for x in rotary(*a, **k)]
    )
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn \(LlamaAttention\) are wrong"):
        check(model)


# -- not refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_right_passes(kind: str, dtype: torch.dtype) -> None:
    check(lora_model(kind, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_custom_function_that_is_whole_passes(dtype: torch.dtype) -> None:
    check(fused("llama", WholeFunction, dtype))
    _, found = solve(fused("llama", WholeFunction), FAST)
    _, expected = solve(lora_model("llama"), FAST)
    assert relative_error(found.attributions, expected.attributions) < 1e-8


def test_it_is_looked_at_once_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    original = symmetry.asymmetry
    monkeypatch.setattr(symmetry, "asymmetry", lambda *a, **k: (looks.append(1), original(*a, **k))[1])
    model = lora_model("llama")
    states = torch.get_rng_state(), random.getstate()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with metered() as meter:
        check(model)
    assert meter.forward_passes == meter.backward_passes == 0
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    for _ in range(2):
        solve(model, FAST, steps=3)
        solve(model, LEAN, steps=2)
    assert looks == [1]


@pytest.mark.parametrize("tokens", [2, 3, 30])
def test_rows_of_any_length(tokens: int) -> None:
    ids = torch.arange(3, 3 + tokens)[None] % 16 + 3
    for function, refused in ((SavedStatistic, True), (WholeFunction, False)):
        model = fused("llama", function, torch.float32)
        lora = BoundLora(model, "inner")
        loss = TokenLoss(
            model, lora.function, TokenBatch(ids, torch.ones_like(ids), ids, torch.zeros(1, dtype=torch.int64))
        )
        with lora.inactive():
            if refused:
                with pytest.raises(UnsupportedModelError, match="leaves terms out"):
                    loss.require_second_order(lora.start(1))
            else:
                loss.require_second_order(lora.start(1))


def test_the_measure() -> None:
    """By hand: of H = [[2, a], [0, 3]], which is symmetric for a = 0 alone."""
    for a, right in ((0.0, True), (0.5, False)):
        matrix, x = torch.tensor([[2.0, a], [0.0, 3.0]]), torch.zeros(2, requires_grad=True)
        found = symmetry.asymmetry([matrix @ x], [x])
        assert found < 1e-6 if right else found > 1e-2
