r"""Numbers as people and models write them, read whole or not at all.

A quantity may have a sign, a currency, a unit, thousands separators and a scale: `-$1,234.50`, `18 cm^3`,
`1\frac{1}{2}`, `2\times10^3`, "1.5 million". What has parts that are not understood, or names several
quantities, is no quantity: a part of it would be a wrong number.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from hf_mass.tasks.final_answers import stated_answer, undressed

_LONGEST = 2000  # characters; what is longer states no single number
_CURRENCIES = "$€£¥₹₩₽₺₫₪฿₴₦₱"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SPELLINGS = (
    (re.compile(r"[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda found: "^" + found.group().translate(_SUPERSCRIPTS)),
    (re.compile(r"[¼½¾⅐-⅞]"), lambda found: " " + unicodedata.normalize("NFKC", found.group()).replace("⁄", "/")),
)
_LATEX = (
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))"), r" \1\2/\3\4 "),
    (re.compile(r"\\(?:left|right|displaystyle|boxed)(?![a-zA-Z])|\\!"), ""),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·∙⋅]"), " × "),
    (re.compile(r"\^?\{?\\(?:circ|degree)(?![a-zA-Z])\}?"), "° "),
    (re.compile(r"\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])|≈"), " = "),
    (re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\(?=[$%&#€£])|\\[()\[\]]"), ""),
    (re.compile(r"\^\{(-?\d{1,6})\}|\^\((-?\d{1,6})\)"), r"^\1\2"),
    (re.compile(r"[\u2010-\u2012\u2212]|(?<![\w%)])[\u2013\u2014](?=[\d$€£.])"), "-"),
    (re.compile(r"\s+and\s+(?:a|one)[ -]half\b"), " 1/2"),
    (re.compile(r"\s+and\s+(?:a|one)[ -]quarter\b"), " 1/4"),
    (re.compile(r"(?i)\b(?:minus|negative)\s+(?=[\d$€£.])"), "-"),
)
# What explains a number begins here; numbers beyond are not the answer's.
_EXPLAINED = re.compile(
    r"(?i)[,;:]?\s+(?:because|since|as|given|due|so that|considering|where|which|when|after|if)\b.*\Z|;.*\Z", re.DOTALL
)
_ASIDE = re.compile(r"(?<=[\w%°])\s*\((?!\s*(?:or|and|to)\b)[^()]*[^\W\d_][^()]*\)")
_DENIED = re.compile(
    r"(?i)\b(?:not|never|neither|nor|cannot|either|between|half|halves|twice|double|triple|quarters?|thirds?|dozens?|squared|cubed)\b|n['’]t\b"
    r"|\b(?:more|less|fewer|larger|smaller|greater|bigger|times)\s+(?:than|as)\b"
)
_FOREIGN = re.compile(r"\\[a-zA-Z]|[√π∞±∫∑|<>≠≤≥_!^{}*+×÷]|\b(?:sqrt|pi|log|ln|sin|cos|tan|exp|mod|or)\b")
_UNIT_POWER = re.compile(
    r"(?<![\w^])([^\W\d_]{1,6})(?:\^[-+]?\d|[23])(?![\w.])|(?<=\d)((?!x|y|z|n|e)[^\W\d_]{1,3})(?:\^[-+]?\d|[23])(?![\w.])"
)

_SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
_SHORT = {"k": 3, "m": 6, "mn": 6, "b": 9, "bn": 9}
_SEPARATED = "|".join(rf"(?:{mark}\d{{3}})+" for mark in (",", " ", "['’]", "_"))
# European thousands need two groups or a decimal comma: 1.234 alone is a little more than one.
_PLAIN = (
    r"(?P<european>[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,})(?![\d.])"
    rf"|(?P<usual>(?:[1-9]\d{{0,2}}(?:{_SEPARATED})|[1-9]\d?(?:,\d\d)+,\d{{3}})(?!\d)(?:\.\d+)?)"
    r"|(?<![\[({])(?P<comma>\d+,\d{1,2}|0,\d+)(?![\d,.])|(?P<digits>\d+(?:\.\d+)?|\.\d+)"
)
_POWER = r"(?:[eE](?P<e>[-+]?\d{1,3})(?!\d)|\s*[×x*]\s*10\s*(?:\^|\*\*)\s*(?P<ten>[-+]?\d{1,3})(?!\d))"
_QUANTITY = re.compile(
    rf"(?:(?<![\w)%°.])(?P<sign>[-+])\s?)?(?P<currency>(?:\b(?:US|AU?|CA?|NZ|HK|S))?[{_CURRENCIES}]\s?)?(?P<inner>-)?(?<![\w.])"
    r"(?:(?P<whole>\d{1,15})\s+(?P<part>\d{1,15}\s?/\s?\d{1,15})|(?P<ratio>-?\d{1,99}(?:\.\d{1,99})?\s?/\s?-?\d{1,99}(?:\.\d{1,99})?)"
    rf"|10\^(?P<bare>[-+]?\d{{1,3}})(?!\d)|(?:{_PLAIN}){_POWER}?)"
    rf"(?:[ -]?(?P<scale>{'|'.join(_SCALES)})s?\b|(?P<short>k|m|mn|b|bn)\b)?",
    re.IGNORECASE,
)
# What may touch a number: nothing, a unit, a currency, an ordinal's ending, the end of a clause.
_AFTER = re.compile(
    rf"(?:st|nd|rd|th)\b|\s?[{_CURRENCIES}%‰°]|[^\W\d_]{{2,}}|[msghLNJWVAFCdμµΩ](?!\w)|-[^\W\d_]|[)\].,:\"'”]+(?!\w)|\s|\Z"
)
_OPERATOR = re.compile(r"\s*(?:[-+/:^–—*×]|to)\s*\Z")


def parse_number(text: str) -> Fraction | None:
    r"""The one quantity that a text states, or None if it states none, several or one that is not understood.

    Reads 1,234.5, -3, $5, 40% (as 40), 2e3, `2\times10^3`, 1/2, `\frac{1}{2}`, 1 1/2, "1 000 000", "1.5 million" and
    what follows the last equals sign; of "12 out of 20" the 12.
    """
    found = quantities(text)
    return found[0] if found else None


def quantities(text: str) -> tuple[Fraction, ...]:
    """What the one quantity of a text may mean: one value, or two for "12 out of 20" (12 and 3/5); empty for none."""
    clause = _clause(text)
    if clause is None:
        return ()
    values: list[Fraction] = []
    end = 0
    between: list[str] = []
    for match in _QUANTITY.finditer(clause):
        value = _value(match)
        if value is None or not _AFTER.match(clause, match.end()):
            return ()
        between.append(clause[end : match.start()])
        values.append(value)
        end = match.end()
    if not values or _FOREIGN.search("".join(between) + clause[end:]) or _glued(between[0]):
        return ()
    if len(values) == 2 and re.fullmatch(r"\s*(?:[^\W\d_]+\s+)?(?:out\s+)?of(?:\s+the)?\s*", between[1]):
        return (values[0], values[0] / values[1]) if values[1] else ()
    if len(set(values)) > 1 or any(_OPERATOR.match(gap) or not re.search(r"[^\W\d_]", gap) for gap in between[1:]):
        return ()
    return (values[0],)


def _clause(text: str) -> str | None:
    """What of a text may hold its quantity, in plain spelling; None where that cannot be said."""
    if len(text) > _LONGEST:
        return None
    text = undressed(text).replace("$-", "-$")
    for pattern, plain in (*_SPELLINGS, *_LATEX):
        text = pattern.sub(plain, text)
    text = unicodedata.normalize("NFKC", text).strip().rstrip(".")
    text = _ASIDE.sub("", _EXPLAINED.sub("", text))
    before, equals, after = text.rpartition("=")
    if equals:
        if re.search(r"[<>!≠]\s*\Z|\d[^=]*\b(?:so|but|and|or|then|thus|hence)\b", before):
            return None
        text = after
    if _DENIED.search(text):
        return None
    return _UNIT_POWER.sub(r"\1\2", text)


def _glued(before: str) -> bool:
    """Whether what stands before a number makes it a part of something: 3-5, x^2, 2x + 5."""
    return bool(re.search(r"[\w)][-+/:^_]\s?\Z|[-+/^_\\×*]\s*\Z|[^\W_]\Z|\d", before))


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        if match["whole"]:
            part = _ratio(match["part"])
            if part >= 1:
                return None
            value = int(match["whole"]) + part
        elif match["ratio"]:
            value = _ratio(match["ratio"])
        elif match["bare"]:
            value = Fraction(10) ** int(match["bare"])
        else:
            value = Fraction(_digits(match)) * Fraction(10) ** int(match["e"] or match["ten"] or 0)
    except (ValueError, ZeroDivisionError):  # too many digits for int(), or a fraction such as 1/0
        return None
    if match["scale"]:
        value *= 10 ** _SCALES[match["scale"].lower()]
    elif match["short"] and match["currency"]:
        value *= 10 ** _SHORT[match["short"].lower()]
    elif match["short"] and match["short"].lower() != "m":  # metres; 5k and 5b are nothing for sure
        return None
    return -value if "-" in ((match["sign"] or "") + (match["inner"] or "")) else value


def _ratio(text: str) -> Fraction:
    top, bottom = text.split("/")
    return Fraction(top.strip()) / Fraction(bottom.strip())


def _digits(match: re.Match[str]) -> str:
    if match["european"]:
        return match["european"].replace(".", "").replace(",", ".")
    if match["comma"]:
        return match["comma"].replace(",", ".")
    return re.sub(r"[, '’_]", "", match["usual"]) if match["usual"] else match["digits"]


_CONCLUDED = re.compile(
    r"(?is)(?:\A|[.!?]\s+|\n\s*)(?:therefore|thus|hence|so|altogether|in total|in all|finally)\b"
    r",?(?P<rest>(?:(?![.!?]\s+\w|\n).)*)\Z"
)


def stated_quantities(text: str) -> tuple[Fraction, ...]:
    """As `quantities`, for a whole solution: of its final answer where it marks one, else of the whole text, else of
    its last sentence where that concludes ("So ...", "In total, ...")."""
    stated = stated_answer(text)
    if stated is not None:
        return quantities(stated)
    if found := quantities(text):
        return found
    concluded = _CONCLUDED.search(text.rstrip()[-_LONGEST:])
    return quantities(concluded["rest"]) if concluded else ()
