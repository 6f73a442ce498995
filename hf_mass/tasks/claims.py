"""Whether a text stands by an answer that it names: what is denied, supposed, taken back, or said by others is none."""

from __future__ import annotations

import re

from hf_mass.tasks.languages import denied

_DENIED = re.compile(
    r"(?i)\b(?:not|never|neither|nor|cannot|wrong|incorrect|false|invalid|mistaken|nobody|no[ -]one|none of|no longer"
    r"|doubt\w*|unlikely|hardly|scarcely|anything but|other than|differ(?:s|ent)? from|far from|nowhere near)\b"
    r"|n['’]t\b|[✗✘❌✖☒]"
)
# "The wrong answer is 5", "Bob's answer is 5" and "half the answer is 5" state nothing.
_OTHER = (
    r"\b(?:wrong|incorrect|false|invalid|worst|second|next|common|trap|possible|alternative|previous|old|initial|original"
    r"|na[iï]ve|tempting|his|her|their|others?|another|\w+['’]s|(?:least|less)[ \t]+\w+|twice|half|double|triple|of"
    r"|plus|minus|times)[ \t]+"
)
_BEFORE_ANSWER = re.compile(rf"{_OTHER}\Z", re.IGNORECASE)
_OTHER_ANSWER = re.compile(rf"{_OTHER}(?:answer|choice|option|guess)\b", re.IGNORECASE)
# Of a whole text, not of the words before a formula: "rejecting x = -3" may go before the right one.
_RULED_OUT = re.compile(
    r"(?i)\b(?:impossible|distractor|discard\w*|reject\w*|rul(?:e|es|ed|ing) out|mistake (?:is|was|would be)|is too"
    r"|fails(?=\s*(?:\Z|[.,;])))\b"
)
_SUPPOSED = re.compile(
    r"(?i)\b(?:if|unless|whether|suppos(?:e|es|ing)|assum(?:e|es|ing)|provided that|otherwise)\b"
    r"|\b(?:may|might|could)(?:\s+\w+)?\s+be\b|(?:\A|[.!?]\s+)were\b|\b(?:I|we)\s+(?:\w+\s+)?thought\b"
)
_SAY = r"(?:think|say|claim|believe|cho+se|pick|select|guesse?|argue|suggest|insist)"
_SAYS = r"(?:says|claims|thinks|believes|argues|insists|guesses|chooses|picks)"
_SAID = r"(?:said|claimed|thought|believed|argued|insisted|guessed|wrote|chose|picked|selected|answered)"
_OTHERS = re.compile(
    r"\b(?i:nobody|no[ -]one|some(?:one|body)?|many|most|few|people|students?|others|they|he|she|friends?|teachers?"
    r"|authors?|every(?:one|body)|one)\b"
    rf"(?:\s+(?!I\b|(?i:we)\b)[\w'’]+){{0,3}}?\s+(?:{_SAY}(?:e?[sd])?|{_SAID})\b"
    rf"|\b{_SAYS}\b|\b(?!(?:I|We|Then)\b)[A-Z]\w*\s+{_SAID}\b|\b(?i:it)\s+(?:is|was)\s+(?:often\s+)?"
    r"(?:claimed|said|believed|thought)"
    r"|\b(?i:according to)\b"
)
_CLAUSES = re.compile(r"(?i)\b(?:so|but|therefore|thus|hence|sondern|donc|sino)\b|所以|因此|而是|但")
_SENTENCES = re.compile(r"[.!?]\s|[。！？\n]")
_WRONG = r"(?:\w+\s+)?(?:not\s+(?:right|correct|it)|wrong|incorrect|mistaken|an?\s+(?:mistake|error))\b"
_IT = r"(?:(?:that|this|it|which|(?:my|the|this|that)\s+(?:answer|result|value|calculation)))"
_ITS_END = r"\A[\s$*_.)\]}\"'’”]{0,20}"
_TAKEN_BACK = re.compile(
    # "5? No." and "5 is wrong", "5. Or 6", then what may begin any clause after it: "Wait, no", "that is wrong".
    rf"{_ITS_END}[?？]"
    rf"|{_ITS_END}(?:(?:(?:is|was)\s+|\(\s*)(?:{_WRONG}|false\b|not\s+true\b)|[✗✘❌✖☒]"
    r"|(?:or(?!\s+so\b)|alternatively)\b)"
    r"|(?:\A|[.!?…;\n,–—(])[^\w?]{0,8}(?:(?:oh|ah|hmm+|well|but|and|yet|so|ok(?:ay)?)\b\W+)*(?:"
    r"(?:wait|nope|oops|sorry|hold\s+on|scratch\s+that|on\s+second\s+thoughts?|correction|actually"
    r"|my\s+(?:mistake|bad)|I\s+(?:made\s+an?|was\s+wrong|take\s+(?:it|that)\s+back))\b"
    r"|no\b(?=\s*(?:[,!;:…–—]|\.\s*\S)|\s+(?:wait|that|it|this)\b)"
    rf"|{_IT}(?:['’]s|\s+(?:is|was|seems|looks|must\s+be))\s+{_WRONG}"
    rf"|{_IT}\s+(?:(?:isn|wasn|can)['’]t|cannot)\s+(?:be\s+)?(?:right|correct)\b"
    rf"|(?:{_IT}|we)\s+should\s+(?:\w+\s+)?(?:be|have\s+been)\b)",
    re.IGNORECASE,
)


def denies(text: str) -> bool:
    """Whether a text says of something that it is not so, or that others say so."""
    return denied(text) or any(pattern.search(text) for pattern in (_DENIED, _RULED_OUT, _OTHERS, _OTHER_ANSWER))


def supposes(text: str) -> bool:
    """Whether a text says of something that it is so under a condition, or may be."""
    return bool(_SUPPOSED.search(text))


def clause_denies(before: str) -> bool:
    """Whether the clause that ends with these words denies what follows: "the answer is not", "I don't think it is"."""
    clause = re.split(r"[,;:，；：、]", _last(before))[-1]
    return denied(clause) or bool(_DENIED.search(clause))


def disowns(before: str) -> bool:
    """Whether the words before an answer deny it, suppose it, or give it to others: "I doubt that", "Bob says"."""
    # What Bob said, "the answer is", goes on after the comma.
    clause = re.split(r";|(?<!said)(?<!says),(?!\s*[\"“'‘])", _last(before))[-1]
    return clause_denies(before) or supposes(_last(before)) or denies(clause)


def _last(before: str) -> str:
    """The last sentence, from its last "so" or "but" on."""
    return _CLAUSES.split(_SENTENCES.split(before[-300:])[-1])[-1]


def is_another(before: str) -> bool:
    """Whether these words before "answer" say that it is not the text's own, or a part of it: "wrong", "half the"."""
    return bool(_BEFORE_ANSWER.search(before))


def taken_back(after: str) -> bool:
    """Whether what follows an answer takes it back, asks for it, or puts another beside it."""
    return bool(_TAKEN_BACK.search(after))
