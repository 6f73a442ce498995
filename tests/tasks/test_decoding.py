"""Bytes of files as text: what is told from them, what is guessed with a warning, and what is refused."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError, DataWarning
from hf_mass.tasks.decoding import decoded

UNICODE = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("text", ["input,output\ncafé,1\n", "Wort;Plural\nMädchen;Mädchen\n", "a,b\n1,2"])
def test_unicode_is_told_from_the_bytes(encoding: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(text.encode(encoding), "'f'") == text


@pytest.mark.parametrize(
    "text",
    [
        "question;réponse\nOù est la bibliothèque ?;là-bas\n",
        "Frage;Antwort\nStraße;groß\nÜbung;schön\n",
        "¿Qué año es?,mañana\nÉl,sí\n",
        "rød,røde\nblå,blå\n",
        "it’s “fine” – ok,2 €\n3 m²,4 cm³\n",
        "não,irmã\nações,pães\n",
        "rød;blå",
        "20 °C;20±3 %\n£5;“hi”\n",
        "Ça va, à côté,forêt\n",
    ],
)
def test_cp1252_is_read_and_said(text: str) -> None:
    with pytest.warns(DataWarning, match=r"'f' is no UTF-8; it was read as cp1252.*--encoding"):
        assert decoded(text.encode("cp1252"), "'f'") == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(text.encode("cp1252"), "'f'", "cp1252") == text


OTHERS = {
    "cp1250": ("żółw,żółwie\nłąka,łąki\n", "řeka,řeky\nčlověk,lidé\nkůň,koně\n", "erdő,erdők\n"),
    "cp1251": ("кошка,кошки\nдом,дома\n", "да,не", "я"),
    "cp1253": ("σπίτι,σπίτια\n",),
    "cp1254": ("ağaç,ağaçlar\nışık,ışıklar\n",),
    "shift_jis": ("猫,ねこ\n犬,いぬ\n", "猫"),
    "gbk": ("你好,世界\n猫,狗\n", "大,天"),
    "mac_roman": ("café,cafés\nété,étés\n",),
    "cp850": ("Mädchen,schön\n", "Straße"),
    "iso8859-2": ("žena,ženy", "mąka,koń"),
    "koi8-r": ("да,не",),
    "big5": ("大,小",),
}


@pytest.mark.parametrize(("encoding", "text"), [(name, text) for name, texts in OTHERS.items() for text in texts])
def test_other_code_pages_are_never_read_as_something_else(encoding: str, text: str) -> None:
    with pytest.raises(DataError, match=r"'f' is no text in UTF-8 \(at byte [0-9]+\).*--encoding \w"):
        decoded(text.encode(encoding), "'f'")
    assert decoded(text.encode(encoding), "'f'", encoding) == text


@pytest.mark.parametrize(
    ("encoding", "text", "told"),
    [
        ("cp1252", "père,mère", "'père,mère' in cp1252 or 'pčre,mčre' in cp1250"),
        ("cp1250", "kočka,kočky", "'koèka,koèky' in cp1252 or 'kočka,kočky' in cp1250"),
        ("cp1252", "sí,no", "'sí,no' in cp1252 or 'sķ,no' in cp1257"),
        ("cp1251", "да,не", "'äà,íå' in cp1252 or 'äŕ,íĺ' in cp1250 or 'да,не' in cp1251"),
        ("cp1250", "mąż", "may read 'mąż' in cp1250[.] "),
    ],
)
def test_what_reads_as_several_languages_is_refused_with_all_of_them(encoding: str, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        decoded(f"a,b\n{text}\n".encode(encoding), "'f'")


@pytest.mark.parametrize("end", [b"\n", b"\r", b" "])
@pytest.mark.parametrize("odd", [b"\x81", b"\x8e"])
def test_a_long_file_is_looked_at_to_its_end(end: bytes, odd: bytes) -> None:
    content = "ça va à côté de la forêt".encode("cp1252") + end
    with pytest.warns(DataWarning, match="read as cp1252"):
        assert len(decoded(content * 10_000, "'f'")) == len(content) * 10_000
    with pytest.raises(DataError, match="no text in UTF-8"):
        decoded(content * 10_000 + odd, "'f'")


def test_encodings_that_are_refused() -> None:
    for name in ("klingon", "hex", ""):
        if name:
            with pytest.raises(ConfigError, match=f"encoding is '{name}'"):
                decoded(b"a", "'f'", name)
    with pytest.raises(DataError, match="no text in ASCII"):
        decoded("é".encode(), "'f'", "ascii")


@given(st.text(), st.sampled_from(UNICODE))
def test_any_text_comes_back(text: str, encoding: str) -> None:
    if encoding in ("utf-16-le", "utf-16-be") or text.startswith("\ufeff"):
        return  # without a mark it can only be told of letters
    content = text.encode(encoding, "replace")
    assert decoded(content, "'f'", encoding) == content.decode(encoding)


@given(st.binary())
def test_any_bytes_are_text_or_refused(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert isinstance(decoded(content, "'f'"), str)
        except DataError as error:
            assert len(str(error)) < 300


@pytest.mark.parametrize("text", ["café,b\ncafé", "é,é\nnaïve"])
def test_a_utf8_file_that_was_cut_off_is_no_cp1252(text: str) -> None:
    content = text.encode()
    end = content.rindex(b"\xc3") + 1
    with pytest.raises(DataError, match="no text in UTF-8"):
        decoded(content[:end], "'f'")
    with pytest.raises(DataError, match="no text in UTF-8"):
        decoded(text.encode() + "é".encode("cp1252"), "'f'")
