r"""Where a solution states its final answer, and what of that is only dress.

What a model thought (up to `</think>`) and what it struck out (`~~33~~`) is not said. Of the rest the last
`<answer>...</answer>` counts, else the last `\boxed{...}` with those that "and", "or" or a comma join to it, else the
line after the last `####`, else what follows "answer:" or "answer is", else the whole text. A stated answer ends with
its line or sentence: what explains it may hold other numbers and letters.
"""

from __future__ import annotations

import re
import unicodedata

# "The answer is not 5", "the wrong answer is 5" and "if the answer is 5" state nothing.
_MARKER = re.compile(
    r"(?im)^[^\w\n]*(?:(?:the|my)[ \t]+)?(?:(?:final|correct)[ \t]+)?answer\b"
    r"[^\w\n:]{0,20}(?:\([^()\n]{0,40}\))?[^\w\n:]{0,20}(?::|$)"
    r"|(?P<clause>\b(?:if|whether|suppose|unless|assuming|assume|wrong|incorrect|false|invalid|worst)\b[ \t]+)?"
    r"(?:\b(?:the|my|your|an|final|correct|right)[ \t]+)*\b(?:answer|choice|option)\b[ \t]*"
    r"(?:(?:is|would[ \t]+be|will[ \t]+be|must[ \t]+be|should[ \t]+be|equals)\b[ \t]*:?|[:=])(?![ \t]*not\b)"
)
_DENIED = re.compile(r"(?i)\b(?:not|never|neither|nor|cannot|wrong|incorrect|false|invalid|mistaken)\b|n['’]t\b")
_TAGGED = re.compile(r"(?is)<answer>((?:(?!</?answer>).)*)")
_FENCE = re.compile(r"(?m)^[ \t]*(?:```|~~~)\w*[ \t]*(?:\n|\Z)")
_STRUCK = re.compile(r"~~(?=[^\s~])[^\n~]{0,300}~~")
_HEADING = re.compile(r"(?i)\W*(?:final\s+)?answer\b|[^\d\\]*[^\W\d_]{2}[^\d\\]*\d|.*:\s*\Z")
_BOX_JOINED = re.compile(r"[\s$]*(?:,|,?\s*(?:\\text\{\s*)?\b(?:and|or)\b(?:\s*\})?)[\s$]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=[\s*_\"')\]]*(?:\s|$))")
_ABBREVIATION = re.compile(
    r"(?i)(?:^|[^\w])(?:mrs?|ms|dr|prof|st|sr|jr|mt|ft|lt|col|gen|rev|capt|hon|vs|ca|cf|approx|etc|nos?|rs|inc|ltd|co"
    r"|fig|eq|vol|pp?|e\.g|i\.e)\Z"
)
_INITIAL = re.compile(r"(?:^|[^\w])(?:[^\W\d_]\.)*[^\W\d_]\Z")
_ROW = re.compile(r"[ \t]*[0-9]+(?:[ \t]+[0-9]+)+[ \t]*")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|bb|cal)|mbox|emph|underline|bm|boldsymbol|operatorname)"
    r"\s*\{([^{}]*)\}"
)
# A mark touches what it emphasises, and no word or operand stands at its other side: 2*3*4 is a product.
_EMPHASIS = re.compile(r"(?<![\w*)\]])(\*{1,3}|_{1,3}|`{1,3})(?=[^\s*_`])([^\n]{0,300}?[^\s*_`\\])\1(?![\w*(\[])")


