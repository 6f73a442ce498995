"""Which pairs that a model wrote for a task can be practised on: new, no placeholders, in the demonstrations' form."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from hf_mass.tasks.grids import canonical_grid
from hf_mass.tasks.task import Task

Unusable = Literal["incomplete", "not_new", "placeholder", "other_form"]
"""Ended by the limit; a question that is there already; a stand-in for a text; not like what the task shows."""
FACTOR = 2.0
"""How many times as long as the longest text that is shown, or as short as the shortest, a written one may be."""

# Nothing but punctuation; something in brackets; a name for a text instead of one, numbered or not; one sign repeated.
_PLACEHOLDER = re.compile(
    r"[\W_]*|<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|(.)\1{2,}|"
    r"(?:(?:an?|the|your|new|another|next|some)\s+)*"
    r"(?:input|output|question|answer|problem|example|word|phrase|sentence|text|sample|placeholder)s?\s*(?:#?\d+|[a-z])?",
    re.IGNORECASE | re.DOTALL,
)


def question_fault(question: str, task: Task, earlier: Collection[str] = ()) -> Unusable | None:
    """Why a question cannot be practised on, or None.

    Args:
        question: The question as it was read.
        task: What it was written for.
        earlier: Questions of samples that were written before it.
    """
    shown = [pair.question for pair in task.demonstrations]
    if same(question) in {same(text) for text in (*shown, task.problem, *earlier)}:
        return "not_new"
    return _fault(question, shown)


def answer_fault(answer: str, task: Task) -> Unusable | None:
    """Why an answer cannot be practised on, or None: where the demonstrated answers are labels, it is one of them."""
    shown = [pair.answer for pair in task.demonstrations]
    labels = set(shown)
    if 2 * len(labels) <= len(shown):
        return None if answer in labels else "other_form"
    return _fault(answer, shown)


def same(question: str) -> str:
    """What two texts have in common that differ in case and white space alone."""
    return " ".join(question.casefold().split())


def _fault(text: str, shown: Sequence[str]) -> Unusable | None:
    if shown and all(canonical_grid(each) for each in shown):
        return None if canonical_grid(text) else "other_form"
    if _PLACEHOLDER.fullmatch(text.strip()) and not any(_PLACEHOLDER.fullmatch(each.strip()) for each in shown):
        return "placeholder"
    if not shown:
        return None
    lines, lengths = [len(each.strip().splitlines()) for each in shown], [len(each.strip()) for each in shown]
    alike = min(lines) <= len(text.splitlines()) <= max(lines)
    return None if alike and min(lengths) / FACTOR <= len(text) <= FACTOR * max(lengths) else "other_form"
