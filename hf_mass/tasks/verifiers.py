r"""Verifiers: does a text answer a task? Each maps (task, text) to a reward in [0, 1].

A verifier takes the answer that a caller has extracted or a whole solution, whose final answer it finds by itself: the
last `\boxed{...}`, else what follows the last `####`, else what follows "answer:" or "answer is", else the whole text.

Symbolic mathematics can run for ever or exhaust memory, so the verifier "math" judges in a worker process with a time
limit. A signal would be simpler, but signals work only in the main thread.
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
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from hf_mass.errors import ConfigError, VerifierError
from hf_mass.tasks.task import Task

logger = logging.getLogger(__name__)

Verifier = Callable[[Task, str], float]
VERIFIERS: dict[str, Verifier] = {}


def register_verifier(name: str) -> Callable[[Verifier], Verifier]:
    """Decorator that makes a verifier known as `name`.

    Raises:
        VerifierError: If the name is taken.
    """

    def register(verifier: Verifier) -> Verifier:
        if name in VERIFIERS:
            raise VerifierError(f"The verifier name {name!r} is taken. Choose another name.")
        VERIFIERS[name] = verifier
        return verifier

    return register


def get_verifier(name: str) -> Verifier:
    """Returns the verifier registered as `name`.

    Raises:
        VerifierError: If there is none.
    """
    if name not in VERIFIERS:
        raise VerifierError(
            f"Unknown verifier {name!r}. Known: {', '.join(sorted(VERIFIERS))}. "
            "Add one of your own with hf_mass.tasks.verifiers.register_verifier."
        )
    return VERIFIERS[name]


def verify_batch(tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
    """The rewards of many texts, each judged for the task at its place by the verifier that it names.

    A verifier with a method `batch(tasks, texts)` of its own, as "math" has, gets all of its texts at once.

    Raises:
        VerifierError: If a verifier is unknown or cannot judge its task.
    """
    places: dict[str, list[int]] = {}
    for place, (task, _) in enumerate(zip(tasks, texts, strict=True)):
        places.setdefault(task.verifier, []).append(place)
    rewards: dict[int, float] = {}
    for name, numbers in places.items():
        verifier, batch = get_verifier(name), ([tasks[n] for n in numbers], [texts[n] for n in numbers])
        scores = verifier.batch(*batch) if hasattr(verifier, "batch") else map(verifier, *batch)
        rewards.update(zip(numbers, scores, strict=True))
    return [rewards[place] for place in range(len(tasks))]


_MARKER = re.compile(r"(?im)^[^\w\n]*(?:final[ \t]+)?answer\b[^\w\n]*:\**|\banswer[ \t]+(?P<verb>is)\b[ \t]*:?")


def boxed_answer(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, or None; braces inside may nest to any depth."""
    last: tuple[int, int] | None = None
    opened: list[int | None] = []  # for each open brace, where the content of its box starts; None if it has no box
    for token in re.finditer(r"\\f?boxed\s*\{|\\.|[{}]", text):
        if token.group() == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
        elif token.group().endswith("{") and token.group() != "\\{":
            opened.append(token.end() if token.group() != "{" else None)
    return None if last is None else text[slice(*last)].strip()


def final_answer(text: str) -> str:
    """The part of a solution that states its final answer (see this module's docstring); never None."""
    if (boxed := boxed_answer(text)) is not None:
        return boxed
    if "####" in text:
        lines = text.rsplit("####", 1)[1].strip().splitlines()
        return lines[0].strip() if lines else ""
    if markers := list(_MARKER.finditer(text)):
        rest = text[markers[-1].end() :].strip()
        return re.split(r"\.(?=\s|$)|\n\s*\n", rest, maxsplit=1)[0].strip() if markers[-1]["verb"] else rest
    return text.strip()


def gold_answer(task: Task, name: str) -> str:
    """The task's answer; VerifierError, in the name of the verifier, if there is none."""
    if task.answer is None or not task.answer.strip():
        raise VerifierError(
            f"The verifier {name!r} needs Task.answer, which is {task.answer!r} (id {task.id!r}). "
            "Give the task a gold answer."
        )
    return task.answer


def _normalise(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())  # line breaks separate the rows of a grid
    return re.sub(r"(?<=\S)\s*\.\Z", "", "\n".join(line for line in lines if line)).casefold()


