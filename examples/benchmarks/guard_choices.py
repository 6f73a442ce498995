"""What a guard should go by: left-out demonstrations measured at each strength, beside the test accuracy it leads to.

    python -m benchmarks.guard_choices --model ~/.cache/hf_mass/smollm2-135m-instruct     # runs, resumes, reports
    python -m benchmarks.guard_choices --report                                           # from the outcomes alone

Run in `examples`. A draw is a tuning task and a seed, which draws its ten demonstrations and its queries. For each draw
all demonstrations are trained on at each strength, and the queries answered at each stop; and each half of them is, and
the other half's answers are scored and written. Rules that choose by the second are then compared by the first. Every
outcome goes to `<output>/outcomes.json` as soon as it is there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hf_mass
from benchmarks.real_models import load_task, parser_of
from benchmarks.real_models_report import TUNING, Outcomes
from hf_mass import TTT, LanguageModel, Task
from hf_mass.methods.base import Adaptation, GuardEntry
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.guard import STOPS
from hf_mass.methods.guard_choice import choose
from hf_mass.methods.left_out import Reading, counts_right, gain, halves
from hf_mass.methods.ttt_settings import ASKED_ONCE
from hf_mass.store.markdown import markdown_table

SCALES = (1.0, 2.0, 0.4)
"""Shares of the default rate that are measured."""
OFFERED = (0, 2)
"""Numbers of those that a guard chooses from."""
Draw = dict[str, Any]
Rule = Callable[[Sequence[GuardEntry]], GuardEntry | None]
PLACES = [(number, share) for number in range(len(SCALES)) for share in STOPS]
"""(number of the rate, share of the steps) of each entry."""
TITLES = [f"{SCALES[number]:g}, {share:.0%}" for number, share in PLACES]


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


def trained_to(
    lm: LanguageModel, method: TTT, tasks: Sequence[Task], seed: int
) -> Iterator[tuple[str, list[Adaptation]]]:
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


# -- rules -------------------------------------------------------------------------------------------------------------


def together(readings: Sequence[Draw]) -> Reading:
    """What was read on all folds, as one."""
    parts = [Reading(tuple(r["log_prob"]), tuple(r["tokens"]), tuple(r["right"])) for r in readings]
    return sum(parts[1:], parts[0])


def entries_of(draw: Draw) -> list[GuardEntry]:
    """What a guard would have measured, strength by strength, the default first."""
    before, entries = together(draw["before"]), []
    for number, (scale, stops) in enumerate(draw["folds"].items()):
        for stop, readings in stops.items():
            after = together(readings)
            value, error = gain(before, after)
            counts = counts_right(before, after)
            entries.append(GuardEntry(scale, float(stop), value, number, False, error, *counts))
    return entries


def largest(score: Callable[[GuardEntry], float], least: float = 0.0) -> Rule:
    """The entry of the largest score, where that is above the least."""

    def rule(entries: Sequence[GuardEntry]) -> GuardEntry | None:
        best = max(entries, key=score)
        return best if score(best) > least else None

    return rule


def weakest(errors: float) -> Rule:
    """The weakest entry whose gain is within some standard errors of the largest, which must be above 0 by as many.

    The one-standard-error rule: Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984, section
    3.4.3.
    """

    def rule(entries: Sequence[GuardEntry]) -> GuardEntry | None:
        best = max(entries, key=lambda e: e.gain)
        enough = best.gain - errors * best.error
        return min((e for e in entries if e.gain >= enough), key=strength) if enough > 0 else None

    return rule


def strength(entry: GuardEntry) -> tuple[float, float]:
    """(rate, share of the steps): what a weaker entry has less of."""
    return float(entry.strength), entry.share


def among(numbers: Sequence[int], rule: Rule) -> Rule:
    """The rule, choosing among some of the strengths."""
    return lambda entries: rule([entry for entry in entries if entry.number in numbers])


def always(number: int, share: float) -> Rule:
    """One strength and stop, whatever was measured."""
    return lambda entries: next(e for e in entries if (e.number, e.share) == (number, share))


def rise(entry: GuardEntry) -> float:
    """By how much the share of left-out answers that are right rose."""
    return (entry.right - entry.right_before) / entry.left_out


RULES: dict[str, Rule] = {
    "never": lambda entries: None,
    **{f"always {SCALES[n]:g} × the rate, {share:.0%}": always(n, share) for n, share in PLACES},
    "largest gain": largest(lambda e: e.gain),
    "largest gain, above 0.1 nats": largest(lambda e: e.gain, 0.1),
    "largest gain, above 0.2 nats": largest(lambda e: e.gain, 0.2),
    "largest gain + rise of right answers": largest(lambda e: e.gain + rise(e)),
    "largest gain + 4 × rise of right answers": largest(lambda e: e.gain + 4 * rise(e)),
    "largest rise of right answers, then gain": largest(lambda e: rise(e) + 1e-3 * e.gain),
    "largest gain less 1 standard error": largest(lambda e: e.gain - e.error),
    "largest gain less 2 standard errors": largest(lambda e: e.gain - 2 * e.error),
    "weakest within 0.5 standard errors of the best": weakest(0.5),
    "weakest within 1 standard error of the best": weakest(1.0),
    "weakest within 1.5 standard errors of the best": weakest(1.5),
    "weakest within 2 standard errors of the best": weakest(2.0),
    "the guard's": choose,
    "the guard's, at 1 and 0.4 × the rate (taken)": among(OFFERED, choose),
    "largest gain, at 1 and 0.4 × the rate": among(OFFERED, largest(lambda e: e.gain)),
}
"""Name → what it chooses of the entries."""


def accuracy(draw: Draw, entry: GuardEntry | None) -> float:
    """On the queries, at what was chosen."""
    return float(np.mean(draw["base"] if entry is None else draw["test"][entry.strength][str(entry.share)]))


def by_rule(draws: dict[Any, Draw]) -> str:
    """A table of what each rule comes to over all draws."""
    measured = {key: entries_of(draw) for key, draw in draws.items()}
    chosen = {name: [rule(entries) for entries in measured.values()] for name, rule in RULES.items()}
    reached = {
        name: np.array([accuracy(draw, e) for draw, e in zip(draws.values(), entries, strict=True)])
        for name, entries in chosen.items()
    }
    single, lines = max(reached[name].mean() for name in RULES if name.startswith("always")), []
    for name, values in reached.items():
        apart = values - reached["never"]
        places = [None if e is None else (e.number, e.share) for e in chosen[name]]
        counts = " / ".join(str(places.count(place)) for place in (None, *PLACES))
        numbers = f"{values.mean():.3f}", f"{apart.mean():+.3f}", f"{apart.min():+.3f}", f"{(apart < -0.03).sum()}"
        lines.append((name, *numbers, f"{single - values.mean():+.3f}", counts))
    chosen_of = "chosen: none / " + " / ".join(TITLES)
    header = ("rule", "accuracy", "− prompt", "worst draw", "worse by > .03", "below the best single", chosen_of)
    return markdown_table(header, lines)


def by_draw(draws: dict[Any, Draw]) -> str:
    """A table of the draws."""
    lines = []
    for (name, seed), draw in sorted(draws.items()):
        entries = entries_of(draw)
        cells = [f"{accuracy(draw, e):.2f} ({e.gain:+.2f} ± {e.error:.2f}; {e.right})" for e in entries]
        before = f"{accuracy(draw, None):.2f} ({entries[0].right_before} of {entries[0].left_out})"
        lines.append((name, seed, before, *cells))
    return markdown_table(("task", "seed", "prompt", *TITLES), lines)


def report(outcomes: Outcomes, output: Path) -> str:
    """Writes results.md; returns the text."""
    draws = {(name, int(seed)): rows["draw"] for name, seeds in outcomes.tasks.items() for seed, rows in seeds.items()}
    seconds = [d["seconds"] for d in draws.values()]
    folds, test = (
        np.mean([sum(s[f"{part} {scale}"] for scale in SCALES) for s in seconds]) for part in ("folds", "test")
    )
    about = outcomes.about
    parts = [
        f"    {about['command']}",
        "",
        f"{about['model']}, {about['dtype']}: {len(draws)} draws of the tuning tasks; the seed draws {about['shots']} "
        f"demonstrations and {about['queries']} queries. CPU seconds a draw: {folds:.0f} on folds, {test:.0f} for "
        "training on all demonstrations at all rates and answering the queries at both stops.",
        "",
        by_rule(draws),
        "",
        "By draw: accuracy at each share of the rate and of the steps (left-out gain ± standard error, nats per answer "
        "token; left-out answers right).",
        "",
        by_draw(draws),
        "",
    ]
    (output / "results.md").write_text("\n".join(parts), encoding="utf-8")
    return "\n".join(parts)


# -- running -----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "real-models/guard", 64)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
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
    print(report(Outcomes(file), arguments.output))


if __name__ == "__main__":
    main()
