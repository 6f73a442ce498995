"""The worker process of `MathVerifier`: what hangs or dies costs its own answer only, and none outlives its caller."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from hf_mass.errors import ConfigError, VerifierError
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import MathVerifier

SLOW = "10^{10^{10^{10}}}"


@pytest.fixture
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(time_limit=1.0)
    yield made
    made.close()


def cpu_of_ended_workers() -> float:
    """Seconds that ended children have computed: what hangs computes, whatever else the machine has to do."""
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


def test_an_answer_that_takes_too_long_scores_0_and_the_next_is_judged(
    verifier: MathVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("p", answer="x+1")
    verifier.time_limit = 3.0
    assert verifier(task, "1+x") == 1.0
    before = cpu_of_ended_workers()
    with caplog.at_level(logging.WARNING):
        assert verifier.batch([task, task, task], [SLOW, "1 + x", SLOW]) == [0.0, 1.0, 0.0]
    assert len([r for r in caplog.records if "exceeded 3.0 s" in r.message]) == 1  # the same text is judged once
    verifier.close()
    assert cpu_of_ended_workers() - before < 20.0


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the platform cannot halt a process")
def test_a_worker_that_gets_no_processor_makes_no_right_answer_wrong(verifier: MathVerifier) -> None:
    task, verifier.time_limit = Task("p", answer="x+1"), 2.0
    assert verifier(task, "1+x") == 1.0
    halted = worker()
    halted.suspend()
    threading.Timer(3.0, halted.resume).start()
    assert verifier(task, "1+x+0") == 1.0
    assert worker().pid == halted.pid


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_of_answers_that_hang_costs_their_limits_alone(workers: int) -> None:
    task, verifier = Task("p", answer="x+1"), MathVerifier(time_limit=2.0, workers=workers)
    assert verifier(task, "1+x") == 1.0
    hanging = [f"{base}^{{10^{{10^{{10}}}}}}" for base in (3, 4)]
    before = cpu_of_ended_workers()
    assert verifier.batch([task] * 3, [*hanging, "1 + x"]) == [0.0] * 2 + [1.0]
    verifier.close()
    assert cpu_of_ended_workers() - before < 14.0  # at most the limit and a new worker for each


def worker() -> psutil.Process:
    """The worker that this process started last."""
    children = psutil.Process().children()
    return max((child for child in children if child.cmdline()[-1] == "--multiprocessing-fork"), key=lambda p: p.pid)


def test_a_dead_worker_is_replaced(verifier: MathVerifier) -> None:
    task = Task("p", answer="x+1")
    for pause in (0.05, 0.5):  # before and after the pool has seen it
        assert verifier(task, "1+x") == 1.0
        first = worker()
        time.sleep(0.1)  # it waits for the next text
        first.kill()
        time.sleep(pause)
        assert verifier(task, "1+x+0") == 1.0
        assert worker().pid != first.pid
    verifier.close()
    assert verifier(task, "1+x") == 1.0


def test_a_worker_that_dies_on_an_answer_costs_that_answer_only(verifier: MathVerifier) -> None:
    task = Task("p", answer="x+1")
    verifier.time_limit = 60.0
    assert verifier(task, "1+x") == 1.0
    killer = threading.Timer(0.3, worker().kill)
    killer.start()
    start = time.perf_counter()
    assert verifier(task, SLOW) == 0.0
    assert time.perf_counter() - start < 30.0
    assert verifier(task, "1+x") == 1.0


def test_threads_share_a_worker(verifier: MathVerifier) -> None:
    verifier.time_limit = 60.0
    tasks = [Task("p", answer=f"x+{n}") for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(verifier, tasks, [f"{n}+x" for n in range(40)]))
        wrong = list(pool.map(verifier, tasks, [f"{n + 1}+x" for n in range(40)]))
    assert (set(right), set(wrong)) == ({1.0}, {0.0})


def test_an_interrupt_does_not_shift_the_replies(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("p", answer="x+1")
    verifier.time_limit = 60.0
    assert verifier(task, "1+x") == 1.0

    def interrupt(future: object, timeout: float) -> float:
        time.sleep(0.3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pebble.ProcessFuture.result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            verifier(task, SLOW)
    start = time.perf_counter()
    assert verifier(task, "x+2") == 0.0
    assert verifier(task, "1+x") == 1.0
    assert time.perf_counter() - start < 30.0  # the worker did not go on with the first text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_has_a_worker_of_its_own() -> None:
    # In an interpreter of its own, since forking the one that runs the tests would copy its threads' locks.
    program = """
import os, psutil
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier
task, check = Task("p", answer="x+1"), get_verifier("math")
workers = lambda: {p.pid for p in psutil.Process().children() if p.cmdline()[-1] == "--multiprocessing-fork"}
assert check(task, "1+x") == 1.0
(mine,) = workers()
child = os.fork()
ok = check(task, "1+x+0") == 1.0 and check(task, "x+2") == 0.0
ok = ok and len(workers()) == 1 and (mine in workers()) == (child != 0)
if child == 0:
    check.close()
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0 and ok
assert check(task, "x+0+1") == 1.0 and workers() == {mine}
print(mine)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):  # the worker ended with its parent
        os.kill(int(done.stdout), 0)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
@pytest.mark.parametrize("text", ["1+x", SLOW], ids=["idle", "busy"])
def test_the_worker_ends_when_its_parent_is_killed(text: str) -> None:
    program = f"""
import os, psutil, signal, threading
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import MathVerifier
check = MathVerifier(time_limit=2.0)
assert check(Task("p", answer="x+1"), "x+1+0") == 1.0
print(*(p.pid for p in psutil.Process().children() if p.cmdline()[-1] == "--multiprocessing-fork"), flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
check(Task("p", answer="x+1"), {text!r})
threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 30
    while _runs(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(done.stdout))


@pytest.mark.parametrize("way", ["a script without a guard", "a script that is gone", "stdin"])
def test_the_callers_main_module_is_not_run_again(way: str, tmp_path: Path) -> None:
    program = """
import os, sys
print("begins", flush=True)
if "gone" in sys.argv:
    os.unlink(__file__)
from concurrent.futures import ThreadPoolExecutor
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier
with ThreadPoolExecutor(1) as pool:
    print(pool.submit(get_verifier("math"), Task("p", answer="x+1"), "1+x+0").result())
assert sys.modules["__main__"].sys is sys
"""
    (tmp_path / "mine.py").write_text(program)
    command = [sys.executable] + (["-"] if way == "stdin" else [str(tmp_path / "mine.py"), way.split()[-1]])
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("begins\n1.0\n", "", 0)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(VerifierError, match="did not start"):
        MathVerifier()(Task("p", answer="x+1"), "1+x")


@pytest.mark.parametrize("name", ["time_limit", "start_limit", "memory_limit"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_checked(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"MathVerifier: {name} must be positive and finite"):
        MathVerifier(**{name: value})  # type: ignore[arg-type]