@register_verifier("exact_match")
def exact_match(task: Task, text: str) -> float:
    """Returns 1 if the text, or its final answer, is the gold answer up to case, spaces and a final full stop."""
    gold = _normalise(gold_answer(task, "exact_match"))
    return float(gold in (_normalise(text), _normalise(final_answer(text))))


def _choice(text: str) -> str | None:
    answer = final_answer(text).strip("$* ")
    inside: list[str] = re.findall(r"\(([A-Z])\)", answer)
    if len(inside) > 1 and answer == text.strip("$* \n"):  # nothing marks the answer: "(A) is wrong, so (B)"
        return inside[-1]
    if match := re.match(r"(?:\\text\{)?\(?([A-Za-z])(?:\}?\)|[.:,](?!\w)|\}?\W*$)", answer):
        return match.group(1).upper()
    # "A" and "I" before a word in lower case are an article and a pronoun, unless that word is "is".
    alone: list[str] = inside or re.findall(r"(?<![\w'])(?![AI][ \t]+(?!is\b)[a-z])([A-Z])(?![\w'])", answer)
    return alone[-1] if alone else None


@register_verifier("multiple_choice")
def multiple_choice(task: Task, text: str) -> float:
    """Returns 1 if the text chooses the gold answer's letter: "B", "(B)", "B) Paris", "the answer is B."."""
    gold = gold_answer(task, "multiple_choice").strip()
    letter = re.fullmatch(r"\(?([A-Za-z])[).:]?(?:\s.*)?", gold, re.DOTALL)
    if letter is None:
        raise VerifierError(
            f"The verifier 'multiple_choice' needs a letter as Task.answer, found {gold!r} (id {task.id!r}). "
            "Use the letter of the right choice, or the verifier 'exact_match'."
        )
    return float(_choice(text) == letter.group(1).upper())


# The exponent is kept small: 1e999999999 is a number that would not fit into memory.
_MAGNITUDE = (
    r"(?<![0-9.])(?<![0-9][eE])(?<![0-9][eE][-+])"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+(?![0-9]*[eE][-+]?[0-9]{4}))(?:\.[0-9]+)?"
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?|(?<![0-9])\.[0-9]+"
)
_NUMBER = re.compile(
    r"\\[dt]?frac\{(?P<top>-?[0-9]+)\}\{(?P<bottom>[0-9]+)\}"
    rf"|(?P<number>{_MAGNITUDE})(?:[ \t]{{0,2}}/[ \t]{{0,2}}(?P<over>[0-9]+(?:\.[0-9]+)?))?"
)
# A minus is a sign if it touches the number and no operand stands before it, or if it follows "=", "(", ":" or nothing.
_NEGATIVE = re.compile(r"(?:(?:^|[^\w)\]}])[-\u2212]|(?:^|[=(:,])[ \t]*[-\u2212][ \t]+)(?:\\?\$)?\Z")


def parse_number(text: str) -> Fraction | None:
    r"""The last number in a text, or None. Reads 1,234.5, -3, $5, 40% (as 40), 2e3, 1/2 and \frac{1}{2}."""
    for match in reversed(list(_NUMBER.finditer(text))):
        top, bottom = match["top"] or match["number"], match["bottom"] or match["over"] or "1"
        try:
            value = Fraction(top.replace(",", "")) / Fraction(bottom)
        except (ValueError, ZeroDivisionError):  # too many digits for int(), or a fraction such as 1/0
            continue
        before = text[max(0, match.start() - 12) : match.start()].replace("$-", "-$")
        return -value if _NEGATIVE.search(before) else value
    return None


@register_verifier("numeric")
def numeric(task: Task, text: str) -> float:
    """Returns 1 if the last number of the text's final answer is the gold answer's, to 1e-6 unless it is whole."""
    gold = parse_number(final_answer(gold_answer(task, "numeric")))
    if gold is None:
        raise VerifierError(
            f"The verifier 'numeric' finds no number in Task.answer {task.answer!r} (id {task.id!r}). "
            "Give a number, or use the verifier 'exact_match'."
        )
    value = parse_number(final_answer(text))
    if value is None or gold.denominator == value.denominator == 1:
        return float(value == gold)
    return float(abs(value - gold) <= Fraction(1, 10**6) * max(abs(value), abs(gold)))


