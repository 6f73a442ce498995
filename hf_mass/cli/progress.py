"""Progress on stderr, a bar or a line now and then; and a stdout that nothing but results reaches."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from hf_mass.engine.events import Event, Loss, Stage, Writing
from hf_mass.errors import ModelWarning

EVERY = 3.0
"""Seconds between two lines where there is no terminal."""


class Watcher:
    """Shows stages, steps, samples as they grow, and the training loss: on a bar, or in lines now and then."""

    def __init__(self, bar: Progress, lines: TextIO | None = None) -> None:
        self.bar, self.lines, self.task = bar, lines, TaskID(-1)
        self.stage, self.written = "", time.monotonic()

    def say(self, text: str, done: int = 0, total: int | None = None, at_once: bool = False) -> None:
        """What goes on, and how far it is; a line comes now and then, or at once."""
        text = text if total is None else f"{text}, step {done} of {total}"
        if self.lines is not None and (at_once or time.monotonic() - self.written >= EVERY):
            self.written = time.monotonic()
            print(text, file=self.lines, flush=True)
        if self.task < 0:
            self.task = self.bar.add_task(text, total=total)
        self.bar.update(self.task, description=text, completed=done, total=total)

    def __call__(self, event: Event) -> None:
        """Take an event of `hf_mass.engine`."""
        match event:
            case Stage(text):
                self.stage = text
                self.say(text)
            case Writing(texts):
                self.say(f"{self.stage}: {len(texts)}, {max(map(len, texts), default=0)} characters")
            case Loss():
                self.say(f"{self.stage}, loss {event.value:.3f}", event.step + 1, event.steps)


@contextmanager
def watched(quiet: bool) -> Iterator[Watcher]:
    """A watcher that draws where stderr is a terminal, and writes lines where it is none; within, whatever libraries
    print goes to stderr."""
    drawn = sys.stderr.isatty() and not quiet
    if not drawn:
        transformers_logging.disable_progress_bar()
        disable_progress_bars()
    if quiet:
        logging.disable(logging.WARNING)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not drawn)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr), bar:
            if not sys.warnoptions:  # what libraries will change some day is no news to who has a problem to solve
                warnings.simplefilter("ignore", Warning if quiet else FutureWarning)
                if not quiet:
                    warnings.simplefilter("always", ModelWarning)
                warnings.showwarning = _shown
            yield Watcher(bar, None if drawn or quiet else sys.stderr)
    finally:
        logging.disable(logging.NOTSET)


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning on stderr; those of this package for people, without the place in the code."""
    text = f"hf-mass: {message}\n" if issubclass(category, ModelWarning) else None
    sys.stderr.write(text or warnings.formatwarning(message, category, filename, lineno))
