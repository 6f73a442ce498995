"""Few-shot tasks of a word or a short phrase on a real language model: prompting, test-time training, the guard.

    python -m benchmarks.real_models --model ~/.cache/hf_mass/smollm2-135m-instruct            # runs, resumes, reports
    python -m benchmarks.real_models --model ... --tasks tuning --rows base ttt --set learning_rate=3e-4
    python -m benchmarks.real_models --report                                                  # from the outcomes alone

Run in `examples`. A task has ten demonstrations and 100 queries, drawn from its file by the seed; an answer is right if
it is the known one to the letter. Settings were chosen on `TUNING`, whose tasks are reported apart. Every outcome goes
to `<output>/outcomes.json` as soon as it is there, so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hf_mass
from benchmarks.real_models_report import TUNING, Outcomes, report
from hf_mass import MASS, TTT, LanguageModel, Method, NoAdaptation, Task
from hf_mass.engine.session import Session
from hf_mass.methods.base import Adaptation, Answer, Cost
from hf_mass.methods.guard import Guard
from hf_mass.methods.guard_choice import is_default
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.ttt_settings import ASKED_ONCE, TTT_PRESETS
from paths import DATA, RESULTS

LONGEST = 300
"""Characters of an input."""

Made = Callable[[dict[str, Any]], Method[Any]]
ROWS: dict[str, Made] = {
    "base": lambda s: NoAdaptation(TTT(**s)),
    "ttt": lambda s: TTT(**s),
    "low": lambda s: TTT(**s).scaled(0.3),
    "long": lambda s: TTT(**{**s, "max_examples": 40, "permutations": 8}),
    "guarded": lambda s: Guard(TTT(**s)),
    "direct": lambda s: TTT(**s, direct=True),
    "query-loss": lambda s: TTT(**s, loss_on="query"),
    "mass-uniform": lambda s: MASS(weigh_by="uniform", asks=TTT(**s)),
    "mass": lambda s: MASS(weigh_by="demonstrations", asks=TTT(**s)),
    "both": lambda s: TTTThenMASS(TTT(**s), MASS(weigh_by="demonstrations", asks=TTT(**s))),
}
"""Row → the method from settings of TTT. Besides these there are "vote", which samples as many tokens as "ttt" was
trained on, and "shared", one adapter for all tasks."""
TEMPERATURE = 0.7
"""Of the answers that the majority vote is taken of."""


def task_names(data: Path) -> list[str]:
    """All tasks, as folder/name."""
    return sorted(f"{file.parent.name}/{file.stem}" for file in data.glob("*/*.jsonl"))


def load_task(file: Path, shots: int, queries: int, seed: int) -> list[Task]:
    """The queries of one task, all with the same demonstrations."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [(str(row["input"]).strip(), str(row["output"]).strip()) for row in rows]
    pairs = [(x, y) for x, y in dict(pairs).items() if x and y and len(x) < LONGEST]
    random.Random(seed).shuffle(pairs)
    if len(pairs) <= shots:
        raise SystemExit(f"{file} has {len(pairs)} rows, too few for {shots} demonstrations.")
    shown = pairs[:shots]
    return [Task.from_pairs(shown, x, y, id=f"{file.stem}-{n}") for n, (x, y) in enumerate(pairs[shots:][:queries])]


def answers_like(tasks: Sequence[Task]) -> str:
    """What the answers to tasks are like: "copied" from the input, of a "closed" set, or "open"."""
    shown = [(d.question, d.answer) for d in tasks[0].demonstrations] + [(t.problem, str(t.answer)) for t in tasks]
    if np.mean([answer in question for question, answer in shown]) > 0.9:
        return "copied"
    return "closed" if len({answer for _, answer in shown}) <= len(shown) / 5 else "open"


def to_the_letter(answer: Answer) -> bool:
    """Whether an answer is the known one to the letter."""
    return answer.text == answer.task.answer


Judge = Callable[[Answer], bool]


