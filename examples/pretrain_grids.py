"""Pretrain the small base for strips and grids from scratch and write it as an ordinary `from_pretrained` folder.

    python examples/pretrain_grids.py --output hf_mass/assets/grids-base --minutes 75 --learning_rate 4e-3 --compile

One CPU thread. The budget is training time: the sum of the steps' durations, each capped, so the process may be
stopped and continued (SIGSTOP, SIGCONT), or killed and started again with the same command, which resumes at the last
checkpoint; another `--minutes` then shortens or lengthens what is left of the schedule.
The matrix products run in bfloat16 (autocast), the weights stay float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from grid_world import (
    FAMILIES,
    HELD_OUT,
    PAIR_END,
    PAIR_SEPARATOR,
    ROW_END,
    GridTask,
    Sizes,
    curriculum,
    draw_task,
    render_task,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward

VOCABULARY = [*"0123456789", ROW_END, PAIR_SEPARATOR, PAIR_END, "<pad>", "<bos>", "<unk>"]
SPARE = [f"<spare{i}>" for i in range(8)]
LONGEST_STEP = 5.0
"""Seconds that one step counts at most: time spent stopped is no training time."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; a digit's id is its colour; spaces are dropped; ";" ends an output (eos)."""
    ids = {word: index for index, word in enumerate([*VOCABULARY, *SPARE])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=PAIR_END,
        unk_token="<unk>",
        additional_special_tokens=SPARE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def float32_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention outside autocast: the CPU kernel's bfloat16 backward takes more than twice the time of float32's."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register("float32_sdpa", float32_attention)


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    """A Llama shape with heads of 32 and tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.5 / math.sqrt(width),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="float32_sdpa",
    )
    return LlamaForCausalLM(config)


def encode(
    tasks: list[GridTask], tokenizer: PreTrainedTokenizerFast, input_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, weights) [tasks, length], padded on the right.

    Every output after the first demonstration's weighs 1 with the ";" that ends it, the first output 0; inputs weigh
    `input_weight`.
    """
    ids_of = tokenizer.get_vocab()
    bos, pad, separator, end = ids_of["<bos>"], ids_of["<pad>"], ids_of[PAIR_SEPARATOR], ids_of[PAIR_END]
    rows, weights = [], []
    for task in tasks:
        row, weight = [bos], [0.0]
        pair, output = 0, False
        for character in render_task(task.pairs):
            token = ids_of[character]
            row.append(token)
            weight.append(float(pair > 0) if output else input_weight)
            if token == separator:
                output = True
            elif token == end:
                pair, output = pair + 1, False
        rows.append(row)
        weights.append(weight)
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return ids, torch.tensor([weight + [0.0] * (length - len(weight)) for weight in weights])


def batches(draw: random.Random, sizes: Sizes, count: int, tokens: int, tasks_at_most: int) -> list[list[GridTask]]:
    """Tasks sorted by length and cut into about `count` batches of at most `tokens` cells with padding, shuffled."""
    drawn: list[tuple[int, GridTask]] = []
    total = 0
    while total < count * tokens and len(drawn) < count * tasks_at_most:
        task = draw_task(draw, sizes)
        length = len(render_task(task.pairs)) + 1
        total += length
        drawn.append((length, task))
    drawn.sort(key=lambda item: -item[0])
    cut: list[list[GridTask]] = []
    while drawn:
        size = max(1, min(tasks_at_most, tokens // drawn[0][0]))
        cut.append([task for _, task in drawn[:size]])
        drawn = drawn[size:]
    draw.shuffle(cut)
    return cut


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean negative log-likelihood of the tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (nll * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


# Validation


def validation_sets(per_family: int) -> dict[str, list[GridTask]]:
    """Fixed tasks: every family at the final sizes, and at the first sizes of the curriculum."""
    sets: dict[str, list[GridTask]] = defaultdict(list)
    for size_name, sizes in (("full", Sizes(composed=0.0)), ("small", curriculum(0.0))):
        for family, (dimension, _) in FAMILIES.items():
            split = "held_out" if family in HELD_OUT else "trained"
            draw = random.Random(f"grid-validation-{size_name}-{family}")
            for _ in range(per_family * (6 if family in HELD_OUT else 1)):
                sets[f"{split}_{dimension}d_{size_name}"].append(draw_task(draw, sizes, [family]))
    return dict(sets)


@torch.no_grad()
def solved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: list[GridTask]) -> list[bool]:
    """Whether the query's whole output (";" included) is the arg max under teacher forcing, which equals greedy."""
    model.eval()
    order = sorted(range(len(tasks)), key=lambda i: len(render_task(tasks[i].pairs)))
    right = [False] * len(tasks)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        ids, _ = encode([tasks[i] for i in chosen], tokenizer, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guesses = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        for row, i in enumerate(chosen):
            end = len(render_task(tasks[i].pairs)) + 1
            begin = end - len(render_task(tasks[i].pairs).rpartition(PAIR_SEPARATOR)[2])
            right[i] = bool((guesses[row, begin - 1 : end - 1] == ids[row, begin:end]).all())
    model.train()
    return right


def validate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sets: dict[str, list[GridTask]]
) -> tuple[dict[str, float], dict[str, float]]:
    """(accuracy of each set, accuracy of each family at the final sizes)."""
    accuracy, family_results = {}, defaultdict(list)
    for name, tasks in sets.items():
        right = solved(model, tokenizer, tasks)
        accuracy[name] = round(sum(right) / len(right), 4)
        if name.endswith("_full"):
            for task, ok in zip(tasks, right, strict=True):
                family_results[task.family].append(ok)
    return accuracy, {family: round(sum(oks) / len(oks), 3) for family, oks in family_results.items()}


# Training


def build_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    other = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=rate, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass
class Progress:
    """Where a run stands; `seconds` is training time."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    tasks: int = 0
    chunk: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)


def learning_rate_at(done: float, step: int, peak: float, warm_up: int) -> float:
    """Linear warm-up in steps, constant, linear decay to 2% over the last quarter of the budget."""
    return peak * min(1.0, (step + 1) / warm_up) * min(1.0, max(0.02, (1 - done) / 0.25))


def replace_file(path: Path, write: Any) -> None:
    """Writes to a temporary name first, so that a killed run leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Everything that a resumed run needs, in one file of tensors and plain values."""
    folder.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "progress": vars(progress)}
    replace_file(folder / "checkpoint.pt", lambda path: torch.save(state, path))


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """The progress of the run to resume; a new one where there is no checkpoint."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def save_base(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: argparse.Namespace, record: dict[str, Any]
) -> None:
    """The `from_pretrained` folder with the record of the run."""
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    record = {"settings": settings, "parameters": model.num_parameters(), "held_out": HELD_OUT, **record}
    (arguments.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    ids: torch.Tensor,
    weights: torch.Tensor,
    rate: float,
) -> float:
    """One update; returns the loss."""
    loss = loss_of(model, ids, weights)
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return loss.item()


def train(arguments: argparse.Namespace) -> None:
    """Trains until the budget is spent, checkpointing and validating on the way; then writes the base."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, arguments.width, arguments.layers)
    optimizers = build_optimizers(model, arguments.learning_rate)
    progress = load_checkpoint(arguments.output / "resume", model, optimizers)
    if arguments.compile:
        model.model.compile(dynamic=True)
    budget = arguments.minutes * 60
    print(f"{model.num_parameters()} parameters, {len(FAMILIES)} families, from step {progress.step}", flush=True)
    saved, losses, queue = progress.seconds, deque[float](maxlen=100), list[list[GridTask]]()
    while progress.seconds < budget:
        begun, done = time.perf_counter(), progress.seconds / budget
        if not queue:
            draw = random.Random(f"grid-pretraining-{arguments.seed}-{progress.chunk}")
            # Batches grow with the tasks: about as many tasks in the first ones as in the last.
            tokens = round(arguments.batch_tokens * min(1.0, 0.35 + done))
            queue = batches(draw, curriculum(done), 8, tokens, arguments.batch_tasks)
            progress.chunk += 1
        tasks = queue.pop()
        ids, weights = encode(tasks, tokenizer, arguments.input_weight)
        rate = learning_rate_at(done, progress.step, arguments.learning_rate, arguments.warm_up)
        losses.append(train_step(model, optimizers, ids, weights, rate))
        progress.step += 1
        progress.tokens += ids.numel()
        progress.tasks += len(tasks)
        progress.seconds += min(LONGEST_STEP, time.perf_counter() - begun)
        if progress.step % 100 == 0:
            pace = f"{progress.tokens / progress.seconds:.0f} tokens/s {progress.tasks / progress.seconds:.0f} tasks/s"
            mean = sum(losses) / len(losses)
            print(f"step {progress.step} {progress.seconds / 60:.1f} min loss {mean:.4f} {pace}", flush=True)
        if progress.seconds - saved > 60 * arguments.checkpoint_minutes:
            saved = progress.seconds
            report(model, tokenizer, optimizers, progress, arguments, sum(losses) / len(losses))
    report(model, tokenizer, optimizers, progress, arguments, sum(losses) / max(1, len(losses)), thorough=4)


def report(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    arguments: argparse.Namespace,
    loss: float,
    thorough: int = 1,
) -> None:
    """Validates (on `thorough` times as many tasks), then saves the checkpoint and the base as it stands."""
    accuracy, per_family = validate(model, tokenizer, validation_sets(thorough * arguments.validation_per_family))
    entry = {"step": progress.step, "minutes": round(progress.seconds / 60, 2), "loss": round(loss, 4), **accuracy}
    progress.log.append(entry)
    print(json.dumps(entry), flush=True)
    save_checkpoint(arguments.output / "resume", model, optimizers, progress)
    save_base(model, tokenizer, arguments, {**vars(progress), "validation_per_family": per_family})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/grids-base"), help="folder to write")
    parser.add_argument("--minutes", type=float, default=110, help="budget of training time")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch_tokens", type=int, default=6144, help="cells in a batch at most, padding included")
    parser.add_argument("--batch_tasks", type=int, default=64, help="tasks in a batch at most")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--warm_up", type=int, default=300, help="steps")
    parser.add_argument("--input_weight", type=float, default=0.0, help="loss weight of the inputs' tokens")
    parser.add_argument("--checkpoint_minutes", type=float, default=3)
    parser.add_argument("--validation_per_family", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: 1.4 times the speed, needs a C++ compiler"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the weights and the tasks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    train(arguments)


if __name__ == "__main__":
    main()