def boxed_answer(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, or None; braces inside may nest to any depth."""
    boxes = _boxes(text)
    return text[boxes[-1][1] : boxes[-1][2]].strip() if boxes else None


def final_answer(text: str) -> str:
    """The part of a solution that states its final answer (see this module's docstring); never None."""
    stated = stated_answer(text)
    return spoken(text) if stated is None else stated


def spoken(text: str) -> str:
    """A text without the thoughts before it, what it struck out, and the marks of fenced code."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    return _STRUCK.sub(" ", _FENCE.sub("", text)).strip()


def stated_answer(text: str) -> str | None:
    """The final answer that a solution marks as such, or None if it marks none."""
    text = spoken(text)
    if tagged := _TAGGED.findall(text):  # the closing tag may be cut off
        return final_answer(tagged[-1])
    if (boxed := _joined_boxes(text)) is not None:
        return boxed
    if (hashed := _hashed(text)) is not None:
        return hashed
    rest = _after_marker(text)
    if rest is None:
        return None
    lines = rest.splitlines() or [""]
    if len(lines) > 1 and all(_ROW.fullmatch(line) for line in lines[:2]):  # the rows of a grid are one answer
        return "\n".join(lines[: next((n for n, line in enumerate(lines) if not _ROW.fullmatch(line)), len(lines))])
    return first_sentence(lines[0])


def readings(text: str) -> list[str]:
    """All that a text may mean as its final answer, for a comparison that is exact: the text, then narrower parts."""
    found = [text, final_answer(text)]
    text = spoken(text)
    if all(mark not in text for mark in ("boxed", "####", "answer>")) and (rest := _after_marker(text)) is not None:
        line = (rest.splitlines() or [""])[0]
        found.append(rest)
        if "\n" not in found[1]:  # a grid is not its first row
            found += [line, first_sentence(line, initials=False)]
    return list(dict.fromkeys(found))


def first_sentence(line: str, initials: bool = True) -> str:
    """A line up to the end of its first sentence, without the mark that ends it.

    Args:
        line: The line.
        initials: Whether a full stop after a single letter may belong to a name, as in "J. Smith".
    """
    for end in _SENTENCE_END.finditer(line):
        before = line[max(0, end.start() - 12) : end.start()]
        if end.group() == "." and (_ABBREVIATION.search(before) or (initials and _INITIAL.search(before))):
            continue
        return line[: end.start()].strip()
    return line.strip()


def denies(text: str) -> bool:
    """Whether a text says of something that it is not so."""
    return bool(_DENIED.search(text))


def undressed(text: str, wrappers: bool = True) -> str:
    r"""A text in composed letters without markdown emphasis and, if asked, LaTeX's text wrappers, as in `\text{B}`."""
    text = unicodedata.normalize("NFC", text)
    for pattern, replacement in ((_WRAPPER, r"\1"), (_EMPHASIS, r"\2"))[0 if wrappers else 1 :]:
        for _ in range(4):  # they nest, but not deeply
            text, count = pattern.subn(replacement, text)
            if not count:
                break
    return text


def _after_marker(text: str) -> str | None:
    text = undressed(text, wrappers=False)
    markers = [marker for marker in _MARKER.finditer(text) if marker["clause"] is None]
    return text[markers[-1].end() :].strip() if markers else None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """The complete boxes as they come: where each begins, and where its content begins and ends."""
    found: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # for each open brace the beginnings of its box; None if it has no box
    for token in re.finditer(r"\\f?boxed\s*\{|\\.|[{}]", text):
        if token.group() == "}":
            if opened and (begun := opened.pop()) is not None:
                found.append((*begun, token.start()))
        elif token.group().endswith("{") and token.group() != "\\{":
            opened.append(token.span() if token.group() != "{" else None)
    return sorted(found)


def _joined_boxes(text: str) -> str | None:
    """The content of the last box; with those that "and", "or" or a comma join to it, each as a formula."""
    boxes = _boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _BOX_JOINED.fullmatch(text, boxes[first - 1][2] + 1, boxes[first][0]):
        first -= 1
    if first == len(boxes) - 1:
        return text[boxes[-1][1] : boxes[-1][2]].strip()
    parts = [f"${text[box[1] : box[2]].strip()}$" for box in boxes[first:]]
    return (" or " if "or" in text[boxes[-2][2] : boxes[-1][0]].lower() else " and ").join(parts)


def _hashed(text: str) -> str | None:
    """The line after the last "####", unless it is a heading of what follows, as in "#### Step 2"."""
    _, marks, rest = text.rpartition("####")
    lines = rest.strip().splitlines() or [""]
    is_heading = len(lines) > 1 and _HEADING.match(lines[0][:200])
    return None if not marks or is_heading else lines[0].strip()
