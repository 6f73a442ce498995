"""Bases in the forms that people have: GGUF files, quantised weights, multimodal models."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import byte_tokenizer
from model_forms import multimodal, rounded, tiny_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BlipConfig, BlipForConditionalGeneration, PreTrainedModel

import hf_mass
from hf_mass import TTT, Task
from hf_mass.errors import CheckpointError, ConfigError, HFMassError, ModelWarning, UnsupportedModelError
from hf_mass.lm import base_models, gguf
from hf_mass.lm.base_models import load_base, load_tokenizer
from hf_mass.lm.config_values import require_sane
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.special_tokens import tokens_without_rows
from hf_mass.store.shipped import ASSETS

TASK = Task.from_pairs([("ab", "b"), ("cd", "d"), ("ef", "f")], "gh", "h")
QUICK = TTT(preset="text", max_examples=4, max_completion_length=4)
IDS = torch.arange(3, 60)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapts_and_is_loaded_again(lm: LanguageModel, folder: Path) -> None:
    adaptation = hf_mass.adapt(lm, TASK, QUICK)
    assert adaptation.reason is None and adaptation.losses
    adaptation.save(folder)
    again = hf_mass.load(folder, device="cpu")  # the base is found by the name that the adapter keeps
    with adaptation.applied():
        torch.testing.assert_close(logits(again.model), logits(lm.model), rtol=1e-3, atol=1e-3)


# -- GGUF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_gguf_file_is_an_ordinary_float_model(tiny_gguf: Path, tmp_path: Path, by_folder: bool) -> None:
    lm = hf_mass.load(tiny_gguf.parent if by_folder else tiny_gguf, device="cpu")
    original = tiny_llama()
    expected = logits(rounded(tiny_llama()))
    torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
    assert (logits(original) - expected).abs().max() > 1e-3  # it was quantised indeed
    base = lm.model.get_base_model()
    assert torch.equal(base.get_input_embeddings().weight, original.get_input_embeddings().weight)  # kept in float32
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert not hasattr(base.config, "quantization_config") and lm.precision == "float32"
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    assert lm.tokenizer("cd", add_special_tokens=False)["input_ids"] == byte_tokenizer()("cd")["input_ids"]
    adapts_and_is_loaded_again(lm, tmp_path / "adapted")


def test_the_precision_of_a_gguf_model_may_be_chosen(tiny_gguf: Path) -> None:
    lm = hf_mass.load(tiny_gguf, dtype="bfloat16", device="cpu")
    assert (lm.precision, lm.precision_reason) == ("bfloat16", "as asked")


def test_gguf_files_of_no_use(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_gguf.parent / "other.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds 2 \.gguf files \(other\.gguf, tiny\.gguf\)\. Name one of them"):
        hf_mass.load(tiny_gguf.parent)
    with pytest.raises(CheckpointError, match=r"no file .*missing\.gguf"):
        hf_mass.load(tmp_path / "missing.gguf")
    with pytest.raises(CheckpointError, match=r"other\.gguf.* is damaged, or no model that transformers reads"):
        hf_mass.load(tiny_gguf.parent / "other.gguf")
    with pytest.raises(ConfigError, match=r"quantization_config is given, but the weights of a \.gguf file"):
        hf_mass.load(tiny_gguf, quantization_config={})
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs gguf\. Run: pip install "hf_mass\[gguf\]"'):
        hf_mass.load(tiny_gguf)


@pytest.mark.real
@pytest.mark.skipif("HF_MASS_REAL_GGUF" not in os.environ, reason="HF_MASS_REAL_GGUF names no GGUF file")
def test_a_real_gguf_file() -> None:
    lm = hf_mass.load(os.environ["HF_MASS_REAL_GGUF"], device="cpu")
    assert 134e6 < lm.size < 135e6 and lm.context == 8192
    task = Task.from_pairs([("walk", "walked"), ("play", "played"), ("go", "went"), ("look", "looked")], "jump")
    assert str(hf_mass.solve(lm, task, "none").answers[0]) == "jumped"


# -- quantised ---------------------------------------------------------------------------------------------------------


def quantizations() -> dict[str, Any]:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed (hf_mass[quantized])")
    return {"8": torchao.Int8WeightOnlyConfig(), "4": torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4)}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("bits", ["8", "4"])
def test_a_quantised_base(bits: str, saved: bool, tmp_path: Path) -> None:
    from transformers import TorchAoConfig

    folder, settings = tmp_path / "base", {"quantization_config": TorchAoConfig(quantizations()[bits])}
    tiny_llama().save_pretrained(folder)
    if saved:
        quantised = AutoModelForCausalLM.from_pretrained(folder, **settings)
        quantised.save_pretrained(tmp_path / "quantised")
        folder, settings = tmp_path / "quantised", {}
    byte_tokenizer().save_pretrained(folder)
    lm = hf_mass.load(folder, device="cpu", **settings)
    assert (lm.precision, lm.precision_reason) == (f"{bits}-bit torchao", "as it is quantised")
    assert lm.size == sum(p.numel() for p in tiny_llama().parameters())
    plain = tiny_llama()  # with the float weights that the quantised ones stand for
    for name, module in lm.model.get_base_model().named_modules():
        if name.endswith("_proj"):
            weight = module.get_base_layer().weight
            assert weight.dtype == torch.float32 and "Tensor" in type(weight).__name__
            plain.get_submodule(name).weight = torch.nn.Parameter(weight.dequantize())
    torch.testing.assert_close(logits(lm.model), logits(plain), rtol=1e-4, atol=1e-4)
    assert (logits(plain) - logits(tiny_llama())).abs().max() > 1e-3  # it is quantised indeed
    other = hf_mass.load(plain, byte_tokenizer())
    losses = [hf_mass.adapt(each, TASK, QUICK).losses for each in (lm, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_weights_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_: object, **__: object) -> None:
        raise ImportError("Loading a torchao model requires torchao.")

    tiny_llama().save_pretrained(tmp_path)
    monkeypatch.setattr(base_models.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match=r'requires torchao.*pip install "hf_mass\[quantized\]"'):
        load_base(tmp_path)


# -- multimodal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_vl", "qwen3_vl"])
def test_the_language_model_of_a_multimodal_one(kind: str, tmp_path: Path) -> None:
    whole = multimodal(kind)
    whole.save_pretrained(tmp_path / "whole")
    byte_tokenizer().save_pretrained(tmp_path / "whole")
    lm = hf_mass.load(tmp_path / "whole", device="cpu")
    assert torch.equal(logits(lm.model), logits(whole))  # on text
    assert type(lm.model.get_base_model()).__name__.endswith("ForCausalLM")
    text = whole.get_decoder()
    assert lm.size == sum(p.numel() for p in {*text.parameters(), *whole.get_output_embeddings().parameters()})
    assert lm.context == 512
    adapts_and_is_loaded_again(lm, tmp_path / "adapted")
    in_memory = hf_mass.load(whole, byte_tokenizer())
    assert torch.equal(logits(in_memory.model), logits(whole))
    weight = next(text.parameters())
    assert any(p.data_ptr() == weight.data_ptr() for p in in_memory.model.parameters())  # shared, not copied


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_multimodal_models_without_a_language_model_of_their_own_are_refused(tmp_path: Path) -> None:
    text = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    text |= {
        "num_attention_heads": 2,
        "encoder_hidden_size": 16,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8})
    folder = save(BlipForConditionalGeneration(config), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"language model of type 'blip_text_model'.*text alone"):
        hf_mass.load(folder, device="cpu")
    with pytest.raises(UnsupportedModelError, match="multimodal and quantised"):
        load_base(save(multimodal("llava"), tmp_path / "llava"), quantization_config={"quant_method": "torchao"})


# -- folders that are damaged or lie -----------------------------------------------------------------------------------

SMALL = ASSETS / "grids-small"
FIRST = "model.embed_tokens.weight"


def in_shards(folder: Path, change: Callable[[dict[str, Any]], object] = lambda index: None) -> None:
    """Two files and an index, which is changed."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[:9], "model-2-of-2.safetensors": names[9:]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, inside in parts.items() for name in inside}
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": placed}
    change(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_values(folder: Path, file: str = "config.json", **values: Any) -> None:
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))


