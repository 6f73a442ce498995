"""Meta-train MASS and show it adapting.

With no arguments, on the tiny base and the designed world that ship with the package, on a CPU, in a few minutes:

    accelerate launch examples/train.py

On a model and data of your own (any causal LM; a Hub id, a folder, a JSON or JSONL file):

    accelerate launch examples/train.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --dataset_name openai/gsm8k --dataset_config main --solution_column answer --problem_column question \\
        --prompt_format gsm8k --verifier numeric --output_dir outputs/gsm8k
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import AutoTokenizer, HfArgumentParser

from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.evaluation.cards import write_card
from hf_mass.evaluation.statistics import mean_interval
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.methods.base import Answer
from hf_mass.store.card import hub_id
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.sources import Columns, load_tasks
from hf_mass.tasks.task import Task
from hf_mass.training.adaptation_eval import AdaptationEvalPrediction, evaluate_adaptation
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from research.conventions.experiment import BASE, QUICK_MODELS, evaluate_rows, load_world, train_models
from research.conventions.report import build_table, goals, plot_training, write_adapter_card, write_report

LEFT_TO_RESULTS = ("the same without samples on the queried item",)
"""Rows that only the full table of research/conventions/results.py has, to keep the main job short."""


@dataclass
class ScriptArguments:
    """What to train, and on what. The settings of training itself are those of `MetaAdaptConfig`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Any causal LM; default: the tiny base."})
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id, folder, .json or .jsonl file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Default: held-out rows of the dataset."})
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of eval_dataset_name."})
    problem_column: str = field(default="problem", metadata={"help": "Column of the problem (text or messages)."})
    solution_column: str | None = field(default="solution", metadata={"help": "Column of the gold solution."})
    answer_column: str | None = field(default="answer", metadata={"help": "Column of the gold answer."})
    demonstrations_column: str | None = field(default="demonstrations", metadata={"help": "Column of solved examples."})
    domain_column: str | None = field(default=None, metadata={"help": "Column for per-domain results."})
    max_train_tasks: int | None = field(default=None, metadata={"help": "Use this many training tasks."})
    eval_tasks: int = field(default=100, metadata={"help": "Tasks evaluated before and after."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the generator's LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "Alpha of the generator's LoRA."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear modules."})
    dtype: str = field(default="auto", metadata={"help": "Dtype of the model: auto, float32, bfloat16."})


@dataclass
class EmbeddedArguments:
    """The job without --dataset_name: the tiny base in its designed world."""

    output_dir: str = field(default="outputs/conventions", metadata={"help": "Where everything is written."})
    seed: int = field(default=0, metadata={"help": "Seed of training and sampling."})
    max_steps: int | None = field(default=None, metadata={"help": "Training steps; default: the preset's."})
    test_tasks: int = field(default=150, metadata={"help": "Test tasks of each split."})


def main() -> None:
    """Parse the command line and run one of the two jobs."""
    own = any(argument.split("=")[0] in ("--model_name_or_path", "--dataset_name") for argument in sys.argv[1:])
    if own:
        script, args = HfArgumentParser((ScriptArguments, MetaAdaptConfig)).parse_args_into_dataclasses()
        run_own(script, args)
    else:
        (arguments,) = HfArgumentParser((EmbeddedArguments,)).parse_args_into_dataclasses()
        run_embedded(arguments)


def say(text: str) -> None:
    """Print on the main process only."""
    if PartialState().is_main_process:
        print(text, flush=True)


# -- the embedded world ----------------------------------------------------------------------------------------------


