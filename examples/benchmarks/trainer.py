"""What a step of `MetaAdaptTrainer` costs beside a step of TRL's `GRPOTrainer`, for `tasks.py`.

Both train on the conventions world with their own `.train()`, and both generate as many tokens in a step: m samples and
k solutions of each task against G solutions of each task. Learning rates are 0, so every run does the same work.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.common import CLOCKS, Table, say
from benchmarks.stages import Stage, Stopwatch, profiled, shares
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import Sampling, complete
from hf_mass.methods.inner import InnerAdapter
from hf_mass.methods.judging import judge
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.scorer import Scorer
from hf_mass.tasks.task import Task
from hf_mass.training import meta_adapt_trainer, outer
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.outer import OuterLoop
from research.conventions.experiment import BASE, load_world
from research.conventions.settings import conventions_lora, conventions_settings

SHARED_SETTINGS = (
    "lr_scheduler_type",
    "warmup_steps",
    "beta",
    "save_strategy",
    "report_to",
    "use_cpu",
    "logging_steps",
)
OTHER = "TRL, Trainer and the rest"
UPDATE = "update of the generator"
STAGES = (
    Stage("generate samples (TRL)", GRPOTrainer, "_generate"),
    Stage("parse", meta_adapt_trainer, "read_sample"),
    Stage("rows to tensors", InnerAdapter, "problem"),
    Stage("inner loop", InnerLoop, "run"),
    Stage("features for the scorer", MassModel, "features"),
    Stage("attribution to demonstrations", InnerAdapter, "demonstration_attributions", whole=True),
    Stage("scorer", Scorer, "forward"),
    Stage("generate solutions", InnerAdapter, "complete"),
    Stage("verify", outer, "judge"),
    Stage("meta-gradient", InnerAdapter, "meta_gradient"),
    Stage("metrics", OuterLoop, "_metrics", whole=True),
    Stage("rest of the outer step", OuterLoop, "__call__"),
    Stage(UPDATE, GRPOTrainer, "compute_loss"),
    Stage(UPDATE, Accelerator, "backward"),
    Stage(UPDATE, AcceleratedOptimizer, "step"),
)


@dataclass(frozen=True)
class StepSetting:
    """What a step does.

    Args:
        tasks_per_step: Tasks of one step.
        steps: Steps of one run.
        dropped: First steps of a run that do not count; the rest should be whole logging cycles.
        hidden: Width to which the tiny base is grown; 0 for its own.
        layers: Layers to which it is grown; 0 for its own.
        clock: "wall" or "cpu".
    """

    tasks_per_step: int = 24
    steps: int = 7
    dropped: int = 2
    hidden: int = 0
    layers: int = 0
    clock: str = "wall"


def load_base(hidden: int = 0, layers: int = 0) -> PreTrainedModel:
    """The tiny base, or a larger model that computes the same function and costs what its shape costs.

    The added columns and layers are zeros, which the residual stream passes by; norms are scaled for the added zeros.
    """
    small = AutoModelForCausalLM.from_pretrained(BASE)
    if not (hidden or layers):
        return small
    config = copy.deepcopy(small.config)
    factor = (hidden or config.hidden_size) / config.hidden_size
    config.hidden_size = hidden or config.hidden_size
    config.num_hidden_layers = layers or config.num_hidden_layers
    config.layer_types = None  # one for each layer; filled in again
    config.intermediate_size = int(factor * config.intermediate_size)
    config.num_attention_heads = int(factor * config.num_attention_heads)
    config.num_key_value_heads = int(factor * config.num_key_value_heads)
    config.rms_norm_eps /= factor
    large = AutoModelForCausalLM.from_config(type(config)(**config.to_dict()))
    with torch.no_grad():
        known = small.state_dict()
        for name, parameter in large.named_parameters():
            parameter.zero_()
            if name in known:
                scale = factor**-0.5 if "norm" in name else 1.0
                parameter[tuple(slice(size) for size in known[name].shape)] = scale * known[name]
    return large.eval()


class StepClock(TrainerCallback):
    """Notes when steps begin, and when training ends.

    Args:
        clock: Gives the time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.marks = clock, list[float]()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(self.clock())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(self.clock())

    @property
    def steps(self) -> list[float]:
        """Seconds of each step, logging included."""
        return [end - start for start, end in zip(self.marks, self.marks[1:], strict=False)]


