"""Mathematical equality by math-verify, in worker processes with limits on time and memory.

Symbolic mathematics can run for ever or exhaust memory, so it is done in workers. A signal in the caller's own process
would be simpler, but signals work only in the main thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from hf_mass.errors import ConfigError, VerifierError
from hf_mass.tasks.checks import require_whole, shown
from hf_mass.tasks.expressions import as_interval, as_latex, based_number, leaves_unknown, time_of_day
from hf_mass.tasks.final_answers import final_answer, undressed
from hf_mass.tasks.quantities import has_scale, parse_number, quantity
from hf_mass.tasks.task import Task
from hf_mass.tasks.units import NO_UNIT

logger = logging.getLogger(__name__)

# What the worker of `MathVerifier` runs. math-verify is imported there alone: it takes time and memory.


def _prepare_worker(memory_limit: int) -> None:  # pragma: no cover - runs in a process of its own
    import math_verify  # noqa: F401 - before the limit, and before the first answer's time begins

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends long arithmetic at once, which a handler in Python cannot
    for stream in (1, 2):  # nothing that a library prints is of use to the caller
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with contextlib.suppress(ImportError, OSError, ValueError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def _judge(gold: str, text: str, time_limit: float) -> float | None:  # pragma: no cover - runs in a process of its own
    from math_verify import verify

    if _TIMERS:  # most of what takes long can be interrupted, and the worker goes on
        signal.signal(signal.SIGVTALRM, _interrupt)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.7 * time_limit)
        signal.setitimer(signal.ITIMER_PROF, time_limit)  # ends the worker, also where its parent was killed meanwhile
    try:
        return float(verify(_read_gold(gold), _read(text), timeout_seconds=None))
    except _TooLong:
        return None
    except Exception:  # noqa: BLE001 - whatever it is, a text that cannot be judged is a wrong answer
        return 0.0
    finally:
        if _TIMERS:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)


class _TooLong(BaseException):
    """Raised into an answer that takes too long; no handler of a library's catches it."""


def _interrupt(*_: object) -> None:  # pragma: no cover - runs in a process of its own
    raise _TooLong


def _read(text: str) -> list[object]:  # pragma: no cover - runs in a process of its own
    from math_verify import LatexExtractionConfig, parse

    spelled = as_latex(text)
    if not spelled:
        return []
    only = [LatexExtractionConfig()]  # what it cannot read is no answer: else it takes a number out of it
    return list(parse(rf"\boxed{{{spelled}}}", extraction_config=only, parsing_timeout=None))


_read_gold = functools.lru_cache(maxsize=1024)(_read)


