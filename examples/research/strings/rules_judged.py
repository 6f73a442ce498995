"""String rules that tell texts apart, count in them, look them up, or put word endings on."""

from __future__ import annotations

from research.strings.parts import LETTERS, VOWELS, WORDS, Function, Inputs, Rule, family, listed, register_functions

# Told apart, counted


def telling(inputs: Inputs, holds: Function) -> Function:
    """A function that says which of two labels a text has; `holds` gives "" for no."""
    yes, no = inputs.labels()
    return lambda text: yes if holds(text) else no


@family("tell")
def starts_with_vowel(inputs: Inputs) -> Rule:
    source = lambda: inputs.choice(VOWELS) + inputs.word() if inputs.draw.random() < 0.4 else inputs.word()  # noqa: E731
    return source, telling(inputs, lambda text: text[0] if text[0] in VOWELS else "")


@family("tell")
def ends_with_vowel(inputs: Inputs) -> Rule:
    return inputs.word, telling(inputs, lambda text: text[-1] if text[-1] in VOWELS else "")


@family("tell")
def has_letter(inputs: Inputs) -> Rule:
    letter = inputs.choice(LETTERS)
    return inputs.containing(letter, 0.5), telling(inputs, lambda text: letter if letter in text else "")


@family("tell")
def is_upper(inputs: Inputs) -> Rule:
    source = lambda: inputs.word().upper() if inputs.draw.random() < 0.5 else inputs.word()  # noqa: E731
    return source, telling(inputs, lambda text: text if text.isupper() else "")


@family("tell")
def is_number(inputs: Inputs) -> Rule:
    source = lambda: inputs.number() if inputs.draw.random() < 0.5 else inputs.word()  # noqa: E731
    return source, telling(inputs, lambda text: text if text.isdigit() else "")


@family("tell")
def is_long(inputs: Inputs) -> Rule:
    least = inputs.draw.randint(5, 7)
    return (lambda: inputs.word(2, 9)), telling(inputs, lambda text: "long" if len(text) >= least else "")


@family("count")
def length(inputs: Inputs) -> Rule:
    return (lambda: inputs.word(1, 9)), lambda text: str(len(text))


@family("count")
def letter(inputs: Inputs) -> Rule:
    counted = inputs.choice(LETTERS)
    return inputs.containing(counted, 0.7), lambda text: str(text.count(counted))


@family("count")
def vowels(inputs: Inputs) -> Rule:
    return inputs.word, lambda text: str(sum(c in VOWELS for c in text))


@family("count")
def with_length(inputs: Inputs) -> Rule:
    separator = inputs.choice(["", ":", " ", "-", "="])
    return (lambda: inputs.word(2, 8)), lambda text: f"{text}{separator}{len(text)}"


# Endings


def plural_of(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2:-1] not in VOWELS else word + "s"


def past_of(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if word.endswith("y") and word[-2:-1] not in VOWELS else word + "ed"


def progressive_of(word: str) -> str:
    return (word[:-1] if word.endswith("e") else word) + "ing"


register_functions(
    "ending",
    {
        "plural": plural_of,
        "past": past_of,
        "progressive": progressive_of,
        "article": lambda word: ("an " if word[0] in VOWELS else "a ") + word,
    },
    lambda inputs: lambda: inputs.word() + inputs.choice(["", "", "", "e", "y", "s", "ch"]),
)


# Looked up


@family("look_up")
def table(inputs: Inputs) -> Rule:
    """A few words, each with a word of its own: the query is one that was shown."""
    keys = inputs.draw.sample(WORDS, inputs.draw.randint(2, 4))
    short = inputs.draw.random() < 0.4
    values = [str(inputs.draw.randint(0, 99)) if short else inputs.word() for _ in keys]
    answers = dict(zip(keys, values, strict=True))
    return (lambda: inputs.choice(keys)), answers.__getitem__


@family("look_up")
def by_first_letter(inputs: Inputs) -> Rule:
    """Two or three first letters, each with a label."""
    first = inputs.draw.sample(LETTERS, inputs.draw.randint(2, 3))
    labels = dict(zip(first, inputs.draw.sample(WORDS, len(first)), strict=True))
    return (lambda: inputs.choice(first) + inputs.word()), lambda text: labels[text[0]]


@family("look_up")
def by_last_word(inputs: Inputs) -> Rule:
    """Two or three words that decide, behind others that do not."""
    keys = inputs.draw.sample(WORDS, inputs.draw.randint(2, 3))
    labels = dict(zip(keys, inputs.draw.sample(WORDS, len(keys)), strict=True))
    return (lambda: f"{inputs.word()} {inputs.choice(keys)}"), lambda text: labels[text.split()[-1]]


MONTHS = listed("January February March April May June July August September October November December")
WEEKDAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = listed(
    """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
)
ROMAN = listed("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX")


def known_table(pairs: dict[str, str], name: str) -> None:
    """A family that is a table known from training: another word order of keys and values tells nothing new."""

    def draw(inputs: Inputs) -> Rule:
        return (lambda: inputs.choice(list(pairs))), pairs.__getitem__

    draw.__name__ = name
    family("know")(draw)


known_table({name: str(n + 1) for n, name in enumerate(MONTHS)}, "month_number")
known_table({str(n + 1): name for n, name in enumerate(MONTHS)}, "month_name")
known_table({name: name[:3] for name in [*MONTHS, *WEEKDAYS]}, "short_name")
known_table({name: WEEKDAYS[(n + 1) % 7] for n, name in enumerate(WEEKDAYS)}, "next_day")
known_table({name: str(n) for n, name in enumerate(NUMBERS)}, "number_of_word")
known_table({str(n): name for n, name in enumerate(NUMBERS)}, "word_of_number")
known_table({str(n + 1): name for n, name in enumerate(ROMAN)}, "roman")
known_table({name: str(n + 1) for n, name in enumerate(ROMAN)}, "from_roman")
known_table({c: LETTERS[(n + 1) % 26] for n, c in enumerate(LETTERS)}, "next_letter")
known_table({c: str(n + 1) for n, c in enumerate(LETTERS)}, "letter_number")
