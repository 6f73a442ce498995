"""What turns an answer in other languages than English: words that deny it, bound its number, or multiply it.

Answers are read in English. Of the other languages that models answer in, known is what would make a false reward.
"""

from __future__ import annotations

import re

_DENIED = re.compile(
    r"(?i)\b(?:nicht|keine?[mnrs]?|falsch\w*|inkorrekt|n['’](?:est|était|a)|ne\s+(?:sont|peut|vaut)|faux|fausses?"
    r"|incorrecte|no\s+(?:es|son|puede)|incorrect[ao]s?|fals[aoi]s?|equivocad[ao]|não|errad[ao]|incorret[ao]"
    r"|non\s+(?:è|sono|può)|errat[ao]|sbagliat[ao]|scorrett[ao]|niet|onjuist|не|нет|неверн\w*|неправильн\w*)\b"
    r"|不是|不对|不對|不正[确確]|并非|並非|[错錯]|ではな|じゃな|正しくな|誤り|間違|아니|아닙|아닌|틀[린렸립]"
)
_BOUND = re.compile(
    r"(?i)\b(?:mehr\s+als|weniger\s+als|mindestens|höchstens|über|unter|fast|(?:plus|moins)\s+de|au\s+(?:moins|plus)"
    r"|presque|(?:más|menos|mais)\s+de|al\s+menos|pelo\s+menos|casi|quase|(?:più|meno)\s+di|almeno|quasi"
    r"|(?:meer|minder)\s+dan|minstens|bijna|больше|меньше|более|менее|почти)\s+\S{0,2}\d"
    r"|(?:[大小多少][于於]|超[过過]|至[少多]|最[少多]|不[到足])\s*\d"
)
_SCALE = re.compile(
    r"(?i)\d\s?(?:millionen|mio|milliarden?|milliards?|mrd|tausend|tsd|hundert|dutzend|mille|milliers|millones"
    r"|mil|milh(?:ões|ão)|milion[ei]|mila|mld|miljoen|miljard|duizend|тыс\w*|млн|миллион\w*|млрд|миллиард\w*)\b"
)
_COUNTED = re.compile(
    r"(?!.*(?:[半多余餘几幾数數十百千万萬亿億兆倍割点點吗嗎か까만억천백배]|分之|분의|以[上下内外]|이[상하]|미만|초과))"
    r"[\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,20}"
)


def denied(text: str) -> bool:
    """Whether a text denies something, or says that it is wrong."""
    return bool(_DENIED.search(text))


def is_other_number(text: str) -> bool:
    """Whether a text names a number as a bound ("mehr als 5"), or multiplies it ("5 Millionen")."""
    return bool(_BOUND.search(text) or _SCALE.search(text))


def is_counted(word: str) -> bool:
    """Whether a word in Chinese, Japanese or Korean behind a number says what is counted, and leaves it as it is."""
    return _COUNTED.fullmatch(word) is not None
