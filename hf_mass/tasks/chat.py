"""What a chat template writes around messages, found with marks in their place.

An answer is written as a known one, in training and where it is to be generated. What a template writes to have one
generated is no guide: it may open a block of thoughts there (Qwen 3, DeepSeek, Nemotron), or leave it to the model to
choose a channel (gpt-oss), and answers of examples have no thoughts. Some templates show empty thoughts before the last
answer alone; here they stand before every one, so that each answer begins alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_mass.errors import ConfigError

Messages = list[dict[str, str]]
ChatTemplate = Callable[[Messages, bool], str]
"""Turns messages into text; the flag asks for the beginning of the assistant's next message after them."""
MARK = re.compile(r"\s*<[^<>]*>\s*")
"""A special token as chat templates write them, such as <|im_end|>, with the space around it."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands around the messages of a chat.

    Args:
        head: Before the first question.
        opening: Between a question and its answer, but for the spaces at its end.
        lead: Those spaces, which stand before an answer: tokenizers join a space to the word behind it.
        end: Behind an answer that another question follows: the end of its turn.
        next_question: Between that end and the question.
        last_end: Behind the last answer.
    """

    head: str
    opening: str
    lead: str
    end: str
    next_question: str
    last_end: str

    @classmethod
    def of(cls, template: ChatTemplate) -> Turns:
        """What a template writes.

        Raises:
            ConfigError: If it does not show every message in order, ends no answer, or writes turns differently.
        """
        head, _, behind, _, again, opening, last = _around(template, 6)
        if behind != again:
            raise ConfigError(
                f"The chat template writes {behind!r} behind one answer and {again!r} behind the next, so examples in "
                "other orders would not begin alike. Use another template, or unset chat."
            )
        mark = MARK.match(behind)
        end = last if last.strip() and behind.startswith(last) else mark.group() if mark else behind
        if not end.strip():
            raise ConfigError(
                "The chat template writes no end behind an answer, so answers would not stop. Use another template, or "
                "unset chat."
            )
        bare = opening.rstrip(" ")
        last_end = last if last.strip() else end
        return cls(head, bare, opening[len(bare) :], end, behind[len(end) :], last_end)

    @property
    def stop(self) -> str:
        """The text that ends a generated answer."""
        return self.end.strip()

    @property
    def question_stop(self) -> str:
        """The text that ends a generated question."""
        mark = MARK.search(self.opening)
        return self.opening[: mark.end() if mark else None].strip()

    def written(self, contents: Sequence[str]) -> list[str]:
        """The text of a chat, cut after each message: before an answer begins, and after the end of its turn.

        Args:
            contents: Questions and answers in turn.
        """
        texts = []
        for place, content in enumerate(contents):
            if place % 2 == 0:
                texts.append(f"{self.next_question if place else self.head}{content}{self.opening}")
            else:
                end = self.last_end if place == len(contents) - 1 else self.end
                texts.append(f"{self.lead}{content}{end}")
        return texts


def as_messages(contents: Sequence[str]) -> Messages:
    """Questions and answers in turn as the user's and the assistant's messages."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def _around(template: ChatTemplate, count: int) -> list[str]:
    """What the template writes before, between and after `count` messages, found with marks in their place."""
    marks = [f"\ue000{place}\ue001" for place in range(count)]
    text = template(as_messages(marks), False)
    places = [text.find(mark) for mark in marks]
    if -1 in places or any(a >= b for a, b in pairwise(places)):
        raise ConfigError("The chat template does not show every message, in order. Use another template.")
    return re.split("\ue000[0-9]+\ue001", text)
