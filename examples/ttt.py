"""Test-time training: adapt a model to each few-shot task in front of it, and answer.

With no arguments, the shipped base for grids on made-up tasks of rules that it never saw, on a CPU, two minutes:

    accelerate launch examples/ttt.py

On a model and tasks of your own (any causal LM; grids, a file of inputs and outputs, or BIG-Bench Hard):

    accelerate launch examples/ttt.py --model_name_or_path meta-llama/Llama-3.2-1B-Instruct --preset text --chat True \\
        --tasks my_examples.jsonl --demonstrations 10 --output_dir outputs/mine
    accelerate launch examples/ttt.py --tasks data/evaluation --preset grids --vote rescore --output_dir outputs/arc

Every setting of `TTTConfig` is an option. `--resume True` goes on with a run that was stopped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from hf_mass import Task, TTTConfig, TTTTrainer, load_bbh, load_few_shot_file, load_grid_tasks
from hf_mass.errors import ConfigError, VerifierError
from hf_mass.methods.base import Adaptation
from hf_mass.methods.ttt_settings import TTT_PRESETS
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.answers import TaskScore, mean_scores
from hf_mass.tasks.grids import parse_grid
from hf_mass.tasks.tables import TableForm
from hf_mass.training.ttt_results import TaskResult
from research.grids.world import HELD_OUT, Sizes, few_shot_tasks

BASE = ASSETS / "grids-base"
COLOURS = (16, 33, 160, 34, 226, 245, 201, 208, 51, 88)
"""Terminal colours of the ten cells."""


@dataclass
class ScriptArguments:
    """What to answer, and with what. The settings of training and voting are those of `TTTConfig`."""

    preset: str = field(default="grids", metadata={"help": f"Settings to start from: one of {sorted(TTT_PRESETS)}."})
    model_name_or_path: str = field(default=str(BASE), metadata={"help": "Any causal LM; default: the grid base."})
    tasks: str | None = field(
        default=None, metadata={"help": "A folder or file of grids, or a .json/.jsonl/.csv file."}
    )
    bbh: str | None = field(
        default=None, metadata={"help": "The folder of BIG-Bench Hard's files, instead of --tasks."}
    )
    bbh_tasks: list[str] | None = field(default=None, metadata={"help": "Which of its 27 tasks; default: all."})
    input_column: str = field(default="input", metadata={"help": "Column of inputs in a file."})
    output_column: str = field(default="output", metadata={"help": "Column of outputs in a file."})
    encoding: str | None = field(default=None, metadata={"help": "Of a file, as in cp1252; default: as bytes look."})
    delimiter: str | None = field(
        default=None, metadata={"help": "Between a table's cells: ';' or tab...; default: as its first rows look."}
    )
    header: bool = field(default=True, metadata={"help": "Whether the first row of a table names its columns."})
    demonstrations: int = field(default=10, metadata={"help": "Rows of a file that become the demonstrations."})
    limit: int | None = field(default=None, metadata={"help": "Answer this many tasks."})
    base_too: bool = field(default=True, metadata={"help": "Answer without training as well, for comparison."})
    resume: bool = field(default=False, metadata={"help": "Go on with a run that was stopped."})


def parse(argv: list[str]) -> tuple[ScriptArguments, TTTConfig]:
    """The command line, on top of the preset that it names."""
    parser = HfArgumentParser((ScriptArguments, TTTConfig))
    named = [word.partition("=")[2] or argv[n + 1] for n, word in enumerate(argv) if word.split("=")[0] == "--preset"]
    preset = named[-1] if named else "grids"
    if preset not in TTT_PRESETS:
        raise ConfigError(f"--preset {preset!r} is unknown; choose one of {sorted(TTT_PRESETS)}.")
    parser.set_defaults(**TTT_PRESETS[preset], output_dir="outputs/ttt", use_cpu=not torch.cuda.is_available())
    script, config = parser.parse_args_into_dataclasses(argv)
    return script, config


def load(script: ScriptArguments) -> list[Task]:
    """The tasks that the command line names."""
    if script.bbh is not None:
        tasks = [task for found in load_bbh(script.bbh, script.bbh_tasks).values() for task in found]
    elif script.tasks is None:
        tasks = few_shot_tasks(HELD_OUT, 2, "ttt-demo", Sizes(composed=0.0))
    elif Path(script.tasks).is_dir() or is_puzzle(Path(script.tasks)):
        tasks = load_grid_tasks(script.tasks, answers=False)
    else:
        form = TableForm(encoding=script.encoding, delimiter=script.delimiter, header=script.header)
        columns = script.input_column, script.output_column
        tasks = load_few_shot_file(script.tasks, *columns, demonstrations=script.demonstrations, form=form)
    return tasks[: script.limit]


def is_puzzle(file: Path) -> bool:
    """Whether a JSON file holds puzzles (an object) rather than rows (a list)."""
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        return True  # whose reader says what is wrong with it


def shown(text: str | None, colour: bool) -> list[str]:
    """An answer as lines for a terminal; grids in their colours."""
    grid = None if text is None else parse_grid(text)
    if grid is None:
        return [str(text)]
    if not colour:
        return ["".join(map(str, row)) for row in grid]
    return ["".join(f"\033[48;5;{COLOURS[c]}m {c}\033[0m" for c in row) for row in grid]


def report(before: list[TaskResult] | None, after: list[TaskResult]) -> str:
    """Every task's answer before and after, and how many are right."""
    colour, lines = sys.stdout.isatty(), list[str]()
    for n, result in enumerate(after):
        why = "" if result.reason is None else f". {result.reason}"
        lines.append(f"\n{result.task.id}: {result.examples} examples, {result.seconds:.1f} s{why}")
        answers = {"input": result.task.problem, "after": result.answer, "gold": result.task.answer}
        if before is not None:
            answers = {"input": result.task.problem, "before": before[n].answer, **answers}
        for name, text in answers.items():
            first, *rest = shown(text, colour)
            lines += [f"  {name:7}{first}", *(" " * 9 + line for line in rest)]
    for name, results in (("before", before), ("after", after)):
        scores, reasons = list[TaskScore | None](), list[str]()
        for result in results or ():
            try:
                scores.append(result.score())
            except VerifierError as error:
                reasons.append(str(error))
        if reasons:
            lines.append(f"{name:7}{len(reasons)} tasks are left out, which could not be judged: {reasons[0]}")
        if means := mean_scores(scores):
            lines.append(f"{name:7}" + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))
    return "\n".join(lines)


def main() -> None:
    """Answer the tasks before and after test-time training, and say what came of it."""
    script, config = parse(sys.argv[1:])
    if script.model_name_or_path == str(BASE):
        torch.set_num_threads(1)  # one thread is faster than two on a model this small
    tasks = load(script)
    trainer = TTTTrainer(script.model_name_or_path, config)
    before = trainer.predict(tasks, records=[Adaptation(task) for task in tasks]) if script.base_too else None
    after = trainer.predict(tasks, resume=script.resume)
    if PartialState().is_main_process:
        print(report(before, after))
        print(f"results: {Path(str(config.output_dir)) / 'tasks'}")


if __name__ == "__main__":
    main()
