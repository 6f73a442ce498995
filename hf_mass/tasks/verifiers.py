"""Verifiers: does a text answer a task? Each maps (task, text) to a reward in [0, 1].

A verifier takes the answer that a caller has extracted or a whole solution, whose final answer it finds by itself (see
`hf_mass.tasks.final_answers`). A false reward is worse than a missed one: what is compared is a whole answer, and where
a text states several or none, it is wrong.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from decimal import Decimal
from numbers import Real

from hf_mass.errors import VerifierError
from hf_mass.tasks.checks import shown
from hf_mass.tasks.choices import choice
from hf_mass.tasks.final_answers import boxed_answer, final_answer, readings, undressed
from hf_mass.tasks.math_verifier import MathVerifier
from hf_mass.tasks.options import chosen_by_words, options
from hf_mass.tasks.quantities import parse_number, stated_quantity
from hf_mass.tasks.task import Task
from hf_mass.tasks.time_limit import TOO_LONG, limited

__all__ = [
    "VERIFIERS",
    "MathVerifier",
    "Verifier",
    "boxed_answer",
    "exact_match",
    "final_answer",
    "get_verifier",
    "gold_answer",
    "multiple_choice",
    "numeric",
    "parse_number",
    "register_verifier",
    "verify_batch",
    "verify_each",
]

logger = logging.getLogger(__name__)

Verifier = Callable[[Task, str], float]
VERIFIERS: dict[str, Verifier] = {}
TIME_LIMIT = 60.0
"""Seconds that a verifier may take for one text, where it was registered without another limit."""
_TIME_LIMITS: dict[str, float] = {}


def register_verifier(name: str, time_limit: float = TIME_LIMIT) -> Callable[[Verifier], Verifier]:
    """Decorator that makes a verifier known as `name`.

    Args:
        name: What tasks call it.
        time_limit: Seconds that it may take for one text. One that hangs is ended, in the main thread, and that task
            has no reward.

    Raises:
        VerifierError: If the name is taken.
    """

    def register(verifier: Verifier) -> Verifier:
        if name in VERIFIERS:
            raise VerifierError(f"The verifier name {name!r} is taken. Choose another name.")
        VERIFIERS[name], _TIME_LIMITS[name] = verifier, time_limit
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
        VerifierError: If a verifier is unknown, cannot judge its task, raises, or returns what is no reward.
    """
    rewards = []
    for outcome in verify_each(tasks, texts):
        if isinstance(outcome, VerifierError):
            raise outcome
        rewards.append(outcome)
    return rewards


def verify_each(tasks: Sequence[Task], texts: Sequence[str]) -> list[float | VerifierError]:
    """As `verify_batch`; where a verifier raises on a task, that task has the error and the others have their rewards.

    Raises:
        VerifierError: If a verifier is unknown, or returns what is no number from 0 to 1.
    """
    places: dict[str, list[int]] = {}
    for place, (task, _) in enumerate(zip(tasks, texts, strict=True)):
        places.setdefault(task.verifier, []).append(place)
    outcomes: dict[int, float | VerifierError] = {}
    for name, numbers in places.items():
        found = _outcomes(name, [tasks[n] for n in numbers], [texts[n] for n in numbers])
        outcomes.update(zip(numbers, found, strict=True))
    return [outcomes[place] for place in range(len(tasks))]


def _outcomes(name: str, tasks: list[Task], texts: list[str]) -> list[float | VerifierError]:
    verifier = get_verifier(name)
    if not hasattr(verifier, "batch"):
        return [_outcome(name, verifier, task, text) for task, text in zip(tasks, texts, strict=True)]
    try:
        with _limited(name, verifier, len(tasks)):
            scores = list(verifier.batch([_copied(task) for task in tasks], list(texts)))
    except (Exception, SystemExit):  # noqa: BLE001 - which task it is about is not known: one by one
        if len(tasks) > 1:
            return [_outcomes(name, [task], [text])[0] for task, text in zip(tasks, texts, strict=True)]
        return [_outcome(name, lambda task, text: next(iter(verifier.batch([task], [text]))), tasks[0], texts[0])]
    if len(scores) != len(tasks):
        raise VerifierError(
            f"The verifier {name!r} returned {len(scores)} rewards for {len(tasks)} texts. "
            "Its method batch must return one for each."
        )
    return [_checked(name, task, score) for task, score in zip(tasks, scores, strict=True)]


def _outcome(name: str, verifier: Verifier, task: Task, text: str) -> float | VerifierError:
    try:
        with _limited(name, verifier):
            score = verifier(_copied(task), text)
    except VerifierError as error:
        return error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
        what = "A text that it cannot read is a wrong answer: let it return 0."
        if TOO_LONG in str(error):
            what = "Make it faster, or give it more time: register_verifier(name, time_limit=...)."
        where = f"on {text!r:.80} (task id {task.id!r})"
        failure = VerifierError(f"The verifier {name!r} raised {type(error).__name__}: {error} {where}. {what}")
        failure.__cause__ = error
        return failure
    return _checked(name, task, score)


