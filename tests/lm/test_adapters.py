"""Adapted weights as PEFT adapters: what PEFT alone answers with them is what the adapted model answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import BASE, WORLD, byte_base, byte_tokenizer, conventions_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_mass.core.trees import tree_map
from hf_mass.engine.models import load
from hf_mass.errors import AdaptationError, CheckpointError, DataError
from hf_mass.lm.adapters import combined_adapter
from hf_mass.lm.binding import BoundLora, add_lora
from hf_mass.lm.generation import Sampling, complete
from hf_mass.store.adapters import write_adapter
from hf_mass.store.shipped import ASSETS


@pytest.mark.parametrize("trained", [False, True])
def test_peft_alone_answers_as_the_adapted_model(tmp_path: Path, trained: bool) -> None:
    mass = conventions_model(trained=trained)
    tasks = WORLD.tasks("validation", 4)
    for n, task in enumerate(tasks):
        record = mass.adapt(task)
        record.save(tmp_path / str(n))
        bare = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), str(tmp_path / str(n))).eval()
        prompt = mass.encoder.solver_prompt_ids(task)
        ids = torch.tensor([prompt])
        with torch.no_grad(), mass.adapter.lora.applied(record.adapted or {}, torch.tensor([0])):
            expected = mass.model(ids).logits
        with torch.no_grad():
            torch.testing.assert_close(bare(ids).logits, expected, rtol=1e-4, atol=1e-4)
        answer = mass.tokenizer.decode(
            complete(bare, mass.tokenizer, [prompt], Sampling(4, 0.0))[0], skip_special_tokens=True
        )
        assert answer == mass.solve(task, record).written


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_parts_of_other_ranks_scales_and_layers(tmp_path: Path, kind: str) -> None:
    first, second = ("q_proj", "down_proj"), ("q_proj", "v_proj")
    if kind == "gpt2":
        first, second = ("c_attn", "c_proj"), ("c_fc",)
    lora = LoraConfig(r=3, lora_alpha=8, target_modules=list(first), task_type="CAUSAL_LM", use_rslora=True)
    lora.rank_pattern = {first[0]: 5}
    model = get_peft_model(byte_base(kind), lora).eval()
    add_lora(model, "inner", LoraConfig(r=2, lora_alpha=3, target_modules=list(second), task_type="CAUSAL_LM"))
    parts = []
    for name in ("default", "inner"):
        bound = BoundLora(model, name)
        parts.append((bound, tree_map(lambda x: torch.randn(x.shape) * 0.3, bound.start(1))))
    config, weights = combined_adapter(parts)
    write_adapter(tmp_path, weights, config.to_dict())
    for bound, tree in parts:
        bound.load(tree)
    model.base_model.set_adapter(["default", "inner"])
    ids = byte_tokenizer()("abc", return_tensors="pt")["input_ids"]
    bare = PeftModel.from_pretrained(byte_base(kind), str(tmp_path)).eval()
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(bare(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(byte_base(kind)(ids).logits, expected, atol=1e-2)


def test_nothing_adapted_is_refused(tmp_path: Path) -> None:
    mass = conventions_model()
    generator = BoundLora(mass.model, "default")
    with pytest.raises(DataError, match="nothing to save"):
        combined_adapter([(generator, generator.start(1))])
    (task,) = WORLD.tasks("validation", 1)

    record = replace(mass.adapt(task), parts=(), reason="no usable sample")
    with pytest.raises(AdaptationError, match="no usable sample"):
        record.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_adapter_is_written_as_peft_writes_it(tmp_path: Path) -> None:
    model = get_peft_model(byte_base("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lora = BoundLora(model, "default")
    config, weights = model.peft_config["default"], lora.state_dict(lora.start(1), 0)
    model.save_pretrained(tmp_path / "peft")
    expected = json.loads((tmp_path / "peft" / "adapter_config.json").read_text()) | {"inference_mode": False}
    write_adapter(tmp_path / "new", weights, config.to_dict())
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text()) == expected
    again = load_file(tmp_path / "new" / "adapter_model.safetensors")
    torch.testing.assert_close(again, load_file(tmp_path / "peft" / "adapter_model.safetensors"), rtol=0, atol=0)


def test_a_tokenizer_that_is_no_file_is_not_taken_for_missing(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "conventions-mass", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").unlink(missing_ok=True)
    (tmp_path / "model" / "tokenizer_config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json is a folder, a pipe or a link to nothing"):
        load(tmp_path / "model")
