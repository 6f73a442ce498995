"""Binding a PEFT adapter to the core: the same function as PEFT's own, and everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_models import (
    TARGETS,
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

from hf_mass.core import trees
from hf_mass.errors import ConfigError, UnsupportedModelError
from hf_mass.lm.binding import BoundLora, add_lora, deterministic

KINDS = ("llama", "gpt2", "qwen2")


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(0))


def state_of(model: PeftModel) -> dict[str, object]:
    """Everything that a context could leave changed."""
    return {
        "active": {n: list(m.active_adapters) for n, m in model.named_modules() if isinstance(m, LoraLayer)},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "training": {n: m.training for n, m in model.named_modules()},
        "gradients": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "values": {n: p.detach().double().sum().item() for n, p in model.named_parameters()},
        "model": list(model.active_adapters),
    }


# -- the same function as PEFT's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_task", [[0, 0, 0], [0, 1, 1], [1, 0, 1]])
@pytest.mark.parametrize("kind", KINDS)
def test_applied_equals_the_active_adapter(kind: str, row_task: list[int]) -> None:
    """Each row against PEFT with that task's matrices written into the adapter."""
    model = lora_model(kind)
    lora, ids = BoundLora(model, "inner"), tokens()
    start = lora.start(2)
    params = trees.add(start, random_tree(start, torch.Generator().manual_seed(1)))
    with lora.applied(params, torch.tensor(row_task)):
        found = model(input_ids=ids).logits
    own = dict(model.named_parameters())
    for task in (0, 1):
        with torch.no_grad():
            for name, leaf in params.items():
                own[name].copy_(leaf[task])
        mine = torch.tensor(row_task) == task
        assert relative_error(found[mine], model(input_ids=ids).logits[mine]) < 1e-12


def test_start_is_the_adapter_itself() -> None:
    model = lora_model("llama")
    lora, ids = BoundLora(model, "inner"), tokens()
    expected = model(input_ids=ids).logits
    with lora.applied(lora.start(), torch.zeros(3, dtype=torch.int64)):
        assert relative_error(model(input_ids=ids).logits, expected) < 1e-14
    with lora.inactive(), model.disable_adapter():
        assert relative_error(model(input_ids=ids).logits, expected) > 1e-3


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 9}}]
)
def test_scaling_and_rank_of_each_layer(changes: dict[str, object]) -> None:
    model = lora_model("llama", config=lora_config("llama", **changes))
    lora, ids = BoundLora(model, "inner"), tokens()
    expected = model(input_ids=ids).logits
    with lora.applied(lora.start(3), torch.arange(3)):
        assert relative_error(model(input_ids=ids).logits, expected) < 1e-13


def test_other_adapters_stay_active() -> None:
    model = lora_model("llama", adapters=("generator", "inner"))
    lora, ids = BoundLora(model, "inner"), tokens()
    model.base_model.set_adapter(["generator", "inner"])
    expected = model(input_ids=ids).logits
    for active in (["generator", "inner"], ["inner", "generator"], ["generator"]):
        model.base_model.set_adapter(active)
        before = state_of(model)
        with lora.applied(lora.start(), torch.zeros(3, dtype=torch.int64)):
            assert relative_error(model(input_ids=ids).logits, expected) < 1e-13
        assert state_of(model) == before


def test_without_any_active_adapter() -> None:
    model = lora_model("llama", adapters=("generator", "inner"))
    lora, ids = BoundLora(model, "inner"), tokens()
    model.set_adapter("inner")
    expected = model(input_ids=ids).logits
    model.base_model.set_adapter([])
    with lora.applied(lora.start(), torch.zeros(3, dtype=torch.int64)):
        assert relative_error(model(input_ids=ids).logits, expected) < 1e-13


def test_generation_with_a_cache_sees_the_updates() -> None:
    model = lora_model("llama")
    lora, ids = BoundLora(model, "inner"), tokens(2)
    start = lora.start(2)
    params = trees.add(start, random_tree(start, torch.Generator().manual_seed(1)))
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with lora.applied(params, torch.tensor([1, 0])):
        cached = model.generate(input_ids=ids, **settings)
        whole = model.generate(input_ids=ids, use_cache=False, **settings)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, model.generate(input_ids=ids, **settings))


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "tree"), [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
)
def test_start_is_float32_or_wider(base: torch.dtype, tree: torch.dtype) -> None:
    config = lora_config("llama")
    model = get_peft_model(base_model("llama", base), config, adapter_name="inner", autocast_adapter_dtype=False)
    start = BoundLora(model, "inner").start(3)
    assert {leaf.dtype for leaf in start.values()} == {tree}
    assert {leaf.shape[0] for leaf in start.values()} == {3}
    assert len(start) == 2 * 2 * len(TARGETS["llama"])
    assert not any(leaf.requires_grad for leaf in start.values())


