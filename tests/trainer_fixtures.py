"""Small trainers on the shipped base of the conventions world, and a chat model of a few thousand random parameters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_models import _widen, randomise_lora
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hf_mass
from hf_mass.lab.conventions import COLOURS, CONVENTIONS_FORMAT, ITEMS, ConventionsWorld
from hf_mass.lab.conventions_settings import conventions_lora, conventions_settings
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.samples import AuxiliarySample, read_sample
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer

BASE = Path(hf_mass.__file__).parent / "assets" / "conventions-base"
M = 4

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

Canned = Callable[[str, int], str]


@cache
def world() -> ConventionsWorld:
    """The world that the shipped base knows."""
    return ConventionsWorld(**json.loads((BASE / "world.json").read_text()))


def settings(output_dir: Path | str, tasks: int = 3, **changes: Any) -> MetaAdaptConfig:
    """`tasks` tasks a step, m = 4, k = 4, K = 1, two steps, everything logged; no rate is left to the preset."""
    small: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": tasks * M,
        "num_generations": M,
        "num_solutions": 4,
        "learning_rate": 2e-3,
        "scorer_learning_rate": 1e-2,
        "scorer_features": ["log_prob", "overlap", "agreement", "attribution"],
        "inner_learning_rate": 40.0,
        "solve_coefficient": 0.1,
        "scale_rewards": "batch",
        "weigh_by": "scorer",
        "max_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "inference_samples": 4,
        "disable_tqdm": True,
    }
    return MetaAdaptConfig(**conventions_settings(**{**small, **changes}))


def make_trainer(
    output_dir: Path | str,
    tasks: int = 3,
    trainer: type[MetaAdaptTrainer] = MetaAdaptTrainer,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> MetaAdaptTrainer:
    """A trainer on as many tasks as one step takes, so every step sees all of them."""
    given: dict[str, Any] = {
        "model": str(BASE),
        "train_dataset": world().tasks("train", tasks),
        "peft_config": conventions_lora(),
        "prompt_format": CONVENTIONS_FORMAT,
        **(options or {}),
    }
    return trainer(args=settings(output_dir, tasks, **changes), **given)


def written(prompt: str, index: int) -> str:
    """A sample for a prompt of the conventions world: a copied or a new pair; about one in five is malformed."""
    draw = random.Random(f"{prompt}|{index}")
    words = prompt.split()
    item, colour = draw.choice([(words[i - 1], words[i + 1]) for i, word in enumerate(words) if word == ">"])
    known = world()
    if draw.random() < 0.4:
        item, colour = draw.choice(ITEMS), draw.choice(COLOURS[: known.colours])
    if draw.random() < 0.2:
        return f"{words[0]} {item}"
    return f"{words[0]} {item} {colour} {known.convention_name(draw.randrange(known.conventions))}"


def written_samples(tasks: list[Task], tokenizer: Any, count: int = M, text: Canned = written) -> list[Any]:
    """`count` samples of each task, as `OuterLoop` takes them."""
    groups: list[list[AuxiliarySample]] = []
    for task in tasks:
        prompt = CONVENTIONS_FORMAT.generator_prompt(task)
        texts = [text(prompt, index) for index in range(count)]
        groups.append(
            [
                read_sample(t, [*tokenizer(t, add_special_tokens=False)["input_ids"], 2], CONVENTIONS_FORMAT)
                for t in texts
            ]
        )
    return groups


class CannedTrainer(MetaAdaptTrainer):
    """Takes its completions from `text(prompt, index in the group)`, on however many processes. Keeps the rewards."""

    text: Canned = staticmethod(written)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        tokenizer, first = self.processing_class, self.accelerator.process_index * len(prompt_ids)
        completions = []
        for number, ids in enumerate(prompt_ids, start=first):
            text = type(self).text(tokenizer.decode(ids, skip_special_tokens=True), number % self.num_generations)
            completions.append([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
        return completions, None

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args)
        self.seen_rewards = [*getattr(self, "seen_rewards", []), rewards.clone()]
        return rewards


def trained_values(trainer: MetaAdaptTrainer) -> dict[str, Tensor]:
    """Copies of everything that is trained, the generator's adapter and the scorer."""
    values = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return {**values, **{f"scorer.{name}": p.detach().clone() for name, p in trainer.mass.scorer.named_parameters()}}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest absolute difference of any value."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def logged(trainer: MetaAdaptTrainer, name: str) -> list[float]:
    """The values of one metric over the log."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def wide_mass(config: MetaAdaptConfig) -> MassModel:
    """The base in float64 with non-zero adapters and a scorer that prefers some samples, for exact comparisons."""
    base = AutoModelForCausalLM.from_pretrained(BASE)
    _widen(base)
    mass = MassModel.from_base(
        base.double().eval(),
        config.mass_config(CONVENTIONS_FORMAT, training=True),
        conventions_lora(),
        AutoTokenizer.from_pretrained(BASE),
    )
    randomise_lora(mass.model, scale=0.05)
    mass.scorer.double()
    with torch.no_grad():
        mass.scorer.output.weight.normal_(generator=torch.Generator().manual_seed(3))
    return mass


def chat_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def chat_model() -> LlamaForCausalLM:
    """Random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=259,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=1024,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
                initializer_range=0.2,
            )
        )
