"""Whole optimizer steps of `MetaAdaptTrainer` against the same in plain torch, in float64.

Tasks with different numbers of demonstrations share a batch, and samples of one group are malformed or alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import byte_tokenizer
from peft import LoraConfig
from plain_trainer import FORMAT, TASKS, M, PlainTrainer, Tree, encode, sample_text, wide_base
from tiny_models import randomise_lora
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hf_mass.training.outer as outer
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer

LORA = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2 * M,
    "num_generations": M,
    "num_solutions": 3,
    "learning_rate": 1e-2,
    "scorer_learning_rate": 3e-2,
    "scorer_features": ["log_prob", "overlap", "agreement", "attribution"],
    "scorer_width": 5,
    "inner_steps": 1,
    "inner_learning_rate": 0.5,
    "inner_lora_r": 3,
    "inner_lora_alpha": 5,
    "solve_coefficient": 0.3,
    "outer_loss": "gold",
    "max_steps": 2,
    "max_completion_length": 16,
    "max_solution_length": 6,
    "max_length": 128,
    "adam_epsilon": 1e-3,  # a step hardly depends on rounding in small entries then
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "shuffle_dataset": False,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


class Written(MetaAdaptTrainer):
    """Its samples are given; keeps which tasks came, and the adapted weights' solutions."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        texts = [self.processing_class.decode(ids) for ids in prompt_ids]
        tasks = [next(task for task in TASKS if f"P {task.problem}\n" in text) for text in texts]
        self.met = [*getattr(self, "met", []), tasks[::M]]
        return [[*encode(sample_text(task, n % M)), 2] for n, task in enumerate(tasks)], None


def right(ids: list[int]) -> float:
    """Stands for a verifier."""
    return float(len(byte_tokenizer().decode(ids, skip_special_tokens=True)) % 2)


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Written, PlainTrainer, list[Any]]:
    """(a trained trainer, the plain one as it was before, solutions of each outer step)."""
    args = MetaAdaptConfig(output_dir=str(folder), **{**SETTINGS, **changes})
    parts: dict[str, Any] = {"processing_class": byte_tokenizer(), "prompt_format": FORMAT, "peft_config": LORA}
    trainer = Written(wide_base(), args, TASKS[:2], **parts)
    randomise_lora(trainer.model, scale=0.15)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B.inner" in name:
                p.zero_()
        trainer.mass.scorer.double()
        for p in trainer.mass.scorer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=noise, dtype=torch.float64))
    solutions: list[Any] = []
    adapter = trainer.outer_loop.mass.adapter
    complete = adapter.complete

    def kept(*given: Any) -> list[list[int]]:
        rows = complete(*given)
        groups = [rows[n : n + args.num_solutions] for n in range(0, len(rows), args.num_solutions)]
        solutions.append([(group, torch.tensor([right(ids) for ids in group])) for group in groups])
        return rows

    class Judged:
        def __init__(self, text: str) -> None:
            self.text = text

        def reward(self) -> float:
            return float(len(self.text) % 2)

    monkeypatch.setattr(adapter, "complete", kept)
    monkeypatch.setattr(outer, "judge", lambda fmt, tasks, texts, **_: [Judged(text) for text in texts])
    monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda rows: rows)
    plain = PlainTrainer(trainer, LORA.lora_alpha / LORA.r)
    trainer.train()
    return trainer, plain, solutions


def follow(plain: PlainTrainer, met: list[Any], solutions: list[Any]) -> None:
    """The steps of a run, as many samples at a time as the trainer drew."""
    args = plain.args
    drawn = args.per_device_train_batch_size * args.steps_per_generation  # rows of a generation batch
    whole = drawn == args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert whole, "every optimizer step takes a whole generation batch here"
    before: Any = None
    for step in range(args.max_steps):
        draw, again = divmod(step, args.num_iterations)
        if not again:
            tasks = met[draw]
            rewards, to_phi, to_eta = plain.outer(tasks, solutions[draw] if solutions else [])
            spread = {"group": rewards.std(1, keepdim=True), "batch": rewards.std(), "none": 1.0}[args.scale_rewards]
            advantages = (rewards - rewards.mean(1, keepdim=True)) / (spread + (args.scale_rewards != "none") * 1e-4)
            rows = [(task, i, float(advantages[n, i])) for n, task in enumerate(tasks) for i in range(M)]
            before = None
        gradient, found = plain.policy(rows, before)
        before = found if before is None else before
        total = {name: g + args.solve_coefficient * to_phi[name] for name, g in gradient.items()}
        plain.step(total, to_eta, 1 - step / args.max_steps)


def largest(found: Tree, expected: Tree, start: Tree) -> float:
    """The largest difference, as a share of the largest way that any value went."""
    way = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    assert way > 1e-3
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / way


CASES: list[dict[str, Any]] = [
    {},
    {"inner_steps": 2, "solve_gradient": "full"},
    {"outer_loss": "verifier", "inner_steps": 2},
    {"per_device_train_batch_size": M, "gradient_accumulation_steps": 2},
    {"per_device_train_batch_size": M, "gradient_accumulation_steps": 2, "loss_type": "grpo", "num_iterations": 2},
    {"beta": 0.2, "loss_type": "grpo"},
    {"scorer_features": ["hidden", "log_prob"], "scale_rewards": "batch"},
    {"score_normalization": "sigmoid", "generator_reward": "sample", "scale_rewards": "none", "inner_steps": 2},
    {"inner_optimizer": "adamw", "inner_learning_rate": 0.05, "inner_adam_epsilon": 0.1, "inner_steps": 2},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: "-".join(changes) or "default")
def test_two_steps_are_those_of_plain_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Rewards pass through TRL in float32, so that is how near they come."""
    trainer, plain, solutions = trained(tmp_path, monkeypatch, **changes)
    starts: list[dict[str, Tensor]] = [{n: p.detach().clone() for n, p in t.items()} for t in (plain.phi, plain.eta)]
    with sdpa_kernel(SDPBackend.MATH):
        follow(plain, trainer.met, solutions)
    named = {name.replace("base_model.model.", ""): p.detach() for name, p in trainer.model.named_parameters()}
    phi = {name.replace(".default.weight", ""): p for name, p in named.items() if ".default." in name}
    assert largest(phi, plain.phi, starts[0]) < 1e-4
    assert largest(dict(trainer.mass.scorer.named_parameters()), plain.eta, starts[1]) < 1e-5
