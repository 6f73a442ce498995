"""Pretraining a small base from scratch on made-up few-shot tasks: what the scripts of grids and strings share.

A `World` draws tasks and says how they read; everything else is here: the model, Muon, a budget of training time,
checkpoints that a stopped run resumes at, validation, and the `from_pretrained` folder.

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
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward

LONGEST_STEP = 5.0
"""Seconds that one step counts at most: time spent stopped is no training time."""

T = TypeVar("T")


class World(ABC, Generic[T]):
    """What a base is trained on: tasks of type `T`.

    Attributes:
        name: Seeds the tasks.
        families: Names of all kinds of task.
        held_out: Those that training never draws.
        positions: Longest context of the model.
    """

    name: str
    families: Sequence[str]
    held_out: Sequence[str]
    positions: int = 2048

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the base."""

    @abstractmethod
    def draw(self, draw: random.Random, progress: float) -> T:
        """A task of a trained family at a point of training, 0 ≤ progress ≤ 1."""

    @abstractmethod
    def length(self, task: T) -> int:
        """Tokens of a task, with the one that begins every text."""

    @abstractmethod
    def row(self, task: T, tokenizer: PreTrainedTokenizerFast, input_weight: float) -> tuple[list[int], list[float]]:
        """(ids, weights in the loss) of a task. The query's output with its end, at the end, weighs 1."""

    @abstractmethod
    def family(self, task: T) -> str:
        """The name of a task's family."""

    @abstractmethod
    def validation_sets(self, per_family: int) -> dict[str, list[T]]:
        """Fixed tasks by the name of their set; those of sets "..._full" are also reported family by family."""

    def encode(
        self, tasks: Sequence[T], tokenizer: PreTrainedTokenizerFast, input_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, weights) [tasks, length], padded on the right."""
        rows = [self.row(task, tokenizer, input_weight) for task in tasks]
        longest, pad = max(len(ids) for ids, _ in rows), tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
        return ids, torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in rows])

    def batches(
        self, draw: random.Random, progress: float, count: int, tokens: int, tasks_at_most: int
    ) -> list[list[T]]:
        """Tasks sorted by length and cut into about `count` batches of at most `tokens` with padding, shuffled."""
        drawn: list[tuple[int, T]] = []
        total = 0
        while total < count * tokens and len(drawn) < count * tasks_at_most:
            task = self.draw(draw, progress)
            length = self.length(task)
            total += length
            drawn.append((length, task))
        drawn.sort(key=lambda item: -item[0])
        cut: list[list[T]] = []
        while drawn:
            size = max(1, min(tasks_at_most, tokens // drawn[0][0]))
            cut.append([task for _, task in drawn[:size]])
            drawn = drawn[size:]
        draw.shuffle(cut)
        return cut


# Model


def float32_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention outside autocast: the CPU kernel's bfloat16 backward takes more than twice the time of float32's."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register("float32_sdpa", float32_attention)


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, positions: int = 2048) -> LlamaForCausalLM:
    """A Llama shape with heads of 32 and tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.5 / math.sqrt(width),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="float32_sdpa",
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean negative log-likelihood of the tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (nll * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


# Validation


@torch.no_grad()
def solved(
    world: World[T], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[T]
) -> list[bool]:
    """Whether the query's whole output, its end included, is the arg max under teacher forcing: equal to greedy."""
    model.eval()
    order = sorted(range(len(tasks)), key=lambda i: world.length(tasks[i]))
    right = [False] * len(tasks)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        ids, weights = world.encode([tasks[i] for i in chosen], tokenizer, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guesses = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        for row, i in enumerate(chosen):
            end = world.length(tasks[i])
            begin = end - len(list(takewhile(bool, reversed(weights[row, :end].tolist()))))
            right[i] = bool((guesses[row, begin - 1 : end - 1] == ids[row, begin:end]).all())
    model.train()
    return right


def validate(
    world: World[T], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, per_family: int
) -> tuple[dict[str, float], dict[str, float]]:
    """(accuracy of each set, accuracy of each family in the sets "..._full")."""
    accuracy, family_results = {}, defaultdict(list)
    for name, tasks in world.validation_sets(per_family).items():
        right = solved(world, model, tokenizer, tasks)
        accuracy[name] = round(sum(right) / len(right), 4)
        if name.endswith("_full"):
            for task, ok in zip(tasks, right, strict=True):
                family_results[world.family(task)].append(ok)
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


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
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


@dataclass
class Run(Generic[T]):
    """One pretraining run: a world, and what is trained on it."""

    world: World[T]
    arguments: argparse.Namespace
    tokenizer: PreTrainedTokenizerFast
    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    progress: Progress
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def loss(self) -> float:
        """Mean of the latest losses."""
        return sum(self.losses) / max(1, len(self.losses))

    def step(self, tasks: list[T], done: float) -> None:
        """Trains on one batch."""
        ids, weights = self.world.encode(tasks, self.tokenizer, self.arguments.input_weight)
        rate = learning_rate_at(done, self.progress.step, self.arguments.learning_rate, self.arguments.warm_up)
        self.losses.append(train_step(self.model, self.optimizers, ids, weights, rate))
        self.progress.step += 1
        self.progress.tokens += ids.numel()
        self.progress.tasks += len(tasks)

    def tell(self) -> None:
        """Prints loss and pace."""
        at = self.progress
        pace = f"{at.tokens / at.seconds:.0f} tokens/s {at.tasks / at.seconds:.0f} tasks/s"
        print(f"step {at.step} {at.seconds / 60:.1f} min loss {self.loss:.4f} {pace}", flush=True)

    def report(self, thorough: int = 1) -> None:
        """Validates (on `thorough` times as many tasks), then saves the checkpoint and the base as it stands."""
        at, output = self.progress, self.arguments.output
        count = thorough * self.arguments.validation_per_family
        accuracy, per_family = validate(self.world, self.model, self.tokenizer, count)
        entry = {"step": at.step, "minutes": round(at.seconds / 60, 2), "loss": round(self.loss, 4), **accuracy}
        at.log.append(entry)
        print(json.dumps(entry), flush=True)
        save_checkpoint(output / "resume", self.model, self.optimizers, at)
        self.model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)
        settings = {key: value for key, value in vars(self.arguments).items() if key != "output"}
        about = {"settings": settings, "parameters": self.model.num_parameters(), "held_out": self.world.held_out}
        record = {**about, **vars(at), "validation_per_family": per_family}
        (output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def train(world: World[T], arguments: argparse.Namespace) -> None:
    """Trains until the budget is spent, checkpointing and validating on the way; then writes the base."""
    tokenizer = world.build_tokenizer()
    model = build_model(tokenizer, arguments.width, arguments.layers, world.positions)
    optimizers = build_optimizers(model, arguments.learning_rate)
    progress = load_checkpoint(arguments.output / "resume", model, optimizers)
    run = Run(world, arguments, tokenizer, model, optimizers, progress)
    if arguments.compile:
        model.model.compile(dynamic=True)
    budget = arguments.minutes * 60
    print(f"{model.num_parameters()} parameters, {len(world.families)} families, from step {progress.step}", flush=True)
    saved, queue = progress.seconds, list[list[T]]()
    while progress.seconds < budget:
        begun, done = time.perf_counter(), progress.seconds / budget
        if not queue:
            draw = random.Random(f"{world.name}-pretraining-{arguments.seed}-{progress.chunk}")
            # Batches grow with the tasks: about as many tasks in the first ones as in the last.
            tokens = round(arguments.batch_tokens * min(1.0, 0.35 + done))
            queue = world.batches(draw, done, 8, tokens, arguments.batch_tasks)
            progress.chunk += 1
        run.step(queue.pop(), done)
        progress.seconds += min(LONGEST_STEP, time.perf_counter() - begun)
        if progress.step % 100 == 0:
            run.tell()
        if progress.seconds - saved > 60 * arguments.checkpoint_minutes:
            saved = progress.seconds
            run.report()
    run.report(thorough=4)


def main(world: World[T], description: str | None, **defaults: Any) -> None:
    """Reads the command line, whose defaults a script may change, and trains."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--minutes", type=float, default=110, help="budget of training time")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch_tokens", type=int, default=6144, help="tokens of a batch at most, padding included")
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
    parser.set_defaults(**defaults)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    train(world, arguments)
