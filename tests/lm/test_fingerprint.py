"""Digests of bases: of what answers, not of where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from model_fixtures import BASE, byte_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hf_mass.lm.base_models import load_base, load_tokenizer
from hf_mass.lm.fingerprint import base_digest


def test_a_copy_elsewhere_and_adapters_around_it_have_the_same(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "copy")
    tokenizer = load_tokenizer(BASE)
    expected = base_digest(load_base(BASE), tokenizer)
    base = load_base(tmp_path / "copy")
    assert base_digest(base, load_tokenizer(tmp_path / "copy")) == expected
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokenizer(["a", "b c"], padding=True)  # how it was last called is no part of it
    assert base_digest(model.get_base_model(), tokenizer) == expected


def test_one_weight_one_setting_another_tokenizer_are_told_apart(tmp_path: Path) -> None:
    tokenizer, found = load_tokenizer(BASE), {base_digest(load_base(BASE), load_tokenizer(BASE))}
    shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    found.add(base_digest(load_base(tmp_path / "other"), tokenizer))
    base = load_base(BASE)
    base.config.get_text_config().rms_norm_eps = 0.1
    found |= {base_digest(base, tokenizer), base_digest(load_base(BASE), byte_tokenizer())}
    found.add(base_digest(load_base(BASE).to(torch.bfloat16), tokenizer))
    assert len(found) == 5


def test_weights_are_read_once_and_again_when_they_were_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    base, reads = load_base(BASE), list[str]()
    weight = base.get_input_embeddings().weight
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, call=torch.Tensor.contiguous: reads.append("") or call(x))
    first = base_digest(base)
    assert reads and base_digest(base) == first
    read_once, _ = len(reads), reads.clear()
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert base_digest(base) == first and not reads  # with adapters around it too
    with torch.no_grad():
        weight[0, 0] += 1
    assert base_digest(base) != first and len(reads) == read_once
    with torch.no_grad():
        weight[0, 0] -= 1
    assert base_digest(base) == first
    base.config.get_text_config().rms_norm_eps = 0.1
    assert base_digest(base) != first
    base.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight.detach() + 1))
    assert base_digest(base) != first
