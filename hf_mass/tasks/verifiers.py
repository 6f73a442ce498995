r"""Verifiers: does a text answer a task? Each maps (task, text) to a reward in [0, 1].

A verifier takes the answer that a caller has extracted or a whole solution, whose final answer it finds by itself: the
last `\boxed{...}`, else what follows the last `####`, else what follows "answer:" or "answer is", else the whole text.

Symbolic mathematics can run for ever or exhaust memory, so the verifier "math" judges in a worker process with a time
limit. A signal would be simpler, but signals work only in the main thread.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, cast

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
    """The verifier registered as `name`.

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
        ValueError: If there are not as many tasks as texts.
        VerifierError: If a verifier is unknown or cannot judge its task.
    """
    rewards = [0.0] * len(tasks)
    places: dict[str, list[int]] = {}
    for place, (task, _) in enumerate(zip(tasks, texts, strict=True)):
        places.setdefault(task.verifier, []).append(place)
    for name, mine in places.items():
        verifier = get_verifier(name)
        its_tasks, its_texts = [tasks[i] for i in mine], [texts[i] for i in mine]
        scores = (
            verifier.batch(its_tasks, its_texts) if hasattr(verifier, "batch") else map(verifier, its_tasks, its_texts)
        )
        for place, score in zip(mine, scores, strict=True):
            rewards[place] = score
    return rewards


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
    """1 if the text, or its final answer, is the gold answer up to case, spaces, blank lines and a final full stop."""
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
    """1 if the letter that the text chooses is the gold answer's: "B", "(B)", "B) Paris", "the answer is B.".

    Raises:
        VerifierError: If the gold answer is no letter.
    """
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
    """1 if the last number of the text's final answer is the gold answer's, to 1e-6 where it is no whole number.

    Raises:
        VerifierError: If the gold answer holds no number.
    """
    gold = parse_number(final_answer(gold_answer(task, "numeric")))
    if gold is None:
        raise VerifierError(
            f"The verifier 'numeric' finds no number in Task.answer {task.answer!r} (id {task.id!r}). "
            "Give a number, or use the verifier 'exact_match'."
        )
    value = parse_number(final_answer(text))
    if value is None:
        return 0.0
    if gold.denominator == 1 and value.denominator == 1:
        return float(value == gold)
    return float(abs(value - gold) <= Fraction(1, 10**6) * max(abs(value), abs(gold)))


def _worker(memory_limit: int) -> None:  # pragma: no cover - runs in a process of its own
    """Answers one JSON line [gold, text, seconds] after another with the reward.

    Its source is run by a fresh interpreter, so it must not refer to anything outside itself: importing this module
    there would import the package, and with it whatever the package imports.
    """
    import contextlib
    import functools
    import json
    import os
    import re
    import signal
    import sys

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    from math_verify import parse, verify

    with contextlib.suppress(ImportError, OSError, ValueError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))

    def read(text: str) -> list[object]:
        # A bare expression is wrapped, since math-verify reads LaTeX only between delimiters; prose must not be.
        words = re.sub(r"\\[a-zA-Z]+(\{[a-zA-Z ]*\})?", "", text)
        bare = not re.search(r"\$|\\[(\[]|\n|[a-zA-Z]{2,}[ ,]+[a-zA-Z]{2,}", words)
        wrapped = parse(rf"\boxed{{{text}}}", parsing_timeout=None) if bare else []
        return list(wrapped or parse(text, parsing_timeout=None))

    read_gold = functools.lru_cache(maxsize=1024)(read)
    answers.write("ready\n")
    for line in sys.stdin:
        gold, text, seconds = json.loads(line)
        if hasattr(signal, "alarm"):  # ends this process even if its parent was killed meanwhile
            signal.alarm(int(seconds) + 5)
        try:
            score = float(verify(read_gold(gold), read(text), timeout_seconds=None))
        except Exception:  # noqa: BLE001 - whatever it is, a text that cannot be judged is a wrong answer
            score = 0.0
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        answers.write(f"{score}\n")


# Spaces mean nothing in LaTeX, but a model that writes "1 2" has not written 12.
_DROPPED_LATEX = re.compile(r"(?<![0-9\s])\s+|\s+(?![0-9\s])|\$|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\.\Z")


def _plain_latex(text: str) -> str:
    unwrapped = re.sub(r"\\text(?:bf|it|rm)?\{([^{}]*)\}", r"\1", text.strip())
    return _DROPPED_LATEX.sub("", re.sub(r"\\[dt]frac", r"\\frac", unwrapped))


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
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # Also run in a forked child, which must neither share the parent's worker nor a lock that a thread held.
        self._lock = threading.Lock()
        self._process: Popen[bytes] | None = None

    def __call__(self, task: Task, text: str) -> float:
        """1 if the text's final answer equals the task's gold answer, else 0; raises as `batch` does."""
        return self.batch([task], [text])[0]

    def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
        """The rewards of many texts; the same text for the same gold answer is judged once.

        Raises:
            ValueError: If there are not as many tasks as texts.
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
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = self._start()
        alive = False
        try:
            rest = memoryview(json.dumps([gold, text, self.time_limit]).encode() + b"\n")
            with contextlib.suppress(BrokenPipeError):  # it has died, as the missing reply will tell
                while rest:  # an unbuffered pipe may take less than it is given
                    rest = rest[cast(IO[bytes], self._process.stdin).write(rest) :]
            reply, alive = _receive(self._process, self.time_limit)
        finally:  # on Ctrl-C too: the reply still to come would be taken for the next answer's
            if not alive:
                self._stop()
        if not reply:
            logger.warning("The math worker exceeded %s s or died on %.200r; it scores 0.", self.time_limit, text)
        return float(reply or 0)

    def _start(self) -> Popen[bytes]:
        program = f"import sys\nsys.path[:] = {sys.path!r}\n{inspect.getsource(_worker)}\n_worker({self.memory_limit})"
        # Unbuffered, so that a forked child can drop the pipes without a lock that a thread of its parent held.
        process = Popen([sys.executable, "-c", program], bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        reply, alive = _receive(process, self.start_limit)
        if reply.strip() != "ready" or not alive:
            with process:
                process.kill()
            raise VerifierError(
                f"The worker of the verifier 'math' did not start within {self.start_limit} s (exit status "
                f"{process.returncode}). Check that `{sys.executable} -c 'import math_verify'` works."
            )
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:  # waits for its end and closes its pipes
                process.kill()


def _receive(process: Popen[bytes], limit: float) -> tuple[str, bool]:
    """One line of the process's output, and whether it may be asked again.

    A timer kills a process that is late, which ends the read: this works in every thread and on every platform.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    try:
        reply = cast(IO[bytes], process.stdout).readline().decode()
    finally:
        timer.cancel()
        timer.join()
    return reply, bool(reply) and not late.is_set()


register_verifier("math")(MathVerifier())
