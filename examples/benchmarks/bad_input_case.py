"""One bad input, and the values that are wrong for each kind of setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Wrong(Exception):
    """What went through gave a wrong result without a word."""


@dataclass(frozen=True)
class Case:
    """A bad input at a boundary.

    Args:
        boundary: Where it comes in.
        kind: The class of what is wrong with it.
        what: What it is.
        run: Gives it, in an empty folder; may raise `Wrong`.
        refused: Whether nothing but a refusal is right.
        names: What a refusal has to name.
    """

    boundary: str
    kind: str
    what: str
    run: Callable[[Path], object]
    refused: bool = False
    names: str = ""

    def __str__(self) -> str:
        return f"{self.boundary}: {self.what} ({self.kind})"


HUGE = 10**400
NO_NUMBERS: tuple[tuple[str, Any], ...] = (
    ("NaN", float("nan")),
    ("infinite", float("inf")),
    ("infinite", float("-inf")),
    ("a switch", True),
    ("a text", "3"),
    ("a text", ""),
    ("a list", []),
    ("a list", [1]),
    ("an object", {}),
    ("400 digits", HUGE),
    ("400 digits", -HUGE),
    ("without measure", 1e300),
    ("without measure", -1e300),
    ("complex", 1j),
    ("bytes", b"1"),
)
"""What no setting of numbers takes."""
ODD_NUMBERS: tuple[tuple[str, Any], ...] = (
    ("negative", -1),
    ("zero", 0),
    ("none", None),
    ("tiny", 1e-320),
    ("large", 2**31),
)
"""What some of them take."""
NO_TEXTS: tuple[tuple[str, Any], ...] = (
    ("unknown", "no-such-thing"),
    ("a text", ""),
    ("zero byte", "\0"),
    ("long", "x" * 100_000),
    ("a number", 3),
    ("a switch", True),
    ("NaN", float("nan")),
    ("an object", {}),
    ("bytes", b"softmax"),
    ("400 digits", HUGE),
)
"""What no setting with choices takes."""
NO_SWITCHES: tuple[tuple[str, Any], ...] = (
    ("a text", "yes"),
    ("a text", ""),
    ("a number", 2),
    ("a number", 0.0),
    ("a list", []),
    ("NaN", float("nan")),
)
"""What no switch takes."""
NO_LISTS: tuple[tuple[str, Any], ...] = (
    ("a number", 3),
    ("a list", [None]),
    ("a list", [[]]),
    ("unknown", ["no-such-thing"]),
    ("an object", {}),
    ("a text", [""]),
    ("zero byte", ["\0"]),
)
"""What no list of names takes."""


def shown(value: Any) -> str:
    """A value in few words, also one that Python refuses to print."""
    try:
        return f"{value!r:.40}"
    except ValueError:
        return "10**400"


def wrong_values(kind: str) -> Iterator[tuple[str, Any, bool]]:
    """(class, value, whether it must be refused) for a setting of a kind: number, choice, switch or list."""
    tables = {"number": NO_NUMBERS, "choice": NO_TEXTS, "switch": NO_SWITCHES, "list": NO_LISTS}
    yield from ((name, value, True) for name, value in tables[kind])
    if kind == "number":
        yield from ((name, value, False) for name, value in ODD_NUMBERS)