def cut(folder: Path, end: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:end])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL, tmp_path / "small"))


ODD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"rope_theta": "x"}, r"rope_theta 'x', no number\. Correct it"),  # which transformers passes over
    ({"rope_theta": True}, "rope_theta True, no number"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}, "rope_parameters.rope_theta '10000', no nu"),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        "rope_parameters.rope_theta 0, which must be abov",
    ),
    ({"rope_parameters": {"rope_type": "x", "rope_theta": 1e4}}, "rope_parameters.rope_type 'x'"),
    ({"rope_parameters": {"rope_type": 5, "rope_theta": 1e4}}, "rope_parameters.rope_type 5, no text"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers '2', no whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers 0, outside 1 to 1000"),
    ({"vocab_size": 10.0}, "vocab_size 10.0, no whole number"),
    ({"num_attention_heads": "2"}, "num_attention_heads '2', no whole number"),
    ({"rms_norm_eps": 1e30}, r"rms_norm_eps 1e\+30, outside 0 to 1"),
    ({"rms_norm_eps": math.inf}, "rms_norm_eps inf, no finite number"),
    ({"dtype": "x"}, "dtype 'x', no dtype of torch"),
    ({"dtype": 5}, "dtype 5, no dtype of torch"),
    ({"hidden_act": "x"}, "hidden_act 'x', no activation"),
    ({"attention_bias": 5}, r"attention_bias 5 \(.*bool"),
    ({"eos_token_id": {}}, r"eos_token_id \{\} \("),
]
DAMAGED: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: with_weights(f, lambda w: w.pop(FIRST)), "of its weights are in none of its files .*random"),
    (lambda f: with_weights(f, lambda w: [w.update({f"x.{n}": w.pop(n)}) for n in list(w)]), "in none of its files"),
    (lambda f: with_values(f, tie_word_embeddings=False), r"1 of its weights .*lm_head\.weight"),
    (lambda f: with_values(f, num_hidden_layers=12), "in none of its files"),
    (lambda f: with_values(f, model_type="gpt2"), "in none of its files|could not be loaded"),
    (lambda f: with_weights(f, lambda w: w.update({FIRST: torch.zeros(2, 2)})), "of other shapes"),
    (lambda f: with_values(f, num_key_value_heads=1), "of other shapes"),
    (lambda f: with_values(f, vocab_size=10), "could not be loaded"),
    (lambda f: with_values(f, vocab_size="x"), "could not be loaded"),
    (lambda f: with_values(f, hidden_size=-4), "hidden_size -4, no whole number"),
    (lambda f: with_values(f, num_hidden_layers=10**9), "num_hidden_layers 1000000000, outside 1 to 1000"),
    (lambda f: with_values(f, rms_norm_eps=math.nan), "rms_norm_eps nan, no number"),
    (lambda f: with_values(f, sliding_window="x"), "sliding_window 'x', no number"),
    *((lambda f, v=v: with_values(f, **v[0]), f"config.json has {v[1]}") for v in ODD_VALUES),  # type: ignore[misc]
    *((lambda f, end=end: cut(f, end), "could not be loaded|is damaged") for end in (0, 7, 200, -9)),  # type: ignore[misc]
    (lambda f: in_shards(f, lambda i: i["weight_map"].update({FIRST: "../x.safetensors"})), "of this folder"),
    (lambda f: in_shards(f, lambda i: i["weight_map"].update({FIRST: "/x.safetensors"})), "of this folder"),
    (lambda f: in_shards(f, lambda i: i["weight_map"].update({FIRST: "x.bin"})), "of this folder"),
    (lambda f: in_shards(f, lambda i: i["weight_map"].update({FIRST: 5})), "of this folder"),
    (lambda f: in_shards(f, lambda i: i.update(weight_map=[1])), "has no weight_map"),
    (lambda f: (in_shards(f), (f / "model-2-of-2.safetensors").unlink()), "could not be loaded"),
    (lambda f: (f / "tokenizer_config.json").unlink(), "neither a padding nor an end-of-sequence token"),
    (lambda f: with_values(f, "tokenizer_config.json", model_max_length="x"), "model_max_length is 'x', and no number"),
    (lambda f: with_values(f, "tokenizer_config.json", chat_template=5), "chat_template is 5, and no text"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_damaged_bases_are_refused_in_a_line(damage: Callable[[Path], object], message: str, small: Path) -> None:
    damage(small)
    with pytest.raises(HFMassError, match=message) as caught:
        hf_mass.load(small, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_heads_that_do_not_divide_the_hidden_size(small: Path) -> None:
    with_values(small, num_attention_heads=7)
    with pytest.raises(CheckpointError, match=r"config\.json: .*hidden size \(\d+\).*attention heads \(7\)"):
        hf_mass.load(small, device="cpu")


def test_a_tokenizer_of_more_tokens_than_the_base_has_rows(small: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(15)
    model.save_pretrained(small)
    with pytest.raises(CheckpointError, match=r"the tokenizer has 24 tokens, .* 15 rows of embeddings, so 9"):
        hf_mass.load(small, device="cpu")


def test_added_tokens_without_rows(small: Path) -> None:
    """Gemma 3 comes with a token for images beyond its rows, which no text is made of; a word that was added is."""
    tokenizer = load_tokenizer(small)
    assert tokens_without_rows(tokenizer, 24) == 0 < tokens_without_rows(tokenizer, 23)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokens_without_rows(tokenizer, 24) == 0
    tokenizer.chat_template = "{{ messages }}<image>"
    assert tokens_without_rows(tokenizer, 24) == 1
    tokenizer.add_tokens(["word"])
    assert tokens_without_rows(tokenizer, 24) == 2


def test_shards_of_its_own_and_what_is_left_over(small: Path) -> None:
    expected = logits_of_small(small)
    in_shards(small)
    assert torch.equal(logits_of_small(small), expected)
    with_values(small, num_hidden_layers=1)
    with pytest.warns(ModelWarning, match="weights in its files are no part of the model that its config.json"):
        hf_mass.load(small, device="cpu")


def logits_of_small(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return hf_mass.load(folder, device="cpu").model(input_ids=torch.arange(3, 20)[None]).logits


def test_switches_of_a_config_are_no_numbers() -> None:
    require_sane({"use_dropout": True, "sliding_window": False, "do_layer_norm_before": True}, "folder")
    with pytest.raises(CheckpointError, match=r"config\.json has attention_dropout True, no number"):
        require_sane({"attention_dropout": True}, "folder")
