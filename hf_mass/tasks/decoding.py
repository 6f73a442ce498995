"""Bytes as text: what a file, an upload or stdin holds, whatever program wrote it."""

from __future__ import annotations

import codecs
import re
import warnings

from hf_mass.errors import ConfigError, DataError, DataWarning

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Text of Western Europe: what else the bytes of other code pages read as in cp1252 is not in it, or stands oddly.
# (charset-normalizer was tried: on tables of a few lines it takes cp1252 for cp1250, and Czech for cp1252.)
_WESTERN = re.compile("[\t\n\v\f\r -~€‘’“”„–—…•°§©®™«»¿¡·´½¼¾×÷±µ²³ªº£\xa0ŒœÀ-ÏÑ-ÖØ-Üß-ïñ-öø-üÿ]*")
_ODD = re.compile(r"[À-ÿ]{3}|[^\W\d_]„|[^\WmM\d_][²³]|[²³]\w|\w[¿¡]\w|õ(?![eE])|[ªºìòù](?=[^\W\d_])")


def decoded(content: bytes, where: str, encoding: str | None = None) -> str:
    """The text of bytes, without a mark of byte order; `where` names them in errors.

    Without an `encoding`, UTF-8, UTF-16 and UTF-32 are told from the bytes. What is none of them is read as cp1252 if
    it looks like a language of Western Europe, and a warning says so; anything else is refused.

    Raises:
        ConfigError: If there is no such encoding.
        DataError: If the bytes are no text in it, or the encoding cannot be told.
    """
    name = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), _unmarked(content))
    try:
        return content.decode(name).removeprefix("\ufeff")
    except LookupError as error:
        raise ConfigError(
            f"encoding is {name!r:.40}, which Python does not know. Name one as utf-8, cp1252."
        ) from error
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        if encoding is None and name == "utf-8" and (text := _western(content)) is not None:
            warnings.warn(
                f"{where} is no UTF-8; it was read as cp1252, so that a line reads {_line(text)!r}. If that is wrong, "
                "name its encoding (encoding=..., --encoding).",
                DataWarning,
                stacklevel=2,
            )
            return text
        raise DataError(
            f"{where} is no text in {name.removesuffix('-sig').upper()} (at byte {at}). Save it as UTF-8, or name its "
            "encoding (encoding='cp1252', --encoding cp1252)."
        ) from error


def _unmarked(content: bytes) -> str:
    """UTF-16 where every other byte of the beginning is mostly zero, as it is of letters; else UTF-8."""
    even, odd = content[:1000:2].count(0), content[1:1000:2].count(0)
    if min(even, odd) == 0 and max(even, odd) * 2 > len(content[:1000]) // 2:
        return "utf-16-be" if even else "utf-16-le"
    return "utf-8"


def _western(content: bytes) -> str | None:
    try:
        text = content.decode("cp1252")
    except UnicodeError:
        return None
    return text if _WESTERN.fullmatch(text) and not _ODD.search(text) else None


def _line(text: str) -> str:
    """The first line that is not plain ASCII."""
    return next(line for line in text.splitlines() if not line.isascii()).strip()[:60]
