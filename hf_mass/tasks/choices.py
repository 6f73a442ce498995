"""Which letter a text chooses: one that it states or affirms, never the one that merely comes last.

Each letter has a verdict by the words before and after it: right, wrong, or none. Letters of one list ("A and B") are
wrong together, and "B too" has the verdict of the letter before it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from hf_mass.tasks.claims import denies, disowns, supposes, taken_back
from hf_mass.tasks.final_answers import first_sentence, spoken, stated_answer, undressed

_LONGEST, _MOST = 20_000, 500  # characters; letters, of which nobody names more to choose one
_NOUN = r"(?:options?|choices?|answers?|statements?|letters?)"
# "A" and "I" before a word in lower case are an article and a pronoun, unless that word goes on about a choice.
_VERB = r"(?:is|was|seems|looks|must|should|would|will|cannot|can|because|since|as|and|or|but|for|too|also|over|not)"
_THING = re.compile(
    r"(?i)\b(?:person|people|team|plan|group|vitamin|type|class|grade|point|line|figure|table|company|player|student"
    r"|hepatitis|angle|triangle|appendix|scenario|section|set|event|town|city|train|car)\s\Z"
)
_LETTER = re.compile(
    rf"(?i:\b{_NOUN}[ \t]+){{0,2}}\(\s*(?P<inside>[A-Za-z])\s*\)"
    rf"|(?i:\b{_NOUN}[ \t]+){{1,2}}(?P<named>[A-Za-z])(?![\w'’])\)?"
    rf"|(?<![\w'’.\-])(?!A[ \t]+(?!{_VERB}\b)[a-z]|I[ \t]+(?!(?:is|seems|looks|because|since|and|or)\b)[a-z])"
    r"(?P<alone>[A-Z])(?![\w'’\-]|\.\w)\)?"
)
_IS = (
    r"\s*(?:[,(–—-]\s*)?(?:(?:which|that|it)\s+)?"
    r"(?:(?:is|are|was|were|seems|looks|sounds|must be|has to be|would be|should be)\s+)"
)
_ADVERB = (
    r"(?:(?:also|clearly|the|an?|both|all|our|my|most|only|actually|therefore|then|thus|definitely|probably"
    r"|likely)\s+)*"
)
# An option's own words may begin with a capital "Not" or be "false".
_RIGHT = re.compile(
    rf"(?!\s*(?:are|were)\b){_IS}{_ADVERB}"
    r"(?:correct|right|true|best|answer|one|chosen(?! by)|valid|appropriate|suitable|accurate)\b"
    r"(?![^.\n]{0,40}(?:\b(?:if|unless)\b|\?))(?!\W+\b(?:but|yet|though|although|however)\b[^.\n]{0,60}"
    r"\b(?:not|wrong|incorrect|false|mistaken|better|\w+n['’]t)\b)|\s+(?-i:correct|right)\s*(?:\Z|[.,;])"
    r"|\s+(?:it\s+is\s*(?:\Z|[.!])|(?:remains|fits\s+best|works\s+best|the\s+(?:only\s+)?(?:correct|right|best)\s+\w+)\b)",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\s*\((?-i:false|no|rejected|excluded|eliminated|ruled out)\b"
    r"|\s*(?:[,(–—-]\s*)?(?:(?:which|that|it)\s+)?(?:(?-i:cannot|(?:not|never)\b(?!\W*\Z)|wrong|incorrect)|can not"
    r"|(?:can|could|should|must|may)\s+be\s+(?:eliminated|excluded|ruled\s+out|rejected|discarded)"
    r"|fails?|(?:do|does|did|would|could|should)\s+not|(?:ca|do|does|did|is|are|was|were|wo|would|could|should)n['’]t)\b"
    rf"|{_IS}{_ADVERB}(?:not\b(?!\W*\Z)"
    r"|(?:wrong|incorrect|invalid|false|out|ruled|eliminated|excluded|impossible|never|no|worst|a\s+mistake)\b)",
    re.IGNORECASE,
)
_WOULD = r"(?:is|must be|should be|would be)"
_CHOSEN_BEFORE = re.compile(
    r"\b(?:choose|chose|chosen|pick|picked|select|selected|go(?:ing)? with|left with|leaves"
    r"|(?:I['’]m|I am|we are|we['’]re) (?:choosing|picking|selecting)"
    rf"|(?:answer|choice|option|solution|letter) {_WOULD}|answer:"
    r"|(?:réponse|respuesta|resposta|risposta|antwort)(?: \w+)? (?:est|es|é|è|ist)"
    rf"|(?P<weak>it['’]s|leaving|conclude|match(?:es)?|corresponds? to"
    rf"|(?:best|right|correct|one)(?: \w+){{0,2}} {_WOULD}"
    rf"|(?:it|this) {_WOULD}|only {_NOUN} (?:that|which) (?:works|fits|remains|holds) {_WOULD}"
    r"|therefore|thus|hence|so))\W{0,4}(?:the )?(?:correct )?\Z",
    re.IGNORECASE,
)
# A denial or a condition reaches to the end of its clause, or to the next letter.
_CLAUSE = r"(?![^.,;!?\n/]{0,80}\b(?:so|but|and|therefore|thus|hence)\s)[^.,;!?\n/]{0,80}\Z"
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|nor|neither|never|cannot|except|without|eliminat(?:e[sd]?|ing)|rul(?:es?|ed|ing) out"
    r"|exclud(?:e[sd]?|ing)|reject(?:s|ed|ing)?|than|over|instead of|unlike|discard(?:s|ed|ing)?|wrong|incorrect|false"
    rf"|invalid|impossible|worst|least|less|doubt|(?:all|every\w*|any\w*) but)\b|n['’]t\b){_CLAUSE}",
    re.IGNORECASE,
)
_OPEN_BEFORE = re.compile(
    r"\b(?:if|whether|suppose|unless|either|perhaps|could|might|may|tempted|wanted|considered|(?:I|we) thought"
    r"|(?:second|next) best|almost|nearly|would have|going to"
    rf"|at first|initially|originally|first I|I first)\b(?!\s+with\b){_CLAUSE}",
    re.IGNORECASE,
)
# "All but B are wrong" says that B is right; so does "None but B is right".
_BUT = r"(?:\s+(?:of|the|other|options?|choices?|answers?|ones?|them|these|letters?)){0,4}"
_BUT += r"\s+(?:but|except(?:\s+for)?|other\s+than|besides|apart\s+from)\s+\Z"
_ALL_BUT = re.compile(rf"\b(?:all|every\w*|each|any\w*){_BUT}", re.IGNORECASE)
_NONE_BUT = re.compile(rf"\b(?:none|no|nothing){_BUT}", re.IGNORECASE)
_JOINED = re.compile(r"\s*(?:,?\s*(?:and|or|nor|as well as)|[/&+]|,)\s*(?:(?:the|also)\s+)?", re.IGNORECASE)
_ALIKE_BEFORE = re.compile(
    r"\b(?:(?:as|so|neither|nor) (?:is|are|does|was)|likewise|like|same (?:goes )?(?:for|with))\s\Z", re.IGNORECASE
)
_ALIKE_AFTER = re.compile(r",?\s+(?:too|as well|also|likewise|either|neither)\b(?!\s+(?:is|are))", re.IGNORECASE)
_TICK, _CROSS = "✓✔✅☑", "✗✘❌✖☒"
_VERDICT_WORD = re.compile(r"(?im)(?:[:–—-][ \t]*|\()(?:(correct|right)|incorrect|wrong)\)?[.!]?(?=[ \t]*(?:$|[/,;|]))")
_LEAD = re.compile(
    r"(?i)(?:(?:hmm|well|so|clearly|definitely|probably|maybe|surely|i (?:think|believe|guess|say)"
    r"|i(?: would|['’]d) (?:say|answer)|my (?:guess|pick)|the|is|it is|it['’]s|that|['’]s|most likely|likely"
    r"|obviously|certainly|must be|has to be|would be)\b[,:.]?\s*)*\Z"
)
_HEAD_ENDS = re.compile(
    r"\s*(?:\Z|\(|[.:,;)\]–—](?!\w)|-\s+\S|\n|(?:because|since|as(?! well)|which|for|due|given|where|rather than"
    r"|instead of|(?:and |but )?not(?=\s+\S)|most likely|probably|likely|definitely|of course|obviously|for sure)\b)"
)
# "B Paris": the letter and what it stands for; "A Paris" may be an article.
_SPELLED_OUT = re.compile(r"[ \t]+(?:[A-Z$\d][^.!?;\n]{0,60}|[$\d][\w.,$%/ ]{0,60})[.]?\s*\Z")
_NUMBER = re.compile(r"[ \t]+[$€£]?-?[\d.,/]+%?[.]?\s*\Z")
# Another letter beside the first, with nothing but such words between them.
_BESIDE = re.compile(
    r"(?:[\W_]|\b(?:or|and|maybe|perhaps|possibly|no|wait|hmm+|actually|sorry|rather|else|also|it|is|it['’]s)\b)*"
)
_BETTER = re.compile(r"(?i)\s+(?:is|seems|looks|would be)\s+(?:the\s+)?(?:better|best|right|correct)\b")
_INSTEAD = re.compile(
    r"(?i)(?:\b(?:or|and|now|it['’]s|it is|be|maybe|perhaps|possibly)|\bactually,?|[/;])\s*(?:(?:maybe|perhaps)\s*)?\Z"
)
_HEAD_GOES_ON = re.compile(
    r"\s*(?:or|and|but|/|&)\b|\s+(?:is|was|seems|looks|sounds|makes?|contradicts?|would|could|should|does|did|has|had)\b"
)

_Verdict = Literal["right", "wrong", ""]


def choice(text: str) -> str | None:
    r"""The letter, as a capital, that a text chooses, or None if it chooses none, several or unclearly.

    Reads "b", "(B)", "B) Paris", "option (b)", `\boxed{\text{B}}`, sentences ("B is correct, A is wrong") and lists
    with a verdict on each letter ("A ✗").
    """
    stated = stated_answer(text)
    answer = _plain((spoken(text) if stated is None else stated)[:_LONGEST])
    answer = _VERDICT_WORD.sub(lambda found: " ✓" if found[1] else " ✗", answer)
    if match := re.fullmatch(r"[\W_]*([A-Za-z])(?![+-]\W*\Z)[\W_]*", answer):
        return None if re.search(rf"[?°#+{_CROSS}]", answer) else match[1].upper()
    if match := re.match(r"([a-z])[).:]\s", answer):  # "b) Paris"
        answer = f"({match[1]})" + answer[match.end() - 1 :]
    letters = [
        found
        for found in _LETTER.finditer(answer)
        if not _THING.search(answer[max(0, found.start() - 20) : found.start()])
    ]
    if len(letters) > _MOST:
        return None
    if letters and _is_head(answer, letters, stated is not None):
        return _name(letters[0])
    verdicts = _verdicts(answer, letters)
    chosen = {_name(letter) for letter, verdict in zip(letters, verdicts, strict=True) if verdict == "right"}
    return chosen.pop() if len(chosen) == 1 else None


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFKC", undressed(text))
    return re.sub(r"[$*`_\"“”]|\\[()\[\]]", "", plain).strip()


def _name(letter: re.Match[str]) -> str:
    return (letter["inside"] or letter["named"] or letter["alone"]).upper()


def _verdicts(answer: str, letters: list[re.Match[str]]) -> list[_Verdict]:
    """What the text says of each letter."""
    verdicts: list[_Verdict] = []
    joined = [False, *(_are_joined(answer, letters, n) for n in range(len(letters) - 1)), False]
    mark = re.search(f"[{_TICK}{_CROSS}]", answer)
    marked_before = mark is not None and mark.start() < letters[0].start() if letters else False
    for number, letter in enumerate(letters):
        start = max(letters[number - 1].end() if number else 0, letter.start() - 120)
        before, after = answer[start : letter.start()], _after(answer, letters, number)
        if number and (said_of_last := _WRONG.match(before)):
            before = before[said_of_last.end() :]
        verdict = _marked(before.rpartition("\n")[2] if marked_before else after.partition("\n")[0]) or _said(
            before, after, joined[number] or joined[number + 1], _is_last_of_list(answer, letters, number)
        )
        if number and not verdict:  # "A is wrong, B too", "not A but B"
            if _ALIKE_BEFORE.search(before) or _ALIKE_AFTER.match(after):
                verdict = verdicts[-1]
            elif verdicts[-1] == "wrong" and re.search(r"\bbut (?:rather )?\Z", before) and _HEAD_ENDS.match(after):
                verdict = "right"
        verdicts.append(verdict)
    # What is said of one of a list as wrong holds for those of it of which nothing is said.
    links = [(n, n + 1) for n in range(len(letters) - 1) if joined[n + 1]]
    for said, silent in [*links, *((b, a) for a, b in reversed(links))]:
        if verdicts[said] == "wrong" and not verdicts[silent]:
            verdicts[silent] = "wrong"
    return verdicts


def _said(before: str, after: str, is_in_list: bool, is_last: bool) -> _Verdict:
    """What is said of the letter between these two texts, which reach to the letters beside it."""
    if (is_only := _ALL_BUT.search(before)) or _NONE_BUT.search(before):
        is_right = not is_in_list and (_WRONG if is_only else _RIGHT).match(after)
        return "right" if is_right else "wrong" if is_only else ""
    if _DENIED_BEFORE.search(before) or _WRONG.match(after) or taken_back(after):
        return "wrong"
    if _OPEN_BEFORE.search(before) or disowns(before):
        return ""
    chosen = None if is_in_list else _CHOSEN_BEFORE.search(before)
    if re.match(r"\s*,?\s*(?:if|unless)\b", after):
        return ""
    if chosen and (not chosen["weak"] or _HEAD_ENDS.match(after)):
        return "right"
    return "right" if _RIGHT.match(after) and not is_last else ""


def _marked(text: str) -> _Verdict:
    """The verdict of the ticks or crosses of a text."""
    marks = re.findall(f"[{_TICK}{_CROSS}]", text)
    return "" if not marks else "right" if all(mark in _TICK for mark in marks) else "wrong"


def _after(answer: str, letters: list[re.Match[str]], number: int) -> str:
    """What follows a letter, to the next."""
    end = letters[number + 1].start() if number + 1 < len(letters) else len(answer)
    return answer[letters[number].end() : min(end, letters[number].end() + 300)]


def _are_joined(answer: str, letters: list[re.Match[str]], number: int) -> bool:
    """Whether this letter and the next stand in a list: "A and B", "(A), (B)"."""
    gap = answer[letters[number].end() : letters[number + 1].start()]
    return bool(_JOINED.fullmatch(gap))


def _is_last_of_list(answer: str, letters: list[re.Match[str]], number: int) -> bool:
    """Whether the letter ends a list by "and" or "or"; a comma alone may begin a clause: "between A and B, B is"."""
    gap = answer[letters[number - 1].end() : letters[number].start()] if number else ""
    return bool(gap.strip() != "," and _JOINED.fullmatch(gap))


def _is_head(answer: str, letters: list[re.Match[str]], is_stated: bool) -> bool:
    """Whether the first letter is the answer and the rest explains or spells it out."""
    head = letters[0]
    after = answer[head.end() :]
    if not _LEAD.match(answer[: head.start()][:60]) or any(mark in answer for mark in _TICK + _CROSS):
        return False
    if any(
        re.search(r"\n\s*\Z", answer[max(0, letter.start() - 9) : letter.start()]) for letter in letters[1:50]
    ):  # a list of options
        return False
    is_listed = len(letters) > 1 and _are_joined(answer, letters, 0)
    if is_stated and is_listed and re.match(r"\s*,", after):  # "The answer is B, A is wrong"
        is_listed = not re.match(r"\s+(?:is|was)(?:n['’]t)?\s", answer[letters[1].end() :])
    # Alone and behind a bracket or colon, what comes first is the option's own text: "C) Wait and see".
    is_spelled = len(letters) == 1 and (head["inside"] or answer[: head.end()].endswith(")") or after.startswith(":"))
    own = len(first_sentence(after.partition("\n")[0])) if is_spelled else 0
    if is_listed or _WRONG.match(_after(answer, letters, 0)) or _has_beside(answer, letters) or taken_back(after[own:]):
        return False
    if len(letters) == 1 and not denies(after) and not supposes(after):
        spelled_out = _NUMBER if _name(head) in "AI" else _SPELLED_OUT
        if spelled_out.match(after):
            return True
    if head["inside"] or answer[: head.end()].endswith(")"):
        goes_on = _HEAD_GOES_ON.match(after)
        return not goes_on or (is_stated and goes_on.group()[0].isspace())
    return bool(_HEAD_ENDS.match(after))


def _is_rival(answer: str, letters: list[re.Match[str]], number: int) -> bool:
    """Whether a later letter is said to be the right one, or is the second one and ends the text: "B) London or C"."""
    gap, after = answer[letters[number - 1].end() : letters[number].start()], answer[letters[number].end() :]
    if _DENIED_BEFORE.search(gap):
        return False
    is_better = _BETTER.match(after) and not _OPEN_BEFORE.search(gap)
    return bool(is_better or (number == 1 and _INSTEAD.search(gap) and not re.search(r"\w", after)))


def _has_beside(answer: str, letters: list[re.Match[str]]) -> bool:
    """Whether a second letter is given beside the first: "B; C", "B, or maybe C", "B... no, C"."""
    if len(letters) < 2:
        return False
    gap, after = answer[letters[0].end() : letters[1].start()], answer[letters[1].end() :]
    if re.match(r"\s+for\b[^.;\n]*\b(?:and|or)\s+\Z", gap):  # "B for cats and C for dogs"
        return True
    if any(_name(each) != _name(letters[0]) and _is_rival(answer, letters, n) for n, each in enumerate(letters) if n):
        return True
    is_beside = _BESIDE.fullmatch(gap) and (re.search(r"\w", gap) or re.match(r"\s*(?:[.,;:?!)]|\Z)", after))
    return bool(is_beside)
