"""String rules on words, names, lists and fields of a text."""

from __future__ import annotations

import re

from research.strings.parts import (
    BRACKETS,
    LETTERS,
    SEPARATORS,
    Function,
    Inputs,
    Rule,
    Source,
    family,
    register_functions,
)

register_functions(
    "words",
    {
        "first": lambda text: text.split()[0],
        "last": lambda text: text.split()[-1],
        "drop_first": lambda text: " ".join(text.split()[1:]),
        "drop_last": lambda text: " ".join(text.split()[:-1]),
        "reverse_order": lambda text: " ".join(reversed(text.split())),
        "swap_ends": lambda text: " ".join([(w := text.split())[-1], *w[1:-1], w[0]]),
        "acronym": lambda text: "".join(word[0] for word in text.split()).upper(),
        "initials": lambda text: "".join(word[0] for word in text.split()),
        "dotted_initials": lambda text: "".join(word[0].upper() + "." for word in text.split()),
        "last_letters": lambda text: "".join(word[-1] for word in text.split()),
        "remove_spaces": lambda text: text.replace(" ", ""),
        "upper_first": lambda text: " ".join([(w := text.split())[0].upper(), *w[1:]]),
        "upper_last": lambda text: " ".join([*(w := text.split())[:-1], w[-1].upper()]),
        "repeat_first": lambda text: text.split()[0] + " " + text,
        "repeat_each": lambda text: " ".join(word + " " + word for word in text.split()),
        "reverse_each": lambda text: " ".join(word[::-1] for word in text.split()),
        "drop_first_letters": lambda text: " ".join(word[1:] for word in text.split()),
        "pascal": lambda text: "".join(word.capitalize() for word in text.split()),
        "longest": lambda text: max(text.split(), key=len),
        "shortest": lambda text: min(text.split(), key=len),
    },
    Inputs.phrases,
)


@family("words")
def camel(inputs: Inputs) -> Rule:
    def function(text: str) -> str:
        first, *rest = text.split()
        return first + "".join(word.capitalize() for word in rest)

    return inputs.phrase, function


@family("words")
def count(inputs: Inputs) -> Rule:
    return inputs.phrases(1, 4), lambda text: str(len(text.split()))


@family("words")
def sort(inputs: Inputs) -> Rule:
    return inputs.phrase, lambda text: " ".join(sorted(text.split()))


@family("words")
def second(inputs: Inputs) -> Rule:
    return inputs.phrases(2, 4), lambda text: text.split()[1]


@family("words")
def swap_two(inputs: Inputs) -> Rule:
    return inputs.phrases(2, 2), lambda text: " ".join(reversed(text.split()))


@family("words")
def join(inputs: Inputs) -> Rule:
    separator = inputs.choice(SEPARATORS)
    return inputs.phrases(), lambda text: text.replace(" ", separator)


@family("words")
def split(inputs: Inputs) -> Rule:
    separator = inputs.choice(SEPARATORS)
    return (lambda: inputs.phrase().replace(" ", separator)), lambda text: text.replace(separator, " ")


@family("words")
def change_separator(inputs: Inputs) -> Rule:
    old, new = inputs.draw.sample(SEPARATORS, 2)
    return (lambda: inputs.phrase().replace(" ", old)), lambda text: text.replace(old, new)


@family("words")
def replace_word(inputs: Inputs) -> Rule:
    old, new = inputs.word(), inputs.word()

    def source() -> str:
        words = inputs.phrase().split()
        words[inputs.draw.randrange(len(words))] = old
        return " ".join(words)

    return source, lambda text: " ".join(new if word == old else word for word in text.split())


@family("words")
def remove_word(inputs: Inputs) -> Rule:
    gone = inputs.word(2, 4)

    def source() -> str:
        words = inputs.phrase().split()
        words.insert(inputs.draw.randint(0, len(words)), gone)
        return " ".join(words)

    return source, lambda text: " ".join(word for word in text.split() if word != gone)