def run(
    lm: LanguageModel, method: Method[Any], tasks: Sequence[Task], seed: int, is_right: Judge = to_the_letter
) -> dict[str, Any]:
    """What a method comes to on the queries of one task."""
    begun, session = time.process_time(), Session(lm, method, seed)
    adaptations = session.adapt(tasks)
    answers, cost = session.answer(tasks, adaptations)
    return outcome(adaptations[0], answers, cost, time.process_time() - begun, is_right)


def outcome(
    adaptation: Adaptation, answers: Sequence[Answer], cost: Cost, seconds: float, is_right: Judge = to_the_letter
) -> dict[str, Any]:
    """What is kept of a method's answers to the queries of one task, which share an adaptation."""
    adapting = adaptation.guard_cost + adaptation.cost
    return {
        "right": [int(is_right(answer)) for answer in answers],
        "cpu_seconds": round(seconds, 1),
        "trained_tokens": round(adapting.trained_tokens * len(answers)),
        "sampled_tokens": round((adapting.sampled_tokens + cost.sampled_tokens) * len(answers)),
        "losses": [round(value, 4) for value in adaptation.losses],
        "guard": guard_entries(adaptation),
        "guard_note": adaptation.guard_note,
        "reason": adaptation.reason,
    }


def guard_entries(adaptation: Adaptation) -> list[dict[str, Any]]:
    """What is kept of what a guard measured."""
    return [
        {"strength": e.strength, "share": e.share, "gain": round(e.gain, 4), "chosen": e.chosen}
        | {"right_before": e.right_before, "right": e.right, "left_out": e.left_out}
        for e in adaptation.guard
    ]


def guarded(
    lm: LanguageModel,
    settings: dict[str, Any],
    tasks: Sequence[Task],
    seed: int,
    trained: dict[str, Any],
    is_right: Judge = to_the_letter,
) -> dict[str, Any]:
    """What TTT behind a guard comes to. Where the guard takes the default, its training and its answers are those of
    TTT alone, step for step: they are taken from that row, `trained`, and only the choosing is run."""
    guard, begun = Guard(TTT(**settings)), time.process_time()
    state = guard.begin(lm, tasks, seed)
    while not state.chosen:
        state = guard.step(lm, state)
    seconds, record, (entries, *_) = time.process_time() - begun, state.records[0], state.entries
    if not any(entry.chosen and is_default(entry) for entry in entries):
        return run(lm, guard, tasks, seed, is_right)
    tokens = round(state.cost.trained_tokens * len(tasks)), round(state.cost.sampled_tokens * len(tasks))
    return {
        **trained,
        "cpu_seconds": round(seconds + trained["cpu_seconds"], 1),
        "trained_tokens": trained["trained_tokens"] + tokens[0],
        "sampled_tokens": trained["sampled_tokens"] + tokens[1],
        "guard": guard_entries(record),
        "guard_note": record.guard_note,
    }


def vote(
    lm: LanguageModel, settings: dict[str, Any], tasks: Sequence[Task], outcomes: Outcomes, name: str, seed: int
) -> dict[str, Any]:
    """A majority vote over as many sampled tokens as TTT was trained on.

    Raises:
        SystemExit: If the rows "base" and "ttt", which say how many that are, are not there.
    """
    trained, asked = outcomes.get(name, seed, "ttt"), outcomes.get(name, seed, "base")
    if trained is None or asked is None:
        raise SystemExit(
            f"The row 'vote' of {name} follows those of 'base' and 'ttt'. Run them first, or name them too."
        )
    count = max(2, round(trained["trained_tokens"] / max(1, asked["sampled_tokens"])))
    several = {"predict_samples": count, "predict_temperature": TEMPERATURE, "vote": "flat"}
    return run(lm, NoAdaptation(TTT(**{**settings, **several})), tasks, seed)


