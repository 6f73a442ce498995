"""What string rules are made of: words, names, numbers and phrases to draw inputs from, and the table of rules.

A rule is drawn with its hidden parameters: a source of inputs and a function from input to output. All words are
listed here or made of random syllables; nothing is read from elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Source = Callable[[], str]
Function = Callable[[str], str]
Rule = tuple[Source, Function]
V = TypeVar("V")


class Redraw(Exception):
    """What was drawn does not fit; draw again."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large tasks are.

    Args:
        word: Letters of a word.
        words: Words of a phrase.
        demonstrations: Fewest and most demonstrations.
        composed: Share of rules followed by a further one.
        longest: Tokens at most in a task; demonstrations are dropped to keep to it.
    """

    word: tuple[int, int] = (3, 9)
    words: tuple[int, int] = (2, 5)
    demonstrations: tuple[int, int] = (3, 9)
    composed: float = 0.2
    longest: int = 512


Family = Callable[["Inputs"], Rule]
RULES: dict[str, Family] = {}
"""Name → family; a family draws a rule."""


def family(kind: str) -> Callable[[Family], Family]:
    """Registers a function as the family "kind/its name"."""

    def register(function: Family) -> Family:
        RULES[f"{kind}/{function.__name__}"] = function
        return function

    return register


def register_functions(kind: str, functions: dict[str, Function], source: Callable[[Inputs], Source]) -> None:
    """Registers families without hidden parameters, all on inputs of the same source."""
    for name, function in functions.items():
        RULES[f"{kind}/{name}"] = lambda inputs, function=function: (source(inputs), function)  # type: ignore[misc]


VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SEPARATORS = ["-", "_", ".", "/", ", ", ":", "+", " | ", "; ", "~", "=", " - ", "*", "&"]
BRACKETS = [
    (pair[0], pair[-1]) for pair in ("()", "[]", "{}", "<>", '""', "''", "**", "##", "||", "__", "--", "::", "//")
]


def listed(text: str) -> list[str]:
    """Words with spaces or line breaks between them."""
    return text.split()


WORDS = listed(
    """
able acid age air alarm angle animal ant apple april arch area arm army art ask aunt autumn axe baby back bad bag bake
ball banana band bank bar barn base basket bath beach bean bear beat bed bee bell belt bench berry best big bike bird
bite black blanket blue board boat body bone book boot born bottle bottom bowl box boy brain branch brave bread break
brick bridge bright bring brother brown brush bucket build bus bush butter button cabin cake call calm camel camera camp
candle car card care carrot carry cart castle cat catch cave chain chair chalk cheese cherry chest child choose circle
city clap class clean clever climb clock close cloud coat coffee coin cold color comb cook cool copper corn corner
cotton count country cousin cover cow crab cream cross crow crowd crown cry cup curve dance dark day deep deer desk
dish doctor dog door dragon draw dream dress drink drive drop drum dry duck dust eagle early earth east easy eat edge
egg elbow empty end engine enter equal evening eye face fall family farm fast father feather feel fence field fight
film find finger finish fire fish flag flat float floor flower fly fog follow food foot forest fork fox free fresh
friend frog front fruit full funny game garden gate ghost gift giraffe girl give glad glass glove goat gold good goose
grape grass green grey ground group grow guess guitar hair half hall hammer hand happy hard harvest hat head heart heavy
hello help hill hold hole home honey hook horse hospital hot hotel hour house human hundred hungry ice idea ink insect
iron island jacket jam jar job join joke juice jump jungle keep kettle key kick kind king kitchen kite knee knife knot
ladder lake lamp land large laugh leaf learn leather left leg lemon letter library light lion list listen little long
look lot loud love lucky lunch machine magic mail map march market mask meal meat melon metal middle milk mind mirror
money monkey month moon morning mother mountain mouse mouth move mud music nail name narrow neck needle nest new night
nine noise north nose note number nurse ocean old olive onion open orange orbit oven owl page paint pan panda paper
parent park part party path peach pear pen pencil people pepper piano picture pie pig pillow pilot pink planet plant
plate play pocket poem point pond pony pool poor potato pretty prince prize pull pumpkin puppy purple push queen quick
quiet quilt rabbit race radio rain read ready red rest rice rich ride right ring river road robot rock roof room rope
rose round rug run sad safe sail salad salt sand school science sea seed sell send seven shade shape sharp sheep shelf
shell ship shirt shoe shop short shoulder shout show silver sing sister sky sleep slow small smart smell smile smoke
snail snake snow soap soft song soup south space spider spoon spring square stand star start station stay stone store
storm story street strong student sugar summer sun swan sweet swim table tail talk tall taste teach team tent test thick
thin think thunder ticket tiger time tired toast today tomato tooth top touch towel tower town toy train travel tree
trick truck true turn turtle uncle under up use valley very village violin visit voice wait walk wall want warm wash
watch water wave weather week well west wet whale wheat wheel white wide wild win wind window wing winter wish wolf
wonder wood wool word work world write yard year yellow young zebra zero
"""
)

FIRST_NAMES = listed(
    """
Adam Alice Amy Anna Ben Bob Carl Carol Clara Dan David Diana Ed Ella Emma Eric Eva Frank Fred Grace Hana Harry Helen Ian
Ivan Jack Jane Jim John Julia Karen Kate Ken Laura Leo Lily Lisa Lucy Maria Mark Mary Max Mia Mike Nina Nora Olga Oscar
Paul Peter Rita Rosa Ruth Sam Sara Simon Sofia Tim Tina Tom Vera Victor Will Yuki Zoe
"""
)

LAST_NAMES = listed(
    """
