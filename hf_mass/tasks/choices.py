"""Which letter a text chooses: one that it states or affirms, never the one that merely comes last."""

from __future__ import annotations

import re

from hf_mass.tasks.final_answers import stated_answer, undressed

_LONGEST = 20_000  # characters
_NOUN = r"(?:options?|choices?|answers?|statements?|letters?)"
# "A" and "I" before a word in lower case are an article and a pronoun, unless that word goes on about a choice.
_VERB = r"(?:is|was|seems|looks|must|should|would|will|cannot|can|because|since|as|and|or|but|for)"
_LETTER = re.compile(
    rf"\(\s*(?P<inside>[A-Za-z])\s*\)|(?i:\b{_NOUN})[ \t]+(?P<named>[A-Za-z])(?![\w'’])\)?"
    rf"|(?<![\w'’.\-])(?![AI][ \t]+(?!{_VERB}\b)[a-z])(?P<alone>[A-Z])(?![\w'’\-]|\.\w)\)?"
)
_LOOKS = r"\s*(?:(?:is|are|was|were|seems|looks|sounds|must be|has to be|would be|should be)\s+)"
_ADVERB = r"(?:(?:also|clearly|the|a|an|both|most|only|actually|therefore|then|thus|definitely|probably|likely)\s+)*"
_RIGHT = re.compile(
    rf"(?!\s*(?:are|were)\b){_LOOKS}{_ADVERB}(?:correct|right|true|best|answer|one|chosen|valid)\b", re.IGNORECASE
)
_WRONG = re.compile(
    rf"\s*(?:(?:cannot|can not|can['’]t|does not|(?:does|is|are|was|wo)n['’]t|fails|is not|are not)\b"
    rf"|{_LOOKS}{_ADVERB}(?:not|wrong|false|incorrect|invalid|out|ruled|eliminated|excluded|impossible|never|no)\b)",
    re.IGNORECASE,
)
_CHOSEN_BEFORE = re.compile(
    r"\b(?:choose|chose|chosen|pick|picked|select|selected|go(?:ing)? with"
    r"|(?:answer|choice|option|it|this) (?:is|must be|should be)"
    r"|answer:|therefore|thus|hence|so)\W{0,4}(?:the )?(?:correct )?\Z",
    re.IGNORECASE,
)
_REJECTED_BEFORE = re.compile(
    r"\b(?:not|nor|neither|except|without|eliminate[sd]?|rules? out|ruled out|excludes?|excluded|reject(?:s|ed)?|than"
    r"|unlike|discard)\W{0,3}(?:the )?\Z",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\s*(?:,?\s*(?:and|or)|[/&+]|,)\s*(?:(?:the|also)\s+)?", re.IGNORECASE)
_HEAD_ENDS = re.compile(r"\s*(?:\Z|[.:,;)\]\-–—](?!\w)|(?:because|since|as|which|for|due|given|where)\b)")


def choice(text: str) -> str | None:
    r"""The letter, as a capital, that a text chooses, or None if it chooses none, several or unclearly.

    Reads "b", "(B)", "B) Paris", "option (b)", `\boxed{\text{B}}` and sentences: "B is correct, A is wrong".
    """
    stated = stated_answer(text)
    answer = _plain((text if stated is None else stated)[:_LONGEST])
    if match := re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", answer):
        return match[1].upper()
    if match := re.match(r"([a-z])[).:]\s", answer):  # "b) Paris"
        answer = f"({match[1]})" + answer[match.end() - 1 :]
    letters = list(_LETTER.finditer(answer))
    if letters and not answer[: letters[0].start()].strip() and _is_head(answer, letters):
        return _name(letters[0])
    joined = {n + k for n in range(len(letters) - 1) if _are_joined(answer, letters, n) for k in (0, 1)}
    left, affirmed = set[str](), set[str]()
    for number, letter in enumerate(letters):
        before, after = answer[max(0, letter.start() - 40) : letter.start()], answer[letter.end() : letter.end() + 60]
        if _REJECTED_BEFORE.search(before) or _WRONG.match(after):
            continue
        left.add(_name(letter))
        is_chosen = number not in joined and _CHOSEN_BEFORE.search(before)
        if is_chosen or (_RIGHT.match(after) and not _is_last_of_list(answer, letters, number)):
            affirmed.add(_name(letter))
    chosen = affirmed or left
    return chosen.pop() if len(chosen) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"[$*`_\"“”]|\\[()\[\]]", "", undressed(text)).strip()


def _name(letter: re.Match[str]) -> str:
    return (letter["inside"] or letter["named"] or letter["alone"]).upper()


def _are_joined(answer: str, letters: list[re.Match[str]], number: int) -> bool:
    """Whether this letter and the next stand in a list: "A and B", "(A), (B)"."""
    gap = answer[letters[number].end() : letters[number + 1].start()]
    return bool(_JOINED.fullmatch(gap))


def _is_last_of_list(answer: str, letters: list[re.Match[str]], number: int) -> bool:
    """Whether the letter ends a list by "and" or "or"; a comma alone may begin a clause: "between A and B, B is"."""
    gap = answer[letters[number - 1].end() : letters[number].start()] if number else ""
    return bool(gap.strip() != "," and _JOINED.fullmatch(gap))


def _is_head(answer: str, letters: list[re.Match[str]]) -> bool:
    """Whether the first letter is the answer and the rest explains or spells it out."""
    head = letters[0]
    after = answer[head.end() :]
    if any(
        re.search(r"\n\s*\Z", answer[max(0, letter.start() - 9) : letter.start()]) for letter in letters[1:50]
    ):  # a list of options
        return False
    if _WRONG.match(after) or (len(letters) > 1 and _are_joined(answer, letters, 0)):
        return False
    if head["inside"] or answer[: head.end()].endswith(")"):
        return not re.match(r"\s*(?:or|and|but|/|&)\b", after)
    return bool(_HEAD_ENDS.match(after)) and not re.match(r"\s*[.,]\s*[A-Z](?:[.,)]|\Z)", after)
