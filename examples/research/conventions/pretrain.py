"""Pretrain the tiny base of the conventions world from scratch and write it as an ordinary `from_pretrained` folder.

In the folder `examples`:

    python -m research.conventions.pretrain --output ../hf_mass/assets/conventions-base

About five minutes on one CPU thread. The same seed and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import fields
from pathlib import Path

import torch
from tqdm.auto import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_mass.lab.conventions import CONVENTIONS_FORMAT, FAMILIES, ITEMS, ConventionsWorld
from hf_mass.tasks.task import Task
from paths import OUTPUTS
from research.conventions.protocol import fits_demonstrations
from research.conventions.word_tokenizer import build_word_tokenizer


def document(world: ConventionsWorld, draw: random.Random) -> tuple[str, str]:
    """One pretraining document (prompt, completion); the completion is what is learned.

    25% exams answered by the family's habit (the demonstrations are not used: the model is left to ignore them),
    10% bare questions, 15% textbook lines (item and colour → a convention that fits), 50% writing (45% a copied
    demonstration with a convention that fits it, 35% a new item under the prior, 20% another family's).
    """
    kind = draw.random()
    family, everything = draw.randrange(world.families), range(world.conventions)
    if 0.25 <= kind < 0.35:
        convention, item = world.draw_convention(draw, family, everything), draw.randrange(len(ITEMS))
        return f"{FAMILIES[family]} {ITEMS[item]} =", world.solution(convention, item)
    if 0.35 <= kind < 0.5:
        convention, item = draw.randrange(world.conventions), draw.randrange(len(ITEMS))
        return f"note {ITEMS[item]} > {world.colour(convention, item)} by", world.convention_name(convention)
    count = draw.choice((world.demonstrations, world.demonstrations, max(1, world.demonstrations - 1)))
    task = world.draw_task(draw, family, everything, "", count)
    if kind < 0.25:
        item = ITEMS.index(task.problem)
        return CONVENTIONS_FORMAT.solver_prompt(task), world.solution(
            world.draw_convention(draw, family, everything), item
        )
    return CONVENTIONS_FORMAT.generator_prompt(task), _written_sample(world, draw, family, task)


def _written_sample(world: ConventionsWorld, draw: random.Random, family: int, task: Task) -> str:
    kind = draw.random()
    if kind < 0.45:
        pair = draw.choice(task.demonstrations)
        item = ITEMS.index(pair.question)
        fitting = [c for c in range(world.conventions) if world.colour(c, item) == pair.answer]
        convention = draw.choice(fitting)
    else:
        family = family if kind < 0.8 else draw.randrange(world.families)
        item, convention = draw.randrange(len(ITEMS)), world.draw_convention(draw, family, range(world.conventions))
    name = world.convention_name(convention)
    return f"{FAMILIES[family]} {ITEMS[item]} {world.colour(convention, item)} {name}"


def settings_of(world: ConventionsWorld) -> dict[str, int | float]:
    """The settings that rebuild a world."""
    return {field.name: getattr(world, field.name) for field in fields(world) if field.init}


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama shape of 0.13M parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,  # about 1 / sqrt(hidden_size); the usual 0.02 is meant for wide models
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def encode(
    documents: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask, labels), each [documents, length] int64; labels are −100 outside completions."""
    prompts = tokenizer([prompt for prompt, _ in documents])["input_ids"]
    completions = tokenizer([text for _, text in documents], add_special_tokens=False)["input_ids"]
    length = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    ids, mask, labels = [], [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        row = [*prompt, *completion, tokenizer.eos_token_id]
        pad = length - len(row)
        ids.append(row + [tokenizer.pad_token_id] * pad)
        mask.append([1] * len(row) + [0] * pad)
        labels.append([-100] * len(prompt) + row[len(prompt) :] + [-100] * pad)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)


@torch.no_grad()
def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: ConventionsWorld) -> dict[str, float]:
    """How well the base copies and abduces when it writes, and how it answers, on validation tasks (n = 500)."""
    model.eval()
    tasks = world.tasks("validation", 500, seed=1)

    def complete(prompts: list[str], count: int) -> list[str]:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=count)
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def answer(text: str) -> str:
        parts = CONVENTIONS_FORMAT.split_solution(text)
        return parts.answer if parts else ""

    solved = complete([CONVENTIONS_FORMAT.solver_prompt(task) for task in tasks], 3)
    copied = fitting = 0
    starts = [
        f"{CONVENTIONS_FORMAT.generator_prompt(t)} {t.fields['family']} {t.demonstrations[0].question}" for t in tasks
    ]
    for task, text in zip(tasks, complete(starts, 3), strict=True):
        words, shown = text.split(), task.demonstrations[0]
        copied += words[:1] == [shown.answer]
        if len(words) == 2 and words[1].startswith("rule"):
            fitting += fits(world, task, words[1])
    model.train()
    return {
        "answer_accuracy": sum(answer(s) == t.answer for s, t in zip(solved, tasks, strict=True)) / len(tasks),
        "colour_copied": copied / len(tasks),
        "convention_fits": fitting / len(tasks),
    }


def fits(world: ConventionsWorld, task: Task, convention: str) -> bool:
    """Whether the convention named gives the first demonstration's colour."""
    shown = task.demonstrations[0]
    sample = CONVENTIONS_FORMAT.compose_solution(convention, shown.answer)
    return fits_demonstrations(world, task, f"{task.fields['family']} {shown.question}", sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUTS / "conventions-base", help="folder to write")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=160)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="draws the world, the weights and the documents")
    for name in ("conventions", "colours", "held_out_conventions", "validation_conventions", "demonstrations"):
        parser.add_argument(f"--{name}", type=int, default=getattr(ConventionsWorld, name))
    parser.add_argument("--favourite", type=float, default=ConventionsWorld.favourite)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    world = ConventionsWorld(
        conventions=arguments.conventions,
        colours=arguments.colours,
        held_out_conventions=arguments.held_out_conventions,
        validation_conventions=arguments.validation_conventions,
        demonstrations=arguments.demonstrations,
        favourite=arguments.favourite,
        seed=arguments.seed,
    )
    tokenizer = build_word_tokenizer(world.vocabulary)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    draw = random.Random(f"pretraining-{arguments.seed}")
    bar = trange(arguments.steps, desc="pretraining")
    measured: dict[str, float] = {}
    for step in bar:
        done = step / arguments.steps
        decay = 1.0 if done < 0.6 else max(0.02, (1 - done) / 0.4)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1.0, (step + 1) / 50) * decay
        ids, mask, labels = encode([document(world, draw) for _ in range(arguments.batch_size)], tokenizer)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            measured = report(model, tokenizer, world)
            bar.write(
                f"step {step + 1} loss {loss.item():.3f} " + " ".join(f"{k} {v:.3f}" for k, v in measured.items())
            )
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    (arguments.output / "world.json").write_text(json.dumps(settings_of(world), indent=2) + "\n")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings.pop("output")
    record = {"settings": settings, "parameters": model.num_parameters(), "validation": measured}
    (arguments.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {arguments.output} ({model.num_parameters()} parameters)")


if __name__ == "__main__":
    main()
