"""The conventions experiment, shared by `train.py` (one seed) and `results.py` (several): train, answer, compare.

Rows, splits and budgets are those of the README. Every adapting row takes its inner learning rate from one grid,
on validation tasks of its own split's kind that no result is reported on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hf_mass.lab.conventions import CONVENTIONS_FORMAT, ConventionsWorld
from hf_mass.methods.mass_model import MassModel
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import verify_batch
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from research.conventions.protocol import (
    Method,
    Outcome,
    adapt_directly,
    adapt_on_random_tasks,
    adapt_on_samples,
    answer_greedily,
    choose_rate,
    fits_demonstrations,
    majority_vote,
    run_method,
    with_inner_rate,
)
from research.conventions.settings import CONVENTIONS_INNER_RATES, conventions_lora, conventions_settings

BASE = ASSETS / "conventions-base"
SPLITS = {"test_families": "validation", "test_conventions": "validation_conventions"}
"""Test split → the split on which inner rates are chosen for it."""
M_TRAIN, M_TEST = 8, 24


@dataclass(frozen=True)
class Trained:
    """A trained model, what it cost, and what its trainer logged."""

    mass: MassModel
    seconds: float
    steps: int
    history: list[dict[str, Any]]


def load_world(base: Path = BASE) -> ConventionsWorld:
    """The world that a base was pretrained on."""
    return ConventionsWorld(**json.loads((base / "world.json").read_text()))


def base_model(seed: int, base: Path = BASE) -> MassModel:
    """The untrained model: generator and scorer change nothing."""
    config = MetaAdaptConfig(output_dir="outputs", **conventions_settings()).mass_config(CONVENTIONS_FORMAT)
    return MassModel.from_base(str(base), config, conventions_lora(), seed=seed)


def train_mass(
    world: ConventionsWorld,
    seed: int,
    output_dir: Path,
    base: Path = BASE,
    start: PeftModel | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **changes: Any,
) -> Trained:
    """Meta-train generator and scorer; `start` continues from a trained adapter."""
    args = MetaAdaptConfig(output_dir=str(output_dir), seed=seed, **conventions_settings(**changes))
    trainer = MetaAdaptTrainer(
        model=start or str(base),
        args=args,
        train_dataset=world.tasks("train", 20_000, seed=seed),
        processing_class=base_model(seed, base).tokenizer,
        peft_config=None if start is not None else conventions_lora(),
        prompt_format=CONVENTIONS_FORMAT,
        callbacks=callbacks,
    )
    began = time.perf_counter()
    trainer.train()
    return Trained(trainer.mass, time.perf_counter() - began, trainer.state.global_step, trainer.state.log_history)


def train_solver(
    world: ConventionsWorld,
    seed: int,
    output_dir: Path,
    steps: int,
    generations: int = 32,
    base: Path = BASE,
    **changes: Any,
) -> Trained:
    """The baseline: TRL's GRPO on the solver, on the same tasks and rewards, 24 tasks a step.

    With 32 solutions of a task a step samples as many tokens as a MASS step does: 24 × 32 × 3 = 2304, against
    24 × (8 samples × 5 + 16 solutions × 3) = 2112. With 8 it makes about four times as many steps in the same time.
    """
    tasks = world.tasks("train", 20_000, seed=seed)
    untrained = base_model(seed, base)

    def verified(completions: list[str], index: list[int], **_: Any) -> list[float]:
        parts = [CONVENTIONS_FORMAT.split_solution(text) for text in completions]
        judged = verify_batch([tasks[i] for i in index], [p.answer if p else "" for p in parts])
        return [reward if p else 0.0 for reward, p in zip(judged, parts, strict=True)]

    settings = conventions_settings()
    shared = ("learning_rate", "lr_scheduler_type", "warmup_steps", "beta", "save_strategy", "report_to", "use_cpu")
    solver: dict[str, Any] = {
        **{name: settings[name] for name in shared},
        "num_generations": generations,
        "per_device_train_batch_size": 24 * generations,
        "max_completion_length": 4,
        "logging_steps": 50,
        "bf16": False,
        "gradient_checkpointing": False,
        **changes,
    }
    args = GRPOConfig(output_dir=str(output_dir), seed=seed, max_steps=steps, **solver)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        reward_funcs=verified,
        args=args,
        train_dataset=Dataset.from_dict(
            {"prompt": [CONVENTIONS_FORMAT.solver_prompt(t) for t in tasks], "index": list(range(len(tasks)))}
        ),
        processing_class=untrained.tokenizer,
        peft_config=conventions_lora(),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    mass = MassModel(trainer.model, untrained.tokenizer, untrained.config, seed=seed)
    return Trained(mass, seconds, steps, trainer.state.log_history)


# -- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row of the table: a method, the model it runs on, and whether it has an inner rate to choose."""

    name: str
    model: str
    method: Method
    adapts: bool = True


