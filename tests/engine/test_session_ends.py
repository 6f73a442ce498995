"""However a session ends, the model is as it was: stopped, closed, out of time, an error; also with two at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_fixtures import snapshot
from session_fixtures import RULE, How, quick, result, run, solve, strips, unchanged

from hf_mass.core import token_loss
from hf_mass.engine.events import Loss, Stage
from hf_mass.engine.session import TURN, Session, Stopped
from hf_mass.engine.solution import Solution
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation
from hf_mass.methods.mass import MASS
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.problems import Problem

# -- nothing stays -----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Raised by whoever watches."""


def seen_events(case: tuple[LanguageModel, Problem, How]) -> int:
    """How many events there are."""
    events: list[object] = []
    solve(*case, events.append)
    return len(events)


def points(count: int) -> list[int]:
    """Some events: the first ones, and a few up to the last."""
    return sorted({0, 1, 2, count // 2, 3 * count // 4, count - 2, count - 1})


def test_an_error_of_whoever_watches_leaves_the_model_as_it_was(case: tuple[LanguageModel, Problem, How]) -> None:
    before = snapshot(case[0].model)
    for point in points(seen_events(case)):
        left = [point]

        def watch(event: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted

        with pytest.raises(Interrupted):
            solve(*case, watch)
        assert unchanged(case[0], before)


def test_stopping_leaves_the_model_as_it_was(case: tuple[LanguageModel, Problem, How]) -> None:
    before, events = snapshot(case[0].model), list[object]()
    whole = result(solve(*case, events.append))
    for point in points(len(events))[:-1]:
        stop, seen = threading.Event(), []

        def watch(event: object, stop: threading.Event = stop, seen: list[object] = seen, point: int = point) -> None:
            seen.append(event)
            if len(seen) > point:
                stop.set()

        outcome = solve(*case, watch, stop.is_set)
        assert unchanged(case[0], before)
        assert (outcome.reason, outcome.after, list(outcome.distinct())) == ("stopped", (), [])
        assert len(seen) == point + 1
        json.dumps(outcome.to_dict(), allow_nan=False)
    assert result(solve(*case)) == whole


def test_a_generator_that_is_closed_early_ends_adapting(case: tuple[LanguageModel, Problem, How]) -> None:
    before = snapshot(case[0].model)
    for taken in (0, 1, 4):
        stop, threads = threading.Event(), threading.active_count()
        running = run(*case, stop)
        for _ in range(taken):
            next(running)
        running.close()
        assert unchanged(case[0], before) and not stop.is_set()
        assert threading.active_count() <= threads


def test_a_sign_ends_a_generator(case: tuple[LanguageModel, Problem, How]) -> None:
    stop, before = threading.Event(), snapshot(case[0].model)
    running = run(*case, stop)
    next(running)
    stop.set()
    *_, last = running
    assert isinstance(last, Solution) and last.reason == "stopped" and unchanged(case[0], before)
    *_, last = run(*case, stop)
    assert isinstance(last, Solution) and last.reason == "stopped" and last.before == ()


def test_errors_leave_the_model_as_it_was(
    case: tuple[LanguageModel, Problem, How], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(case[0].model)

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    for place in ("hf_mass.methods.mass_model.MassModel.adapt", "hf_mass.engine.session.changes_something"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            if place.endswith("adapt") and not case[2].synthesises:
                continue
            with pytest.raises(RuntimeError, match="out of memory"):
                list(run(*case))
        assert unchanged(case[0], before)


def test_the_time_limit(case: tuple[LanguageModel, Problem, How]) -> None:
    before = snapshot(case[0].model)
    outcome = solve(case[0], case[1], replace(case[2], session={"time_limit": 1e-4}))
    assert "the time limit of 0.0001 s is reached" in str(outcome.reason)
    assert outcome.after == () and unchanged(case[0], before)


def test_a_rate_beyond_all_bounds(grids: LanguageModel, texts: LanguageModel) -> None:
    for model, problem, config in (
        (grids, strips(), quick(learning_rate=1e30)),
        (grids, strips(), quick("both", learning_rate=1e30, inner_learning_rate=1e300)),
        (texts, RULE, quick("mass", samples=12, inner_learning_rate=1e300)),
        (texts, RULE, quick("mass", samples=12, inner_learning_rate=1e30)),
    ):
        before = snapshot(model.model)
        outcome = solve(model, problem, config)
        assert outcome.reason and "finite" in outcome.reason
        json.dumps(outcome.to_dict(), allow_nan=False)
        assert len(outcome.after) == 1 and unchanged(model, before)


def test_losses_that_are_no_numbers_are_null() -> None:
    nan = float("nan")
    sample = AuxiliarySample("q", (), "q", "a")
    losses = torch.tensor([[float("inf")], [nan]])
    record = Adaptation(strips().tasks[0], samples=(sample,), weights=torch.tensor([nan]), sample_losses=losses)
    outcome = Solution(strips(), "mass", adaptations=(record,), losses=(Loss("ttt", 0, 0, 1, nan),))
    values = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert values["losses"][0]["loss"] is None and values["samples"][0][0]["weight"] is None
    assert values["samples"][0][0]["loss_before"] is None


# -- two at once -------------------------------------------------------------------------------------------------------


def at_once(calls: list[Callable[[], Solution]]) -> list[Solution]:
    """The outcomes of calls that start together."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def work(n: int) -> None:
        start.wait()
        found[n] = calls[n]()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_two_at_once_get_what_each_gets_alone(grids: LanguageModel, texts: LanguageModel) -> None:
    before = snapshot(grids.model)
    cases = [
        (grids, strips(), quick("both")),
        (grids, strips(2), quick("ttt", seed=4)),
        (grids, strips(), quick("mass")),
        (texts, RULE, quick("mass", samples=12)),
        (texts, RULE, quick("mass", samples=12, seed=9)),
    ]
    alone = [result(solve(*case)) for case in cases]
    together = at_once([lambda case=case: solve(*case) for case in cases])
    assert [result(outcome) for outcome in together] == alone
    assert unchanged(grids, before)


def test_whoever_waits_is_told_and_can_stop(grids: LanguageModel) -> None:
    stop, seen = threading.Event(), []

    def watch(event: object) -> None:
        seen.append(event)
        stop.set()

    with TURN:
        outcome = solve(grids, strips(), quick(time_limit=60), watch, stop.is_set)
    assert seen == [Stage("Waiting for another problem's turn to end")]
    assert (outcome.reason, outcome.before) == ("stopped", ())


def test_it_stops_before_the_next_pass_also_within_a_step(
    grids: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of MASS has many passes, each of which may be long on a large model."""
    begun = 0
    count_pass = token_loss.count_pass

    def counted(*args: Any) -> None:
        nonlocal begun
        begun += 1
        count_pass(*args)

    monkeypatch.setattr(token_loss, "count_pass", counted)
    with pytest.raises(Stopped):
        Session(grids, MASS(samples=4), halt=lambda: begun >= 3).adapt([strips().tasks[0]])
    assert begun == 3