def run_embedded(arguments: EmbeddedArguments) -> None:
    """One seed of the results table: train MASS and the baselines, answer both test splits, save and report."""
    torch.set_num_threads(1)  # one thread is faster than two on a model this small
    folder, seed = Path(arguments.output_dir), arguments.seed
    world = load_world()
    say(f"base: {BASE} (a designed base of 0.13M parameters in a designed world; see its card)")
    changes: dict[str, Any] = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
    models, _, trained = train_models(world, seed, folder, QUICK_MODELS, say, **changes)
    adapters = folder / "adapters"
    trained["mass"].mass.save_pretrained(adapters)
    plot_training(trained["mass"].history, folder / "training.png")
    tasks = arguments.test_tasks
    say(f"\nanswering {tasks} tasks of each test split; inner rates are chosen on validation tasks:")
    found = evaluate_rows(models, world, seed, tasks, max(2, tasks // 5), say, quick=True, known=LEFT_TO_RESULTS)
    table = build_table([found], command=shlex.join(["accelerate", "launch", "examples/train.py", *sys.argv[1:]]))
    checked = goals(table, [found])
    paths = write_report(table, folder, checked)
    card = write_adapter_card(adapters, paths["json"])
    say("\n" + table.to_text() + "\n\n" + "\n".join(map(str, checked)))
    say(f"\ntable: {paths['json']}\nplots: {paths['plot']} and {folder / 'training.png'}")
    say(f"adapters: {adapters}\ncard: {card}")


# -- a model and data of one's own ------------------------------------------------------------------------------------


def run_own(script: ScriptArguments, args: MetaAdaptConfig) -> None:
    """Train on a user's model and data; evaluate before and after; save."""
    for option in ("model_name_or_path", "dataset_name"):
        if getattr(script, option) is None:
            raise ConfigError(f"--{option} is missing. A model and data of one's own go together; give both.")
    train, held_out = own_tasks(script, args)
    say(f"{len(train)} training tasks, {len(held_out)} evaluation tasks")
    model = str(script.model_name_or_path)
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), "dtype": script.dtype}
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    trainer = MetaAdaptTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=script.lora_r,
            lora_alpha=script.lora_alpha,
            target_modules=script.lora_target_modules or "all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    before = measured(trainer, held_out)
    if reasons := not_judged(before.before, before.after, all_of_them=True):  # before hours of training
        raise VerifierError(f"None of the evaluation tasks can be judged: {reasons[0]}")
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    after = measured(trainer, held_out)
    folder = Path(str(args.output_dir))
    trainer.save_model()
    if trainer.is_world_process_zero():
        table = own_table(before, after)
        saved = table.save(folder / "results.json")
        plot_training(trainer.state.log_history, folder / "training.png")
        named = str(script.dataset_name)
        card = write_card(
            folder,
            saved,
            repo_id=args.hub_model_id,
            datasets=[named] if hub_id(named) else [],
            training_data=f"{len(train)} tasks of {Path(named).name}, split {script.dataset_split}.",
        )
        say("\n" + table.to_text())
        say(f"\ntable: {saved}\nplot: {folder / 'training.png'}\nadapters: {folder}\ncard: {card}")


def own_tasks(script: ScriptArguments, args: MetaAdaptConfig) -> tuple[list[Task], list[Task]]:
    """Training and evaluation tasks; the latter are the last rows of the training data unless named."""
    columns = Columns(
        problem=script.problem_column,
        solution=script.solution_column,
        answer=script.answer_column,
        demonstrations=script.demonstrations_column,
        domain=script.domain_column,
    )
    fmt = FORMATS[args.prompt_format]
    limit = None if script.max_train_tasks is None else script.max_train_tasks + script.eval_tasks
    if script.eval_dataset_name is not None:
        limit = script.max_train_tasks

    def load(name: str, split: str, count: int | None) -> list[Task]:
        return load_tasks(
            name,
            split=split,
            config_name=script.dataset_config,
            columns=columns,
            verifier=args.verifier,
            limit=count,
            seed=args.seed,
            fmt=fmt,
        )

    tasks = load(str(script.dataset_name), script.dataset_split, limit)
    if script.eval_dataset_name is not None:
        return tasks, load(script.eval_dataset_name, script.eval_dataset_split, script.eval_tasks)
    if len(tasks) < 2:
        raise DataError(f"{script.dataset_name!r} has {len(tasks)} task; at least 2 are needed, one to hold out.")
    held_out = min(script.eval_tasks, len(tasks) - 1 if limit else max(1, len(tasks) // 5))
    return tasks[:-held_out], tasks[-held_out:]


def measured(trainer: MetaAdaptTrainer, tasks: list[Task]) -> AdaptationEvalPrediction:
    """Answers before and after adaptation, as the model is now."""
    size = trainer.args.per_device_eval_batch_size
    return evaluate_adaptation(trainer.mass, tasks, trainer.accelerator, trainer.args.weigh_by, size)


def not_judged(*answers: list[Answer], all_of_them: bool = False) -> list[str]:
    """Why answers have no score; empty unless `all_of_them` have none, where that is asked."""
    every = [answer for some in answers for answer in some]
    reasons = [answer.reason or "it has no gold answer." for answer in every if answer.score is None]
    return [] if all_of_them and len(reasons) < len(every) else reasons


def own_table(before: AdaptationEvalPrediction, after: AdaptationEvalPrediction) -> ResultTable:
    """Base and trained model, unadapted and adapted; tasks whose verifier raised are left out, and n is less."""

    def row(name: str, prediction: AdaptationEvalPrediction, adapted: bool) -> ResultRow:
        answers = prediction.after if adapted else prediction.before
        reasons = not_judged(answers)
        if reasons:
            say(f"{name}: {len(reasons)} of {len(answers)} tasks are left out, which could not be judged: {reasons[0]}")
        scores = [[answer.score for answer in answers]]
        accuracy = {"held out": mean_interval(scores)} if len(reasons) < len(answers) else {}
        tokens = sum(answer.sampled_tokens for answer in answers) / len(answers)
        if adapted:
            tokens += sum(record.cost.sampled_tokens for record in prediction.records) / len(prediction.records)
        return ResultRow(name, accuracy, tokens, extra={"not judged": len(reasons)} if reasons else {})

    rows = [
        row("base", before, False),
        row("base, adapted on its own samples", before, True),
        row("MASS, no adaptation", after, False),
        row("MASS, adapted", after, True),
    ]
    return ResultTable("Greedy accuracy", ("held out",), tuple(rows), {"command": " ".join(sys.argv)})


if __name__ == "__main__":
    main()