class _WorkerProcess(SpawnProcess):
    """A fresh interpreter that does not run the caller's main module, which may be a script without a guard."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        # What the new process is to run as its main module is read from this one's.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


# Spaces mean nothing in LaTeX, but a model that writes "1 2" has not written 12.
_DROPPED_LATEX = re.compile(r"(?<![0-9\s])\s+|\s+(?![0-9\s])|\$|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\.\Z")


def _plain_latex(text: str) -> str:
    unwrapped = re.sub(r"\\text(?:bf|it|rm)?\{([^{}]*)\}", r"\1", text.strip())
    return _DROPPED_LATEX.sub("", re.sub(r"\\[dt]frac", r"\\frac", unwrapped))


_ORDERED = re.compile(r"(?:\\left)?[(\[].*,", re.DOTALL)
_SET = re.compile(r"\$?\s*(?:\\left)?\\\{")
_NUMBERS = re.compile(r"\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+\s*")
_BRACKETS = re.compile(r"(?:\\left)?([(\[])[^()\[\]∪]*,(?:(?!\\cup)[^()\[\]∪])*(?:\\right)?([)\]])")
_PRIMED = re.compile(r"\d\s?(?:['′]|\^\{?\\prime)")
_CUT_OFF = re.compile(r"(?:\\[lc]?dots|…)\s*\$?\Z")
_OPERATOR_LAST = re.compile(r"(?:\\cdot|\\times|[-+*/=])\s*\$?\Z")
_COMPARED = re.compile(r"[\s$]*(?:\\(?:[lg](?:eqslant|eq|e|t)|neq?)(?![a-zA-Z])|[<>≤≥≠])")
_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")


def _pair(gold: str, text: str) -> tuple[str, str]:
    """Gold and answer; `2 \\le x < 5` as the interval that it is, where the gold is one and no point (2, 5)."""
    ends = _BRACKETS.fullmatch(re.sub(r"\A[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", "", gold.strip(" $")))
    is_interval = ends is not None and (ends.groups() != ("(", ")") or "infty" in gold)
    return gold, (as_interval(text) or text) if is_interval else text


def _without_worker(gold: str, text: str) -> float | None:
    """The reward where it takes no symbolic mathematics to tell; None where it does."""
    if not text or _plain_latex(gold) == _plain_latex(text):
        return float(bool(text))
    if _differ_in_form(gold, text):
        return 0.0
    times = [time_of_day(each) for each in (gold, text)]
    if times[0] and times[0][2]:
        return float(times[1] is not None and times[0][:2] == times[1][:2] and times[1][2] in ("", times[0][2]))
    values = [based_number(undressed(each)) for each in (gold, text)]
    if any(value is not None for value in values):  # math-verify does not read the base
        numbers = [
            value if value is not None else parse_number(each) for value, each in zip(values, (gold, text), strict=True)
        ]
        return float(numbers[0] is not None and numbers[0] == numbers[1])
    known, found = quantity(gold), quantity(text)  # math-verify reads neither units nor "5 million"
    if known and found and (NO_UNIT not in (known.unit, found.unit) or has_scale(gold) or has_scale(text)):
        return float(found.equals(known))
    # nor "1 000 000"; and it rounds to six decimals. A gold answer with a comma may be a list, and is left to it.
    is_number = "," not in gold or _GROUPED.fullmatch(gold.replace("{,}", ","))
    if known and found and is_number:
        if found.equals(known):
            return 1.0
        if all(abs(a - b) > abs(b) / 1000 for a in found.values for b in known.values):
            return 0.0
    return None


def _differ_in_form(gold: str, text: str) -> bool:
    """Whether one is an equation, an ordered or a longer list, and the other is not; or the text is cut off."""
    if gold.count("{") == gold.count("}") and text.count("{") != text.count("}"):
        return True
    if leaves_unknown(gold):
        return not re.search(r"=|\\[lg]e|[<>]", text)
    if "=" not in gold and leaves_unknown(text):
        return True
    if _COMPARED.match(text) and not _COMPARED.match(gold):  # "< 5"
        return True
    if _PRIMED.search(text) and not _PRIMED.search(gold):
        return True
    if _CUT_OFF.search(text) and not _CUT_OFF.search(gold):
        return True
    if _OPERATOR_LAST.search(text) and not _OPERATOR_LAST.search(gold):
        return True
    brackets = [_BRACKETS.fullmatch(each.strip(" $")) for each in (gold, text)]
    if brackets[0] and brackets[1] and brackets[0].groups() != brackets[1].groups():  # an interval's ends
        return True
    if _SET.match(gold) and brackets[1]:
        return True
    if _ORDERED.match(gold):
        is_set = re.match(r"\$?\\?\{|.*\\\{", text)
        is_list = "," in text and not re.search(r"[(\[=]|\\begin", text)
        return bool(is_set or is_list or re.search(r"\A[^(\[]*\b(?:and|or)\b", text))
    if "," in gold and not re.search(r"[(\[]|\\\{|\{,\}", gold) and not _GROUPED.fullmatch(gold):
        return bool(brackets[1])
    return not re.search(r",|±|\\pm", gold) and bool(_NUMBERS.fullmatch(text)) and not _GROUPED.fullmatch(text)


_INSTALLED = find_spec("math_verify") is not None
_TIMERS = hasattr(signal, "setitimer")
"""Whether the platform can tell a worker that it has used its time of the processor."""
BUSY = 4
"""Times the limit that an answer may take by the clock, where others use the processor too."""


class MathVerifier:
    """Mathematical equality, by math-verify in a worker process that is started at the first use and then kept.

    Safe to call from any thread. An answer on which the worker exceeds its time limit or dies scores 0, with a warning,
    and the next one gets a new worker. An answer that equals the gold up to spacing needs no worker.

    Args:
        time_limit: Seconds of the processor for one answer, so that a busy machine makes no right answer wrong.
        start_limit: Seconds for the worker to start.
        memory_limit: Bytes of address space for the worker, where the platform can limit it.
        workers: How many judge a batch at once.

    Raises:
        ConfigError: If a limit is not positive and finite.
    """

    def __init__(
        self, time_limit: float = 2.0, start_limit: float = 120.0, memory_limit: int = 4 << 30, workers: int = 1
    ) -> None:
        for name, value in (("time_limit", time_limit), ("start_limit", start_limit), ("memory_limit", memory_limit)):
            if not 0 < value < math.inf:
                raise ConfigError(f"MathVerifier: {name} must be positive and finite, got {shown(value)}.")
        self.time_limit, self.start_limit, self.memory_limit = time_limit, start_limit, memory_limit
        require_whole("MathVerifier: workers", workers, 1)
        self.workers = workers
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # Also run in a forked child, which must neither share the parent's worker nor a lock that a thread held.
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    def __call__(self, task: Task, text: str) -> float:
        """Returns 1 if the text's final answer equals the task's gold answer, else 0; raises as `batch` does."""
        return self.batch([task], [text])[0]

    def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
        """The rewards of many texts; the same text for the same gold answer is judged once.

        Raises:
            VerifierError: If a task has neither answer nor solution, or the worker cannot be started.
        """
        pairs = [
            _pair(self._gold(task), undressed(final_answer(text), wrappers=False))
            for task, text in zip(tasks, texts, strict=True)
        ]
        with self._lock:
            rewards = self._judge_all(list(dict.fromkeys(pairs)))
        return [rewards[pair] for pair in pairs]

    def close(self) -> None:
        """Ends the worker; the next answer starts another."""
        with self._lock:
            self._stop()

    @staticmethod
    def _gold(task: Task) -> str:
        gold = final_answer(task.answer if task.answer is not None else task.solution or "")
        if not gold:
            raise VerifierError(
                f"The verifier 'math' needs Task.answer or Task.solution, found {task.answer!r} and {task.solution!r} "
                f"(id {task.id!r}). Give the task a gold answer."
            )
        return gold

    def _judge_all(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """All workers judge at once, so that one that hangs does not hold up the others."""
        rewards = {pair: known for pair in pairs if (known := _without_worker(*pair)) is not None}
        asked = [pair for pair in pairs if pair not in rewards]
        for _ in range(2):  # once more where a worker died while it had nothing to do
            try:
                return rewards | self._ask([pair for pair in asked if pair not in rewards])
            except RuntimeError:  # the pool is broken: its worker died before it took the text
                self._stop()
        raise self._not_started()

    def _ask(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        if not pairs:
            return {}
        if self._pool is None:
            self._pool = ProcessPool(self.workers, 0, _prepare_worker, (self.memory_limit,), _WorkerContext())
        futures = []
        try:
            for gold, text in pairs:
                limits = (gold, text, self.time_limit)
                most = self.time_limit * (BUSY if _TIMERS else 1)
                futures.append(self._pool.schedule(_judge, limits, timeout=most))
            return {pair: self._result(future, pair[1]) for pair, future in zip(pairs, futures, strict=True)}
        finally:
            for future in futures:
                future.cancel()  # on Ctrl-C, when the workers would go on

    def _result(self, future: Any, text: str) -> float:
        try:
            reward: float | None = future.result(self.start_limit + BUSY * self.time_limit)
        except (TimeoutError, ProcessExpired) as error:
            if not future.done():
                self._stop()
                raise self._not_started() from error
            reward = None
        if reward is None:
            logger.warning("The math worker exceeded %s s or died on %.200r; it scores 0.", self.time_limit, text)
        return reward or 0.0

    def _not_started(self) -> VerifierError:
        if not _INSTALLED:
            return VerifierError("The verifier 'math' needs math-verify. Run: pip install \"hf_mass[math]\"")
        return VerifierError(
            f"The worker of the verifier 'math' did not start within MathVerifier.start_limit = {self.start_limit} s. "
            f"Check that `{sys.executable} -c 'import math_verify'` works."
        )

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()
