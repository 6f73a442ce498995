"""Bytes as text: what a file, an upload or stdin holds, whatever program wrote it."""

from __future__ import annotations

import codecs
import io
import re
import warnings
from contextlib import suppress
from string import ascii_lowercase
from unicodedata import category

from hf_mass.errors import ConfigError, DataError, DataWarning

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXTS = {
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a zip file or a workbook of Excel",
    b"\xd0\xcf\x11\xe0": "a file of an old version of Excel or Word",
    b"%PDF-": "a PDF",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\0": "a database",
    b"\x89PNG": "a picture",
}
"""Beginnings of files that people take for text → what they are."""

# (charset-normalizer was tried: on tables of a few lines it takes cp1252 for cp1250, and Czech for cp1252.)
_WESTERN = re.compile("[\t\n\v\f\r -~€‘’“”„–—…•°§©®™«»¿¡·´½¼¾×÷±µ²³ªº£\xa0ŒœÀ-ÏÑ-ÖØ-Üß-ïñ-öø-üÿ]*")
"""What texts of Western Europe are written in; what other code pages make of their bytes is often not in it."""
_ODD = re.compile(
    r"[À-ÿ]{3}|[a-zß-ÿ][À-Þ]|[^\W\d_]„|[^\WmM\d_][²³]|[²³]\w|\w[¿¡]\w|õ(?![eE])|[ªºìòù](?=[^\W\d_])"
    r"|[^\W\d_][“‘]|”(?=\w)|(?<![^\W\d_])ÿ|[^\W\d_][”•–—…™©®±°§¼½¾×÷£€´](?=[^\W\d_])"
)
"""What stands where it does in no language of Western Europe."""
_FREE = "äöüßé"
"""Letters that are the same in all of these code pages but for cp850, and may come from a loan word."""
_CENTRAL = ("ąćęłńóśźż", "áčďěíňóřšťúůýž", "áčďíĺľňóôŕšťúýž", "áíóőúű", "ăâîşţ", "čćđšž")
_LATIN = {
    "cp1250": _CENTRAL,
    "iso8859-2": _CENTRAL,
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "õšž"),
    "cp850": ("",),
}
"""Code page → for each of its languages the letters beyond ASCII and `_FREE`."""
_SCRIPTS = ("cp1251", "koi8-u", "cp1253", "cp1255", "cp1256", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
"""Code pages of languages that are not written in Latin letters."""
_SAMPLE = 100_000
"""Bytes, in lines that are no ASCII, by which code pages are told apart."""


def decoded(content: bytes, where: str, encoding: str | None = None) -> str:
    """The text of bytes, without a mark of byte order; `where` names them in errors.

    Without an `encoding`, UTF-8, UTF-16 and UTF-32 are told from the bytes. What is none of them is read as cp1252,
    with a warning, if it has no letter in UTF-8, looks like a language of Western Europe, and in no other code page
    like another language; anything else is refused.

    Raises:
        ConfigError: If there is no such encoding.
        DataError: If the bytes are no text in it, or the encoding cannot be told.
    """
    if kind := next((kind for start, kind in _NO_TEXTS.items() if content.startswith(start)), None):
        raise DataError(f"{where} is no text, but {kind}. Unpack or convert it.")
    name = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), _unmarked(content))
    try:
        return content.decode(name).removeprefix("\ufeff")
    except LookupError as error:
        raise ConfigError(
            f"encoding is {name!r:.40}, which Python does not know. Name one as utf-8, cp1252."
        ) from error
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        readings = _readings(content, at) if encoding is None and name == "utf-8" and content[:at].isascii() else {}
        if [*readings] == ["cp1252"]:
            warnings.warn(
                f"{where} is no UTF-8; it was read as cp1252, so that a line reads {_line(readings['cp1252'])!r}. If "
                "that is wrong, name its encoding (encoding=..., --encoding).",
                DataWarning,
                stacklevel=2,
            )
            return content.decode("cp1252")
        page, told = next(iter(readings), "cp1252"), name.removesuffix("-sig").upper()
        raise DataError(
            f"{where} is no text in {told} (at byte {at}){_alike(readings)}. Save it as UTF-8, or name its encoding "
            f"(encoding={page!r}, --encoding {page})."
        ) from error


def _alike(readings: dict[str, str]) -> str:
    """A word that code pages read in different ways, for an error."""
    some = dict(list(readings.items())[:3])
    words = list(zip(*map(str.split, some.values()), strict=False))
    word = next((word for word in words if len({*word}) == len(some)), words[0] if words else ())
    parts = [f"{each!r:.30} in {page}" for page, each in zip(some, word, strict=False)]
    return f"; it may read {' or '.join(parts)}" if parts else ""


def _unmarked(content: bytes) -> str:
    """UTF-16 where every other byte of the beginning is mostly zero, as it is of letters; else UTF-8."""
    even, odd = content[:1000:2].count(0), content[1:1000:2].count(0)
    if min(even, odd) == 0 and max(even, odd) * 2 > len(content[:1000]) // 2:
        return "utf-16-be" if even else "utf-16-le"
    return "utf-8"


def _readings(content: bytes, start: int) -> dict[str, str]:
    """The code pages in which bytes read as a language, with what they read as; each text once.

    A text is of a language of a code page if all of its letters are that language's. In most texts of Western Europe
    that is cp1252 alone; short ones, such as 'père', may be of several. `start` is the first byte that is no UTF-8.
    """
    sample = b""
    for line in io.BytesIO(content[max(0, start - 1000) :].replace(b"\r", b"\n")):
        if not line.isascii() and len(sample) < _SAMPLE:
            sample += line
    sample = sample[:_SAMPLE]
    found: dict[str, str] = {}
    for page in ("cp1252", *_LATIN, *_SCRIPTS):
        with suppress(UnicodeError):
            text = codecs.getincrementaldecoder(page)().decode(sample)  # of which a character may be cut off at the end
            whole = content.decode(page) if page == "cp1252" else text  # in which it may be read, to the end
            if text not in found.values() and _is_language(whole, page):
                found[page] = text
    return found


def _is_language(text: str, page: str) -> bool:
    if page == "cp1252":
        return _WESTERN.fullmatch(text) is not None and not _ODD.search(text)
    beyond = [char for char in text if not char.isascii()]
    if not all(char.isalpha() or category(char)[0] == "P" or char in "€£°²³½\xa0" for char in beyond):
        return False
    words = [word for word in re.findall(r"\w+", text) if not word.isascii()]
    if page in _SCRIPTS:
        return sum(map(len, words)) > 1 and not any(re.search("[0-9A-Za-z\xaa-\u024f]", word) for word in words)
    if not words or any(re.search("[0-9]", word) or word not in (_capital(word), word.upper()) for word in words):
        return False
    letters = {*"".join(words).lower()} - {*_FREE, *ascii_lowercase}
    return any(letters <= {*alphabet} for alphabet in _LATIN[page])


def _capital(word: str) -> str:
    """A word in small letters but for its first one, which stays."""
    return word[0] + word[1:].lower()


def _line(text: str) -> str:
    """The first line that is not plain ASCII."""
    return next(line for line in text.splitlines() if not line.isascii()).strip()[:60]
