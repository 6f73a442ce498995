"""String rules on the letters of a text: case, order, parts, what is added and replaced."""

from __future__ import annotations

import re
from itertools import groupby

from research.strings.parts import (
    BRACKETS,
    LETTERS,
    SEPARATORS,
    VOWELS,
    Inputs,
    Rule,
    family,
    register_functions,
)

ANY_CASE_VOWELS = VOWELS + VOWELS.upper()


def pairs_swapped(text: str) -> str:
    """Letters 1 and 2, 3 and 4, ... change places."""
    return "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2))


def alternating(text: str) -> str:
    """Lower case and upper case by turns."""
    return "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(text))


register_functions(
    "case",
    {
        "upper": str.upper,
        "lower": str.lower,
        "swap": str.swapcase,
        "capitalise": str.capitalize,
        "title": str.title,
    },
    lambda inputs: inputs.draw.choice(
        [inputs.words_or(), inputs.phrases(), lambda: inputs.mixed_case(inputs.phrase())]
    ),
)
register_functions(
    "case",
    {
        "first_lower": lambda text: text[0].lower() + text[1:].upper(),
        "last_upper": lambda text: text[:-1].lower() + text[-1].upper(),
        "alternating": alternating,
        "vowels_upper": lambda text: "".join(c.upper() if c in VOWELS else c for c in text),
        "consonants_upper": lambda text: "".join(c if c in VOWELS else c.upper() for c in text),
    },
    lambda inputs: inputs.word,
)
register_functions("order", {"copy": str, "reverse": lambda text: text[::-1]}, Inputs.anything)
register_functions(
    "order",
    {
        "swap_pairs": pairs_swapped,
        "every_other": lambda text: text[::2],
        "second_of_two": lambda text: text[1::2],
        "mirror": lambda text: text + text[::-1],
        "swap_ends": lambda text: text[-1] + text[1:-1] + text[0],
        "first_and_last": lambda text: text[0] + text[-1],
        "inner": lambda text: text[1:-1],
        "halves": lambda text: text[len(text) // 2 :] + text[: len(text) // 2],
    },
    Inputs.words_or,
)
register_functions(
    "order",
    {
        "sort": lambda text: "".join(sorted(text)),
        "squeeze": lambda text: "".join(c for c, _ in groupby(text)),
        "unique": lambda text: "".join(dict.fromkeys(text)),
    },
    lambda inputs: inputs.containing(inputs.choice(["ee", "ll", "oo", "ss", "tt"])),
)


@family("part")
def first(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 3)
    return inputs.anything(), lambda text: text[:k].strip()


@family("part")
def last(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 3)
    return inputs.anything(), lambda text: text[-k:].strip()


@family("part")
def drop_first(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 2)
    return inputs.anything(), lambda text: text[k:]


@family("part")
def drop_last(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 2)
    return inputs.anything(), lambda text: text[:-k]


@family("part")
def nth_letter(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 3)
    return (lambda: inputs.word(max(4, inputs.sizes.word[0]))), lambda text: text[k]


@family("order")
def rotate_left(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 2)
    return inputs.words_or(inputs.number, inputs.mixed), lambda text: text[k:] + text[:k]


@family("order")
def rotate_right(inputs: Inputs) -> Rule:
    k = inputs.draw.randint(1, 2)
    return inputs.words_or(inputs.number, inputs.mixed), lambda text: text[-k:] + text[:-k]


@family("letters")
def drop_vowels(inputs: Inputs) -> Rule:
    return inputs.words_or(inputs.phrase), lambda text: "".join(c for c in text if c not in ANY_CASE_VOWELS)


@family("letters")
def keep_vowels(inputs: Inputs) -> Rule:
    return inputs.words_or(), lambda text: "".join(c for c in text if c in ANY_CASE_VOWELS)


@family("letters")
def replace_vowels(inputs: Inputs) -> Rule:
    mark = inputs.choice("*_-.#?xo0")
    return inputs.words_or(inputs.phrase), lambda text: re.sub("[aeiouAEIOU]", mark, text)


@family("letters")
def replace(inputs: Inputs) -> Rule:
    old, new = inputs.draw.sample(LETTERS, 2)
    new = new if inputs.draw.random() < 0.6 else inputs.choice("*#@_-.013457")
    return inputs.containing(old, 0.8), lambda text: text.replace(old, new)


@family("letters")
def replace_two(inputs: Inputs) -> Rule:
    old, second, new, other = inputs.draw.sample(LETTERS, 4)
    source = inputs.containing(old)
    table = str.maketrans({old: new, second: other})
    return (lambda: source() + (second if inputs.draw.random() < 0.6 else "")), lambda text: text.translate(table)


@family("letters")
def delete(inputs: Inputs) -> Rule:
    gone = inputs.choice(LETTERS)
    return inputs.containing(gone), lambda text: text.replace(gone, "")


@family("letters")
def swap_two_letters(inputs: Inputs) -> Rule:
    a, b = inputs.draw.sample(LETTERS, 2)
    source = inputs.containing(a)
    return (lambda: source() + b), lambda text: text.translate(str.maketrans(a + b, b + a))


@family("letters")
def leet(inputs: Inputs) -> Rule:
    table = str.maketrans(*inputs.draw.choice([("aeio", "4310"), ("aeo", "@30"), ("eis", "31$"), ("aiost", "41057")]))
    return inputs.words_or(inputs.phrase), lambda text: text.translate(table)


@family("letters")
def shift(inputs: Inputs) -> Rule:
    k = inputs.draw.choice([-2, -1, 1, 2])
    table = str.maketrans(LETTERS, LETTERS[k:] + LETTERS[:k])
    high = max(inputs.sizes.word[0], 6)
    return (lambda: inputs.word(inputs.sizes.word[0], high)), lambda text: text.translate(table)


@family("letters")
def double(inputs: Inputs) -> Rule:
    return inputs.words_or(inputs.number), lambda text: "".join(c + c for c in text)


@family("letters")
def double_vowels(inputs: Inputs) -> Rule:
    return inputs.words_or(), lambda text: re.sub("([aeiouAEIOU])", r"\1\1", text)


@family("letters")
def double_end(inputs: Inputs) -> Rule:
    at_front, times = inputs.draw.random() < 0.4, inputs.draw.randint(2, 4)
    if at_front:
        return inputs.words_or(), lambda text: text[0] * times + text[1:]
    return inputs.words_or(), lambda text: text[:-1] + text[-1] * times


@family("letters")
def spell(inputs: Inputs) -> Rule:
    separator = inputs.choice([" ", *SEPARATORS])
    return inputs.words_or(inputs.number), lambda text: separator.join(text)


@family("letters")
def unspell(inputs: Inputs) -> Rule:
    separator = inputs.choice([" ", *SEPARATORS])
    source = inputs.words_or(inputs.number)
    return (lambda: separator.join(source())), lambda text: text.replace(separator, "")


@family("letters")
def mask_rest(inputs: Inputs) -> Rule:
    """All but the first letter hidden."""
    mark = inputs.choice("*_#.x-")
    return inputs.words_or(inputs.number), lambda text: text[0] + mark * (len(text) - 1)


@family("letters")
def mask_all(inputs: Inputs) -> Rule:
    mark = inputs.choice("*_#.x-ao")
    return inputs.words_or(inputs.number), lambda text: mark * len(text)


@family("letters")
def mask_end(inputs: Inputs) -> Rule:
    mark, k = inputs.choice("*_#.x-"), inputs.draw.randint(1, 2)
    return inputs.words_or(inputs.number), lambda text: text[:-k] + mark * k


@family("letters")
def digits_only(inputs: Inputs) -> Rule:
    return inputs.mixed, lambda text: re.sub("[^0-9]", "", text)


@family("letters")
def no_digits(inputs: Inputs) -> Rule:
    return inputs.mixed, lambda text: re.sub("[0-9]", "", text)


@family("letters")
def hide_digits(inputs: Inputs) -> Rule:
    mark = inputs.choice("*_#.xN")
    return inputs.mixed, lambda text: re.sub("[0-9]", mark, text)


# Added


def added(inputs: Inputs) -> tuple[str, str]:
    text = inputs.affix()
    return text, inputs.choice(["", "", "", " ", "-", "_", "."])


@family("add")
def append(inputs: Inputs) -> Rule:
    text, separator = added(inputs)
    return inputs.anything(), lambda shown: shown + separator + text


@family("add")
def prepend(inputs: Inputs) -> Rule:
    text, separator = added(inputs)
    return inputs.anything(), lambda shown: text + separator + shown


@family("add")
def wrap(inputs: Inputs) -> Rule:
    left, right = inputs.choice(BRACKETS)
    times = inputs.draw.choice((1, 1, 2))
    return inputs.anything(), lambda text: left * times + text + right * times


@family("add")
def tag(inputs: Inputs) -> Rule:
    name = inputs.word(1, 5)
    return inputs.anything(), lambda text: f"<{name}>{text}</{name}>"


@family("add")
def repeat(inputs: Inputs) -> Rule:
    separator, times = inputs.choice(["", " ", "-", ", ", "/"]), inputs.draw.choice((2, 2, 3))
    return inputs.words_or(inputs.number, inputs.name), lambda text: separator.join([text] * times)


@family("add")
def echo_end(inputs: Inputs) -> Rule:
    """The last letters once more, behind the text."""
    k, separator = inputs.draw.randint(1, 3), inputs.choice(["", "-", " "])
    return inputs.words_or(), lambda text: text + separator + text[-k:]


@family("add")
def pig(inputs: Inputs) -> Rule:
    """The first letter goes to the end, with an ending behind it."""
    ending = inputs.choice(["ay", "ay", "ay", "o", "us", "ish", "-x"])
    return inputs.word, lambda text: text[1:] + text[0] + ending


@family("add")
def insert_after_first(inputs: Inputs) -> Rule:
    text = inputs.choice([*"-_.'*:", inputs.syllables(1, 3)])
    return inputs.words_or(inputs.number), lambda shown: shown[0] + text + shown[1:]
