"""The comparison of rules for the guard: what it computes, and that its report is that of the outcomes beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import guard_choices
from benchmarks.guard_choices import RULES, always, by_rule, entries_of
from benchmarks.real_models_report import Outcomes
from paths import RESULTS

FOLDER = RESULTS / "real-models" / "guard"


def draw(rises: dict[str, float], right: dict[str, int], test: dict[str, float]) -> guard_choices.Draw:
    """Four left-out answers of two tokens on each of two folds; keys are "rate stop"."""

    def readings(value: float, count: int) -> list[dict[str, list[float]]]:
        answers = [1] * count + [0] * (4 - count)
        return [{"log_prob": [value - 3.0] * 4, "tokens": [2] * 4, "right": answers} for _ in range(2)]

    stops = {scale: [key.split()[1] for key in rises if key.split()[0] == scale] for scale in ("1.0", "2.0", "0.4")}
    return {
        "base": [1, 0, 0, 0],
        "before": readings(0.0, 1),
        "folds": {s: {t: readings(rises[f"{s} {t}"], right[f"{s} {t}"]) for t in ts} for s, ts in stops.items()},
        "test": {s: {t: [test[f"{s} {t}"]] for t in ts} for s, ts in stops.items()},
    }


KEYS = ("1.0 0.5", "1.0 1.0", "2.0 0.5", "2.0 1.0", "0.4 0.5", "0.4 1.0")
RISING = draw(
    dict(zip(KEYS, (1.0, 2.0, 0.5, 0.6, 0.1, 0.2), strict=True)), dict.fromkeys(KEYS, 2), dict.fromkeys(KEYS, 1.0)
)
FALLING = draw(dict.fromkeys(KEYS, -1.0), dict.fromkeys(KEYS, 0), dict.fromkeys(KEYS, 0.0))


def test_entries_are_those_of_a_guard() -> None:
    entries = entries_of(RISING)
    assert [(e.number, e.share) for e in entries] == [(n, share) for n in range(3) for share in (0.5, 1.0)]
    assert [e.gain for e in entries] == pytest.approx([0.5, 1.0, 0.25, 0.3, 0.05, 0.1]) and {
        e.error for e in entries
    } == {0.0}
    assert {(e.right_before, e.right, e.left_out) for e in entries} == {(2, 4, 8)}


def test_rules_are_judged_by_the_queries() -> None:
    lines = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in by_rule({0: RISING, 1: FALLING}).split("\n")
    }
    assert (
        lines["never"][:3] == ["0.250", "+0.000", "+0.000"]
        and lines["never"][-1].rstrip(" |") == "2 / 0 / 0 / 0 / 0 / 0 / 0"
    )
    assert lines["largest gain"][:4] == ["0.625", "+0.375", "+0.000", "0"]  # 1 and the prompt's .25
    assert lines["always 1 × the rate, 100%"][:4] == ["0.500", "+0.250", "-0.250", "1"]
    assert lines["largest gain"][-1].strip("| ") == "1 / 0 / 1 / 0 / 0 / 0 / 0"
    assert always(1, 0.5)(entries_of(RISING)) == entries_of(RISING)[2]


def test_the_report_is_that_of_the_outcomes(tmp_path: Path) -> None:
    outcomes = Outcomes(FOLDER / "outcomes.json")
    assert guard_choices.report(outcomes, tmp_path) == (FOLDER / "results.md").read_text(encoding="utf-8")
    draws = [rows["draw"] for seeds in outcomes.tasks.values() for rows in seeds.values()]
    assert {len(each["base"]) for each in draws} == {64} and len(outcomes.tasks) == 5
    chosen = [RULES["the guard's, at 1 and 0.4 × the rate (taken)"](entries_of(each)) for each in draws]
    apart = [guard_choices.accuracy(each, e) - np.mean(each["base"]) for each, e in zip(draws, chosen, strict=True)]
    assert min(apart) >= 0
