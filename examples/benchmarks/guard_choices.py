"""What a guard should go by: left-out demonstrations measured at each strength, beside the test accuracy it leads to.

    python -m benchmarks.guard_choices --model ~/.cache/hf_mass/smollm2-135m-instruct     # runs, resumes, reports
    python -m benchmarks.guard_choices --report                                           # from the outcomes alone

Run in `examples`. A draw is a tuning task and a seed, which draws its ten demonstrations and its queries. For each draw
all demonstrations are trained on at each strength, and the queries answered at each stop; and each half of them is, and
the other half's answers are scored and written. Rules that choose by the second are then compared by the first. Every
outcome goes to `<output>/outcomes.json` as soon as it is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hf_mass
from benchmarks.real_models import load_task
from benchmarks.real_models_report import TUNING, Outcomes
from hf_mass import TTT, LanguageModel, Task
from hf_mass.methods.base import Adaptation
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.guard import STOPS
from hf_mass.methods.left_out import halves
from hf_mass.methods.ttt_settings import ASKED_ONCE
from paths import DATA, RESULTS

SCALES = (1.0, 0.3)
"""Shares of the default rate."""
Draw = dict[str, Any]
Choice = tuple[str, str] | None
"""(strength, stop), or None for not adapting."""


# -- measuring ---------------------------------------------------------------------------------------------------------


def left_out(lm: LanguageModel, method: TTT, fold: tuple[Task, tuple[Task, ...]], trained: Adaptation | None) -> Draw:
    """Log-probability in nats, tokens, and rightness of each left-out answer."""
    answers = FewShotAnswers(lm, method.resolved(lm, [fold[0]]))
    rows = [answers.encoder.answered(task, str(task.answer)) for task in fold[1]]
    batch = answers.batch([ids for ids, _ in rows], [flags for _, flags in rows], [0] * len(rows))
    log_probs = answers.summed_log_probs(batch, trained.parts[-1] if trained and trained.parts else None)
    written = method.answer(lm, fold[1], None if trained is None else [trained] * len(fold[1]), 0)
    return {
        "log_prob": [round(value, 4) for value in log_probs],
        "tokens": [sum(flags) for _, flags in rows],
        "right": [int(bool(answer.right)) for answer in written],
    }


def trained_to(lm: LanguageModel, method: TTT, tasks: Sequence[Task], seed: int) -> Any:
    """(stop, adaptations) at each stop."""
    state = method.begin(lm, tasks, seed)
    for stop in STOPS:
        while not method.stop(state) and state.fit.step < stop * len(state.batches[0]):
            state = method.step(lm, state)
        yield str(stop), method.finish(lm, state)


def measure(lm: LanguageModel, tasks: Sequence[Task], seed: int) -> Draw:
    """All of one draw."""

    def right(method: TTT, adaptations: Sequence[Adaptation] | None) -> list[int]:
        return [int(answer.text == answer.task.answer) for answer in method.answer(lm, tasks, adaptations, seed)]

    plain, begun = TTT(**ASKED_ONCE), time.process_time()
    draw: Draw = {"base": right(plain, None), "test": {}, "folds": {}}
    draw["seconds"] = {"base": time.process_time() - begun}
    folds = [halves(tasks[0], half) for half in (0, 1)]
    draw["before"] = [left_out(lm, plain, fold, None) for fold in folds]
    for scale in SCALES:
        method, begun = plain.scaled(scale), time.process_time()
        draw["test"][str(scale)] = {
            stop: right(method, trained) for stop, trained in trained_to(lm, method, tasks, seed)
        }
        draw["seconds"][f"test {scale}"], begun = time.process_time() - begun, time.process_time()
        trials = trained_to(lm, method.on_half(), [fold for fold, _ in folds], seed)
        draw["folds"][str(scale)] = {
            stop: [left_out(lm, plain, fold, one) for fold, one in zip(folds, trained, strict=True)]
            for stop, trained in trials
        }
        draw["seconds"][f"folds {scale}"] = time.process_time() - begun
    draw["seconds"] = {name: round(value, 1) for name, value in draw["seconds"].items()}
    return draw


# -- running -----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--data", type=Path, default=DATA / "function-vectors")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS / "real-models" / "guard")
    parser.add_argument("--report", action="store_true", help="only write the report")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    file = arguments.output / "outcomes.json"
    if not arguments.report:
        arguments.output.mkdir(parents=True, exist_ok=True)
        about = {"model": Path(arguments.model).name, "dtype": "bfloat16", "shots": 10, "queries": arguments.queries}
        about["command"] = "python -m benchmarks.guard_choices --model <folder>"
        outcomes, lm = Outcomes(file, about), hf_mass.load(arguments.model, dtype=torch.bfloat16)
        for seed in arguments.seeds:
            for name in TUNING:
                if outcomes.get(name, seed, "draw") is None:
                    tasks = load_task(arguments.data / f"{name}.jsonl", 10, arguments.queries, seed)
                    draw = measure(lm, tasks, seed)
                    outcomes.put(name, seed, "draw", draw)
                    print(
                        f"{name} seed {seed}: {np.mean(draw['base']):.3f}, {draw['seconds']}",
                        file=sys.stderr,
                        flush=True,
                    )


if __name__ == "__main__":
    main()
