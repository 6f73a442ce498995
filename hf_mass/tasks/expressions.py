r"""Mathematical answers in the spelling that a LaTeX parser reads: `√51`, "pi/2", "12 dollars", "52 (base 8)"."""

from __future__ import annotations

import re
import unicodedata

from hf_mass.tasks.claims import denies, supposes, taken_back
from hf_mass.tasks.final_answers import undressed
from hf_mass.tasks.quantities import SUPERSCRIPTS, is_settled, is_vague, parse_number


def _repeating(whole: str, before: str, period: str) -> str:
    """A repeating decimal as a fraction."""
    part = 10 ** len(period) - 1
    return rf"\frac{{{int(whole + before + period) - int(whole + before or '0')}}}{{{part * 10 ** len(before)}}}"


_GREEK = "alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|tau|mu|pi|epsilon|varepsilon|varphi"
_NAMES = (
    r"alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|tau|infty"
    r"|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan"
)
_SPELLINGS = (
    (re.compile(rf"\\[dtc]?frac\s*(\\(?:{_GREEK}))(?![a-zA-Z])\s*"), r"\\frac{\1}"),
    (re.compile(rf"(\\[dtc]?frac\s*(?:\d|\{{[^{{}}]*\}}))\s*(\\(?:{_GREEK}))(?![a-zA-Z])"), r"\1{\2}"),
    (re.compile(r"\\mathrm\s*\{([ei])\}"), r"\1"),
    (re.compile(r"\A\s*(?:\\(?:approx|simeq|sim)(?![a-zA-Z])|≈)"), ""),
    (re.compile(r"\\sqrt\s*(\\[dtc]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})"), r"\\sqrt{\1}"),
    (re.compile(r"\\log_(?:e(?![a-zA-Z])|\{e\})"), r"\\ln "),
    (re.compile(r"\s{0,3},?\s{0,3}\\(?:text|mbox|mathrm)\{\s{0,3}(?:,|,?\s{0,3}(?:and|or)),?\s{0,3}\}\s{0,3}"), ", "),
    (
        re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9})\\(?:overline|bar)\s*\{(\d{1,9})\}"),
        lambda found: _repeating(*found.groups()),
    ),
    (re.compile(r"\\\\\[\d{1,3}(?:\.\d{1,3})?\s?(?:pt|em|ex|mm|cm)\]"), r"\\\\"),
    (re.compile(r"(?<=\d)\\[,!](?=\d{3}(?!\d))|\\(?:[bB]ig+[lr]?)(?![a-zA-Z])"), ""),
    (re.compile(r"\\\$|[€£¥]"), ""),
    (re.compile(r"[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda found: f"^{{{found.group().translate(SUPERSCRIPTS)}}}"),
    (
        re.compile(r"[¼½¾⅐-⅞]"),
        lambda found: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", found.group()).split("⁄")),
    ),
    (
        re.compile(r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[a-zA-Z]))"),
        r"\\sqrt{\1\2\3}",
    ),
    (re.compile(r"π|(?<![\\a-zA-Z])(?i:pi)(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"∞|(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])|\\inf(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"×|·"), r"\\times "),
    (re.compile(r"÷"), "/"),
    (re.compile(r"°"), r"^{\\circ}"),
    (re.compile(r"≤|<="), r"\\le "),
    (re.compile(r"≥|>="), r"\\ge "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])(?<=[\d)\s+\-*])I(?![a-zA-Z])|(?<![a-zA-Z\\\d)])I(?=\s*[*\d])"), "i"),
    (re.compile(rf"(?<![\\a-zA-Z])(?={_NAMES})({_NAMES})(?![a-zA-Z])"), r"\\\1 "),
)
_MATHS = re.compile(r"(?<!\\)\$\$?((?:\\\$|[^$])+?)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_BEFORE = re.compile(r"(?:[+/^√±×·≤≥]\s?|(?<![\w-])-|\w\s?[<>]\s?|\\(?:sqrt|pm|cdot|times|le|ge)\s?)\Z")
_BEHIND = re.compile(r"\s?[+/^×·]|-(?=[\w\\$])|\s?\\(?:pi|sqrt|cdot|times|[lc]?dots)(?![a-zA-Z])")
"""What makes a formula between delimiters a part of another."""
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WHY = re.compile(r"(?is)(?<=[$)\]\d])[,;]?\s+(?:because|since)\b.*")
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_LISTED = re.compile(r"\s*,?\s+(?:and|or)\s+")
_NUMERIC = re.compile(r"\\(?:[dtc]?frac|sqrt|left|right)(?![a-zA-Z])")
_APPLIED = re.compile(r"\b[a-zA-Z]'?\([^()=]{1,40}\)")
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z}])")
_BASED = re.compile(
    r"\$?([0-9][0-9A-Za-z]{0,99})\s*(?:_\{?(\d{1,2})\}?|_\{?\\text\{(\w+)\}\}?|\(?\s*base[ -](\w+)\)?)\$?",
    re.IGNORECASE,
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"twelve": 12, "sixteen": 16}


