"""Long work shows itself: on bars where there is a terminal, in lines elsewhere, from the beginning on."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from cli_fixtures import run
from rich.console import Console

from hf_mass.cli import deferred, progress
from hf_mass.engine.events import Event, Generating, InnerStep, Loss, Measured, Stage, Trial
from hf_mass.methods.base import GuardEntry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize("quiet", [False, True])
def test_on_a_terminal_a_bar_shows_step_loss_and_time_left(
    clock: SimpleNamespace, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr, stdout = io.StringIO(), io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "140")):
        monkeypatch.setenv(name, value)
    told = []
    with progress.watched(quiet) as watch:
        for step in range(2):
            watch(Loss("mine", 0, step, 4, 0.5))
            clock.seconds += 10
            watch.bar.refresh()
            told.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr.getvalue()))
        watch(Stage("Answering"))
        watch.bar.refresh()
        print("a library's chatter")
    assert ("step 1 of 4, loss 0.500" in told[0]) == (not quiet)
    assert ("0:00:20 left" in told[1]) == (not quiet)  # two steps of ten seconds each
    assert ("Answering" in stderr.getvalue()) == (not quiet)
    assert stdout.getvalue() == "" and "chatter" in stderr.getvalue()


def test_elsewhere_lines_come_at_once_with_a_new_stage_and_now_and_then_within_one(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    entries = GuardEntry("the rate", 0.5, 0.67), GuardEntry("the rate", 1.0, 1.53)
    events: list[tuple[float, Event]] = [
        (0.0, Stage("Answering")),
        (1.0, Generating(3, 1, 20)),  # too soon for another line
        (3.0, Generating(3, 2, 20)),
        (3.5, Stage("Trying")),  # too soon, even for a new stage
        (5.0, Stage("Training")),
        (9.0, Loss("ttt", 0, 0, 4, 2.0)),
        (12.0, Loss("ttt", 0, 1, 4, 1.25)),
        (13.0, Stage("Trying")),
        (16.0, Trial("Trying", 0, 2, 3.0)),
        (19.0, Measured(entries)),
        (22.0, Stage("Weighing")),
        (25.0, InnerStep(0, None, 2.5)),
    ]
    with progress.watched(quiet=False) as watch:
        for at, event in events:
            clock.seconds = 100.0 + at
            watch(event)
    assert capsys.readouterr().err.splitlines() == [
        "Answering",
        "Answering, token 2 of 3 texts, 36 s left",  # at most 18 tokens more, two seconds each
        "Training",
        "Training, step 1 of 4, loss 2.000",
        "Training, step 2 of 4, loss 1.250, 6 s left",
        "Trying",
        "Trying, step 1 of 2, loss 3.000",
        "Trying, left-out gain +1.530",
        "Weighing",
        "Weighing, step 1, loss 2.500",
    ]


def test_a_set_of_tasks_is_counted_beside_the_stages_of_each(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    with progress.watched(quiet=False) as watch:
        for done in (0, 8, 16):
            watch.count("TTT, seed 0", done, 50)
            clock.seconds += 200
            watch(Stage("Training"))
            clock.seconds += 200
            watch(Loss("ttt", 0, 0, 4, 2.0))
            clock.seconds += 200
    lines = capsys.readouterr().err.splitlines()
    assert lines[::3] == [
        "TTT, seed 0: 0 of 50 tasks",
        "TTT, seed 0: 8 of 50 tasks",
        "TTT, seed 0: 16 of 50 tasks, 42 min left",  # 34 tasks, eight in 600 s
    ]
    assert "TTT, seed 0: 8 of 50 tasks: Training, step 1 of 4, loss 2.000" in lines


def test_a_command_shows_itself_before_its_libraries_are_there() -> None:
    begun = time.monotonic()
    words = [sys.executable, "-m", "hf_mass", "solve", "a -> b", "c -> d", "e"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        first, seconds = process.stderr.readline(), time.monotonic() - begun
        process.kill()
    assert first == "Loading the libraries\n"
    assert seconds < 10  # alone it takes a fraction of one


@pytest.mark.parametrize(("told", "terminal"), [(True, True), (True, False), (False, False)])
def test_libraries_are_told_of_once(
    told: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(force_terminal=terminal, width=80)
    monkeypatch.setattr(deferred, "Console", lambda stderr: console)
    monkeypatch.setattr(deferred, "import_module", lambda name: SimpleNamespace(double=lambda n: 2 * n))
    double = deferred.deferred("not.there.yet", "double")
    assert double(4, told=told) == 8
    assert ("Loading the libraries" in capsys.readouterr().out) == told
    monkeypatch.setitem(sys.modules, "not.there.yet", SimpleNamespace())
    assert double(5, told=told) == 10 and capsys.readouterr().out == ""


def test_mass_shows_its_inner_steps_and_an_evaluation_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SOON", 0.0)
    problem = "conventions:test_families"
    methods = ("--methods", "none,mass-uniform", "--limit", "2", "--samples", "3")
    result = run("evaluate", problem, *methods)
    lines = result.stderr.splitlines()
    assert "Loading conventions-mass" in lines and "base, seed 0: 0 of 2 tasks" in lines and "\r" not in result.stderr
    training = "MASS, uniform, seed 0: 0 of 2 tasks: Weighing the samples and training on them, step 1 of 2, loss "
    assert [line for line in lines if line.startswith(training)], result.stderr
    assert [line for line in lines if "Writing samples, token 2 of 6 texts" in line]
    assert run("evaluate", problem, *methods, "--quiet").stderr == ""
