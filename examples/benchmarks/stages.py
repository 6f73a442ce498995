"""Where a step's time goes: a stopwatch over named stages, and the share that is Python of this package's own."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hf_mass

PACKAGE = str(Path(hf_mass.__file__).parent)


@dataclass(frozen=True)
class Stage:
    """A function whose time belongs to a stage.

    Args:
        name: The stage; several functions may share one.
        owner: The class or module that holds the function.
        attribute: The function's name there.
        whole: Whether stages inside count towards this one; else they are told apart from it.
    """

    name: str
    owner: Any
    attribute: str
    whole: bool = False


class Stopwatch:
    """Seconds by stage, each without those of the stages inside it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock, self._open = clock, list[tuple[str, bool]]()
        self._since = 0.0

    @contextmanager
    def stage(self, name: str, whole: bool = False) -> Iterator[None]:
        """Within this context time counts for the stage."""
        if self._open and self._open[-1][1]:
            yield
            return
        self._turn()
        self._open.append((name, whole))
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Close the account of whichever stage was running."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1][0]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Within this context the functions named are timed."""
        with ExitStack() as stack:
            for stage in stages:
                stack.enter_context(self._watched(stage))
            yield

    @contextmanager
    def _watched(self, stage: Stage) -> Iterator[None]:
        function = getattr(stage.owner, stage.attribute)
        own = stage.attribute in vars(stage.owner)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage.name, stage.whole):
                return function(*args, **kwargs)

        setattr(stage.owner, stage.attribute, timed)
        try:
            yield
        finally:
            if own:
                setattr(stage.owner, stage.attribute, function)
            else:
                delattr(stage.owner, stage.attribute)


def shares(seconds: Mapping[str, float], total: float, rest: str) -> dict[str, float]:
    """Percent of the total by stage, largest first, with what is left over under the name `rest`."""
    found = {name: 100 * value / total for name, value in seconds.items()}
    left = 100 - sum(found.values())
    return dict(sorted({**found, rest: left}.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Profile:
    """What `cProfile` saw.

    Args:
        total: Seconds, the profiler's own cost included.
        package: Seconds of Python code of hf_mass itself, without what it calls.
        lines: The costliest functions by their own time.
    """

    total: float
    package: float
    lines: list[str]


def profiled(work: Callable[[], object], count: int = 25) -> Profile:
    """Run `work` under `cProfile`."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    found = [(own, calls, where) for where, (_, calls, own, _, _) in entries.items()]
    found.sort(key=lambda entry: -entry[0])
    total = sum(own for own, _, _ in found)
    package = sum(own for own, _, (file, _, _) in found if file.startswith(PACKAGE))
    lines = [
        f"{100 * own / total:5.1f}%  {calls:8d} calls  {'/'.join(Path(file).parts[-2:])}:{line} {name}"
        for own, calls, (file, line, name) in found[:count]
    ]
    return Profile(total, package, lines)