def as_question(task: Task) -> str:
    """A task of this world as an auxiliary question."""
    return f"{task.fields['family']} {task.problem}"


def rows(world: ConventionsWorld, seed: int) -> list[Row]:
    """Every row, in the order of the table."""
    budget = M_TRAIN * 5
    pool = world.tasks("train", 2000, seed=seed + 10_000)
    names = [world.convention_name(c) for c in range(world.conventions)]

    def keeps(task: Task, sample: Any) -> bool:
        return fits_demonstrations(world, task, sample.question, sample.answer)

    def elsewhere(task: Task, sample: Any) -> bool:
        """A sample on the very item that is asked could hand over the answer; this leaves such samples out."""
        return sample.question != as_question(task)

    own = partial(adapt_on_samples, count=M_TRAIN)
    return [
        Row("base", "base", answer_greedily, adapts=False),
        Row("base, majority vote (equal tokens)", "base", majority_vote(budget), adapts=False),
        Row("adapt on random training pairs", "base", adapt_on_random_tasks(pool, as_question, M_TRAIN)),
        Row("TT-SS (raw self-generated)", "base", own("uniform")),
        Row("hand-written filter (equal tokens)", "base", own("uniform", keep=keeps)),
        Row("TTT: one step on the demonstrations", "base", adapt_directly(names)),
        Row("attribution to demonstrations, base generator, m = 8", "base", own("demonstrations")),
        Row(
            "attribution to demonstrations, base generator, m = 24",
            "base",
            adapt_on_samples("demonstrations", count=M_TEST),
        ),
        Row(
            "the same without samples on the queried item",
            "base",
            adapt_on_samples("demonstrations", count=M_TEST, keep=elsewhere),
        ),
        Row("solver GRPO, equal steps", "grpo_steps", answer_greedily, adapts=False),
        Row("solver GRPO, equal wall time", "grpo_wall", answer_greedily, adapts=False),
        Row("MASS-gold, scored", "gold", own("scorer")),
        Row("MASS, no adaptation", "mass", answer_greedily, adapts=False),
        Row("MASS, uniform", "mass", own("uniform")),
        Row("MASS, scored", "mass", own("scorer")),
        Row("MASS, attribution to demonstrations, m = 8", "mass", own("demonstrations")),
        Row("MASS, attribution to demonstrations, m = 24", "mass", adapt_on_samples("demonstrations", count=M_TEST)),
        Row("GRPO then MASS, no adaptation", "grpo_mass", answer_greedily, adapts=False),
        Row("GRPO then MASS, scored", "grpo_mass", own("scorer")),
        Row(
            "GRPO then MASS, attribution to demonstrations, m = 24",
            "grpo_mass",
            adapt_on_samples("demonstrations", count=M_TEST),
        ),
    ]