class Runner:
    """A trainer that can be run again and again.

    Args:
        trainer: The trainer.
        setting: How many steps.
    """

    def __init__(self, trainer: GRPOTrainer, setting: StepSetting) -> None:
        self.trainer, self.setting = trainer, setting
        self.clock = StepClock(CLOCKS[setting.clock])
        trainer.add_callback(self.clock)
        trainer.remove_callback(PrinterCallback)

    def run(self) -> float:
        """Train; mean seconds of a step."""
        self.trainer.train()
        return statistics.mean(self.clock.steps[self.setting.dropped :])

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Within this context every call of `generate` adds the number of tokens that it made to a list."""
        model, found = self.trainer.model, list[int]()
        generate, pad = model.generate, self.trainer.processing_class.pad_token_id

        def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
            output = generate(*args, **kwargs)
            found.append(int((output[:, kwargs["input_ids"].shape[1] :] != pad).sum()))
            return output

        model.generate = counted
        try:
            yield found
        finally:
            del model.generate

    def generated(self) -> float:
        """Train; mean number of tokens generated in a step."""
        with self.counting() as found:
            self.run()
        return sum(found) / self.setting.steps


def mass_runner(setting: StepSetting, tasks: list[Task], tokenizer: Any, folder: Path) -> Runner:
    """MASS in verifier mode with K = 1, as in the conventions experiment."""
    settings = conventions_settings(
        max_steps=setting.steps, disable_tqdm=True, learning_rate=0.0, scorer_learning_rate=0.0
    )
    settings["per_device_train_batch_size"] = setting.tasks_per_step * settings["num_generations"]
    trainer = MetaAdaptTrainer(
        model=load_base(setting.hidden, setting.layers),
        args=MetaAdaptConfig(output_dir=str(folder), **settings),
        train_dataset=tasks,
        processing_class=tokenizer,
        peft_config=conventions_lora(),
        prompt_format=CONVENTIONS_FORMAT,
    )
    return Runner(trainer, setting)


def solver_runner(
    setting: StepSetting, tasks: list[Task], untrained: MassModel, generations: int, folder: Path
) -> Runner:
    """TRL's GRPO on the solver, with `generations` solutions of each task."""

    def verified(completions: list[str], index: list[int], **_: Any) -> list[float]:
        judged = judge(untrained.config.format, [tasks[i] for i in index], completions, always=True)
        return [answer.reward() for answer in judged]

    settings = conventions_settings()
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=setting.steps,
        disable_tqdm=True,
        learning_rate=0.0,
        num_generations=generations,
        per_device_train_batch_size=setting.tasks_per_step * generations,
        max_completion_length=settings["max_solution_length"],
        bf16=False,
        gradient_checkpointing=False,
        **{name: settings[name] for name in SHARED_SETTINGS},
    )
    prompts = [CONVENTIONS_FORMAT.solver_prompt(task) for task in tasks]
    trainer = GRPOTrainer(
        model=load_base(setting.hidden, setting.layers),
        reward_funcs=verified,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts, "index": list(range(len(tasks)))}),
        processing_class=untrained.tokenizer,
        peft_config=conventions_lora(),
    )
    return Runner(trainer, setting)


def solution_length(untrained: MassModel, tasks: list[Task]) -> float:
    """Mean tokens of a sampled solution."""
    prompts = [untrained.encoder.solver_prompt_ids(task) for task in tasks]
    sampling = Sampling(untrained.config.max_answer_tokens, 1.0)
    with deterministic(untrained.model), untrained.adapter.lora.inactive():
        found = complete(untrained.model, untrained.tokenizer, prompts, sampling, list(range(len(prompts))))
    return statistics.mean(map(len, found))