@family("words")
def insert_between(inputs: Inputs) -> Rule:
    middle = inputs.choice(["and", "or", "of", "the", inputs.word()])
    return inputs.phrases(2, 2), lambda text: text.replace(" ", f" {middle} ")


@family("words")
def put_at_end(inputs: Inputs) -> Rule:
    """A sentence: a capital first, a mark behind."""
    mark = inputs.choice(".!?")
    return inputs.phrase, lambda text: text.capitalize() + mark


@family("words")
def add_word(inputs: Inputs) -> Rule:
    word, at_front = inputs.word(), inputs.draw.random() < 0.5
    return inputs.phrases(1, 3), lambda text: f"{word} {text}" if at_front else f"{text} {word}"


@family("words")
def suffix_each(inputs: Inputs) -> Rule:
    text = inputs.choice([inputs.syllables(1, 2), "!", "s", "?", "."])
    return inputs.phrases(2, 3), lambda shown: " ".join(word + text for word in shown.split())


@family("words")
def prefix_each(inputs: Inputs) -> Rule:
    text = inputs.choice([inputs.syllables(1, 2), "#", "@", "-", "$"])
    return inputs.phrases(2, 3), lambda shown: " ".join(text + word for word in shown.split())


# Names

CASES: list[Function] = [str, str.lower, str.upper]

register_functions(
    "name",
    {
        "last_comma_first": lambda text: ", ".join(reversed(text.split())),
        "initial_and_last": lambda text: f"{text[0]}. {text.split()[-1]}",
        "first_and_initial": lambda text: f"{text.split()[0]} {text.split()[-1][0]}.",
        "user": lambda text: (text[0] + text.split()[-1]).lower(),
        "last_and_initial": lambda text: f"{text.split()[-1]} {text[0]}.",
        "dotted": lambda text: text.lower().replace(" ", "."),
    },
    lambda inputs: inputs.name,
)


@family("name")
def mail(inputs: Inputs) -> Rule:
    place, separator = f"@{inputs.word()}.{inputs.choice(['com', 'org', 'net'])}", inputs.choice([".", "_", ""])
    return inputs.name, lambda text: text.lower().replace(" ", separator) + place


@family("name")
def titled(inputs: Inputs) -> Rule:
    title = inputs.choice(["Dr.", "Mr.", "Ms.", "Prof.", "Dear", "Hello", "Hi"])
    whole = inputs.draw.random() < 0.5
    return inputs.name, lambda text: f"{title} {text if whole else text.split()[-1]}"


@family("name")
def pattern(inputs: Inputs) -> Rule:
    """Parts of a name, each whole or an initial, in a drawn order of two or three."""
    parts = [inputs.draw.choice([(0, None), (0, 1), (-1, None), (-1, 1), (-1, 3), (0, 3)]) for _ in range(2)]
    separator, case = inputs.choice(["", "-", "_", " ", ".", "/", "+"]), inputs.choice(CASES)
    if parts[0] == parts[1]:
        parts[1] = (-1 - parts[0][0], parts[0][1])
    return inputs.name, lambda text: case(separator.join(text.split()[word][:k] for word, k in parts))


# Lists


def lists(inputs: Inputs) -> tuple[str, Source]:
    """(separator, source of two to four short words or numbers with it between them)."""
    separator = inputs.choice([", ", ",", ";", "/", "-", " | "])
    items: list[Source] = [lambda: inputs.word(2, 5), lambda: inputs.number(1, 2)]
    item = inputs.draw.choice(items)
    return separator, lambda: separator.join(item() for _ in range(inputs.draw.randint(2, 4)))


@family("list")
def first_item(inputs: Inputs) -> Rule:
    separator, source = lists(inputs)
    return source, lambda text: text.split(separator)[0]


@family("list")
def last_item(inputs: Inputs) -> Rule:
    separator, source = lists(inputs)
    return source, lambda text: text.split(separator)[-1]


