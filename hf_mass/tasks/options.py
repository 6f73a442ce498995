"""The choices of a question that lists them, a line each: a letter with its choice's words chooses it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from hf_mass.tasks.final_answers import readings, stated_answer, undressed

_LISTED = re.compile(r"(?m)^[ \t]*\(?([A-Z])[).:][ \t]+(\S.{0,300}?)[ \t]*$")
_LABELLED = re.compile(r"\(?([A-Za-z])\)?[ \t]*(?:[.:,–—-]|\))?[ \t]+(\S.*)", re.DOTALL)
_WRONG = re.compile(
    r"\W*(?:(?:is|was|are|were|seems|can be|cannot be)\s+)?(?:\w+ly\s+)?"
    r"(?:not|wrong|incorrect|false|ruled out|eliminated)\b|\s+(?:is|was|are|were|does|do|ca)n['’]t\b"
    r"|,?\s+which\s+(?:is|was)\s+(?:wrong|incorrect|false)\b"
)
_GOES_ON = re.compile(r"[,.;:!?)]+(?:\s|\Z)|\s+(?:because|since|as|for|is|was|are|were|isn|wasn|can|cannot|[(–—-])")
_LONGEST = 500  # characters of an answer that is a choice's words


def options(problem: str) -> dict[str, str]:
    """Letter → words of the choices that a question lists as A, B, C ...; empty if it lists none."""
    listed = [(letter, _normal(words)) for letter, words in _LISTED.findall(problem[-20_000:])]
    letters = "".join(letter for letter, _ in listed)
    are_all = len(listed) > 1 and letters == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]
    return dict(listed) if are_all and len({words for _, words in listed}) == len(listed) else {}


def chosen_by_words(text: str, known: dict[str, str], letter: str | None) -> str | None:
    """The letter whose words an answer is, with or without the letter; None where the two differ; else `letter`.

    Args:
        text: The answer.
        known: The choices.
        letter: What the answer chooses by its letters alone.
    """
    stated = stated_answer(text)
    if stated == "" or len(text) > 20 * _LONGEST:
        return letter
    of_words = {words: each for each, words in known.items()}
    answer = _normal(text if stated is None else stated)
    if answer in of_words and (len(answer) > 1 or answer.isdigit()):
        return of_words[answer] if letter in (None, of_words[answer]) else None
    for reading in dict.fromkeys([answer, *map(_normal, readings(text))]):  # words may be several sentences
        labelled = _LABELLED.fullmatch(reading) if len(reading) <= 4 * _LONGEST else None
        if labelled is None or (found := _beginning(labelled[2], of_words)) is None:
            continue
        label, words = labelled[1].upper(), labelled[2]
        if of_words[found] != label or _WRONG.match(words, len(found)):
            return None
        if words == found:
            return label
    return letter


def _beginning(words: str, of_words: Mapping[str, str]) -> str | None:
    """The longest words of a choice that these words are, or begin with and then go on about: "Paris, because"."""
    found = [own for own in of_words if words.startswith(own) and (words == own or _GOES_ON.match(words, len(own)))]
    return max(found, key=len, default=None)


def _normal(text: str) -> str:
    plain = re.sub(r"[$*`_\"“”]|\\[()\[\]]", "", unicodedata.normalize("NFKC", undressed(text)))
    return " ".join(plain.split()).rstrip(". ").casefold()