def build_runners(setting: StepSetting, untrained: MassModel, folder: Path) -> tuple[dict[str, Runner], dict[str, Any]]:
    """(both trainers, warmed up; the tokens that each generates in a step)."""
    tasks = load_world().tasks("train", setting.tasks_per_step * setting.steps, seed=0)
    mass = mass_runner(setting, tasks, untrained.tokenizer, folder / "mass")
    tokens = mass.generated()
    length = solution_length(untrained, tasks)
    generations = max(2, round(tokens / (setting.tasks_per_step * length)))
    solver = solver_runner(setting, tasks, untrained, generations, folder / "solver")
    counted = {"mass": tokens, "solver": solver.generated()}
    args = mass.trainer.args
    work = {
        "mass": f"{args.num_generations} samples + {args.num_solutions} solutions a task",
        "solver": f"{generations} solutions a task",
    }
    return {"solver": solver, "mass": mass}, {"tokens": counted, "work": work}


def stage_table(runners: dict[str, Runner], labels: dict[str, str]) -> Table:
    """Milliseconds of a step by stage, for both trainers."""
    columns = {"stage": "stage", **{f"{name}_share": f"{label}, %" for name, label in labels.items()}}
    rows: dict[str, dict[str, Any]] = {}
    for name, runner in runners.items():
        watch = Stopwatch(runner.clock.clock)
        with watch.watching(STAGES):
            runner.run()
        total = sum(runner.clock.steps)
        for stage, share in shares(watch.seconds, total, OTHER).items():
            row = rows.setdefault(stage, {"stage": stage})
            row |= {f"{name}_share": share, f"{name}_ms": 10 * share * total / len(runner.clock.steps)}
            columns |= {f"{name}_ms": f"{labels[name]}, ms"}
    ordered = sorted(rows.values(), key=lambda row: -row.get("mass_share", 0.0))
    return Table("where the time of a step goes (all steps, the first ones included)", columns, ordered)


def trainer_tables(setting: StepSetting, untrained: MassModel, repeats: int, profile: bool) -> dict[str, Table]:
    """The ratio of a step's times, and with `profile` where the time goes."""
    labels = {"mass": "MetaAdaptTrainer (hf_mass)", "solver": "GRPOTrainer (TRL)"}
    with tempfile.TemporaryDirectory() as folder:
        runners, notes = build_runners(setting, untrained, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(repeats):
            for name, runner in runners.items():
                seconds[name].append(runner.run())
            say(f"step: MASS {seconds['mass'][-1]:.3f} s, GRPO {seconds['solver'][-1]:.3f} s")
        tables = {"trainer": _step_table(setting, seconds, notes, labels)}
        if profile:
            tables["stages"] = stage_table({name: runners[name] for name in labels}, labels)
            found = profiled(runners["mass"].run)
            tables["stages"].notes += [
                f"Python code of hf_mass itself: {100 * found.package / found.total:.1f}% (by cProfile, whose own cost "
                "makes that too much)",
                "by own time in MetaAdaptTrainer:",
                *found.lines,
            ]
    return tables


def _step_table(
    setting: StepSetting, seconds: dict[str, list[float]], notes: dict[str, Any], labels: dict[str, str]
) -> Table:
    rows = []
    for name, label in reversed(labels.items()):
        ratios = [own / floor for own, floor in zip(seconds[name], seconds["solver"], strict=True)]
        rows.append(
            {
                "method": name,
                "label": label,
                "seconds": seconds[name],
                "seconds_median": statistics.median(seconds[name]),
                "time_ratio": statistics.median(ratios),
                "time_ratio_range": [min(ratios), max(ratios)],
                "tokens": notes["tokens"][name],
                "work": notes["work"][name],
            }
        )
    grown = f", grown to hidden {setting.hidden}, {setting.layers} layers" if setting.hidden or setting.layers else ""
    columns = {
        "label": "trainer",
        "time_ratio": "time",
        "time_ratio_range": "spread",
        "seconds_median": "seconds a step",
        "tokens": "tokens generated",
        "work": "of",
    }
    kept = setting.steps - setting.dropped
    note = f"mean of the last {kept} of {setting.steps} steps of a run; medians over {len(ratios)} alternating runs"
    title = f"one training step on {setting.tasks_per_step} tasks, tiny base{grown}"
    return Table(title, columns, rows, [note])
