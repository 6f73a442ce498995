"""Quantities: read whole, or not at all."""

from __future__ import annotations

import time
from fractions import Fraction as F

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.tasks.quantities import parse_number, quantity, stated_quantity

WHOLE = {
    r"8\text{ cm}^2": 8,
    r"1{,}234": 1234,
    r"1\frac{1}{2}": F(3, 2),
    r"2\times10^3": 2000,
    r"2\times 10^{-3}": F(1, 500),
    r"\dfrac12": F(1, 2),
    r"\frac13": F(1, 3),
    r"\frac{1}3": F(1, 3),
    "1 000 000": 1000000,
    "18 cm^3": 18,
    "18 cm³": 18,
    "18cm3": 18,
    "12 out of 20": 12,
    "12 of the 20": 12,
    "1'000'000": 10**6,
    "1_000_000": 10**6,
    "1,00,000": 100000,
    "1.234.567": 1234567,
    "1.234,50 €": F("1234.5"),
    "1\u202f000\u202f000": 10**6,
    "1\u00a0000": 1000,
    r"10\,000": 10000,
    r"\$36": 36,
    "$36": 36,
    "36 dollars": 36,
    "36 USD": 36,
    "USD 36": 36,
    "€5": 5,
    "5€": 5,
    "5 €": 5,
    "£1,250.00": 1250,
    "-$5": -5,
    "$-5": -5,
    "- 3": -3,
    "−3": -3,
    "x = - 3": -3,
    "1 1/2": F(3, 2),
    "½": F(1, 2),
    "1½": F(3, 2),
    "1½ cups": F(3, 2),
    "-1 1/2": -F(3, 2),
    r"-\dfrac{3}{4}": -F(3, 4),
    "50%": 50,
    r"50\%": 50,
    "50 percent": 50,
    "2e3 dollars": 2000,
    "2.5e-3": F("0.0025"),
    "1.5 million": 1500000,
    "2 million dollars": 2 * 10**6,
    "$2M": 2000000,
    "$5k": 5000,
    "2 × 10^3": 2000,
    "2 x 10^3": 2000,
    "2*10**3": 2000,
    "2·10³": 2000,
    r"2 \cdot 10^{3}": 2000,
    r"90^\circ": 90,
    r"90^{\circ}": 90,
    "90°": 90,
    "20°C": 20,
    "5 m/s^2": 5,
    "5 km/h": 5,
    "5 m": 5,
    "5m": 5,
    "5kg": 5,
    r"5\,\mathrm{m/s}^{2}": 5,
    r"5\text{ m/s}": 5,
    "18, because 9*2 = 18": 18,
    "12 because 40-28=12": 12,
    "2 * 9 = 18": 18,
    "9*2=18 dollars": 18,
    "x = 5": 5,
    r"$x=5$": 5,
    r"\(5\)": 5,
    "2 and a half": F(5, 2),
    "7 (not 8)": 7,
    "0,5": F(1, 2),
    "3,50 €": F(7, 2),
    "1,234": 1234,
    "1,234.5": F("1234.5"),
    ".5": F(1, 2),
    "5 apples": 5,
    "about 5": 5,
    "negative 5": -5,
    "3rd": 3,
    "approximately 3.14": F("3.14"),
    "18 dollars per day": 18,
    "12/20": F(3, 5),
    "1/2 cup": F(1, 2),
    "He has 5": 5,
    "$x = 5$ apples": 5,
    "5 dollars.": 5,
    "3-day": 3,
    "+5": 5,
    r"\frac{-1}{2}": -F(1, 2),
    "5\u2009kg": 5,
    "１２": 12,
    "Rs. 500": 500,
    "Rs 500": 500,
    "No. 5": 5,
    "the 5 boys are 5": 5,
    "5:": 5,
    "$18.00": 18,
    "1e3": 1000,
    "5 in.": 5,
    "180 feet^2": 180,
    "6 ft²": 6,
    "US$5": 5,
    "A$5": 5,
    "5 people": 5,
}
NO_QUANTITY = [
    "18 or 19",
    "3 and 4",
    "1 2",
    "3, 4",
    "5-7",
    "5–7",
    "10-3",
    "40 + 33",
    "not 5",
    "isn't 5",
    "3:1",
    "3:30",
    "2024-01-31",
    r"2\pi",
    "2π",
    r"\sqrt{2}",
    "√2",
    "5x",
    "5x^2",
    "2^10",
    "x^2",
    "5!",
    "±5",
    r"\pm 5",
    "x > 5",
    "x ≠ 5",
    "x != 5",
    r"x \neq 5",
    r"\frac{\sqrt{3}}{2}",
    "1/0",
    "",
    "abc",
    "9" * 6000,
    "1e999999999",
    "twice 5",
    "half of 12",
    "5 apples and 4 pears",
    "5 feet 3 inches",
    r"5\sqrt{2}",
    "log_2 8",
    r"\log_2 8",
    "5i",
    "3+4i",
    "(3, 4)",
    "5 more than 3",
    "0.\\overline{3}",
    "6 so 2+3=5",
    "between 3 and 5",
    "5 to 7",
    "52_8",
    "1.2.3",
    "3 5/6 7",
    "5 - 5",
    "1,2345",
    "[1,2]",
    "{5,6}",
    "5/6/7",
    "2 3 4",
    "12 34",
    "x_1",
    "5*",
    "-",
    "5 squared",
    "7 or " + "9" * 6000,
]


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_quantity_is_read(text: str) -> None:
    assert parse_number(text) == WHOLE[text]


