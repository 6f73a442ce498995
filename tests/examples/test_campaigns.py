"""What the campaigns tell apart: refusals, exceptions, hangs, deaths, and what goes through silently."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import app_sessions
from benchmarks.bad_input_case import Case, Wrong
from benchmarks.bad_inputs import REFUSED, TRACEBACK, UNCLEAR, WORKED, WRONG, drawn, outcome, tables
from benchmarks.campaigns import DIED, HANG, changes_of, counted, forked, outcomes
from hf_mass.errors import ConfigError, DataError, Stopped


def raising(error: BaseException | None) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        if error is not None:
            raise error

    return run


@pytest.mark.parametrize(
    ("error", "refused", "expected"),
    [
        (ConfigError("rate is 3; choose another."), True, REFUSED),
        (ValueError("rate is 3"), True, REFUSED),
        (ValueError("not enough values to unpack"), True, TRACEBACK),
        (DataError("rate is 3.\nChoose another."), True, UNCLEAR),
        (DataError("something is wrong"), True, UNCLEAR),
        (DataError("rate is " + "x" * 5000), True, UNCLEAR),
        (TypeError("rate"), True, TRACEBACK),
        (Wrong("rate"), False, WRONG),
        (Stopped("time is up"), False, WORKED),
        (None, False, WORKED),
        (None, True, WRONG),
    ],
)
def test_outcomes_of_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, refused: bool, expected: str
) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # which would stay with this process
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert outcome(Case("a", "b", "c", raising(error), refused, "rate"), tmp_path)[0] == expected


def busy() -> tuple[str, str]:
    while True:
        pass


def dead() -> tuple[str, str]:
    os.kill(os.getpid(), signal.SIGKILL)
    return "", ""


def late() -> tuple[str, str]:
    time.sleep(0.2)
    return "late", "a\nb \udcff"


def test_every_piece_of_work_has_its_outcome() -> None:
    found = {number: (what, words) for number, what, words, _ in outcomes([busy, dead, late], 0.3)}
    assert [found[n][0] for n in range(3)] == [HANG, DIED, "late"] and found[2][1] == "a b \\udcff"


def test_a_process_is_killed_before_a_change(tmp_path: Path) -> None:
    def write() -> None:
        for n in range(3):
            (tmp_path / str(n)).write_text("x")

    assert changes_of(write, tmp_path / "note") == 3
    for n in range(3):
        (tmp_path / str(n)).unlink()

    def killed() -> None:
        counted(2)
        write()

    _, status = os.waitpid(forked(killed), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "note"]


def test_cases_are_drawn_from_every_boundary() -> None:
    cases = [Case(where, kind, str(n), raising(None)) for where in "abc" for kind in "xyz" for n in range(20)]
    some = drawn(cases, 18, 0)
    assert {(case.boundary, case.kind) for case in some} == {(a, b) for a in "abc" for b in "xyz"}
    assert drawn(cases, 0, 0) == cases and len(set(map(id, some))) == 18


def test_the_tables_count(tmp_path: Path) -> None:
    case = Case("a", "b", "c", raising(None))
    table = tables([(case, REFUSED, "words"), (case, WRONG, "it went through")])["outcomes"]
    assert table.rows[-1]["boundary"] == "all" and table.rows[-1]["cases"] == 2 and table.rows[-1][WRONG] == 1


@pytest.mark.slow
def test_a_visitor_of_the_app_gets_their_own_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a visitor of the campaign does is what the page of today asks for."""
    page = 5  # the first that is no program and does not vanish
    text = app_sessions.problem_of(page, 0)
    monkeypatch.setitem(app_sessions.expected_of, text, app_sessions.expected(text))
    with app_sessions.App(tmp_path).running() as app:
        assert app_sessions.visit(app, page, 0, 0) == "a page got its own adapter"
