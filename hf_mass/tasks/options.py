"""The choices of a question that lists them, a line each: a letter with its choice's words chooses it."""

from __future__ import annotations

import re
import unicodedata

from hf_mass.tasks.final_answers import stated_answer, undressed

_LISTED = re.compile(r"(?m)^[ \t]*\(?([A-Z])[).:][ \t]+(\S.{0,300}?)[ \t]*$")
_LABELLED = re.compile(r"\(?([A-Za-z])\)?[ \t]*(?:[.:,–—-]|\))?[ \t]+(\S.*)", re.DOTALL)
_WRONG = re.compile(
    r"\W*(?:(?:is|was|are|were|seems|can be|cannot be)\s+)?(?:\w+ly\s+)?"
    r"(?:not|wrong|incorrect|false|ruled out|eliminated)\b"
    r"|\s+(?:is|was|are|were|does|do|ca)n['’]t\b"
)
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
    answer = _normal(text if stated is None else stated) if len(text) <= 20 * _LONGEST else ""
    is_letter = len(answer) == 1 and not answer.isdigit()
    if not answer or is_letter or len(answer) > _LONGEST:
        return letter
    of_words = {words: each for each, words in known.items()}
    if answer in of_words:
        return of_words[answer] if letter in (None, of_words[answer]) else None
    labelled = _LABELLED.fullmatch(answer)
    if labelled is None:
        return letter
    own, words = known.get(labelled[1].upper()), labelled[2]
    if words in of_words:
        return of_words[words] if words == own else None
    is_denied = own and words.startswith(own) and _WRONG.match(words, len(own))  # "B) London is incorrect"
    return None if is_denied else letter


def _normal(text: str) -> str:
    plain = re.sub(r"[$*`_\"“”]|\\[()\[\]]", "", unicodedata.normalize("NFKC", undressed(text)))
    return " ".join(plain.split()).rstrip(". ").casefold()
