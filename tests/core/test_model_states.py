"""States in which a model may be handed over: padded, noisy, recomputing, compiled, with sites that nothing calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import VOCABULARY, base_model, lora_config, lora_model, random_batch, randomise_lora, relative_error
from torch import nn
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from unrolled import PLANS, TASKS, batches, solve, tolerance, unroll

from hf_mass.core.losses import row_values
from hf_mass.core.memory import FAST, LEAN
from hf_mass.core.token_loss import TokenBatch, TokenLoss
from hf_mass.errors import DataError, ModelWarning, UnsupportedModelError
from hf_mass.lm.binding import BoundLora
from hf_mass.lm.language_model import sharing_weights

SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2}
KEPT: dict[str, Callable[[], nn.Module]] = {
    "rwkv": lambda: RwkvForCausalLM(
        RwkvConfig(**SHAPE, num_hidden_layers=2, attention_hidden_size=16, context_length=32, pad_token_id=0)
    ),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**SHAPE, pad_token_id=0, num_hidden_layers=3, num_attention_heads=2, lru_width=16)
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SHAPE, num_hidden_layers=2, state_size=4, pad_token_id=0)),
}


def stateful(kind: str) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = KEPT[kind]()
        for parameter in base.parameters():
            nn.init.normal_(parameter, std=0.4)
    targets = ["in_proj", "x_proj"] if kind == "mamba" else "all-linear"
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base.double(), config, adapter_name="inner").eval()
    randomise_lora(model)
    return model


@pytest.mark.parametrize("kind", KEPT)
def test_a_model_is_shared_after_any_pass(kind: str) -> None:
    """What a pass with a graph leaves in a module is no hindrance."""
    model, ids = stateful(kind), torch.tensor([[3, 4, 5]])
    expected = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(sharing_weights(model)(input_ids=ids, use_cache=False).logits, expected)


# -- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEPT)
def test_padding_in_front_of_a_state(kind: str) -> None:
    model = stateful(kind)
    expected = unroll(model, "left", 1, "sgd")
    for side in ("left", "right"):
        _, found = solve(model, FAST, side, steps=1)
        assert relative_error(found.attributions, unroll(model, side, 1, "sgd")[1]) < 2e-5
    assert (expected[1].abs() > 1e-7).all()


def test_padding_anywhere_is_moved_behind_the_text() -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 0, 6, 0, 7], [5, 6, 7, 0, 0]])
    mask = (ids > 0).long()
    labels = torch.where(ids > 5, ids, -100)
    batch = TokenBatch(ids, mask, labels, torch.tensor([0, 0, 0]))
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 0]] * 3
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0]] * 3
    assert batch.labels.tolist() == [[-100, 6, 7, -100, -100]] * 3
    assert batch.select(torch.tensor([1])).input_ids.tolist() == [[5, 6, 7]]
    with pytest.raises(DataError, match="row 0 has no answer token"):  # its first token follows none
        replace(batch, input_ids=ids, attention_mask=mask, labels=torch.where(ids == 5, ids, -100))


# -- noise -------------------------------------------------------------------------------------------------------------


def attention_dropout() -> PeftModel:
    return get_peft_model(base_model("llama", attention_dropout=0.5), lora_config("llama"), adapter_name="inner")


def module_dropout() -> PeftModel:
    model = lora_model("gpt2")
    model.get_base_model().transformer.h[1].mlp.dropout = nn.Dropout(0.2)
    return model


def noisy_embedding() -> PeftModel:
    """As NEFTune's: a hook in training mode."""
    model = lora_model("llama")
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: output + torch.rand_like(output) if module.training else output
    )
    return model


NOISY = {"attention": attention_dropout, "module": module_dropout, "embedding": noisy_embedding}


