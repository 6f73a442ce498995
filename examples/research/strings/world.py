r"""A world of procedurally generated few-shot tasks on short texts.

A task is a list of (input, output) pairs that follow one hidden rule, the last of them the query. The rule comes from a
table of named families (`rules*.py`), or is one of them followed by a further simple one. Every word and name is
listed in `parts.py` or made of random syllables: no data set is read. Some families are held out of training
(`HELD_OUT`), so that experiments can measure what adapting adds to rules that were never seen.

Text form, the few-shot format "plain" of the package:

    Input: pear\nOutput: PEAR\n\nInput: plum\nOutput: PLUM\n\n
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_mass.errors import ConfigError
from hf_mass.tasks.task import Demonstration, Task
from research.strings import rules, rules_judged, rules_numbers, rules_words  # noqa: F401  (registers families)
from research.strings.parts import BRACKETS, RULES, SEPARATORS, Function, Inputs, Redraw, Rule, Sizes

INPUT, OUTPUT, PAIR_END = "Input: ", "\nOutput:", "\n\n"
"""What stands before an input, between it and its output (a space follows), and behind the output."""

FAMILIES = tuple(RULES)

HELD_OUT = (
    *("case/alternating", "case/vowels_upper", "order/mirror", "order/swap_ends"),
    *("letters/mask_rest", "words/camel", "words/reverse_each", "number/grouped"),
)
"""Families that training never draws."""

TRAINED = tuple(name for name in FAMILIES if name not in HELD_OUT)

PLAIN_TABLES = ("look_up/table", "know/")
"""Families (by the beginning of their name) whose query may repeat a demonstration, or that have few inputs."""

TRANSFORMATIONS: dict[str, Callable[[Inputs], Function]] = {
    "upper": lambda inputs: str.upper,
    "capitalise": lambda inputs: str.capitalize,
    "append": lambda inputs: _joined("", inputs.affix()),
    "prepend": lambda inputs: _joined(inputs.affix(), ""),
    "wrap": lambda inputs: _joined(*inputs.choice(BRACKETS)),
    "repeat": lambda inputs: _repeated(inputs.choice(["", " ", "-", ", "])),
    "join": lambda inputs: _replaced(" ", inputs.choice(SEPARATORS)),
    "first": lambda inputs: lambda text: text[:1],
    # After a rule that turns the order of words, this would be the held-out "words/reverse_each".
    "reverse": lambda inputs: lambda text: text[::-1] if " " not in text else _refused(text),
}
"""What may follow a rule in a composed task."""


def _joined(left: str, right: str) -> Function:
    return lambda text: left + text + right


def _repeated(separator: str) -> Function:
    return lambda text: text + separator + text


def _replaced(old: str, new: str) -> Function:
    return lambda text: text.replace(old, new)


def _refused(text: str) -> str:
    raise Redraw


def curriculum(progress: float) -> Sizes:
    """Sizes at a point of pretraining, 0 ≤ progress ≤ 1: short first, at full size from two thirds on."""
    grown = min(1.0, progress * 1.5)
    return Sizes(
        word=(2 if progress < 0.3 else 3, round(5 + 4 * grown)),
        words=(2, 2 + round(3 * grown)),
        demonstrations=(3, 5 + round(4 * grown)),
        composed=0.2 * grown,
    )


@dataclass(frozen=True, slots=True)
class StringTask:
    """Pairs of one hidden rule, the last one the query; `family` is of `FAMILIES`, "+name" added if composed."""

    family: str
    pairs: tuple[tuple[str, str], ...]


def draw_task(draw: random.Random, sizes: Sizes, families: Sequence[str] = TRAINED) -> StringTask:
    """A task of a random family.

    Args:
        draw: The random stream; the same state gives the same task.
        sizes: How large it is.
        families: Names to draw from, evenly.

    Raises:
        ConfigError: If no task of a family fits the sizes.
    """
    family = draw.choice(families)
    for _ in range(500):
        try:
            return _attempt(draw, sizes, family)
        except Redraw:
            continue
    raise ConfigError(f"draw_task: no task of {family!r} fits {sizes}; give larger sizes.")


def few_shot_tasks(families: Sequence[str], per_family: int, seed: str, sizes: Sizes) -> list[Task]:
    """As many tasks of each family, for the package: their last pair is the problem with its answer."""
    tasks = []
    for family in families:
        draw = random.Random(f"{seed}-{family}")
        for number in range(per_family):
            drawn = draw_task(draw, sizes, [family])
            shown = tuple(Demonstration(*pair) for pair in drawn.pairs[:-1])
            problem, answer = drawn.pairs[-1]
            tasks.append(Task(problem, shown, answer=answer, domain=family, id=f"{family}-{number}"))
    return tasks


def render_task(pairs: Sequence[tuple[str, str]]) -> str:
    """All pairs in the text form of this module, the query's output included."""
    return "".join(f"{INPUT}{a}{OUTPUT} {b}{PAIR_END}" for a, b in pairs)


def token_count(pairs: Sequence[tuple[str, str]]) -> int:
    """Tokens of all pairs with the one that begins every text: one a character, and four around each pair."""
    return 1 + sum(len(a) + len(b) + 4 for a, b in pairs)


def _attempt(draw: random.Random, sizes: Sizes, family: str) -> StringTask:
    """One task, or `Redraw`."""
    inputs = Inputs(draw, sizes)
    rule, count = RULES[family](inputs), draw.randint(*sizes.demonstrations) + 1
    name = family
    if draw.random() < sizes.composed:
        then = draw.choice(list(TRANSFORMATIONS))
        rule, name = _followed(rule, TRANSFORMATIONS[then](inputs)), f"{family}+{then}"
    may_repeat = family.startswith(PLAIN_TABLES)
    pairs = _pairs(rule, count, may_repeat)
    while token_count(pairs) > sizes.longest:
        pairs.pop()
        if len(pairs) <= sizes.demonstrations[0]:
            raise Redraw
    changed = sum(a != b for a, b in pairs)
    if family != "order/copy" and 2 * changed < len(pairs):
        raise Redraw
    if len({b for _, b in pairs}) == 1 or (family == "look_up/table" and pairs[-1] not in pairs[:-1]):
        raise Redraw
    return StringTask(name, tuple(pairs))


def _followed(rule: Rule, further: Function) -> Rule:
    source, function = rule
    return source, lambda text: further(function(text))


def _pairs(rule: Rule, count: int, may_repeat: bool) -> list[tuple[str, str]]:
    """So many pairs with different inputs (unless they may repeat); texts that are empty or end in a space are not."""
    source, function = rule
    pairs: dict[str, str] = {}
    drawn: list[tuple[str, str]] = []
    for _ in range(8 * count):
        text = source()
        if text in pairs and not may_repeat:
            continue
        answer = function(text)
        if not answer or answer != answer.strip() or text != text.strip():
            continue
        pairs[text] = answer
        drawn.append((text, answer))
        if len(drawn) == count:
            return drawn
    raise Redraw