Adams Baker Bell Black Brown Burns Carter Clark Cole Cook Cruz Davis Diaz Doe Evans Fisher Ford Fox Garcia Gray Green
Hall Hill Hunt Jones King Khan Lane Lee Lopez Mason Meyer Mills Moore Nash Novak Olsen Page Park Perez Quinn Reed Rossi
Ross Sato Silva Smith Stone Tanaka Taylor Turner Vega Wade Walsh Weber West White Wong Wood Young
"""
)


class Inputs:
    """Draws inputs and hidden parameters from one random stream."""

    def __init__(self, draw: random.Random, sizes: Sizes) -> None:
        self.draw, self.sizes = draw, sizes

    # Parameters

    def choice(self, values: Sequence[V]) -> V:
        return self.draw.choice(values)

    def labels(self) -> tuple[str, str]:
        """Two different words for yes and no."""
        fixed = [("yes", "no"), ("true", "false"), ("True", "False"), ("1", "0"), ("Y", "N"), ("T", "F"), ("A", "B")]
        if self.draw.random() < 0.6:
            return self.draw.choice(fixed)
        first, second = self.draw.sample(WORDS, 2)
        return first, second

    def affix(self) -> str:
        """A short text to put before or behind something."""
        kind = self.draw.random()
        if kind < 0.4:
            return self.syllables(2, 4)
        if kind < 0.6:
            return "".join(self.draw.choice("!?.*#$%+-_=~@&^") for _ in range(self.draw.randint(1, 3)))
        return self.word() if kind < 0.8 else str(self.draw.randint(0, 99))

    # Inputs

    def syllables(self, low: int, high: int) -> str:
        """A made-up word."""
        length = self.draw.randint(low, high)
        if self.draw.random() < 0.25:
            return "".join(self.draw.choice(LETTERS) for _ in range(length))
        kinds = (VOWELS, CONSONANTS) if self.draw.random() < 0.4 else (CONSONANTS, VOWELS)
        return "".join(self.draw.choice(kinds[place % 2]) for place in range(length))

    def word(self, low: int | None = None, high: int | None = None) -> str:
        """An English word or a made-up one."""
        low, high = low or self.sizes.word[0], high or self.sizes.word[1]
        if self.draw.random() < 0.5:
            for _ in range(10):
                if low <= len(word := self.draw.choice(WORDS)) <= high:
                    return word
        return self.syllables(low, high)

    def phrase(self, low: int | None = None, high: int | None = None) -> str:
        """Words with spaces between them, mostly short ones."""
        count = self.draw.randint(low or self.sizes.words[0], high or self.sizes.words[1])
        return " ".join(self.word(2, min(7, self.sizes.word[1])) for _ in range(count))

    def name(self) -> str:
        """A first and a last name."""
        return f"{self.draw.choice(FIRST_NAMES)} {self.draw.choice(LAST_NAMES)}"

    def number(self, low: int = 1, high: int = 5) -> str:
        """A whole number of so many digits."""
        digits = self.draw.randint(low, high)
        return str(self.draw.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))

    def mixed(self) -> str:
        """Letters and digits in disorder."""
        length = self.draw.randint(4, max(5, self.sizes.word[1]))
        text = "".join(self.draw.choice(LETTERS if self.draw.random() < 0.6 else "0123456789") for _ in range(length))
        if text.isdigit() or text.isalpha():
            place = self.draw.randrange(length)
            text = text[:place] + ("7" if text.isalpha() else "k") + text[place + 1 :]
        return text

    def sentence(self) -> str:
        """A phrase with a capital and a mark, sometimes with a comma."""
        words = self.phrase()
        return (words.replace(" ", ", ", 1) if self.draw.random() < 0.3 else words).capitalize() + self.choice(".!?")

    def symbols(self) -> str:
        """Any printable characters but spaces."""
        return "".join(chr(self.draw.randint(33, 126)) for _ in range(self.draw.randint(3, self.sizes.word[1])))

    # Sources: one kind of input for all pairs of a task

    def words_or(self, *further: Source, share: float = 0.3) -> Source:
        """Words in one way of writing, or sometimes one of the further sources."""
        if further and self.draw.random() < share:
            return self.draw.choice(further)
        cases: list[Function] = [str, str, str, str, str.capitalize, str.upper, self.mixed_case]
        case = self.draw.choice(cases)
        return lambda: case(self.word())

    def mixed_case(self, text: str) -> str:
        return "".join(c.upper() if self.draw.random() < 0.4 else c for c in text)

    def anything(self) -> Source:
        """Words, phrases, names, numbers, codes, sentences or disorder."""
        return self.words_or(self.phrase, self.name, self.number, self.mixed, self.sentence, self.symbols, share=0.4)

    def phrases(self, low: int | None = None, high: int | None = None) -> Source:
        """Phrases in one way of writing."""
        cases: list[Function] = [str, str, str, str.capitalize, str.title, str.upper]
        case = self.draw.choice(cases)
        return lambda: case(self.phrase(low, high))

    def containing(self, part: str, share: float = 1.0) -> Source:
        """Words that (in this share of the cases) have `part` at one or two places."""

        def source() -> str:
            text = self.word()
            if self.draw.random() < share:
                for _ in range(self.draw.choice((1, 1, 2))):
                    place = self.draw.randint(0, len(text))
                    text = text[:place] + part + text[place:]
            return text

        return source
