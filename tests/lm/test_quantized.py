"""A base with int8 weights under float32 LoRA: the same numbers as the float base that its weights stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_fixtures import BASE, WORLD, conventions_config, conventions_model, largest_difference
from peft import get_peft_model
from tiny_models import base_model, lora_config, random_batch, randomise_lora, relative_error, tree_error
from torch import nn

from hf_mass import MassModel
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.memory import FAST, LEAN, MemoryPlan
from hf_mass.core.meta_gradients import MetaGradient, get_rule
from hf_mass.core.optimizers import SGD
from hf_mass.core.token_loss import TokenLoss
from hf_mass.lm.binding import BoundLora

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed (hf_mass[quantized])")


def is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "lm_head" not in name


def meta_gradient(quantized: bool, plan: MemoryPlan) -> MetaGradient:
    base = base_model("llama", torch.float32, hidden=32)
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig(), filter_fn=is_linear)
    if not quantized:
        for name, module in base.named_modules():
            if is_linear(module, name):
                module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    model = get_peft_model(base, lora_config("llama"), adapter_name="inner").eval()
    randomise_lora(model)
    generator = torch.Generator().manual_seed(1)
    inner, outer = random_batch([0, 1, 0], generator), random_batch([0, 1], generator)
    lora = BoundLora(model, "inner")
    assert (type(next(iter(lora.layers.values()))).__name__ == "TorchaoLoraLinear") == quantized
    with lora.inactive():
        loss = TokenLoss(model, lora.function, inner, memory=plan)
        judge = WeightedLoss(TokenLoss(model, lora.function, outer, memory=plan), torch.ones(2))
        trajectory = InnerLoop(2, SGD(0.1)).run(loss, lora.start(2), torch.tensor([0.5, 0.3, 0.9]))
        return get_rule("adjoint")(trajectory, judge, start_gradient=True)


@pytest.mark.parametrize("plan", [FAST, LEAN, MemoryPlan(True, False)])
def test_meta_gradients_of_an_int8_base(plan: MemoryPlan) -> None:
    found, expected = meta_gradient(True, plan), meta_gradient(False, FAST)
    assert relative_error(found.attributions, expected.attributions) < 1e-4
    assert found.start_gradient is not None and expected.start_gradient is not None
    assert {leaf.dtype for leaf in found.start_gradient.values()} == {torch.float32}
    assert tree_error(found.start_gradient, expected.start_gradient) < 1e-4


def test_a_model_on_an_int8_base_adapts_solves_and_is_saved(tmp_path: Path) -> None:
    """Loaded the way that users quantise: a config given to `from_pretrained`."""
    from transformers import TorchAoConfig

    settings = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    mass = MassModel.from_base(str(BASE), conventions_config(), **settings)
    assert (
        "Int8" in type(mass.adapter.lora.layers[next(iter(mass.adapter.lora.layers))].get_base_layer().weight).__name__
    )
    tasks = WORLD.tasks("train", 4, seed=1)
    samples = mass.generate_auxiliary(tasks)
    records = mass.adapt(tasks, weigh_by="demonstrations", samples=samples)
    plain = conventions_model().adapt(tasks, weigh_by="demonstrations", samples=samples)
    for record, other in zip(records, plain, strict=True):
        assert record.adapted is not None and other.adapted is not None
        assert largest_difference(record.adapted, other.adapted) < 0.2  # int8 is coarser, and no more than that
    solved = mass.solve(tasks, records)
    mass.save_pretrained(tmp_path / "model")
    again = MassModel.from_pretrained(tmp_path / "model", base=str(BASE), **settings)
    assert [s.text for s in again.solve(tasks, records)] == [s.text for s in solved]