def test_adapting_does_not_change_the_adapter() -> None:
    model = lora_model("gpt2")
    lora = BoundLora(model, "inner")
    before = state_of(model)
    leaves = trees.leaves(lora.start(2))
    with lora.applied(leaves, torch.tensor([0, 1])):
        torch.autograd.grad(model(input_ids=tokens(2)).logits.square().sum(), list(leaves.values()))
    assert state_of(model) == before


def test_state_dict_is_a_peft_adapter(tmp_path: object) -> None:
    """One task's matrices under PEFT's names give PEFT that task's answers."""
    model = lora_model("llama")
    lora, ids = BoundLora(model, "inner"), tokens()
    start = lora.start(2)
    params = trees.add(start, random_tree(start, torch.Generator().manual_seed(1)))
    state = lora.state_dict(params, 1)
    assert all(leaf.is_contiguous() and leaf.dim() == 2 for leaf in state.values())
    with lora.applied(params, torch.ones(3, dtype=torch.int64)):
        expected = model(input_ids=ids).logits
    other = get_peft_model(base_model("llama"), lora_config("llama"), adapter_name="default")
    from_peft = other.load_state_dict(
        {name.replace(".weight", ".default.weight"): leaf for name, leaf in state.items()}, strict=False
    )
    assert not from_peft.unexpected_keys
    assert not [name for name in from_peft.missing_keys if "lora_" in name]
    assert relative_error(other.eval()(input_ids=ids).logits, expected) < 1e-13


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [["inner"], ["generator"], ["generator", "inner"], []])
def test_nothing_is_left_after_the_context(active: list[str]) -> None:
    model = lora_model("llama", adapters=("generator", "inner"))
    lora, ids = BoundLora(model, "inner"), tokens()
    model.base_model.set_adapter(active)
    before, expected = state_of(model), model(input_ids=ids).logits
    with lora.applied(lora.start(3), torch.arange(3)):
        model(input_ids=ids)
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="stop"), lora.applied(lora.start(3), torch.arange(3)):
        raise RuntimeError("stop")
    assert state_of(model) == before
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_inactive_can_be_nested() -> None:
    model = lora_model("llama")
    lora = BoundLora(model, "inner")
    before = state_of(model)
    with lora.inactive(), lora.inactive(), lora.applied(lora.start(), torch.zeros(1, dtype=torch.int64)):
        assert all(layer.active_adapters == [] for layer in lora.layers.values())
    assert state_of(model) == before


def test_deterministic_puts_every_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), deterministic(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == before
    assert any(before) and not all(before)


# -- adding an adapter -------------------------------------------------------------------------------------------------


def test_an_added_adapter_is_neither_active_nor_trained() -> None:
    model = get_peft_model(base_model("llama"), lora_config("llama"), adapter_name="generator")
    expected, trained = model(input_ids=tokens()).logits, {n for n, p in model.named_parameters() if p.requires_grad}
    add_lora(model, "inner", lora_config("llama", target_modules=["v_proj", "o_proj"]))
    randomise_lora(model)
    assert model.active_adapters == ["generator"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert {name.rsplit(".", 1)[-1] for name in BoundLora(model, "inner").layers} == {"v_proj", "o_proj"}
    before = model(input_ids=tokens()).logits
    assert not torch.equal(before, expected)  # the generator is active
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".inner." in name:
                parameter.fill_(7.0)
    assert torch.equal(model(input_ids=tokens()).logits, before)  # the added adapter is not


def test_targets_that_match_nothing_are_named() -> None:
    model = get_peft_model(base_model("llama"), lora_config("llama"), adapter_name="generator")
    with pytest.raises(ConfigError, match=r"called \['down_proj', 'gate_proj', 'k_proj', 'lm_head',") as caught:
        add_lora(model, "inner", lora_config("llama", target_modules=["c_attn"]))
    assert "(of the 'inner' adapter) {'c_attn'} match no module" in str(caught.value)


def test_linear_maps_of_gpt2_are_named() -> None:
    model = get_peft_model(base_model("gpt2"), lora_config("gpt2"), adapter_name="generator")
    with pytest.raises(ConfigError, match=r"called \['c_attn', 'c_fc', 'c_proj', 'lm_head'\]"):
        add_lora(model, "inner", lora_config("gpt2", target_modules=["q_proj"]))


def test_a_failed_addition_leaves_the_model_as_it_was() -> None:
    model = lora_model("llama")
    before, adapters = state_of(model), list(model.peft_config)
    with pytest.raises(ConfigError):
        add_lora(model, "other", lora_config("llama", target_modules=["nothing"]))
    assert state_of(model) == before and list(model.peft_config) == adapters
    add_lora(model, "other", lora_config("llama"))


def test_other_errors_of_peft_pass_through() -> None:
    model = lora_model("llama")
    with pytest.raises(ValueError, match="r") as caught:
        add_lora(model, "other", LoraConfig(r=0, target_modules=["q_proj"]))
    assert not isinstance(caught.value, ConfigError)


# -- what is refused ---------------------------------------------------------------------------------------------------


def bind(**changes: object) -> BoundLora:
    return BoundLora(lora_model("llama", torch.float32, config=lora_config("llama", **changes)), "inner")


def test_unknown_adapter() -> None:
    model = lora_model("llama", adapters=("generator", "inner"))
    with pytest.raises(ConfigError, match=r"adapter 'outer' is not in the model; it has \['generator', 'inner'\]"):
        BoundLora(model, "outer")


def test_dropout_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"q_proj has LoRA dropout 0.1 for adapter 'inner'.*lora_dropout=0"):
        bind(lora_dropout=0.1)


def test_dora_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"q_proj uses a LoRA variant \(such as DoRA\).*use_dora=False"):
        bind(use_dora=True)


