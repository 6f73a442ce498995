"""Adaptations of several shapes on one model: each stays what it was, whichever came after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import WORLD, byte_base, byte_tokenizer, conventions_model, equal_trees, text_task
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from ttt_fixtures import make_trainer, strip_task

import hf_mass
from hf_mass import MASS, TTT, Adaptation, LanguageModel, MassModel
from hf_mass.errors import DataError
from hf_mass.lm.language_model import replace_lora

SHAPE: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8, "learning_rate": 0.05, "max_completion_length": 4}
IDS = torch.tensor([[100, 101, 102, 103]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    byte_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(lm: LanguageModel, **changes: Any) -> Adaptation:
    return hf_mass.adapt(lm, text_task(), TTT(**{**SHAPE, **changes}), guard=False)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("then", [{"lora_alpha": 64}, {"lora_r": 8}, {"lora_target_modules": ["q_proj"]}])
def test_an_earlier_adaptation_is_saved_as_it_is(base: Path, tmp_path: Path, then: dict[str, Any]) -> None:
    lm = hf_mass.load(base, device="cpu")
    first = adapted(lm)
    with first.applied():
        expected = logits(lm.model)
    adapted(lm, **then)
    with first.applied():
        assert torch.equal(logits(lm.model), expected)
    first.save(tmp_path / "first")
    loaded = hf_mass.load(tmp_path / "first", device="cpu")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-5, atol=1e-5)
    assert loaded.model.peft_config["default"].lora_alpha == 8


@pytest.mark.parametrize("then", [{"inner_lora_alpha": 64}, {"inner_lora_r": 3}, {"inner_target_modules": ["q_proj"]}])
def test_settings_of_the_inner_lora_have_their_effect_and_pass(then: dict[str, Any]) -> None:
    mass, task = conventions_model(trained=True), WORLD.tasks("validation", 1)[0]
    before = hf_mass.adapt(mass, task, MASS(), guard=False)
    other = hf_mass.adapt(mass, task, MASS(**then), guard=False)
    alone = hf_mass.adapt(conventions_model(trained=True), task, MASS(**then), guard=False)
    after = hf_mass.adapt(mass, task, MASS(), guard=False)
    assert equal_trees(other.adapted, alone.adapted) and not equal_trees(other.adapted, before.adapted)
    assert equal_trees(after.adapted, before.adapted)
    if "inner_target_modules" in then:
        assert all(".q_proj." in name for name in other.adapted or {"": None})


def test_a_model_is_saved_with_its_own_inner_lora(tmp_path: Path) -> None:
    mass, task = conventions_model(trained=True), WORLD.tasks("validation", 1)[0]
    expected = mass.adapt(task).adapted
    MassModel.on(mass, replace(mass.config, inner=replace(mass.config.inner, lora_rank=3, target_modules=("q_proj",))))
    mass.save_pretrained(tmp_path / "saved")
    assert equal_trees(MassModel.from_pretrained(tmp_path / "saved").adapt(task).adapted, expected)


def test_the_active_adapter_stays_active() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(byte_base(), config, adapter_name="first")
    model.add_adapter("second", config)
    model.add_adapter("third", config)
    for active, replaced in (("second", "third"), ("second", "second"), ("third", "first")):
        model.set_adapter(active)
        replace_lora(model, replaced, LoraConfig(r=3, target_modules=["v_proj"], task_type="CAUSAL_LM"))
        assert (model.active_adapter, model.active_adapters) == (active, [active])


OTHERS: dict[str, dict[str, Any]] = {
    "was trained at scale 16 .lora_alpha / r., and this trainer has 2": {"lora_alpha": 64},
    "of other modules or of another rank": {"lora_r": 8, "lora_alpha": 16},
    "of other modules": {"lora_target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_record_of_another_lora_is_no_record_of_this_trainer(tmp_path: Path, message: str) -> None:
    task = strip_task("four")
    trainer, other = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", **OTHERS[message])
    record = other.adapt(task)
    with pytest.raises(DataError, match=message):
        trainer.predict([task], records=[record])
    trainer.save_adapter(record, tmp_path / "saved")  # with its own shape and scale
    with record.applied():
        expected = logits(other.model)
    loaded = PeftModel.from_pretrained(trainer.model.unload(), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    assert other.predict([task], records=[record])[0].reason is None
