"""BIG-Bench Hard on a real language model: prompting, test-time training by the published settings, the guard.

    python -m benchmarks.real_models_bbh --model ~/.cache/hf_mass/smollm2-135m-instruct        # runs, resumes, reports
    python -m benchmarks.real_models_bbh --model ... --tasks hyperbaton snarks --rows base ttt
    python -m benchmarks.real_models_bbh --report                                              # from the outcomes alone

Run in `examples`. Each of the 27 tasks has ten demonstrations and 50 queries, drawn from its file by the seed, and is
scored as the paper does (`hf_mass.tasks.bbh`). Every outcome goes to `<output>/outcomes.json` at once, so
a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import hf_mass
from benchmarks.real_models import ROWS, guarded, keep, parser_of, run
from benchmarks.real_models_report import Outcomes, by_task, dot_plot, summary
from hf_mass import Answer, LanguageModel, Task
from hf_mass.tasks.bbh import BBH_TASKS, load_bbh

PREFIX = "bbh/"
"""Of the tasks' names among the outcomes."""


def answer_tokens(lm: LanguageModel, name: str, task: Task) -> int:
    """Longest answer: the published limit, or more where this tokenizer needs more for what a demonstration answers."""
    shown = [lm.tokenizer(f" {pair.answer}", add_special_tokens=False)["input_ids"] for pair in task.demonstrations]
    return max(BBH_TASKS[name].answer_tokens, *map(len, shown))


def by_verifier(answer: Answer) -> bool:
    """Whether the task's verifier finds an answer right."""
    return bool(answer.right)


def report(outcomes: Outcomes, output: Path) -> str:
    """Writes results.md and before-after.png; returns the text."""
    (seed,) = outcomes.seeds
    names = [PREFIX + name for name in BBH_TASKS if outcomes.get(PREFIX + name, seed, "base")]
    parts = [f"    {outcomes.about['command']}", "", summary(outcomes, names), ""]
    parts += [f"## Task by task, seed {seed}", "", by_task(outcomes, names, seed), ""]
    text = "\n".join(parts)
    output.mkdir(parents=True, exist_ok=True)
    dot_plot(outcomes, names, seed, output / "before-after.png")
    (output / "results.md").write_text(text, encoding="utf-8")
    return text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__, "real-models-bbh", 50, "bbh")
    parser.add_argument("--dtype", default="float32", help="of the base; LoRA and optimizer are float32")
    parser.add_argument("--tasks", nargs="*", default=list(BBH_TASKS), choices=list(BBH_TASKS))
    parser.add_argument("--rows", nargs="+", default=["base", "ttt", "guarded"], choices=["base", "ttt", "guarded"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shots", type=int, default=10, help="demonstrations")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    file = arguments.output / "outcomes.json"
    if arguments.report:
        print(report(Outcomes(file), arguments.output))
        return
    about = {"model": Path(arguments.model).name, "dtype": arguments.dtype, "shots": arguments.shots}
    about |= {"queries": arguments.queries, "seed": arguments.seed}
    about["command"] = "python -m benchmarks.real_models_bbh --model <folder>"
    outcomes = Outcomes(file, about)
    lm = hf_mass.load(arguments.model, dtype=getattr(torch, arguments.dtype))
    drawn = load_bbh(arguments.data, arguments.tasks, arguments.shots, arguments.seed)
    for name, queries in drawn.items():
        tasks = queries[: arguments.queries]
        settings = {"preset": "bbh", "max_completion_length": answer_tokens(lm, name, tasks[0])}
        for row in arguments.rows:
            if outcomes.get(PREFIX + name, arguments.seed, row) is not None:
                continue
            trained = outcomes.get(PREFIX + name, arguments.seed, "ttt")
            if row == "guarded" and trained is not None:
                one = guarded(lm, settings, tasks, arguments.seed, trained, by_verifier)
            else:
                one = run(lm, ROWS[row](settings), tasks, arguments.seed, by_verifier)
            keep(outcomes, PREFIX + name, arguments.seed, row, one)
    print(report(outcomes, arguments.output))


if __name__ == "__main__":
    main()