def test_embeddings_are_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"embed_tokens \(Embedding\) carries adapter 'inner' in a form other"
    ):
        bind(target_modules=["q_proj", "embed_tokens"])


def test_adapted_parameters_are_refused() -> None:
    """PEFT can adapt a parameter of any module; the low-rank update is then not a map of the module's output."""
    with pytest.raises(UnsupportedModelError, match=r"carries adapter 'inner' in a form other than two linear maps"):
        bind(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"])


def test_lora_biases_are_refused() -> None:
    config = lora_config("qwen2", lora_bias=True, target_modules=["q_proj"])
    model = lora_model("qwen2", config=config)
    with pytest.raises(UnsupportedModelError, match=r"q_proj has a bias on its low-rank path.*lora_bias=False"):
        BoundLora(model, "inner")


@pytest.mark.parametrize(
    ("field", "value"), [("modules_to_save", ["lm_head"]), ("trainable_token_indices", {"embed_tokens": [1, 2]})]
)
def test_weights_beside_the_matrices_are_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"adapter 'inner' has {field}=.*Leave {field} unset"):
        bind(**{field: value})


def test_another_adapter_may_have_what_is_refused() -> None:
    """Only the bound adapter goes through the inner loop; the generator's may be anything."""
    config = lora_config("llama", lora_dropout=0.1, use_dora=True)
    model = get_peft_model(base_model("llama", torch.float32), config, adapter_name="generator")
    add_lora(model, "inner", lora_config("llama"))
    lora = BoundLora(model.eval(), "inner")
    randomise_lora(model)
    start = lora.start()
    with lora.applied(start, torch.zeros(3, dtype=torch.int64)):
        found = model(input_ids=tokens()).logits
    model.base_model.set_adapter(["generator", "inner"])
    assert relative_error(found.detach(), model(input_ids=tokens()).logits.detach()) < 1e-5
    assert tree_error(lora.start(), start) == 0


STATES: dict[str, tuple[Callable[[PeftModel], Any], str]] = {
    "merged": (lambda model: model.merge_adapter(), r"has adapters \['inner'\] merged into it\. Call unmerge_adapter"),
    "other merged": (lambda model: model.merge_adapter(["other"]), r"has adapters \['other'\] merged"),
    "disabled": (lambda model: model.base_model.disable_adapter_layers(), "has its adapters disabled"),
    "scaled": (
        lambda model: [x.scale_layer(2.0) for x in model.modules() if isinstance(x, LoraLayer)],
        "has scale 3, and lora_alpha and r give 1.5",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_an_adapter_that_answers_otherwise_than_its_config_says_is_refused(state: str) -> None:
    """A merged one would be added twice, and a scaled one be saved at another scale."""
    change, message = STATES[state]
    model = lora_model("llama", adapters=("inner", "other"))
    change(model)
    with pytest.raises(UnsupportedModelError, match=message):
        BoundLora(model, "inner")


def test_trained_biases_are_refused_where_there_are_some() -> None:
    config = lora_config("qwen2", bias="all")
    model = get_peft_model(base_model("qwen2"), config, adapter_name="inner")
    with pytest.raises(UnsupportedModelError, match="has bias='all': trained biases would be lost"):
        BoundLora(model, "inner")
    BoundLora(get_peft_model(base_model("llama"), lora_config("llama", bias="all"), adapter_name="inner"), "inner")
