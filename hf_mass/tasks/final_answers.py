r"""Where a solution states its final answer, and what of that is only dress.

The last `\boxed{...}` counts, else the line after the last `####`, else what follows "answer:" or "answer is", else the
whole text. A stated answer ends with its line or sentence: what explains it may hold other numbers and letters.
"""

from __future__ import annotations

import re
import unicodedata

# "The answer is not 5" and "if the answer is 5" state nothing.
_MARKER = re.compile(
    r"(?im)^[^\w\n]*(?:(?:the|my)[ \t]+)?(?:(?:final|correct)[ \t]+)?answer\b[^\w\n:]*(?:\([^()\n]{0,40}\))?[^\w\n:]*:"
    r"|(?P<clause>\b(?:if|whether|suppose|unless|assuming|assume)\b[ \t]+)?"
    r"(?:\b(?:the|my|your|an|final|correct|right)[ \t]+)*\b(?:answer|choice|option)\b[ \t]*"
    r"(?:(?:is|would[ \t]+be|will[ \t]+be|must[ \t]+be|should[ \t]+be|equals)\b[ \t]*:?|[:=])(?![ \t]*not\b)"
)
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
_EMPHASIS = re.compile(r"(?<![\w*)\]])(\*{1,3}|_{1,3}|~~|`{1,3})(?=[^\s*_`])([^\n]{0,300}?[^\s*_`\\])\1(?![\w*(\[])")


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
    stated = stated_answer(text)
    return text.strip() if stated is None else stated


def stated_answer(text: str) -> str | None:
    """The final answer that a solution marks as such, or None if it marks none."""
    if (boxed := boxed_answer(text)) is not None:
        return boxed
    if "####" in text:
        lines = text.rsplit("####", 1)[1].strip().splitlines()
        return lines[0].strip() if lines else ""
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
    if boxed_answer(text) is None and "####" not in text and (rest := _after_marker(text)) is not None:
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
