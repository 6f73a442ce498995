"""Quantities: read whole, or not at all."""

from __future__ import annotations

import json
import time
from fractions import Fraction as F
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.tasks.quantities import parse_number, quantity, stated_quantity
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier

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
    start = time.perf_counter()
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
    assert time.perf_counter() - start < 10


RIGHT = [
    ("73", "not 33 but 73"),
    ("73", "73, not 33"),
    ("73", "73 and not 33"),
    ("73", "73 rather than 33"),
    ("73", "It isn't 33, it's 73"),
    ("73", "The answer is not 33 but 73."),
    ("73", "The answer is 73, not 33."),
    ("73", "~~33~~ 73"),
    ("60", "5 dozen"),
    ("5000", "5k"),
    ("0.5", "50%"),
    ("50", "50%"),
    ("50%", "0.5"),
    ("50%", "50"),
    ("73", "<think>5</think>73"),
    ("73", "```\n73\n```"),
    ("73", "Answer:\n```\n73\n```"),
    ("73", "<answer>73</answer>"),
    ("73", "### Answer\n73"),
    ("73", "### Answer\n\n73 clips"),
    ("72", "48 + 24 = 72"),
    ("72", "She sold 5.\nAltogether it is 48 + 24 = $72."),
    ("5", "\\boxed{5m}"),
    ("5", "x = 5"),
    ("5", "f(2) = 5"),
    ("5", "the value of x is 5"),
    ("5", "x is 5"),
    ("5", "\\angle ABC = 5"),
    ("5", "AB = 5"),
    ("5", "Total cost = 5"),
    ("5", "$5 a day"),
    ("5", "$5 per day"),
    ("5 dollars", "$5"),
    ("5 m", "5 meters"),
    ("5 cm^2", "5 cm²"),
    ("5 cm^2", "5\\text{ cm}^2"),
    ("5 square feet", "5 ft^2"),
    ("5 km/h", "5 km/h"),
    ("5 km/h", "5 km per hour"),
    ("1024", "2^10 = 1024"),
    ("5", "5 apples (and more)"),
    ("5", "five (5)"),
    ("5", "5 a day"),
    ("7", "7 (not 8)"),
    ("8", "5 m + 3 m = 8 m"),
    ("5", "5 (which is prime)"),
    ("5", "5 of them"),
    ("5", "5 people in all"),
    ("5", "at 5 pm"),
    ("$5", "5 dollars each"),
    ("18", "$18/day"),
    ("18", "18 - the sum of both"),
    ("1000000.5", "1000000.5"),
    ("0.3333333", "1/3"),
    ("72", "Natalia sold 48+24 = <<48+24=72>>72 clips altogether."),
    ("5", "$\\angle A = 5^\\circ$"),
    ("5", "x_1 = 5"),
    ("5", "n=5"),
    ("20", "40% of 50 = 20"),
    ("5", "5 TVs"),
    ("5", "He needs 5 more"),
    ("5", "\\boxed{x = 5}"),
    ("3", "The answer is x = 3."),
    ("5", "5 L"),
    ("5", "5 mL"),
    ("12 out of 20", "0.6"),
    ("5", "Mary has 5"),
    ("70", "70 mph"),
    ("5", "I have 5 cats"),
    ("5", "a 5 dollar bill"),
    ("5", "She has a 5"),
    ("5", "Plan B costs $5"),
]
WRONG = [
    ("4", "x = 3, y = 4"),
    ("10", "2x = 10"),
    ("10", "x + 3 = 10"),
    ("3", "3 x"),
    ("5", "5 - x"),
    ("5", "f(5)"),
    ("5", "f (5)"),
    ("40", "40 plus"),
    ("5 m", "5 km"),
    ("5 cm^3", "5 cm^2"),
    ("5 euros", "$5"),
    ("1000000", "1000000.5"),
    ("4", "\\boxed{3} or \\boxed{4}"),
    ("2", "#### Step 2\n40+33\nAnswer: 73"),
    ("5", "The wrong answer is 5"),
    ("5", "at least 5"),
    ("5", "5x"),
    ("5", "5xy"),
    ("5", "5ab"),
    ("5", "\\boxed{5n}"),
    ("-5", "x - 5"),
    ("5", "x - 5"),
    ("5", "x-5"),
    ("5", "5(x+1)"),
    ("5", "5 (x + 1)"),
    ("5", "5/x"),
    ("40", "40% of x"),
    ("5", "5 times x"),
    ("9", "x^2 = 9"),
    ("10", "xy + 2 = 10"),
    ("10", "x/2 = 10"),
    ("10", "\\frac{x}{2} = 10"),
    ("5", "\\sqrt{x} = 5"),
    ("5", "|x| = 5"),
    ("10", "2 * boys + 3 = 10"),
    ("10", "boys - 3 = 10"),
    ("10", "2m = 10"),
    ("10", "2a = 10"),
    ("10", "-x = 10"),
    ("10", "x + y = 10"),
    ("5", "more than 5"),
    ("5", "over 5"),
    ("5", "up to 5"),
    ("5", "no more than 5"),
    ("5", "5 or more"),
    ("5", "almost 5"),
    ("5", "square root of 5"),
    ("5", "5 fifths"),
    ("5", "5M"),
    ("5", "5 million"),
    ("5", "5 dozen"),
    ("5 miles", "5 km"),
    ("5 hours", "5 minutes"),
    ("5 m/s", "5 m"),
    ("5 m", "5 m/s"),
    ("5 m^2", "5 m"),
    ("5 square meters", "5 m"),
    ("5 cents", "$5"),
    ("50%", "0.5%"),
    ("1/3", "0.333"),
    ("5", "It isn't 5"),
    ("5", "5 is wrong"),
    ("5", "Wrong answer: 5"),
    ("5", "an incorrect answer is 5"),
    ("33", "not 33 but 73"),
    ("33", "73, not 33"),
    ("33", "~~33~~ 73"),
    ("5", "<think>The answer is 5"),
    ("5", "<answer>6</answer> 5"),
    ("8", "2^x = 8"),
    ("10", "3 + x = 10"),
    ("10", "f(x) = 10"),
    ("5", "5 y"),
    ("5", "2x + 5"),
    ("5", "y 5"),
    ("4", "x=3; y=4"),
    ("4", "x = 3 and y = 4"),
    ("4", "x = y, z = 4"),
    ("4", "x is 3, y = 4"),
    ("5", "Step 5"),
    ("5", "not more than 5"),
    ("10", "10 = 2x"),
    ("5", "log(5)"),
    ("5", "x 5"),
    ("5", "5, not including tax, or 6"),
    ("12", "The number is less than or equal to 12"),
    ("1234567", "1234567.4"),
    ("5", "y = 5x"),
    ("5", "5 + x"),
    ("5", "x + 5"),
    ("5", "5*x"),
    ("5", "5 × n"),
    ("3", "x = 3y"),
    ("1", "1 - p"),
    ("5", "about 5 or 6"),
    ("5", "She has 5 apples because 2+3. Then she buys 7"),
    ("10", "He ate 3. So 2x = 10"),
    ("5k", "5"),
    ("10", "10x = 5y"),
    ("6", "Maria bought n + 3 = 6"),
    ("5", "\\boxed{5y}"),
    ("5", "\\boxed{x+5}"),
]


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_the_whole_quantity_is_rewarded(gold: str, text: str) -> None:
    assert get_verifier("numeric")(Task("p", answer=gold), text) == 1.0


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_a_part_or_another_unit_is_not_rewarded(gold: str, text: str) -> None:
    assert get_verifier("numeric")(Task("p", answer=gold), text) == 0.0


def test_a_solution_whose_answer_line_was_cut_off_may_end_with_an_equation(shared_data: Path) -> None:
    """A tenth of GSM8K: most are read, and of those nearly all as the gold answer."""
    lines = (shared_data / "gsm8k-test.jsonl").read_text().splitlines()[::10]
    cut = [json.loads(line)["answer"].rsplit("####", 1) for line in lines]
    found = [(stated_quantity(solution.strip()), F(gold.strip().replace(",", ""))) for solution, gold in cut]
    read = [(quantity.values, gold) for quantity, gold in found if quantity is not None]
    assert len(read) > 0.7 * len(found)
    assert sum(gold in values for values, gold in read) > 0.97 * len(read)