@pytest.mark.parametrize("text", NO_QUANTITY, ids=lambda text: text[:20])
def test_a_part_is_no_quantity(text: str) -> None:
    assert parse_number(text) is None


def test_out_of_has_two_readings() -> None:
    found = quantity("12 out of 20")
    assert found is not None and found.values == (F(12), F(3, 5))


@pytest.mark.parametrize("words", ["Therefore, she makes {} dollars.", "So {}", "In total, {} apples."])
def test_a_sentence_that_concludes_states_the_answer(words: str) -> None:
    found = stated_quantity("It costs 5 each. She buys 3 of 9. " + words.format(15))
    assert found is not None and found.values == (F(15),)


@pytest.mark.parametrize("words", ["She has 15.", "So 3 + 15", "She had 3. 15 are left."])
def test_the_last_number_does_not_win_by_being_last(words: str) -> None:
    assert stated_quantity("It costs 5 each. " + words) is None


@given(st.integers(1000, 10**9), st.sampled_from([",", " ", "'", "’", "_", "{,}", r"\,", "\u202f", "\u00a0", "\u2009"]))
def test_thousands_may_be_separated_by(number: int, separator: str) -> None:
    assert parse_number(f"{number:,}".replace(",", separator)) == number


@given(
    st.integers(1, 999),
    st.integers(1, 98),
    st.sampled_from(["{} {}/{}", r"{}\frac{{{}}}{{{}}}", r"${}\dfrac{{{}}}{{{}}}$"]),
)
def test_mixed_numbers(whole: int, top: int, form: str) -> None:
    assert parse_number(form.format(whole, top, 99)) == whole + F(top, 99)


@given(st.text(st.sampled_from("0123456789.,-−$%/eE \\frac{}ab^_=()\n½°€"), max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    quantity(text)
    stated_quantity(text)


def test_long_text_is_read_quickly() -> None:
    start = time.process_time()
    for part in (
        "1",
        "1 ",
        "1,",
        "1/",
        "a^2",
        "(a ",
        "$",
        "-",
        ". So 1",
        "\\frac",
        "½",
        " because",
        "1 000 ",
        "x = ",
        "= ",
        " not 1",
        ", not 1",
        "cm^2 ",
        "5 a",
        "((",
        "a+1",
        ". So 1=",
        "x_",
        " if",
    ):
        stated_quantity(part * (1900 // len(part)))
        stated_quantity(part * 20_000)
    assert time.process_time() - start < 10
