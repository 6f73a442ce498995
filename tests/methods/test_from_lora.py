"""MASS that starts from a LoRA: what the LoRA learned is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mass.errors import ConfigError
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.store.shipped import ASSETS

BASE = str(ASSETS / "strings-base")


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_lora_given_as_base_keeps_its_training(tmp_path: Path, with_tokenizer: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(str(tmp_path))
    if with_tokenizer:
        tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("Input: abc", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mass = MassModel.from_base(tmp_path, MassConfig())
        found, wanted = mass.model(ids).logits, model(ids).logits
        with model.disable_adapter():
            bare = model(ids).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, bare, atol=1e-2)
    with pytest.raises(ConfigError, match=r"is a LoRA already\. Leave out `generator`"):
        MassModel.from_base(tmp_path, MassConfig(), config)