def evaluate_rows(
    models: dict[str, MassModel],
    world: ConventionsWorld,
    seed: int,
    tasks: int,
    validation_tasks: int,
    report: Callable[[str], None],
    quick: bool = False,
    known: Collection[str] = (),
) -> dict[str, dict[str, tuple[Outcome, float | None]]]:
    """Row name → split → (outcome, inner rate). Rows whose model is not in `models`, or that are `known`, are left out.

    `quick` tries two inner rates instead of four.
    """
    rates = CONVENTIONS_INNER_RATES[1:3] if quick else CONVENTIONS_INNER_RATES
    found: dict[str, dict[str, tuple[Outcome, float | None]]] = {}
    test = {split: world.tasks(split, tasks, seed=100) for split in SPLITS}
    validation = {split: world.tasks(chosen_on, validation_tasks, seed=200) for split, chosen_on in SPLITS.items()}
    for row in rows(world, seed):
        if row.model not in models or row.name in known:
            continue
        mass = models[row.model]
        found[row.name] = {}
        for split in SPLITS:
            rate = None
            model = mass
            if row.adapts:
                rate, _ = choose_rate(row.method, mass, validation[split], rates, seed)
                model = with_inner_rate(mass, rate)
            outcome = run_method(row.method, model, test[split], seed)
            found[row.name][split] = (outcome, rate)
            report(f"{row.name:55s} {split:17s} {outcome.correct.mean():.3f}  (inner rate {rate})")
    return found


MODELS = ("mass", "gold", "grpo_steps", "grpo_wall", "grpo_mass")
QUICK_MODELS = ("mass", "grpo_steps", "grpo_wall")
SOLVER_AT_WALL_TIME: dict[str, Any] = {"generations": 8}
"""How the solver spends equal wall time; see results/LOG.md for what was tried on validation tasks."""


def train_models(
    world: ConventionsWorld,
    seed: int,
    output_dir: Path,
    wanted: Collection[str],
    report: Callable[[str], None],
    known: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[dict[str, MassModel], dict[str, Any], dict[str, Trained]]:
    """Train the models wanted.

    The wall time and the steps of MASS are the budget of the others, so it is trained first unless `known` has them.

    Args:
        world: The world.
        seed: Of training.
        output_dir: Where trainers write.
        wanted: Of `MODELS`.
        report: Gets a line for each model.
        known: What earlier training took, model → {"seconds", "steps"}.
        changes: Settings of MASS that differ from the preset.

    Returns:
        (the models and the base by name, what training took, how it went).
    """
    trained: dict[str, Trained] = {}
    took = dict(known or {})

    def keep(name: str, result: Trained) -> None:
        trained[name] = result
        took[name] = {"seconds": result.seconds, "steps": result.steps}
        report(f"trained {name}: {result.steps} steps in {result.seconds:.0f} s")

    def solver(name: str, seconds: float) -> Trained:
        """As many steps as fit the time, by the pace of twenty."""
        pace = train_solver(world, seed, output_dir / "pace", 20, **SOLVER_AT_WALL_TIME).seconds / 20
        return train_solver(world, seed, output_dir / name, max(1, int(seconds / pace)), **SOLVER_AT_WALL_TIME)

    if "mass" in wanted or "mass" not in took:
        keep("mass", train_mass(world, seed, output_dir / "mass", **changes))
    budget, steps = took["mass"]["seconds"], took["mass"]["steps"]
    if "grpo_steps" in wanted:
        keep("grpo_steps", train_solver(world, seed, output_dir / "grpo_steps", steps))
    if "grpo_wall" in wanted:
        keep("grpo_wall", solver("grpo_wall", budget))
    if "gold" in wanted:
        keep("gold", train_mass(world, seed, output_dir / "gold", outer_loss="gold", **changes))
    if "grpo_mass" in wanted:
        half = solver("grpo_half", budget / 2)
        model = half.mass.model
        model.delete_adapter("inner")
        changes = {**changes, "max_steps": max(1, steps // 2)}
        then = train_mass(world, seed, output_dir / "grpo_mass", start=model, **changes)
        keep("grpo_mass", replace(then, seconds=then.seconds + half.seconds, steps=then.steps + half.steps))
    models = {"base": base_model(seed), **{name: result.mass for name, result in trained.items()}}
    for mass in models.values():
        mass.model.eval()
    return models, took, trained