# What the worker of `MathVerifier` runs. math-verify is imported there alone: it takes time and memory.


def _prepare_worker(memory_limit: int) -> None:  # pragma: no cover - runs in a process of its own
    import math_verify  # noqa: F401 - before the limit, and before the first answer's time begins

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends long arithmetic at once, which a handler in Python cannot
    for stream in (1, 2):  # nothing that a library prints is of use to the caller
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with contextlib.suppress(ImportError, OSError, ValueError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def _judge(gold: str, text: str, time_limit: float) -> float:  # pragma: no cover - runs in a process of its own
    from math_verify import verify

    if hasattr(signal, "alarm"):  # ends the worker even if its parent was killed meanwhile
        signal.alarm(int(time_limit) + 5)
    try:
        return float(verify(_read_gold(gold), _read_latex(text), timeout_seconds=None))
    except Exception:  # noqa: BLE001 - whatever it is, a text that cannot be judged is a wrong answer
        return 0.0
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _read_latex(text: str) -> list[object]:  # pragma: no cover - runs in a process of its own
    from math_verify import parse

    # A bare expression is wrapped, since math-verify reads LaTeX only between delimiters; prose must not be.
    words = re.sub(r"\\[a-zA-Z]+(\{[a-zA-Z ]*\})?", "", text)
    bare = not re.search(r"\$|\\[(\[]|\n|[a-zA-Z]{2,}[ ,]+[a-zA-Z]{2,}", words)
    wrapped = parse(rf"\boxed{{{text}}}", parsing_timeout=None) if bare else []
    return list(wrapped or parse(text, parsing_timeout=None))


_read_gold = functools.lru_cache(maxsize=1024)(_read_latex)


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


_INSTALLED = find_spec("math_verify") is not None


class MathVerifier:
    """Mathematical equality, by math-verify in a worker process that is started at the first use and then kept.

    Safe to call from any thread. An answer on which the worker exceeds its time limit or dies scores 0, with a warning,
    and the next one gets a new worker. An answer that equals the gold up to spacing needs no worker.

    Args:
        time_limit: Seconds for one answer.
        start_limit: Seconds for the worker to start.
        memory_limit: Bytes of address space for the worker, where the platform can limit it.

    Raises:
        ConfigError: If a limit is not positive and finite.
    """

    def __init__(self, time_limit: float = 5.0, start_limit: float = 120.0, memory_limit: int = 4 << 30) -> None:
        for name, value in (("time_limit", time_limit), ("start_limit", start_limit), ("memory_limit", memory_limit)):
            if not 0 < value < math.inf:
                raise ConfigError(f"MathVerifier: {name} must be positive and finite, got {value!r}.")
        self.time_limit, self.start_limit, self.memory_limit = time_limit, start_limit, memory_limit
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
        pairs = [(self._gold(task), final_answer(text)) for task, text in zip(tasks, texts, strict=True)]
        with self._lock:
            rewards = {pair: self._judge(*pair) for pair in dict.fromkeys(pairs)}
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

    def _judge(self, gold: str, text: str) -> float:
        if not text or _plain_latex(gold) == _plain_latex(text):
            return float(bool(text))
        for _ in range(2):  # once more where the worker died while it had nothing to do
            try:
                return self._ask(gold, text)
            except RuntimeError:  # the pool is broken: its worker died before it took the text
                self._stop()
        raise self._not_started()

    def _ask(self, gold: str, text: str) -> float:
        if self._pool is None:
            self._pool = ProcessPool(1, 0, _prepare_worker, (self.memory_limit,), _WorkerContext())
        future = self._pool.schedule(_judge, (gold, text, self.time_limit), timeout=self.time_limit)
        try:
            return future.result(self.start_limit + self.time_limit)
        except (TimeoutError, ProcessExpired) as error:
            if not future.done():
                self._stop()
                raise self._not_started() from error
            logger.warning("The math worker exceeded %s s or died on %.200r; it scores 0.", self.time_limit, text)
            return 0.0
        finally:
            future.cancel()  # on Ctrl-C, when the worker would go on

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


register_verifier("math")(MathVerifier())