def _copied(task: Task) -> Task:
    """The task with fields of its own: what a verifier changes there is in no later prompt."""
    return replace(task, fields=dict(task.fields))


def _limited(name: str, verifier: Verifier, texts: int = 1) -> AbstractContextManager[None]:
    is_own = (getattr(verifier, "__module__", None) or "").startswith("hf_mass.")
    return nullcontext() if is_own else limited(texts * _TIME_LIMITS.get(name, TIME_LIMIT))


def _checked(name: str, task: Task, score: object) -> float:
    """A verifier's result as a float, refused by the verifier's name unless it is a number from 0 to 1."""
    value = float(score) if isinstance(score, Decimal) and not score.is_nan() else score
    if isinstance(value, Coroutine):
        value.close()
        raise VerifierError(f"The verifier {name!r} is async, and nobody awaits it. Make it a plain function.")
    if not isinstance(value, (Real, str, bytes)) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a number of NumPy or torch
    if not isinstance(value, Real) or not -1e-6 <= value <= 1 + 1e-6:  # type: ignore[operator]  # NaN is not, either
        raise VerifierError(
            f"The verifier {name!r} returned {shown(score, 80)} ({type(score).__name__}, task id {task.id!r}). "
            "It must return a number from 0 to 1."
        )
    return min(max(float(value), 0.0), 1.0)


def gold_answer(task: Task, name: str) -> str:
    """The task's answer; VerifierError, in the name of the verifier, if there is none."""
    if task.answer is None or not task.answer.strip():
        raise VerifierError(
            f"The verifier {name!r} needs Task.answer, which is {task.answer!r} (id {task.id!r}). "
            "Give the task a gold answer."
        )
    return task.answer


def _normalise(text: str) -> str:
    # Line breaks separate the rows of a grid.
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    text = re.sub(r"(?<=\S)\s*[.。]\Z", "", "\n".join(line for line in lines if line))
    return unicodedata.normalize("NFC", text.casefold())


def _bare(text: str) -> str:
    """A text without what only dresses it: emphasis, text wrappers, quotes, and dollars around all of it."""
    text = undressed(text.strip()).strip()
    for _ in range(3):
        inner = re.fullmatch(r"(?s)([\"'`*]|\*\*|\$\$?)(?=\S)(.*\S)\1\.?|[“‘«「„](.+)[”’»」“]\.?|\\\((.+)\\\)\.?", text)
        if inner is None or (inner[1] and inner[1] in inner[2]):
            break
        text = undressed((inner[2] or inner[3] or inner[4]).strip())
    return _normalise(text)


@register_verifier("exact_match")
def exact_match(task: Task, text: str) -> float:
    """Returns 1 if the text, or its final answer, is the gold answer up to case, spaces, emphasis, quotes around it,
    composed or decomposed letters, and a final full stop."""
    gold = gold_answer(task, "exact_match")
    golds = {_normalise(gold), _bare(gold)} - {""}
    found = readings(text)
    return float(_normalise(gold) == _normalise(text) or any(golds & {_normalise(each), _bare(each)} for each in found))


@register_verifier("multiple_choice")
def multiple_choice(task: Task, text: str) -> float:
    """Returns 1 if the text chooses the gold answer's letter: "B", "(B)", "B) Paris", "the answer is B."; where the
    problem lists its choices, their words do, too, and a letter with another choice's words is wrong."""
    gold = undressed(gold_answer(task, "multiple_choice")).strip(" \n*$`")
    letter = re.fullmatch(r"(?i:(?:option|choice)\s+)?\(?([A-Za-z])(?:\)|[.:])*(?:(?<=[).:])\s.*)?", gold, re.DOTALL)
    if letter is None:
        raise VerifierError(
            f"The verifier 'multiple_choice' needs a letter as Task.answer, found {gold!r} (id {task.id!r}). "
            "Use the letter of the right choice, or the verifier 'exact_match'."
        )
    chosen, known = choice(text), options(task.problem)
    return float((chosen_by_words(text, known, chosen) if known else chosen) == letter.group(1).upper())


@register_verifier("numeric")
def numeric(task: Task, text: str) -> float:
    """Returns 1 if the text's final answer states one number, the gold answer's to 1e-6, in no other unit."""
    gold = stated_quantity(gold_answer(task, "numeric"))
    if gold is None:
        raise VerifierError(
            f"The verifier 'numeric' finds no number in Task.answer {task.answer!r} (id {task.id!r}), or several. "
            "Give one number, or use the verifier 'exact_match'."
        )
    found = stated_quantity(text)
    return float(found is not None and found.equals(gold))


register_verifier("math")(MathVerifier())
