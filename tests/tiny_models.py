"""Tiny causal language models with LoRA adapters, and a model of two parameters, for tests that need exact arithmetic.

In float64 two of transformers' modules are replaced, RMSNorm and the rotary embedding: both compute in float32
whatever the model's dtype, and their rounding would hide everything below about 1e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_mass.core.losses import Curvature
from hf_mass.core.second_order import double_backward
from hf_mass.core.token_loss import IGNORED, TokenBatch
from hf_mass.core.trees import Tree

VOCABULARY = 19
LENGTH = 32  # longest sequence
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "mistral": "all-linear",
    "qwen3": "all-linear",
    "gemma3": "all-linear",
    "phi3": "all-linear",
}
ARCHITECTURES = tuple(TARGETS)


MODERN: dict[str, tuple[Any, Any]] = {
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}


class WideRMSNorm(nn.Module):
    """Root-mean-square normalisation in the dtype of its input."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon))


class WideRotaryEmbedding(nn.Module):
    """Rotary angles in the dtype of the hidden states."""

    def __init__(self, inverse_frequencies: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("inverse_frequencies", inverse_frequencies.double(), persistent=False)
        self.scale = scale

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].to(x.dtype) * self.inverse_frequencies.to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.scale, angles.sin() * self.scale


def base_model(
    kind: str, dtype: torch.dtype = torch.float64, layers: int = 2, hidden: int = 16, **changes: object
) -> PreTrainedModel:
    """A randomly initialised model of one of `ARCHITECTURES` in evaluation mode; the same weights at every call."""
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    modern = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LENGTH,
    }
    with torch.random.fork_rng():
        torch.manual_seed(20)
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape, **modern, initializer_range=0.3, **changes))
        elif kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape, **modern, initializer_range=0.3, tie_word_embeddings=True))
        elif kind == "gpt2":
            config = {"n_positions": LENGTH, "n_embd": hidden, "n_layer": layers, "n_head": 2, "initializer_range": 0.2}
            dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            model = GPT2LMHeadModel(GPT2Config(**shape, **config, **dropout))
        else:
            own = {"gemma3": {"sliding_window": 4, "head_dim": 8}, "mistral": {"sliding_window": 4}}
            own["qwen3"] = {"head_dim": 8}
            config_class, model_class = MODERN[kind]
            model = model_class(config_class(**shape, **modern, **own.get(kind, {}), initializer_range=0.3))
    if dtype == torch.float64:
        _widen(model)
    return model.to(dtype).eval()


def _widen(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                setattr(parent, name, WideRMSNorm(child.weight, child.variance_epsilon))
            elif type(child).__name__.endswith("RotaryEmbedding") and hasattr(child, "inv_freq"):
                setattr(parent, name, WideRotaryEmbedding(child.inv_freq, child.attention_scaling))


def lora_config(kind: str, rank: int = 2, alpha: int = 3, **changes: object) -> LoraConfig:
    """LoRA on most linear maps, with a scaling that is not one."""
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": TARGETS[kind], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, "fan_in_fan_out": kind == "gpt2", **changes})


def lora_model(
    kind: str,
    dtype: torch.dtype = torch.float64,
    adapters: tuple[str, ...] = ("inner",),
    config: LoraConfig | None = None,
    **shape: int,
) -> PeftModel:
    """A PEFT model in evaluation mode whose adapters all have a non-zero B; the first one is active."""
    model = get_peft_model(base_model(kind, dtype, **shape), config or lora_config(kind), adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, config or lora_config(kind))
    randomise_lora(model)
    return model.eval()


def randomise_lora(model: PeftModel, scale: float = 0.3, seed: int = 21) -> None:
    """Fill every LoRA matrix with normal noise, the same at every call and, up to rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(scale * noise)


def random_batch(
    row_task: Sequence[int], generator: torch.Generator, side: str = "right", shortest: int = 2, longest: int = 7
) -> TokenBatch:
    """Rows of random tokens and lengths; each ends in one or more answer tokens. Padding holds real token ids."""
    rows, ids = len(row_task), torch.randint(3, VOCABULARY, (len(row_task), longest), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row in range(rows):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        answer = int(torch.randint(1, length, (), generator=generator))
        first = longest - length if side == "left" else 0
        mask[row, first : first + length] = 1
        labels[row, first + length - answer : first + length] = ids[row, first + length - answer : first + length]
    return TokenBatch(ids, mask, labels, torch.tensor(row_task, dtype=torch.int64))


def random_tree(like: Tree, generator: torch.Generator, scale: float = 0.3) -> Tree:
    """Normal noise of the shapes and dtypes of `like`."""
    return {
        name: scale * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
        for name, leaf in like.items()
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected magnitude (over one where all of `expected` is zero)."""
    assert found.shape == expected.shape and found.isfinite().all()
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item() or 1.0
    return ((found - expected).abs().max() / scale).item()


def tree_error(found: Tree, expected: Tree) -> float:
    """The largest relative error of any leaf."""
    assert found.keys() == expected.keys()
    return max(relative_error(found[name], expected[name]) for name in expected)


@dataclass
class ToyLoss:
    """`RowLoss` without a language model: ½ (curve(x_r · w + b) − y_r)² with leaves w [N, d] and b [N].

    Args:
        inputs: x [R, d].
        targets: y [R].
        row_task: [R] int64.
        microbatch: Rows of one pass; None for all.
        curve: Applied to the prediction; the identity makes the inner problem quadratic.
        second_order: Filled with the flag of every pass.
    """

    inputs: Tensor
    targets: Tensor
    row_task: Tensor
    microbatch: int | None = None
    curve: Callable[[Tensor], Tensor] = torch.positive
    second_order: list[bool] = field(default_factory=list)

    keep_row_gradients: bool = True

    def microbatches(self, second_order: bool = False) -> Iterator[Tensor]:
        yield from torch.arange(len(self.targets)).split(self.microbatch or max(1, len(self.targets)))

    @contextmanager
    def evaluate(self, params: Tree, rows: Tensor, row_task: Tensor, second_order: bool) -> Iterator[Tensor]:
        self.second_order.append(second_order)
        prediction = (self.inputs[rows] * params["w"][row_task]).sum(1) + params["b"][row_task]
        yield 0.5 * (self.curve(prediction) - self.targets[rows]).square()

    def at_step(self, step: int) -> ToyLoss:
        return self

    def curvature(
        self, params: Tree, rows: Tensor, coefficients: Tensor, direction: Tree, also: Sequence[Tensor] = ()
    ) -> Curvature:
        return double_backward(self, params, rows, coefficients, direction, also)