def shared(
    lm: LanguageModel, settings: dict[str, Any], by_task: dict[str, list[Task]], seed: int
) -> dict[str, dict[str, Any]]:
    """One adapter for all tasks: the outcome of each."""
    begun, session = time.process_time(), Session(lm, TTT(**settings, adapters="shared"), seed)
    adaptations = session.adapt([tasks[0] for tasks in by_task.values()])
    training, outcomes = (time.process_time() - begun) / len(by_task), {}
    for (name, tasks), adaptation in zip(by_task.items(), adaptations, strict=True):
        begun = time.process_time()
        answers, cost = session.answer(tasks, [adaptation] * len(tasks))
        outcomes[name] = outcome(adaptation, answers, cost, training + time.process_time() - begun)
        outcomes[name]["trained_tokens"] = round(adaptation.cost.trained_tokens)
    return outcomes


# -- running -----------------------------------------------------------------------------------------------------------


def parser_of(
    description: str | None, output: str, queries: int, data: str = "function-vectors"
) -> argparse.ArgumentParser:
    """The options that every benchmark on a real model has; `output` and `data` are folders of results and of data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--data", type=Path, default=DATA / data)
    parser.add_argument("--queries", type=int, default=queries)
    parser.add_argument("--output", type=Path, default=RESULTS / output)
    parser.add_argument("--report", action="store_true", help="only write the report")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__, "real-models", 100)
    parser.add_argument("--dtype", default="bfloat16", help="of the base; LoRA and optimizer are float32")
    parser.add_argument("--tasks", nargs="*", default=[], help="folder/name; 'tuning' for those; default: all")
    parser.add_argument("--rows", nargs="+", default=["base", "ttt", "guarded"], choices=[*ROWS, "vote", "shared"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shots", type=int, default=10, help="demonstrations")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of TTT to change")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    arguments.set = {item.partition("=")[0]: json.loads(item.partition("=")[2]) for item in arguments.set}
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    file = arguments.output / "outcomes.json"
    if arguments.report:
        print(report(Outcomes(file), arguments.output))
        return
    about = {"model": Path(arguments.model).name, "dtype": arguments.dtype, "shots": arguments.shots}
    about |= {"queries": arguments.queries, "set": arguments.set, "preset": TTT_PRESETS["text"]}
    about["command"] = "python -m benchmarks.real_models --model <folder>"
    outcomes, settings = Outcomes(file, about), {**ASKED_ONCE, **arguments.set}
    lm = hf_mass.load(arguments.model, dtype=getattr(torch, arguments.dtype))
    names = list(TUNING) if arguments.tasks == ["tuning"] else arguments.tasks or task_names(arguments.data)
    for seed in arguments.seeds:
        by_task = {n: load_task(arguments.data / f"{n}.jsonl", arguments.shots, arguments.queries, seed) for n in names}
        outcomes.answers |= {name: answers_like(tasks) for name, tasks in by_task.items()}
        for name, tasks in by_task.items():
            for row in arguments.rows:
                if row == "shared" or outcomes.get(name, seed, row) is not None:
                    continue
                trained = outcomes.get(name, seed, "ttt")
                if row == "vote":
                    one = vote(lm, settings, tasks, outcomes, name, seed)
                elif row == "guarded" and trained is not None:
                    one = guarded(lm, settings, tasks, seed, trained)
                else:
                    one = run(lm, ROWS[row](settings), tasks, seed)
                keep(outcomes, name, seed, row, one)
        if "shared" in arguments.rows and any(outcomes.get(name, seed, "shared") is None for name in names):
            for name, each in shared(lm, settings, by_task, seed).items():
                keep(outcomes, name, seed, "shared", each)
    print(report(outcomes, arguments.output))


def keep(outcomes: Outcomes, name: str, seed: int, row: str, one: dict[str, Any]) -> None:
    """Put an outcome into the file, and tell it."""
    outcomes.put(name, seed, row, one)
    right = one["right"]
    text = f"{name} seed {seed} {row}: {np.mean(right):.3f}, n = {len(right)}, {one['cpu_seconds']} s"
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
