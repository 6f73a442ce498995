"""Models for tests of everything above the core: the shipped base of the conventions world, and tiny ones on bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

import hf_mass
from hf_mass.core.trees import Tree
from hf_mass.lab.conventions import CONVENTIONS_FORMAT, ITEMS, ConventionsWorld
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import AttributionConfig, InnerConfig, MassConfig, ScorerConfig
from hf_mass.methods.samples import AuxiliarySample, read_sample
from hf_mass.tasks.task import Demonstration, Task

BASE = Path(hf_mass.__file__).parent / "assets" / "conventions-base"
WORLD = ConventionsWorld(**json.loads((BASE / "world.json").read_text(encoding="utf-8")))
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONVENTIONS_SCORER = ScorerConfig(("log_prob", "overlap", "agreement", "attribution"), width=16)


def conventions_config(**changes: Any) -> MassConfig:
    """Settings that suit the tiny base; names of `MassConfig` or, prefixed with "inner_", of `InnerConfig`."""
    inner = {"learning_rate": 40.0, "lora_rank": 8, "lora_alpha": 8}
    inner.update({name.removeprefix("inner_"): changes.pop(name) for name in list(changes) if name[:6] == "inner_"})
    settings: dict[str, Any] = {
        "samples": 6,
        "max_sample_tokens": 6,
        "max_answer_tokens": 4,
        "max_length": 64,
        "format": CONVENTIONS_FORMAT,
        "inner": InnerConfig(**inner),
        "scorer": CONVENTIONS_SCORER,
        "attribution": AttributionConfig(temperature=8.0),
    }
    return MassConfig(**{**settings, **changes})


def conventions_model(config: MassConfig | None = None, seed: int = 0, trained: bool = False) -> MassModel:
    """The shipped base with a generator adapter; `trained` fills the adapter and the scorer with small noise."""
    generator = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    mass = MassModel.from_base(str(BASE), config or conventions_config(), generator, seed=seed)
    if trained:
        pretend_training(mass)
    return mass


def pretend_training(mass: MassModel, scale: float = 0.02) -> None:
    """Move the generator's adapter and the scorer away from where they start, the same way at every call."""
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in mass.model.named_parameters():
            if "lora_B.default" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=noise))
        for parameter in mass.scorer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise))


def byte_tokenizer(chat: bool = False) -> FastTokenizer:
    """A byte-level tokenizer without merges: any text, one token a byte, ids 3 to 258."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = FastTokenizer(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def byte_base(kind: str = "llama", seed: int = 3) -> PreTrainedModel:
    """An untrained model for `byte_tokenizer`."""
    shape = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            model: PreTrainedModel = GPT2LMHeadModel(
                GPT2Config(**shape, n_positions=1024, n_embd=16, n_layer=1, n_head=2)
            )
        else:
            size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(**shape, **size, max_position_embeddings=1024))
    return model.eval()


def byte_model(kind: str = "llama", chat: bool = False, **changes: Any) -> MassModel:
    """A `MassModel` on free text that has learned nothing: its own samples are never usable."""
    inner = InnerConfig(learning_rate=1.0, lora_rank=2, lora_alpha=2)
    settings: dict[str, Any] = {
        "samples": 2,
        "max_sample_tokens": 5,
        "max_answer_tokens": 5,
        "max_length": 512,
        "inner": inner,
        "scorer": ScorerConfig(width=4),
    }
    return MassModel.from_base(byte_base(kind), MassConfig(**{**settings, **changes}), None, byte_tokenizer(chat))


def written(text: str) -> AuxiliarySample:
    """A sample of the conventions world, as if the generator had written `text`."""
    ids = [WORLD.vocabulary.index(word) for word in text.split()]
    return read_sample(text, [*ids, 2], CONVENTIONS_FORMAT)


def pair(question: str, answer: str) -> AuxiliarySample:
    """A usable sample of free text."""
    text = f"Question: {question}\nAnswer: {answer}"
    return AuxiliarySample(text, tuple(byte_tokenizer()(text)["input_ids"]), question, answer)


def rejected(reason: str = "no_match") -> AuxiliarySample:
    """A sample that nothing could be read from."""
    return AuxiliarySample("tom tom", (8, 8, 2), "", "", reason)


def hidden_convention(task: Task) -> int:
    """The convention that a task of the world follows."""
    return int(str(task.solution).split()[0].removeprefix("rule"))


def right_sample(task: Task, item: str = "pear") -> AuxiliarySample:
    """What a perfect generator would write."""
    hidden = hidden_convention(task)
    colour = WORLD.colour(hidden, ITEMS.index(item))
    return written(f"{task.fields['family']} {item} {colour} {WORLD.convention_name(hidden)}")


def text_task(number: int = 0, **changes: Any) -> Task:
    """A task in free text with two demonstrations."""
    demonstrations = (Demonstration("1 + 1 = ?", "2"), Demonstration("2 + 3 = ?", "5"))
    task = Task(f"{number} + 4 = ?", demonstrations, f"Add.\n#### {number + 4}", str(number + 4), id=f"sum-{number}")
    return replace(task, **changes)


def equal_trees(first: Tree | None, second: Tree | None) -> bool:
    """Bit for bit."""
    if first is None or second is None:
        return first is second
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def largest_difference(first: Tree, second: Tree) -> float:
    """Over all leaves, relative to the largest entry of the second tree."""
    scale = max(float(leaf.abs().max()) for leaf in second.values())
    return max(float((first[name] - second[name]).abs().max()) for name in second) / scale


def snapshot(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def as_tuples(groups: Sequence[Sequence[AuxiliarySample]]) -> list[list[tuple[int, ...]]]:
    """The tokens of samples, for comparing."""
    return [[sample.token_ids for sample in group] for group in groups]
