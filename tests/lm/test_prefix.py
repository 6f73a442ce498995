"""A common beginning of prompts is read once, and the completions are those of prompts read row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from hf_mass.lm.binding import BoundLora
from hf_mass.lm.generation import Sampling, complete
from hf_mass.lm.prefix import SHORTEST, Prefix

BEGINNING = list(range(5, 5 + SHORTEST + 7))
PROMPTS = [[*BEGINNING, *rest] for rest in ([40], [41, 42, 43], [44, 45], [46, 47, 48, 49, 50])]


def windowed_base(window: int) -> Any:
    """Gemma 3, every layer but the last with a sliding window."""
    shape = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    layers = {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"]}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, **heads, **layers, **ends, max_position_embeddings=1024))


def model_of(kind: str = "llama", **config: Any) -> Any:
    torch.manual_seed(0)
    base = windowed_base(int(kind.removeprefix("window "))) if kind.startswith("window") else byte_base(kind)
    for name, value in config.items():
        setattr(base.config, name, value)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base.double(), lora).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "window 60", "window 51", "window 20"])
@pytest.mark.parametrize("sampling", [Sampling(6, 0.0), Sampling(6, 1.0)], ids=["greedy", "sampled"])
def test_completions_are_those_of_rows_read_apart(kind: str, sampling: Sampling) -> None:
    model, tokenizer = model_of(kind), byte_tokenizer()
    lora, seeds = BoundLora(model, "default"), [1, 2, 3, 4]
    tree = {name: torch.randn_like(leaf) * 0.3 for name, leaf in lora.start(1).items()}
    with lora.applied(tree):
        apart = complete(model, tokenizer, PROMPTS, sampling, seeds)
        together = complete(model, tokenizer, PROMPTS, sampling, seeds, alike=True)
        alone = [complete(model, tokenizer, [p], sampling, [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == apart == alone
    assert len({tuple(row) for row in together}) > 1


def test_the_beginning_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = model_of(), byte_tokenizer()
    lengths: list[tuple[int, ...]] = []
    handle = model.get_base_model().model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: lengths.append(tuple(inputs[0].shape))
    )
    complete(model, tokenizer, PROMPTS, Sampling(3, 0.0), alike=True)
    handle.remove()
    assert lengths[0] == (1, len(BEGINNING)) and lengths[1] == (4, 5)
    assert all(shape == (4, 1) for shape in lengths[2:])


def test_what_cannot_be_shared_is_read_row_by_row() -> None:
    model = model_of()
    assert Prefix.read(model, PROMPTS) is not None
    assert Prefix.read(model, PROMPTS[:1]) is None  # one row
    assert Prefix.read(model, [[1, 2, 3], [1, 2, 4]]) is None  # too short
    assert Prefix.read(model, [BEGINNING, BEGINNING]).length == len(BEGINNING) - 1  # type: ignore[union-attr]
    for name, value in (("layer_types", ["linear_attention"] * 2), ("sliding_window", 8), ("state_size", 16)):
        other = model_of()
        setattr(other.config, name, value)
        assert Prefix.read(other, PROMPTS) is None


def test_a_sliding_window_shares_what_fits_into_it() -> None:
    longest = max(map(len, PROMPTS))
    model = model_of(f"window {longest + 7}")
    assert Prefix.read(model, PROMPTS, room=6) is not None
    assert Prefix.read(model, PROMPTS, room=7) is None
