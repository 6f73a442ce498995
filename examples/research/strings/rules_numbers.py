"""String rules on numbers, dates, times and other codes."""

from __future__ import annotations

from research.strings.parts import Inputs, Rule, Source, family, register_functions
from research.strings.rules_judged import telling


def small_numbers(inputs: Inputs) -> Source:
    """Whole numbers up to a bound of the task."""
    high = inputs.draw.choice([9, 20, 50, 99])
    return lambda: str(inputs.draw.randint(0, high))


@family("number")
def plus(inputs: Inputs) -> Rule:
    k = inputs.draw.choice([1, 2, 3, 4, 5, 10, 100])
    return small_numbers(inputs), lambda text: str(int(text) + k)


@family("number")
def minus(inputs: Inputs) -> Rule:
    k = inputs.draw.choice([1, 2, 3, 5, 10])
    return (lambda: str(inputs.draw.randint(k, 99))), lambda text: str(int(text) - k)


@family("number")
def times(inputs: Inputs) -> Rule:
    k = inputs.draw.choice([2, 2, 3, 5, 10])
    return (lambda: str(inputs.draw.randint(0, 20))), lambda text: str(int(text) * k)


@family("number")
def digit_sum(inputs: Inputs) -> Rule:
    return (lambda: inputs.number(2, 2)), lambda text: str(sum(map(int, text)))


@family("number")
def is_even(inputs: Inputs) -> Rule:
    return (lambda: inputs.number(1, 4)), telling(inputs, lambda text: text if text[-1] in "02468" else "")


@family("number")
def is_above(inputs: Inputs) -> Rule:
    k = inputs.draw.randrange(10, 91, 10)
    return small_numbers_around(inputs, k), telling(inputs, lambda text: text if int(text) > k else "")


def small_numbers_around(inputs: Inputs, k: int) -> Source:
    """Whole numbers on both sides of `k`, evenly."""
    return lambda: str(inputs.draw.randint(0, k) if inputs.draw.random() < 0.5 else inputs.draw.randint(k + 1, 99))


def two_numbers(inputs: Inputs, high: int) -> tuple[str, Source]:
    """(separator, source of two numbers with it between them)."""
    separator = inputs.choice([" ", ", ", "+", "/", " and ", "-"])
    return separator, lambda: separator.join(str(inputs.draw.randint(0, high)) for _ in range(2))


@family("number")
def larger(inputs: Inputs) -> Rule:
    separator, source = two_numbers(inputs, 99)
    return source, lambda text: max(text.split(separator), key=int)


@family("number")
def smaller(inputs: Inputs) -> Rule:
    separator, source = two_numbers(inputs, 99)
    return source, lambda text: min(text.split(separator), key=int)


@family("number")
def total(inputs: Inputs) -> Rule:
    separator, source = two_numbers(inputs, inputs.draw.choice([5, 9, 20]))
    return source, lambda text: str(sum(map(int, text.split(separator))))


@family("number")
def padded(inputs: Inputs) -> Rule:
    width = inputs.draw.randint(3, 5)
    return (lambda: inputs.number(1, 4)), lambda text: text.zfill(width)


@family("number")
def as_price(inputs: Inputs) -> Rule:
    left, right = inputs.draw.choice(
        [("$", ""), ("", "%"), ("$", ".00"), ("", " kg"), ("", " cm"), ("#", ""), ("-", "")]
    )
    return (lambda: inputs.number(1, 4)), lambda text: left + text + right


@family("number")
def strokes(inputs: Inputs) -> Rule:
    mark = inputs.choice("*|#ox-")
    return (lambda: str(inputs.draw.randint(1, 9))), lambda text: mark * int(text)


@family("number")
def strokes_counted(inputs: Inputs) -> Rule:
    mark = inputs.choice("*|#ox-")
    return (lambda: mark * inputs.draw.randint(1, 9)), lambda text: str(len(text))


@family("number")
def whole_part(inputs: Inputs) -> Rule:
    wanted = inputs.draw.randint(0, 1)
    return (lambda: inputs.number(1, 3) + "." + inputs.number(1, 3)), lambda text: text.split(".")[wanted]