@pytest.mark.parametrize("kind", NOISY)
@pytest.mark.parametrize("plan", ["fast", "lean"])
@pytest.mark.parametrize("rule", ["adjoint", "unrolled"])
def test_a_noisy_model_is_refused(kind: str, plan: str, rule: str) -> None:
    model = NOISY[kind]()
    model.train()
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedModelError, match=r"drew random numbers.*training mode. Call model.eval\(\) first"):
        solve(model, PLANS[plan], rule=rule, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    solve(model.eval(), PLANS[plan], rule=rule, steps=1)


def test_what_drops_is_named() -> None:
    model = attention_dropout().train()
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn \(one of 2\) has dropout"):
        solve(model, FAST, steps=1)


def test_noise_in_evaluation_mode_is_refused_too() -> None:
    model = lora_model("llama")
    model.get_input_embeddings().register_forward_hook(lambda m, i, output: output + torch.rand_like(output))
    with pytest.raises(UnsupportedModelError, match="the model is in evaluation mode"):
        solve(model, FAST, steps=1)


# -- recomputing, compiled ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("plan", ["fast", "lean"])
def test_reentrant_checkpointing_in_training_mode(plan: str, steps: int) -> None:
    model = lora_model("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    _, found = solve(model, PLANS[plan], steps=steps)
    _, expected = solve(lora_model("llama"), FAST, steps=steps)
    assert relative_error(found.attributions, expected.attributions) < 1e-9
    assert functions == [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]


def compiled_in_place(model: PeftModel) -> PeftModel:
    model.compile(backend="aot_eager")
    return model


def compiled_base(model: PeftModel) -> PeftModel:
    model.get_base_model().compile(backend="aot_eager")
    return model


def compiled_layers(model: PeftModel) -> PeftModel:
    for layer in model.get_base_model().model.layers:
        layer.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("how", [compiled_in_place, compiled_base, compiled_layers])
def test_compiled_models(how: Callable[[PeftModel], PeftModel]) -> None:
    """Also those that ran before, whose code knows of no update."""
    model = how(lora_model("llama"))
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    with BoundLora(model, "inner").inactive(), torch.no_grad():
        model(input_ids=ids)
    for steps in (1, 2):
        _, found = solve(model, FAST, steps=steps)
        _, expected = solve(lora_model("llama"), FAST, steps=steps)
        assert relative_error(found.attributions, expected.attributions) < 1e-9


# -- sites that nothing calls ------------------------------------------------------------------------------------------


def with_idle_site(target: str = "idle") -> PeftModel:
    base = base_model("llama")
    base.model.layers[0].self_attn.idle = nn.Linear(16, 16).double()
    model = get_peft_model(base, lora_config("llama", target_modules=["q_proj", target]), adapter_name="inner").eval()
    randomise_lora(model)
    return model


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rule", ["adjoint", "unrolled"])
def test_an_idle_site_is_named_and_changes_nothing(rule: str, plan: str) -> None:
    with pytest.warns(ModelWarning, match=r"1 of 3 LoRA sites were not called \(first: .*self_attn\.idle\)"):
        adapted, found = solve(with_idle_site(), PLANS[plan], rule=rule)
    other = get_peft_model(base_model("llama"), lora_config("llama", target_modules=["q_proj"]), adapter_name="inner")
    randomise_lora(other)
    names = [name for name, _ in other.named_parameters() if ".inner." in name]
    own = dict(with_idle_site().named_parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in names:
                parameter.copy_(own[name])
    _, expected = solve(other.eval(), FAST)
    assert relative_error(found.attributions, expected.attributions) < 1e-9
    assert found.start_gradient is not None
    idle = [name for name in adapted if ".idle." in name]
    assert len(idle) == 2 and all(relative_error(adapted[n], own_start(own, n)) == 0 for n in idle)


def own_start(own: dict[str, Any], name: str) -> torch.Tensor:
    return own[name].detach()[None].expand(2, -1, -1)


def test_a_model_that_calls_no_site_is_refused() -> None:
    base = base_model("llama")
    base.model.layers[0].self_attn.idle = nn.Linear(16, 16).double()
    model = get_peft_model(base, lora_config("llama", target_modules=["idle"]), adapter_name="inner").eval()
    lora, batch = BoundLora(model, "inner"), random_batch(TASKS, torch.Generator().manual_seed(0))
    with lora.inactive(), pytest.raises(UnsupportedModelError, match="1 of 1 LoRA sites were not called"):
        row_values(TokenLoss(model, lora.function, batch, memory=LEAN), lora.start(2))


def test_the_bounds_are_those_of_the_other_tests() -> None:
    assert tolerance("llama") == 1e-9 and len(batches()[0]) == len(TASKS)