@family("list")
def reverse_items(inputs: Inputs) -> Rule:
    separator, source = lists(inputs)
    return source, lambda text: separator.join(reversed(text.split(separator)))


@family("list")
def count_items(inputs: Inputs) -> Rule:
    separator, source = lists(inputs)
    return source, lambda text: str(text.count(separator) + 1)


@family("list")
def respaced(inputs: Inputs) -> Rule:
    separator, source = lists(inputs)
    new = inputs.choice([" ", " and ", ", ", "\\", " -> ", "+", ""])
    return source, lambda text: text.replace(separator, new)


# Fields


def fields(inputs: Inputs) -> tuple[str, Source]:
    """(separator, source of two words or numbers with it between them)."""
    separator = inputs.choice(["@", ":", "=", "/", "-", "_", ".", ": ", " = ", "#", "|"])
    return (
        separator,
        lambda: (
            inputs.word(2, 6) + separator + (inputs.word(2, 6) if inputs.draw.random() < 0.6 else inputs.number(1, 4))
        ),
    )


@family("field")
def before(inputs: Inputs) -> Rule:
    separator, source = fields(inputs)
    return source, lambda text: text.split(separator)[0]


@family("field")
def after(inputs: Inputs) -> Rule:
    separator, source = fields(inputs)
    return source, lambda text: text.split(separator)[1]


@family("field")
def swapped(inputs: Inputs) -> Rule:
    separator, source = fields(inputs)
    return source, lambda text: separator.join(reversed(text.split(separator)))


@family("field")
def with_other_separator(inputs: Inputs) -> Rule:
    separator, source = fields(inputs)
    new = inputs.choice([" is ", " -> ", " at ", "::", "__", ", "])
    return source, lambda text: text.replace(separator, new)


@family("field")
def between(inputs: Inputs) -> Rule:
    left, right = inputs.choice(BRACKETS[:5])
    return _bracketed(inputs, left, right), lambda text: text.split(left, 1)[1].split(right)[0]


@family("field")
def without_bracketed(inputs: Inputs) -> Rule:
    left, right = inputs.choice(BRACKETS[:4])
    return _bracketed(inputs, left, right), lambda text: text.split(left)[0] + text.split(right)[1]


@family("field")
def unwrapped(inputs: Inputs) -> Rule:
    left, right = inputs.choice(BRACKETS)
    return (lambda: left + inputs.word() + right), lambda text: text[1:-1]


@family("field")
def untagged(inputs: Inputs) -> Rule:
    """One of several tags around a text is taken off."""
    return (lambda: f"<{(name := inputs.choice('abip'))}>{inputs.phrase(1, 2)}</{name}>"), lambda text: re.sub(
        "<[^>]*>", "", text
    )


@family("field")
def filled(inputs: Inputs) -> Rule:
    """A text with a gap that the input fills."""
    left, right = inputs.phrase(1, 2), inputs.phrase(1, 2)
    return inputs.words_or(inputs.name, inputs.number), lambda text: f"{left} {text} {right}"


@family("field")
def file_ending(inputs: Inputs) -> Rule:
    new = inputs.choice(["txt", "md", "csv", "png", "bak", "json"])
    endings = ["jpg", "doc", "html", "py", "xml", "log", "gif"]
    return (lambda: f"{inputs.word()}.{inputs.choice(endings)}"), lambda text: f"{text.split('.')[0]}.{new}"


def _bracketed(inputs: Inputs, left: str, right: str) -> Source:
    around = inputs.choice(["", " "])

    def source() -> str:
        before, inside, behind = (inputs.word(2, 5) for _ in range(3))
        return f"{before}{around}{left}{inside}{right}{around}{behind}"

    return source


@family("field")
def letter_pairs(inputs: Inputs) -> Rule:
    """A letter and a number: the letter so many times."""
    return (lambda: inputs.choice(LETTERS) + str(inputs.draw.randint(1, 6))), lambda text: text[0] * int(text[1])
