"""What the rules of strips and of grids share: the parameters of one hidden rule, and the ways to draw them."""

from __future__ import annotations

import random
from dataclasses import dataclass

Strip = list[int]
Grid = list[list[int]]
COLOURS = range(1, 10)


class Redraw(Exception):
    """A scene did not fit the size at hand: draw again."""


def between(draw: random.Random, low: int, high: int) -> int:
    """A whole number from low to high, both included; `Redraw` if there is none."""
    if low > high:
        raise Redraw
    return draw.randint(low, high)


@dataclass(frozen=True, slots=True)
class Hidden:
    """What all pairs of one task share.

    Args:
        main: Colour of objects, where `fixed`.
        second: A further colour; `second`, `third` and `fourth` never are an object's own.
        third: See `second`.
        fourth: See `second`.
        step: A small distance or number, from 1 to 4.
        fixed: Whether every object has the colour `main`, else each scene draws its own.
        flag: Chooses between two variants of a rule.
        table: A colour for every colour: a permutation that keeps 0.
    """

    main: int
    second: int
    third: int
    fourth: int
    step: int
    fixed: bool
    flag: bool
    table: tuple[int, ...]

    @classmethod
    def drawn(cls, draw: random.Random) -> Hidden:
        """The parameters of a new rule."""
        main, second, third, fourth, *_ = draw.sample(COLOURS, 9)
        shuffled = draw.sample(COLOURS, 9)
        return cls(
            main=main,
            second=second,
            third=third,
            fourth=fourth,
            step=draw.choice((1, 1, 2, 2, 3, 4)),
            fixed=draw.random() < 0.5,
            flag=draw.random() < 0.5,
            table=(0, *shuffled),
        )

    def colour(self, draw: random.Random) -> int:
        """An object's colour."""
        if self.fixed:
            return self.main
        return draw.choice([c for c in COLOURS if c not in (self.second, self.third, self.fourth)])

    def any_colour(self, draw: random.Random) -> int:
        """One of the rule's four colours."""
        return draw.choice((self.main, self.second, self.third, self.fourth))