def based_number(text: str) -> int | None:
    r"""The value of a number with its base, as in `52_8` or "52 (base 8)"; None for anything else."""
    found = _BASED.fullmatch(text.strip().rstrip("."))
    if found is None:
        return None
    base = found[2] or found[3] or found[4]
    try:
        return int(found[1], int(_BASES.get(base.lower(), base)))
    except ValueError:
        return None


def time_of_day(text: str) -> tuple[str, str, str] | None:
    """Hour, minute and "a" or "p" of a time such as "3:30 p.m."; None for anything else, such as the ratio 3:4."""
    found = _TIME.fullmatch(re.sub(r"\\[,;: ]|[~$\s]+", " ", undressed(text)).strip())
    return (found[1], found[2] or "00", (found[3] or "").lower()) if found and (found[2] or found[3]) else None


def leaves_unknown(text: str) -> bool:
    """Whether an answer is an equation that is yet to be solved, such as 2x = 10; y = 2x + 1 is none."""
    text = _NUMERIC.sub(" ", undressed(text))
    before, equals, _ = _APPLIED.sub("f", text).partition("=")
    return bool(equals) and not is_settled(before.lstrip("$([\\ "), has_unit=False)


def as_latex(text: str) -> str | None:
    """The one expression that an answer states, as LaTeX without delimiters; None if it states several or none.

    Of prose that is the one expression between delimiters or, without any, the one quantity. Expressions with nothing
    but "and", "or" or commas between them are one list.
    """
    text = undressed(text, wrappers=False).strip()
    text = _WHY.sub("", text)
    plain = re.sub(r"\\\$", "", text)
    found = list(_MATHS.finditer(plain))
    maths = [next(part for part in each.groups() if part) for each in found]
    outside = _MATHS.sub(" ", plain)
    said = _COMMAND.sub(" ", undressed(outside))
    is_unsaid = "?" in said or denies(said) or supposes(said) or is_vague(said)
    if maths and (is_unsaid or taken_back(plain[found[-1].end() :])):
        return None
    is_part = any(
        _BEFORE.search(plain[max(0, each.start() - 12) : each.start()]) or _BEHIND.match(plain, each.end())
        for each in found
    )
    if maths and not is_part and not re.search(r"[\d=]", outside):
        if len(maths) > 1 and re.sub(r"\b(?:and|or)\b|[,\s.]", "", outside):
            return None
        return _spelled(", ".join(maths))
    if maths:
        outside = plain = plain.replace("$", "")
    spelled = _spelled(_LISTED.sub(", ", plain.replace("$", "")))
    if _PROSE.search(re.sub(r"\\[a-zA-Z]+\s*(?:\{[a-zA-Z ]*\})?", "", spelled)):
        number = parse_number(text)
        if number is not None:
            return (
                str(number.numerator)
                if number.denominator == 1
                else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
            )
        return None if re.search(r"\d", outside) else rf"\text{{{plain}}}"
    return None if is_unsaid and re.search(r"[\d\\]", text) else spelled


def _spelled(text: str) -> str:
    for pattern, latex in _SPELLINGS:
        text = pattern.sub(latex, text)
    text = re.sub(r"(?<=\d)\s*\*\s*(?=i(?![a-zA-Z]))", "", text)
    return text.strip().rstrip(".")


_COMPARED = re.compile(r"(<=|>=|≤|≥|<|>|\\[lg](?:eqslant|eq|e|t)(?![a-zA-Z]))")


def as_interval(text: str) -> str | None:
    r"""`2 \le x < 5` as `[2,5)`; None for a text that is not one unknown between two bounds."""
    parts = [part.strip() for part in _COMPARED.split(undressed(text).strip(" $."))]
    if len(parts) != 5 or not re.fullmatch("[a-zA-Z]", parts[2]) or not parts[0] or not parts[4]:
        return None
    low, first, _, second, high = parts
    if any(re.search(r"[,;=]|\b(?:and|or)\b", side) for side in (low, high)):
        return None
    falls = [sign[0] in ">≥" or sign.startswith("\\g") for sign in (first, second)]
    if falls[0] != falls[1]:
        return None
    closed = [sign in ("<=", ">=", "≤", "≥") or "e" in sign for sign in (first, second)]
    if falls[0]:
        low, high, closed = high, low, closed[::-1]
    return f"{'[' if closed[0] else '('}{low},{high}{']' if closed[1] else ')'}"
