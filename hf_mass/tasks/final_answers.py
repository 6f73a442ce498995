r"""Where a solution states its final answer, and what of that is only dress.

What a model thought (up to `</think>`) and what it struck out (`~~33~~`) is not said. Of the rest the last
`<answer>...</answer>` counts, else the last `\boxed{...}` with those that "and", "or" or a comma join to it, else the
line after the last `####`, else what follows "answer:" or "answer is", else the whole text. A stated answer ends with
its line or sentence: what explains it may hold other numbers and letters. Where the words after it take it back ("Wait,
no"), what they state counts, or nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata

from hf_mass.tasks.claims import clause_denies, disowns, is_another, taken_back

_MARKER = re.compile(
    r"(?im)^[^\w\n]*(?:(?:the|my)[ \t]+)?(?:(?:final|correct)[ \t]+)?"
    r"(?:ans(?:wer)?|antwort|réponse|respuesta|resposta|risposta|ответ)\b"
    r"[^\w\n:：]{0,20}(?:\((?![A-Za-z]\))[^()\n]{0,40}\))?[^\w\n:：]{0,20}(?:[:：]|$|(?<=\s)[-–—][ \t]+)"
    r"|(?:\b(?:the|my|your|an|final|correct|right|best)[ \t]+)*\b(?:answer|choice|option)\b[ \t]*"
    r"(?:to[ \t]+(?:the|this)[ \t]+(?:question|problem)[ \t]+)?"
    r"(?:(?:is|would[ \t]+be|will[ \t]+be|must[ \t]+be|should[ \t]+be|has[ \t]+to[ \t]+be|equals)\b[ \t]*[:：]?|[:：=])"
    r"(?![ \t]*(?-i:not)\b)|(?:答案|答え|正解|정답)[是为は은]?[ \t]*[:：]?|^[^\w\n]*答[ \t]*[:：]"
)
_TAGGED = re.compile(r"(?is)<answer>((?:(?!</?answer>).)*)")
_FENCE = re.compile(r"(?m)^[ \t]*(?:```|~~~)\w*[ \t]*(?:\n|\Z)")
_ENDED = re.compile(
    r"(?s)<\|(?:im_end|endoftext|eot_id|end_of_text)\|>.*|(?:</s>|<eos>|<end_of_turn>|<\|[a-z_]{1,20}\|>)\s*\Z"
)
"""Special tokens that end a turn; some may be markup elsewhere."""
_UNSEEN = "\u200b\u2060\ufeff"
_STRUCK = re.compile(r"~~(?=[^\s~])[^\n~]{0,300}~~")
_HEADING = re.compile(r"(?i)\W*(?:final\s+)?answer\b|[^\d\\]*[^\W\d_]{2}[^\d\\]*\d|.*:\s*\Z")
_BOX_JOINED = re.compile(r"[\s$]*(?:,|,?\s*(?:\\text\{\s*)?\b(?:and|or)\b(?:\s*\})?)[\s$]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=[\s*_\"')\]]*(?:\s|$))|[。！？]")
_ABBREVIATION = re.compile(
    r"(?i)(?:^|[^\w])(?:mrs?|ms|dr|prof|st|sr|jr|mt|ft|lt|col|gen|rev|capt|hon|vs|ca|cf|approx|etc|nos?|rs|inc|ltd|co"
    r"|fig|eq|vol|pp?|e\.g|i\.e)\Z"
)
_INITIAL = re.compile(r"(?:^|[^\w])(?:[^\W\d_]\.)*[^\W\d_]\Z")
_DISPLAYED = re.compile(r"(?s)\\\[[ \t]*\n(.{1,2000}?)\\\]|\$\$[ \t]*\n(.{1,2000}?)\$\$")
"""A formula on lines of its own."""
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
    return _STRUCK.sub(" ", _FENCE.sub("", _ENDED.sub("", text))).strip().strip(_UNSEEN).strip()


def stated_answer(text: str) -> str | None:
    """The final answer that a solution marks as such, "" if it takes it back, or None if it marks none."""
    text = spoken(text)
    for find in (_from_object, _tagged, _joined_boxes, _hashed, _marked):
        if (found := find(text)) is not None:
            answer, after = found
            return (stated_answer(after) or "") if taken_back(undressed(after)) else answer
    return None


def readings(text: str) -> list[str]:
    """All that a text may mean as its final answer, for a comparison that is exact: the text, then narrower parts."""
    found = [text, final_answer(text)]
    text = spoken(text)
    is_marked = found[1] and all(mark not in text for mark in ("boxed", "fbox", "####", "answer>"))
    if is_marked and (rest := _after_marker(text)) is not None:
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
    return line[: _sentence_end(line, initials)].strip()


def _sentence_end(line: str, initials: bool = True) -> int:
    for end in _SENTENCE_END.finditer(line):
        before = line[max(0, end.start() - 12) : end.start()]
        if end.group() == "." and (_ABBREVIATION.search(before) or (initials and _INITIAL.search(before))):
            continue
        return end.start()
    return len(line)


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
    """What follows the last marker of an answer that the text gives as its own."""
    text = undressed(text, wrappers=False)
    for marker in reversed(list(_MARKER.finditer(text))):
        before = text[max(0, marker.start() - 300) : marker.start()]
        if not is_another(before) and not disowns(before):
            return text[marker.end() :].strip().removeprefix("}").strip()  # "\\text{The answer is } 5"
    return None


def _marked(text: str) -> tuple[str, str] | None:
    """What follows the last marker, to the end of its sentence, or the rows of a grid; and the text after it."""
    rest = _after_marker(text)
    if rest is None:
        return None
    if displayed := _DISPLAYED.match(rest):
        return (displayed[1] or displayed[2]).strip(), rest[displayed.end() :]
    lines = rest.splitlines() or [""]
    if len(lines) > 1 and all(_ROW.fullmatch(line) for line in lines[:2]):  # the rows of a grid are one answer
        rows = next((n for n, line in enumerate(lines) if not _ROW.fullmatch(line)), len(lines))
        return "\n".join(lines[:rows]), "\n".join(lines[rows:])
    end = _sentence_end(lines[0])
    return lines[0][:end].strip(), rest[end:]


def _from_object(text: str) -> tuple[str, str] | None:
    """The value "answer" of the object in JSON that a text is, or ends with."""
    begins = [found.start() for found in re.finditer(r"(?m)^\{", text)] if text.endswith("}") else []
    if not begins:
        return None
    try:
        content = json.loads(text[begins[-1] :], parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    answers = {
        key.lower().replace("_", " "): str(each) for key, each in content.items() if isinstance(each, str | bool)
    }
    found = answers.get("final answer", answers.get("answer"))
    return None if found is None else (final_answer(found), "")


def _tagged(text: str) -> tuple[str, str] | None:
    """The content of the last `<answer>`, whose closing tag may be cut off, and the text after it."""
    tagged = list(_TAGGED.finditer(text))
    return (final_answer(tagged[-1][1]), text[tagged[-1].end() :].removeprefix("</answer>")) if tagged else None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """The complete boxes as they come: where each begins, and where its content begins and ends."""
    found: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # for each open brace the beginnings of its box; None if it has no box
    for token in re.finditer(r"\\(?:f?boxed|fbox)\s*\{|\\.|[{}]", text):
        if token.group() == "}":
            if opened and (begun := opened.pop()) is not None:
                found.append((*begun, token.start()))
        elif token.group().endswith("{") and token.group() != "\\{":
            opened.append(token.span() if token.group() != "{" else None)
    return sorted(found)


def _joined_boxes(text: str) -> tuple[str, str] | None:
    """The content of the last box, with those that "and", "or" or a comma join to it, each as a formula; and the text
    after it."""
    boxes = _boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _BOX_JOINED.fullmatch(text, boxes[first - 1][2] + 1, boxes[first][0]):
        first -= 1
    after = text[boxes[-1][2] + 1 :]
    if clause_denies(text[max(0, boxes[first][0] - 300) : boxes[first][0]]):
        return "", after
    if first == len(boxes) - 1:
        return text[boxes[-1][1] : boxes[-1][2]].strip(), after
    parts = [f"${text[box[1] : box[2]].strip()}$" for box in boxes[first:]]
    return (" or " if "or" in text[boxes[-2][2] : boxes[-1][0]].lower() else " and ").join(parts), after


def _hashed(text: str) -> tuple[str, str] | None:
    """The line after the last "####", unless it is a heading of what follows, as in "#### Step 2"; and what follows."""
    _, marks, rest = text.rpartition("####")
    line, _, after = rest.strip().partition("\n")
    is_heading = "\n" in rest.strip() and _HEADING.match(line[:200])
    return None if not marks or is_heading else (line.strip(), after)
