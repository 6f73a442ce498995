"""Made-up few-shot tasks of a word or a short phrase, to choose settings on: no file of a benchmark is read.

    python -m benchmarks.made_up_tasks --output FOLDER      # <folder>/made-up/<task>.jsonl, rows of input and output

Run in `examples`. Rules of form, choices among listed words, labels, and parts of a sentence, the kinds that such
benchmarks have; no task is one of them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

ROWS = 150
"""Of one task."""


def words(text: str) -> list[str]:
    """A list that is written as one text."""
    return text.split()


FRUITS = words("apple banana cherry grape lemon mango orange peach pear plum melon kiwi fig lime apricot")
TOOLS = words("hammer saw drill wrench pliers chisel shovel rake axe screwdriver ladder file level clamp spade")
CLOTHES = words("shirt sock coat glove scarf hat boot belt jacket dress skirt sweater sandal vest tie")
VEHICLES = words("car bus train truck bicycle boat plane tram ferry scooter van taxi tractor canoe wagon")
INSTRUMENTS = words("piano violin guitar drum flute trumpet harp cello organ clarinet tuba banjo oboe lute bell")
NOUNS = (*FRUITS, *TOOLS, *CLOTHES, *VEHICLES, *INSTRUMENTS)
ADJECTIVES = words(
    "cold dark deep fast hard high kind long loud low new old poor rich short slow small soft strong sweet tall thick "
    "warm weak wild young bright cheap clean clear cool dull faint fair fine firm fresh full grand great green harsh "
    "late light mild narrow near neat odd pale plain proud quick quiet rough safe sharp smart smooth steep stiff"
)
VERBS = words(
    "walk talk jump cook read write sing play wash clean open close build carry climb count draw drink eat fall fly "
    "help hold jog kick laugh learn listen look make meet paint pull push rain ride run sail send sit sleep smile "
    "stand start stop swim take teach think throw touch travel turn visit wait watch wear work bake call dance drive"
)
PEOPLE = words(
    "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Karla Leo Maria Nils Olga Paul Rosa Simon Tina Victor"
)
PLACES = words("Berlin Boston Cairo Delhi Dublin Geneva Lima London Madrid Milan Oslo Paris Prague Rome Seoul Tokyo")
UNITS = words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
TEENS = [*UNITS, "seventeen", "eighteen", "nineteen"]
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
Draw = Callable[[random.Random], tuple[str, str]]


def in_words(number: int) -> str:
    """A number below 100, such as forty-two."""
    if number < len(TEENS):
        return TEENS[number]
    tens, rest = divmod(number, 10)
    return TENS[tens - 2] + (f"-{TEENS[rest]}" if rest else "")


def ing_form(verb: str) -> str:
    """The present participle of one of `VERBS`."""
    doubled = {"jog", "run", "sit", "stop", "swim"}
    if verb in doubled:
        return f"{verb}{verb[-1]}ing"
    return (verb[:-1] if verb.endswith("e") else verb) + "ing"


def comparative(adjective: str) -> str:
    """The comparative of one of `ADJECTIVES`."""
    return adjective + ("r" if adjective.endswith("e") else "er")


def agent(verb: str) -> str:
    """Who does what one of `VERBS` says."""
    doubled = {"jog", "run", "stop", "swim"}
    if verb in doubled:
        return f"{verb}{verb[-1]}er"
    return verb + ("r" if verb.endswith("e") else "er")


def kind(noun: str) -> str:
    """The kind of one of `NOUNS`."""
    kinds = {"fruit": FRUITS, "tool": TOOLS, "garment": CLOTHES, "vehicle": VEHICLES, "instrument": INSTRUMENTS}
    return next(name for name, nouns in kinds.items() if noun in nouns)


def place_of(count: int, place: int) -> Draw:
    """The word at a place of a list of so many."""

    def draw(rng: random.Random) -> tuple[str, str]:
        listed = rng.sample(NOUNS, count)
        return ", ".join(listed), listed[place]

    return draw


def odd_one(kind: list[str], other: list[str], count: int) -> Draw:
    """The one word of a kind in a list of so many, the others of another kind."""

    def draw(rng: random.Random) -> tuple[str, str]:
        right = rng.choice(kind)
        listed = [right, *rng.sample(other, count - 1)]
        rng.shuffle(listed)
        return ", ".join(listed), right

    return draw


def labelled(*kinds: list[str]) -> Draw:
    """A word of one of several kinds, and a letter for its kind."""

    def draw(rng: random.Random) -> tuple[str, str]:
        number = rng.randrange(len(kinds))
        return f"{rng.choice(ADJECTIVES)} {rng.choice(kinds[number])}", "ABC"[number]

    return draw


def from_sentence(part: int) -> Draw:
    """The person (0), the thing (1) or the place (2) of a sentence."""

    def draw(rng: random.Random) -> tuple[str, str]:
        parts = rng.choice(PEOPLE), rng.choice(NOUNS), rng.choice(PLACES)
        person, thing, place = parts
        ways = (
            f"{person} bought a {thing} in {place}.",
            f"In {place}, {person} was looking for a {thing}.",
            f"The {thing} that {person} lost was found in {place}.",
            f"Yesterday {person} sent the {thing} to {place}.",
        )
        return rng.choice(ways), parts[part]

    return draw


def of(listed: list[str], rule: Callable[[str], str]) -> Draw:
    """A word and what a rule makes of it."""

    def draw(rng: random.Random) -> tuple[str, str]:
        word = rng.choice(listed)
        return word, rule(word)

    return draw


def swapped(rng: random.Random) -> tuple[str, str]:
    one, other = rng.sample(NOUNS, 2)
    return f"{one}, {other}", f"{other}, {one}"


def longest(rng: random.Random) -> tuple[str, str]:
    while True:
        listed = rng.sample(NOUNS, 3)
        lengths = sorted(map(len, listed))
        if lengths[-1] > lengths[-2]:
            return ", ".join(listed), max(listed, key=len)


def number_in_words(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(100)
    return in_words(number), str(number)


def parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(100)
    return in_words(number), "odd" if number % 2 else "even"


TASKS: dict[str, Draw] = {
    "second_of_4": place_of(4, 1),
    "last_of_3": place_of(3, -1),
    "fruit_v_tool_4": odd_one(FRUITS, TOOLS, 4),
    "instrument_v_vehicle_3": odd_one(INSTRUMENTS, VEHICLES, 3),
    "comparative": of(ADJECTIVES, comparative),
    "ing_form": of(VERBS, ing_form),
    "last_letter": of([*NOUNS, *VERBS], lambda word: word[-1]),
    "number_in_words": number_in_words,
    "parity": parity,
    "clothes_v_fruit_label": labelled(CLOTHES, FRUITS, TOOLS),
    "thing_in_sentence": from_sentence(1),
    "swap_two": swapped,
    "longest_of_3": longest,
    "fourth_of_5": place_of(5, 3),
    "third_of_6": place_of(6, 2),
    "instrument_v_vehicle_5": odd_one(INSTRUMENTS, VEHICLES, 5),
    "tool_v_clothes_6": odd_one(TOOLS, CLOTHES, 6),
    "kind_of_thing": of([*NOUNS], kind),
    "agent": of([*VERBS], agent),
    "person_in_sentence": from_sentence(0),
    "place_in_sentence": from_sentence(2),
}


def rows_of(name: str) -> list[tuple[str, str]]:
    """Different rows of a task, always the same."""
    rng, rows = random.Random(name), dict[str, str]()
    for _ in range(100 * ROWS):
        question, answer = TASKS[name](rng)
        rows[question] = answer
        if len(rows) == ROWS:
            break
    return list(rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder; rows go to its folder made-up")
    folder = parser.parse_args().output / "made-up"
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        lines = [json.dumps({"input": question, "output": answer}) + "\n" for question, answer in rows_of(name)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
