r"""Numbers as people and models write them, read whole or not at all.

A quantity may have a sign, a currency, a unit, thousands separators and a scale: `-$1,234.50`, `18 cm^3`,
`1\frac{1}{2}`, `2\times10^3`, "1.5 million". What has parts that are not understood, or names several
quantities, is no quantity: a part of it would be a wrong number. So is what holds an unknown, such as 2x; before an
equals sign there may be a name alone, or numbers alone.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from hf_mass.tasks.claims import denies, disowns, supposes, taken_back
from hf_mass.tasks.final_answers import spoken, stated_answer, undressed
from hf_mass.tasks.languages import is_counted, is_other_number
from hf_mass.tasks.units import NO_UNIT, POWERED, Unit, size_in, unit_at

_LONGEST = 2000  # characters; what is longer states no single number
_CURRENCIES = "$¢€£¥₹₩₽₺₫₪฿₴₦₱"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TO_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SPELLINGS = (
    (re.compile(r"[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda found: "^" + found.group().translate(SUPERSCRIPTS)),
    (re.compile(r"[¼½¾⅐-⅞]"), lambda found: " " + unicodedata.normalize("NFKC", found.group()).replace("⁄", "/")),
)
# "3 and 1/2" is one number, but "the roots are 3 and 1/2" are two.
_MIXED = re.compile(
    r"(?i)\A((?:(?!\b(?:are|were|be|both|answers|roots|solutions|values|numbers|[xyz])\b)[^=\n]){0,300}(?<![\d.])\d{1,9})\s+and\s+"
    r"(?=\d{1,3}\s?/\s?\d{1,3}(?![\d/]))"
)
_LATEX = (
    (re.compile(r"(?<!\\)\$(?=[^\s$])([^$\n]{0,200}[^\s$\\])\$(?![\d$])"), r"\1"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile("⁄"), "/"),
    (re.compile(r"\bRs\.(?=\d)"), "Rs "),
    (re.compile(r"(?<![\w%)])[\u2013\u2014](?=\\[dtc]?frac)"), "-"),
    (re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))"), r" \1\2/\3\4 "),
    (re.compile(r"\A\s*(?:[=-]>|[→⇒∴])\s*"), ""),
    (re.compile(r"(?i)\s*(?:°|\bdegrees?)\s+(?=[CF]\b|celsius|fahrenheit)"), " "),
    (re.compile(r"\\(?:left|right|displaystyle|boxed)(?![a-zA-Z])|\\!"), ""),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·∙⋅]"), " × "),
    (re.compile(r"(?<=\d)\s?[xX]\s?(?=\$?\d)"), " × "),
    (re.compile(r"\^?\{?\\(?:circ|degree)(?![a-zA-Z])\}?"), "° "),
    (re.compile(r"\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])|≈"), " = "),
    (re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\(?=[$%&#€£])|\\[()\[\]]"), ""),
    (re.compile(r"\^\{(-?\d{1,6})\}|\^\((-?\d{1,6})\)"), r"^\1\2"),
    (re.compile(r"[\u2010-\u2012\u2212]|(?<![\w%)])[\u2013\u2014](?=[\d$€£.])"), "-"),
    (re.compile(r"\s+and\s+(?:a|one)[ -]half\b"), " 1/2"),
    (re.compile(r"\s+and\s+(?:a|one)[ -]quarter\b"), " 1/4"),
    (_MIXED, r"\1 "),
    (re.compile(r"(?i)\b(?:minus|negative)\s+(?=[\d$€£.])"), "-"),
)
# "not 33 but 73" and "73, not 33" say 73.
_CONTRAST = (
    re.compile(
        r"(?i)(?:\bnot|n['’]t)\s+(?=\S{0,30}\d)\S{1,40}(?:\s+[^\W\d_]+)?\s*(?:,?\s*but(?:\s+rather)?\b"
        r"|[,;.]\s*(?:it['’]s|it\s+is)\b)"
    ),
    re.compile(
        r"(?i)(?:(?:,|(?<=[\w%)])\s+and|(?<=[\d%)]))\s+not|,?\s+(?:rather\s+than|instead\s+of))"
        r"\s+(?=\S{0,30}\d)\S{1,40}(?=\s*\Z|[.,;]\s|\s+[^\W\d_]+\s*[.]?\s*\Z)"
    ),
)
# What explains a number begins here, to the end of its sentence; numbers in it are not the answer's.
_EXPLAINED = re.compile(
    r"(?i)(?<=[^\s.!?])(?:(?:[,;:]|[ \t][–—-])?[ \t]+(?:because|since|as(?! well)|given|due|so that|considering"
    r"|(?:where|which(?!\s+(?:is|was|seems|can)(?:\s+\w+)?\s+(?:not|wrong|incorrect|false|impossible)\b|\s+\w+n['’]t\b)"
    r"|when|after|if)\b(?![^.\n]{0,300}(?:=|\b(?:and|or|but)\s+\S{0,2}\d[^.\n]{0,20}\b(?:when|if|for)\b)))\b"
    r"|;(?!\s*(?:but|however|or|no|wait|actually|rather|sorry|oops|hmm+|correct(?:ion|ed)?|i mean|make that)\b"
    r"|\s*[-$€£]?[\d.,]+\s*(?:\Z|[.;])))(?:(?![.!?]\s|\n).)*"
)
_ASIDE = re.compile(
    r"(?i)(?<=[\w%°])\s*\((?!\s*(?:or|and|to|maybe|perhaps|possibly|at\s+(?:least|most)|sin|cos|tan|log|ln|exp|sqrt)\b)(?=[^()]{0,200}[^\W\d_]{3})[^()]{0,200}\)"
)
_PART_OF_NAME = re.compile(r"(?i)\b(?:twice|half|double|triple|minus|negative)\b[^\d=]*\Z")
_REJECTED = re.compile(r"\((?:[^()\d]{0,40}\s)?(?i:not|wrong|incorrect|false|no)\b[^()\d]{0,40}\)")
# "30 x 2.5 = 75 if he sells it" repeats the question's condition.
_COMPUTED = re.compile(r"\d\s*[-+*/×]\s*[$€£]?[\d.,]+\s*=\s*[$€£]?\d[\w.,]*\s+if\b[^\d=]*\Z")
_CHANCE = re.compile(r"(?i)\s*|.*\b(?:probability|chances?|odds|likelihood)\b.*")
_CUT = re.compile(r"\d\s?(?:\.\.|…)|\d[ -]?ish\b|\bbase\s+\d|\bas\s+well\s+as\b")
_VAGUE = re.compile(
    r"(?i)\b(?:either|between|half|halves|twice|double|triple|quarters?|thirds?|fourths|fifths|sixths|sevenths|eighths"
    r"|ninths|tenths|hundredths|thousandths|squared|cubed|factorial|plus|minus|divided?|multipl(?:y|ied)|add(?:ed)?"
    r"|subtract(?:ed)?|remainder|max)\b"
    r"|\b(?:root|square|cube|reciprocal|inverse|logarithm|multiple|power)s?\s+of\b|\b(?:digits|factors|divisors)\s+of\b|\bbelow\s+zero\b"
    r"|\b(?:more|less|fewer|larger|smaller|greater|bigger|higher|lower|times)\s+(?:than|as)\b"
    r"|\bor\s+(?:more|less|fewer|greater|higher|lower)\b|\b(?:at\s+(?:least|most|minimum|maximum)|up\s+to|upwards?|and\s+up|(?:north|short|away)\s+(?:of|from)|(?:minimum|maximum)\s+of|exceed(?:s|ing)?)\b"
    r"|\b(?:over|under|above|below|beyond|within|almost|nearly|close\s+to|near|past|from|every|except|excluding|without"
    r"|instead\s+of|rather\s+than|all\s+but|one\s+(?:in|of|out\s+of))\s+(?:the\s+)?(?=\S{0,2}\d)"
    r"|\b(?:step|part|case|question|problem|equation|example|method|exercise|chapter|section|item|option|base|figure"
    r"|theorem|lemma|attempt)\s+#?\d"
)
_FOREIGN = re.compile(r"\\[a-zA-Z]|[√π∞±∫∑|<>≠≤≥_!^{}*+×÷]|\b(?:sqrt|pi|log|ln|sin|cos|tan|exp|mod|or)\b")

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "lakh": 10**5, "million": 10**6, "crore": 10**7}
_SCALES |= {"billion": 10**9, "trillion": 10**12}
_SHORT = {"k": 3, "m": 6, "mn": 6, "b": 9, "bn": 9}
_SCALED = re.compile(rf"(?i)\b(?:{'|'.join(_SCALES)})s?\b")
_SEPARATED = "|".join(rf"(?:{mark}\d{{3}})+" for mark in (",", " ", "['’]", "_"))
# European thousands need two groups or a decimal comma: 1.234 alone is a little more than one.
_PLAIN = (
    r"(?P<european>[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?: \d{3})+,\d{1,2})|[1-9]\d{0,2}(?:\.\d{3}){2,})(?![\d.])"
    rf"|(?P<usual>(?:[1-9]\d{{0,2}}(?:{_SEPARATED})|[1-9]\d?(?:,\d\d)+,\d{{3}})(?!\d)(?:\.\d+)?)"
    r"|(?<![\[({])(?P<comma>\d+,\d{1,2}|0,\d+)(?![\d,.])|(?P<digits>\d+(?:\.\d+)?|\.\d+)"
)
_POWER = r"(?:[eE](?P<e>[-+]?\d{1,3})(?!\d)|\s*[×x*]\s*10\s*(?:\^|\*\*)\s*(?P<ten>[-+]?\d{1,3})(?!\d))"
_QUANTITY = re.compile(
    rf"(?:(?<![\w)%°.])(?P<sign>[-+])\s?)?(?P<currency>(?:\b(?:US|AU?|CA?|NZ|HK|S|R))?[{_CURRENCIES}]\s?)?(?P<inner>-)?(?<![\w.])"
    r"(?:(?P<whole>\d{1,15})\s+(?P<part>\d{1,15}\s?/\s?\d{1,15})|(?P<ratio>-?\d{1,99}(?:\.\d{1,99})?\s?/\s?-?\d{1,99}(?:\.\d{1,99})?)"
    rf"|10\^(?P<bare>[-+]?\d{{1,3}})(?!\d)|(?:{_PLAIN}){_POWER}?)"
    rf"(?:[ -]?(?P<scale>{'|'.join(_SCALES)})s?\b|(?P<short>k|m|mn|b|bn)\b)?",
    re.IGNORECASE,
)
# What may touch a number: nothing, a unit, a currency, an ordinal's ending, the end of a clause.
_AFTER = re.compile(rf"\s?[{_CURRENCIES}%‰°]|[^\W\d_]|-[^\W\d_]|/(?=[^\W\d_]{{3}})|[)\].,:\"'”。」]+(?!\w)|\s|\Z")
_OPERATOR = re.compile(r"\s*(?:[-+/:^–—*×]|to|by)\s*\Z")
# A letter or two are an unknown, but for these words and for units; so are three that touch a number.
_WORD = re.compile(r"(?P<gap>\s?)(?P<word>[^\W\d_]+)")
_SMALL_WORD = re.compile(r"am|an|as|at|be|by|cd|do|ea|he|if|in|is|it|me|mr|ms|my|no|of|on|pm|so|to|tv|us|vs|we")
_LETTER = r"(?!a\s+[^\W\d_]{2}|I\s)[^\W\d_](?![\w'’])"
_COUNTED = re.compile(rf"%?\s*(?:[-/:–—(]|(?:out\s+)?of\b|per\b|times\b)\s*{_LETTER}|%\s?{_LETTER}")
_NAMED = re.compile(
    r"_\{?\w{1,9}\}?|\\overline\{\w{1,9}\}|\\(?:angle|triangle|theta|alpha|beta|gamma|phi)\b|\b[a-zA-Z]\(-?\d{1,9}\)"
)
_OPERATORS = re.compile(r"\s*(?:[+*/×÷·^=√!|{}\\]|(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})|[–—])\s*")
_ELSE = re.compile(r"[,.!?]\s|;|\b(?:so|but|and|or|then|thus|hence|therefore)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """What the one quantity of a text may mean: one value, or two for 40% (40 and 2/5) and "12 out of 20"."""

    values: tuple[Fraction, ...]
    unit: Unit = NO_UNIT

    def equals(self, gold: Quantity) -> bool:
        """Whether both may mean the same, to 1e-6; a unit that only one of them has does not matter."""
        size = size_in(self.unit, gold.unit)
        if size is None:
            return False
        is_alike = len(self.values) == len(gold.values)
        pairs = [(self.values[0], gold.values[0])] if is_alike else [(a, b) for a in self.values for b in gold.values]
        return any(abs(a * size - b) <= Fraction(1, 10**6) * min(abs(b), Fraction(1)) for a, b in pairs)


def parse_number(text: str) -> Fraction | None:
    r"""The one quantity that a text states, or None if it states none, several or one that is not understood.

    Reads 1,234.5, -3, $5, 40% (as 40), 2e3, `2\times10^3`, 1/2, `\frac{1}{2}`, 1 1/2, "1 000 000", "1.5 million" and
    what follows the last equals sign; of "12 out of 20" the 12.
    """
    found = quantity(text)
    return found.values[0] if found else None


def quantity(text: str) -> Quantity | None:
    """The one quantity that a text states, or None (see `parse_number`)."""
    clause = _clause(text)
    if clause is None:
        return None
    values: list[Fraction] = []
    units: list[Unit] = []
    end = 0
    between: list[str] = []
    for match in _QUANTITY.finditer(clause):
        value = _value(match)
        unit = unit_at(clause, match.end(), match["currency"] or "")
        if (
            value is None
            or not _AFTER.match(clause, match.end())
            or _is_multiplied(clause, match.end(), unit_at(clause, match.end()))
        ):
            return None
        between.append(clause[end : match.start()])
        if (match["sign"] or "").strip() and match.group().startswith(("- ", "+ ")) and between[-1][-2:-1].isalnum():
            return None  # "x - 5"
        values.append(value)
        units.append(unit)
        end = match.end()
    rest = clause[end:]
    if "?" in rest or taken_back(rest):
        return None
    if (
        not values
        or _FOREIGN.search("".join(between) + rest)
        or _glued(between[0])
        or re.fullmatch(r"\s*[-–—/]\s*", rest)
    ):
        return None
    if len(values) == 2 and re.fullmatch(r"\s*(?:[^\W\d_]+\s+)?(?:out\s+)?of(?:\s+the)?\s*", between[1]):
        if units[0][0] == "%" or values[0].denominator > 1:
            return None  # a product: "15 percent of 20", "1/2 of 3"
        return Quantity((values[0], values[0] / values[1])) if values[1] else None
    is_chance = (
        len(values) == 2
        and between[1] == " in "
        and re.fullmatch(r"[^$€£]*\n\s*(?:chances?|odds)?\s*", f"{clause[:end]}\n{rest}")
    )
    if is_chance and 0 < values[0] < values[1] and units[1] == NO_UNIT and _CHANCE.fullmatch(between[0]):
        return Quantity((values[0] / values[1],))  # "1 in 4"
    if len(set(values)) > 1 or any(_OPERATOR.match(gap) or not re.search(r"[^\W\d_]", gap) for gap in between[1:]):
        return None
    unit = units[0]
    return Quantity((values[0], values[0] / 100) if unit[0] == "%" else (values[0],), unit)


def is_vague(text: str) -> bool:
    """Whether a text says of its number that it is a bound, a part or a term: "at least 5", "twice 5", "5 plus"."""
    return bool(_VAGUE.search(text)) or is_other_number(text)


def has_scale(text: str) -> bool:
    """Whether a text multiplies by a word, as in "5 million"."""
    return bool(_SCALED.search(text))


def _clause(text: str) -> str | None:
    """What of a text may hold its quantity, in plain spelling; None where that cannot be said."""
    if len(text) > _LONGEST:
        return None
    text = undressed(text).replace("$-", "-$")
    for pattern, plain in (*_SPELLINGS, *_LATEX):
        text = pattern.sub(plain, text)
    text = unicodedata.normalize("NFKC", text).strip()
    text = re.sub(" {2,}", " ", text)
    if (supposes(text) and not _COMPUTED.search(text)) or _REJECTED.search(text) or _CUT.search(text):
        return None
    text = text.rstrip(".")
    for pattern in _CONTRAST:
        text = pattern.sub(" ", text)
    text = _ASIDE.sub("", _EXPLAINED.sub("", text))
    *sides, after = text.split("=")
    if sides:
        stated_yet = re.search(r"[\d=]", text)
        before = "=".join(sides)
        has_unit = bool(re.search(r"\d\s?[^\W\d_]", after))
        if (
            re.search(r"[<>!≠]\s*\Z", before)
            or disowns(before)
            or _PART_OF_NAME.search(before)
            or (stated_yet and _ELSE.search(before, stated_yet.end()))
            or not all(is_settled(side, has_unit) for side in sides)
        ):
            return None
        text = after
    if denies(text) or is_vague(text):
        return None
    return _with_powers(text)


def _with_powers(text: str) -> str:
    """A text whose units have their powers as superscripts, so that these are no numbers: cm^3 as cm³."""
    return POWERED.sub(lambda found: found[1] + found[2].lstrip("^+").translate(_TO_SUPERSCRIPTS), text)


def is_settled(side: str, has_unit: bool) -> bool:
    """Whether what stands before an equals sign is a name alone, or numbers without an unknown: not 2x, not x + 3.

    Args:
        side: What stands there.
        has_unit: Whether what follows the equals sign has a unit; if not, then 2m is two times m.
    """
    side = _with_powers(_NAMED.sub(" ", side))
    operands = [operand for operand in _OPERATORS.split(side) if operand.strip(" ()[]$")]
    if len(operands) < 2 and not re.search(r"\d|[√!|{\\]", side):
        return not re.search(r"\w\(|[-+*/×÷^]", side)
    for operand in operands:
        numbers = list(re.finditer(r"\d(?![\d.,]*\d)", operand))
        if not numbers:
            return False
        for number in numbers:
            unit = unit_at(operand, number.end())
            is_symbol = len(unit[0]) == 1 and unit[0].isalpha() and not has_unit
            if _is_multiplied(operand, number.end(), NO_UNIT if is_symbol else unit):
                return False
        if re.search(rf"(?<![\w'’.]){_LETTER}\s*\Z", operand) and unit_at(operand, numbers[-1].end()) == NO_UNIT:
            return False
        if re.search(rf"\w\(|(?<![\w'’.]){_LETTER}\s*\(|\\[a-zA-Z]", operand):
            return False
    return True


def _is_multiplied(clause: str, end: int, unit: Unit) -> bool:
    """Whether an unknown follows the number that ends here: 3x, 3 x, 5 - x, 5(x + 1), 40% of x."""
    if _COUNTED.match(clause, end):
        return True
    found = _WORD.match(clause, end)
    if unit != NO_UNIT or found is None:
        return False
    word = found["word"].lower()
    if re.match(r"[\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af]", word):
        return not is_counted(word)
    if re.fullmatch(r"[xyz]+", word):
        return True
    if len(word) == 1:
        return not (found["gap"] and re.match(r"\s?(?:a\s+[^\W\d_]{2}|I\s)", clause[end:]))
    if found["gap"]:
        return len(word) == 2 and not _SMALL_WORD.fullmatch(word)
    return len(word) <= 3 and word not in {"st", "nd", "rd", "th", "am", "pm"}


def _glued(before: str) -> bool:
    """Whether what stands before a number makes it a part of something: 3-5, x^2, 2x + 5, f(5)."""
    return bool(
        re.search(r"[\w)][-+/^_]\s?\Z|[\w)]:\Z|\s:\s\Z|[-+/^_\\×*]\s*\(?\s*\Z|[^\W_]\Z|\d|\w\(\s*\Z", before)
        or re.search(r"(?<![\w'’.])(?![aIéè]\s)[^\W\d_]\s?\(?\s*\Z", before)
    )


def _value(match: re.Match[str]) -> Fraction | None:
    if (match["sign"] or "").strip() and match["inner"]:  # --7
        return None
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
        value *= _SCALES[match["scale"].lower()]
    elif match["short"] and (match["currency"] or match["short"] in "kK"):
        value *= 10 ** _SHORT[match["short"].lower()]
    elif match["short"] and match["short"] != "m":  # metres; 5b is nothing for sure
        return None
    return -value if "-" in ((match["sign"] or "") + (match["inner"] or "")) else value


def _ratio(text: str) -> Fraction:
    top, bottom = text.split("/")
    return Fraction(top.strip()) / Fraction(bottom.strip())


def _digits(match: re.Match[str]) -> str:
    if match["european"]:
        return match["european"].replace(".", "").replace(" ", "").replace(",", ".")
    if match["comma"]:
        return match["comma"].replace(",", ".")
    return re.sub(r"[, '’_]", "", match["usual"]) if match["usual"] else match["digits"]


_CONCLUDED = re.compile(
    r"(?is)(?:\A|[.!?]\s+|\n\s*)(?:therefore|thus|hence|so|altogether|in total|in all|finally)\b"
    r",?(?P<rest>(?:(?![.!?]\s+\w|\n).)*)\Z"
)
_CALCULATED = re.compile(r"<<[^<>\n]{0,200}>>")


def stated_quantity(text: str) -> Quantity | None:
    """As `quantity`, for a whole solution: of its final answer where it marks one, else of the whole text, else of its
    last sentence where that concludes ("So ...", "In total, ...") or is an equation ("... 48 + 24 = 72")."""
    stated = stated_answer(text)
    if stated is not None:
        return quantity(stated)
    text = _CALCULATED.sub("", spoken(text))
    if found := quantity(text):
        return found
    end = text[-_LONGEST:]
    if (concluded := _CONCLUDED.search(end)) and (found := quantity(concluded["rest"])):
        return found
    return _of_equation(re.split(r"\n|(?<![A-Z][a-z])[.!?]\s+(?=[A-Z$\d])", end)[-1])


def _of_equation(sentence: str) -> Quantity | None:
    """The right side of a sentence that is one equation whose left side ends with numbers: "She pays 40 + 33 = 73"."""
    if re.search(r"(?i)\b(?:check|verif\w+|if|suppose|estimate\w*)\b", sentence):
        return None
    found = quantity(sentence)
    if "=" not in _EXPLAINED.sub("", sentence):  # "He needs 15 because 7.5 / .5 = 15" says it twice
        result = quantity(sentence.rpartition("=")[2]) if "=" in sentence else None
        return found if found and result and found.equals(result) else None
    if found:
        return found
    before, _, after = sentence.rpartition("=")
    last = _ELSE.split(before)[-1]
    return quantity(f"{last}={after}") if "=" not in before and re.search(r"\d", last) else None
