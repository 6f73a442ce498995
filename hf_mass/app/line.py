"""Whose turn it is: problems are adapted to in the order in which that was asked for, and who waits is told how long
the line is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from hf_mass.engine.events import Stage
from hf_mass.errors import ConfigError, Stopped

T = TypeVar("T")
LOOK = 0.1
"""Seconds between two looks at the line."""
TELL = 1.0
"""Seconds between two words to who waits: those who are gone without a word are noticed by them."""


class Line:
    """The line of those who want to adapt.

    Gradio's own queue shows a place too, but nobody can be stopped there, and the lock of the engine is given to
    whoever happens to get it.

    Args:
        at_once: How many may go on side by side.
        most: How many may wait.
    """

    def __init__(self, at_once: int = 1, most: int = 30) -> None:
        self.at_once, self.most = at_once, most
        self._places: list[object] = []
        self._lock = threading.Lock()

    def turn(self, begin: Callable[[], Iterator[T]], stop: threading.Event | None = None) -> Iterator[Stage | T]:
        """What `begin` gives, once it is its turn; until then, how many are before it.

        Args:
            begin: Called when it is its turn.
            stop: Set it to leave the line.

        Raises:
            ConfigError: If too many wait already.
            Stopped: If it was stopped while it waited.
        """
        place = self._join()
        try:
            told, when = 0, 0.0
            while before := self._before(place):
                if before != told or time.monotonic() - when > TELL:
                    told, when = before, time.monotonic()
                    yield Stage(f"Waiting: {before} {'problem is' if before == 1 else 'problems are'} before yours")
                if stop is not None and stop.is_set():
                    raise Stopped("Stopped before its turn. Nothing was adapted.")
                time.sleep(LOOK)
            with closing(begin()) as going:  # type: ignore[type-var]
                yield from going
        finally:
            with self._lock:
                self._places.remove(place)

    def _join(self) -> object:
        with self._lock:
            if len(self._places) >= self.at_once + self.most:
                raise ConfigError(f"{self.most} problems wait for their turn already. Try again in some minutes.")
            self._places.append(place := object())
            return place

    def _before(self, place: object) -> int:
        with self._lock:
            return max(0, self._places.index(place) - self.at_once + 1)
