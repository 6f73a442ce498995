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
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from transformers.utils import logging as transformers_logging

from hf_mass.cli.streams import shown_warning
from hf_mass.engine.events import Event, Generating, InnerStep, Loss, Measured, Stage, Trial
from hf_mass.errors import ModelWarning

EVERY = 3.0
"""Seconds between two lines on one stage where there is no terminal."""
SOON = 1.0
"""Seconds between two lines on different stages."""


class Watcher:
    """Shows stages and their steps, the loss, texts as they grow, and the time left: on bars, or in lines now and then.

    Args:
        bar: Draws where there is a terminal, and knows the time left in any case.
        lines: Gets lines where there is none.
    """

    def __init__(self, bar: Progress, lines: TextIO | None = None) -> None:
        self.bar, self.lines = bar, lines
        self.outer, self.inner = bar.add_task("", total=None, visible=False), bar.add_task("", total=None)
        self.stage, self.written = "", float("-inf")

    def count(self, text: str, done: int, total: int) -> None:
        """How far a whole of several problems is; the stages of each are shown below it."""
        if done == 0 or self._task(self.outer).total != total:
            self.bar.reset(self.outer, total=total, visible=True)
        self.bar.update(self.outer, description=f"{text}: {done} of {total} tasks", completed=done)
        self.say("")

    def say(self, stage: str) -> None:
        """What goes on from now on."""
        is_new, self.stage = stage != self.stage or not stage, stage
        self.bar.reset(self.inner, total=None)
        self._show("", 0, None, is_new)

    def __call__(self, event: Event) -> None:
        """Take an event of `hf_mass.engine`."""
        match event:
            case Stage(text):
                self.say(text)
            case Generating():
                several = f" of {event.rows} texts" if event.rows > 1 else ""
                self._show(f"token {event.tokens}{several}", event.tokens, event.most)
            case Loss() | Trial() | InnerStep():
                of = "" if event.steps is None else f" of {event.steps}"
                self._show(f"step {event.step + 1}{of}, loss {event.value:.3f}", event.step + 1, event.steps)
            case Measured((*_, last)):
                self._show(f"left-out gain {last.gain:+.3f}", None)

    def _task(self, number: int) -> Task:
        return next(task for task in self.bar.tasks if task.id == number)

    def _show(self, detail: str, done: int | None, total: int | None = None, is_new: bool = False) -> None:
        """The stage with a detail and what is done of a total, as it was where that is None."""
        task = self._task(self.inner)
        if done is not None and (total != task.total or done < task.completed):
            self.bar.reset(self.inner, total=total)
        in_bar = ": ".join(part for part in (detail, self.stage) if part)  # whose end a narrow terminal cuts off
        self.bar.update(self.inner, description=in_bar, completed=done)
        now = time.monotonic()
        if self.lines is not None and now - self.written >= (SOON if is_new else EVERY):
            self.written, whole = now, self._task(self.outer)
            text = ", ".join(part for part in (self.stage, detail) if part)
            parts = [whole.description + _left(whole), text + _left(task)]
            print(": ".join(part for part in parts if part), file=self.lines, flush=True)


def _left(task: Task) -> str:
    """The time left in words; empty where it is not known."""
    seconds = None if task.finished else task.time_remaining
    if seconds is None:
        return ""
    return f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"


@contextmanager
def watched(quiet: bool) -> Iterator[Watcher]:
    """A watcher that draws where stderr is a terminal, and writes lines where it is none; within, whatever libraries
    print goes to stderr."""
    drawn = sys.stderr.isatty() and not quiet
    transformers_logging.disable_progress_bar()  # of reading weights, which takes a moment and spoils the other bar
    if not drawn:
        disable_progress_bars()
    if quiet:
        logging.disable(logging.WARNING)
    text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = SpinnerColumn(), text, BarColumn(12), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left")
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not drawn,
        expand=True,
        get_time=lambda: time.monotonic(),
        speed_estimate_period=3600.0,
    )
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr), bar:
            if not sys.warnoptions:  # what libraries will change some day is no news to who has a problem to solve
                warnings.simplefilter("ignore", Warning if quiet else FutureWarning)
                if not quiet:
                    warnings.simplefilter("always", ModelWarning)
                warnings.showwarning = shown_warning
            yield Watcher(bar, None if drawn or quiet else sys.stderr)
    finally:
        logging.disable(logging.NOTSET)