@family("number")
def grouped(inputs: Inputs) -> Rule:
    """Commas between thousands."""
    return (lambda: inputs.number(4, 7)), lambda text: f"{int(text):,}"


@family("number")
def ungrouped(inputs: Inputs) -> Rule:
    return (lambda: f"{int(inputs.number(4, 7)):,}"), lambda text: text.replace(",", "")


@family("number")
def last_digits(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 2)
    return (lambda: inputs.number(3, 6)), lambda text: text[-k:]


# Dates, times, codes


def dates(inputs: Inputs) -> tuple[str, list[int], Source]:
    """(separator, order of year, month and day, source of dates so written)."""
    separator, order = inputs.choice(["-", "/", "."]), inputs.draw.choice([[0, 1, 2], [2, 1, 0], [1, 2, 0]])

    def source() -> str:
        parts = [str(inputs.draw.randint(1950, 2030))]
        parts += [f"{inputs.draw.randint(1, high):02}" for high in (12, 28)]
        return separator.join(parts[part] for part in order)

    return separator, order, source


@family("date")
def other_order(inputs: Inputs) -> Rule:
    """Year, month and day in another order, or with another separator."""
    separator, _, source = dates(inputs)
    new, order = inputs.choice(["-", "/", ".", " "]), inputs.draw.choice([[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]])
    return source, lambda text: new.join(text.split(separator)[part] for part in order)


@family("date")
def one_part(inputs: Inputs) -> Rule:
    separator, _, source = dates(inputs)
    part = inputs.draw.randint(0, 2)
    return source, lambda text: text.split(separator)[part]


@family("date")
def two_parts(inputs: Inputs) -> Rule:
    separator, _, source = dates(inputs)
    first, second = inputs.draw.sample(range(3), 2)
    new = inputs.choice(["-", "/", "."])
    return source, lambda text: new.join(text.split(separator)[part] for part in (first, second))


def clock(inputs: Inputs) -> str:
    return f"{inputs.draw.randint(0, 23):02}:{inputs.draw.randint(0, 59):02}"


register_functions(
    "time",
    {
        "hour": lambda text: text[:2],
        "minutes": lambda text: text[3:],
        "in_words": lambda text: f"{text[:2]}h{text[3:]}m",
        "half_day": lambda text: "am" if int(text[:2]) < 12 else "pm",
        "to_twelve": lambda text: f"{(int(text[:2]) + 11) % 12 + 1}:{text[3:]} {'am' if int(text[:2]) < 12 else 'pm'}",
    },
    lambda inputs: lambda: clock(inputs),
)


@family("code")
def phone(inputs: Inputs) -> Rule:
    style = inputs.choice(["{}-{}-{}", "({}) {}-{}", "{}.{}.{}", "{} {} {}", "+1 {} {} {}"])
    return (lambda: inputs.number(10, 10)), lambda text: style.format(text[:3], text[3:6], text[6:])


@family("code")
def bare_phone(inputs: Inputs) -> Rule:
    style = inputs.choice(["{}-{}-{}", "({}) {}-{}", "{}.{}.{}", "{} {} {}"])
    source = lambda: style.format(inputs.number(3, 3), inputs.number(3, 3), inputs.number(4, 4))  # noqa: E731
    return source, lambda text: "".join(c for c in text if c.isdigit())


@family("code")
def hyphenated(inputs: Inputs) -> Rule:
    place, separator = inputs.draw.randint(2, 3), inputs.choice("-. /_")
    length = 2 * place
    return (lambda: inputs.number(length, length)), lambda text: text[:place] + separator + text[place:]


@family("code")
def letters_then_digits(inputs: Inputs) -> Rule:
    """Letters and digits of a code in turn: ab12 to 12ab, or with a separator between them."""
    separator, digits_first = inputs.choice(["", "-", " ", "/"]), inputs.draw.random() < 0.6
    source = lambda: inputs.syllables(2, 4) + inputs.number(2, 3)  # noqa: E731

    def function(text: str) -> str:
        letters = text.rstrip("0123456789")
        digits = text[len(letters) :]
        return separator.join((digits, letters) if digits_first else (letters, digits))

    return source, function
