"""What the elements of the app's page do: read a problem, adapt to it while the page is redrawn, stop, clean up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as StopSign
from typing import Any

import gradio as gr

from hf_mass.app import drawing
from hf_mass.app.controls import (
    AUTOMATIC,
    OPTIONS,
    TEXT_FORM,
    chosen_settings,
    control,
    model_values,
    on_page,
    table_form,
)
from hf_mass.app.drawing import status_html
from hf_mass.app.line import Line
from hf_mass.app.visitors import NEW, Visitors
from hf_mass.app.workshop import METHOD_NAMES, Outcome, Workshop, described, example
from hf_mass.engine.events import (
    Event,
    Generating,
    InnerStep,
    Loss,
    Measured,
    Replies,
    Stage,
    Trial,
    Weighed,
    Writing,
)
from hf_mass.errors import ConfigError, DataError, HFMassError, Stopped
from hf_mass.lm.suitability import beyond
from hf_mass.methods.base import Answer, GuardEntry
from hf_mass.methods.registry import METHODS
from hf_mass.tasks.checks import as_path, shown
from hf_mass.tasks.problems import Limits, Problem, read_problem, read_problem_file

LIMITS = Limits(bytes=200_000)
logger = logging.getLogger(__name__)
REDRAW = 0.1
"""Seconds between two redraws."""
FIRST = "Choose an example, upload a file, or paste a problem."
BROKEN = "Something went wrong that should not. Try another problem or other settings."
NO_ROOM = "The server has no room for the files of an adaptation. Try again later."
GONE = "The adapter is no longer on the server, where files are kept for a while only. Adapt again to download it."
AT_ONCE = 4
"""Adaptations that go on at once where each leases a GPU."""
EXAMPLE, FILE, TEXT = range(3)
"""Where a problem is read from."""
_SAME = (gr.skip(),) * (1 + len(OPTIONS))
"""The method and the settings, as they are."""


@dataclass
class Page:
    """What the page shows of one adaptation so far, by which `model`; a `note` says if that is not made for it,
    and `earlier` whether another problem has been chosen since."""

    problem: Problem
    model: str = ""
    note: str | None = None
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    stage: str = "Waiting for the model"
    detail: str = ""
    samples: str = ""
    notes: str = ""
    losses: list[Loss] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    guard: tuple[GuardEntry, ...] = ()
    earlier: Callable[[], str] = str

    def take(self, event: Event) -> None:
        """Note an event."""
        match event:
            case Stage(text):
                self.stage, self.detail = text, ""
            case Generating():
                self.detail = f"token {event.tokens}"
            case InnerStep():
                self._note_step(event)
            case Trial():
                self.trials.append(event)
                self._note_step(event)
            case Measured(entries):
                self.guard = entries
            case Writing(texts):
                self.samples = drawing.writing_html(texts)
            case Weighed(rows=rows):
                self.samples = drawing.samples_html(rows, self.problem.kind)
            case Replies("before", answers):
                self.before = answers
            case Replies(_, answers):
                self.after = answers
            case Loss():
                self.losses.append(event)
                self._note_step(event)

    def _note_step(self, event: InnerStep | Trial | Loss) -> None:
        of = "" if event.steps is None else f" of {event.steps}"
        self.detail = f"step {event.step + 1}{of}, loss {event.value:.3f}"

    def summary(self, facts: Mapping[str, Any]) -> str:
        """The end in a line."""
        seconds, reason, tokens = f"{facts['seconds']:.1f} s", facts["reason"], facts["sampled_tokens"]
        end = f"Ended after {seconds}: {reason}" if self.failed(facts) else f"Done in {seconds}"
        if self.declined:
            end = f"{end}, not adapted: nothing is gained on left-out examples"
        gains = [f"Left-out gain {entry.gain:+.2f} at {entry.strength}" for entry in self.guard if entry.chosen]
        parts = [end, "; ".join(gains), drawing.loss_text(self.losses), f"{tokens} tokens sampled" if tokens else ""]
        return ". ".join(part for part in parts if part) + "."

    @property
    def status(self) -> str:
        """What goes on, in a line."""
        return ", ".join(part for part in (self.stage, self.detail) if part)

    @property
    def declined(self) -> bool:
        """Whether the guard chose not to adapt."""
        return bool(self.guard and self.after) and not any(entry.chosen for entry in self.guard)

    def failed(self, facts: Mapping[str, Any]) -> bool:
        """Whether something went otherwise than it should."""
        return facts["reason"] is not None and not self.declined

    def page(self, busy: bool, text: str | None = None, error: bool = False, download: Any = None) -> tuple[Any, ...]:
        """Status, answers, losses, samples, download, buttons, what is told of an earlier problem."""
        return (
            status_html(text or self.status, error),
            drawing.note_html(self.note) + drawing.answers_html(self.problem, self.before, self.after, self.model),
            drawing.losses_html(self.losses, self.trials) + drawing.gains_html(self.guard) + self.notes,
            self.samples,
            download or gr.skip(),
            *_buttons(busy),
            self.earlier(),
        )


class Handlers:
    """What the page's elements do.

    Args:
        workshop: The models.
        sessions: The visitors.
    """

    def __init__(self, workshop: Workshop, sessions: Visitors) -> None:
        self.workshop, self.sessions = workshop, sessions
        self.line = Line(AT_ONCE if workshop.leases else 1)  # in one process the engine does one thing at a time

    # -- the problem --------------------------------------------------------------------------------------------------

    def show_example(self, name: str | None, model: str | None, request: gr.Request | None = None) -> tuple[Any, ...]:
        """An example was picked."""
        self._reads(EXAMPLE, request)
        return self._show(lambda: example(name), model, request) if name else _NOTHING

    def show_file(self, path: str | None, model: str | None, request: gr.Request, *form: Any) -> tuple[Any, ...]:
        """A file was uploaded, or what it does not say itself was changed: `form` has the values of `FORM`."""
        self._reads(FILE, request)
        if path is None:
            return _NOTHING
        try:
            file = as_path("The file", path)
        except DataError as error:
            return _refusal(str(error))
        if not file.is_file():
            return _refusal("The file is no longer here. Upload it again.")
        self.sessions.keep(str(request.session_hash), file)  # even if it is refused: its columns may be named next
        page = self._show(lambda: read_problem_file(file, LIMITS, table_form(form)), model, request)
        if file.is_file() and file.stat().st_size > LIMITS.bytes:
            file.unlink(missing_ok=True)
        return page

    def show_text(self, text: str, model: str | None, request: gr.Request | None = None, *form: Any) -> tuple[Any, ...]:
        """A text was pasted, or what it does not say itself was changed: `form` has the values of `TEXT_FORM`."""
        self._reads(TEXT, request)
        if isinstance(text, str) and not text.strip():
            return _NOTHING
        return self._show(
            lambda: read_problem(text, "pasted", None, LIMITS, table_form(form, TEXT_FORM)), model, request
        )

    def catch_up(self, sources: Sequence[tuple[Any, ...]], model: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Adapt was clicked: what stands there is read once more, as it may have been typed or picked a moment before.

        Args:
            sources: What stands in the example, the file and the text, each with the form that belongs to it.
            model: The model that is chosen.
            request: The visitor's.
        """
        source = self.sessions.source(str(request.session_hash))
        value, *form = (None,) if source is None else sources[source]
        if source is None or (source == FILE and value is not None and not Path(value).is_file()):  # too large to keep
            return gr.skip(), gr.skip(), *_SAME
        show: Any = (self.show_example, self.show_file, self.show_text)[source]
        return show(value, model, request, *form)

    def _reads(self, source: int, request: gr.Request | None) -> None:
        if request is not None:
            self.sessions.read_from(str(request.session_hash), source)

    def _show(self, read: Callable[[], Problem], model: str | None, request: gr.Request | None) -> tuple[Any, ...]:
        """(problem, or why there is none; its picture; methods to choose from; settings)."""
        try:
            problem = read()
        except HFMassError as error:
            return _refusal(on_page(str(error)))
        return problem, drawing.problem_html(problem), *self.offered(problem, model, request)

    def offered(
        self, problem: Problem | str | None, model: str | None, request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        """The methods that suit a problem, and the model's own settings on the sliders.

        What the visitor was offered before stays as they have set it.
        """
        if not isinstance(problem, Problem):
            return _SAME
        try:
            methods = self.workshop.methods(problem, _name(model))
        except ConfigError:  # no model of this name, which the adaptation itself tells
            return _SAME
        values = model_values(self.workshop.choose(problem, _name(model)), problem.tasks)
        known, kept = self.sessions.offer(str(request.session_hash), methods, values) if request else NEW
        choices = [(METHOD_NAMES[method], method) for method in methods]
        radio = gr.Radio(choices=choices, value="ttt" if "ttt" in methods else methods[0])
        new = {name: value for name, value in values.items() if kept.get(name) != value}
        settings = (control(name, new[name]) if name in new else gr.skip() for name in OPTIONS)
        return radio if methods != known else gr.skip(), *settings

    def earlier(self, problem: Problem | str | None, request: gr.Request) -> str:
        """The problem has changed: which one the results on the page still belong to."""
        self.sessions.choose(str(request.session_hash), problem)
        return self._earlier(str(request.session_hash))

    def _earlier(self, key: str) -> str:
        earlier = self.sessions.earlier(key)
        return "" if earlier is None else drawing.earlier_html(earlier)

    # -- adapting -----------------------------------------------------------------------------------------------------

    def adapt(
        self, problem: Problem | str | None, model: str, method: str, settings: Mapping[str, Any], request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Adapt, and redraw the page as it goes on: status, answers, losses, samples, download, buttons."""
        with closing(self._adapt(problem, model, method, settings, request)) as pages:
            for page in pages:
                self.sessions.say(str(request.session_hash), page[0])
                yield page

    def _adapt(
        self, problem: Problem | str | None, model: str, method: str, settings: Mapping[str, Any], request: gr.Request
    ) -> Generator[tuple[Any, ...], None, None]:
        hidden = gr.DownloadButton(visible=False)
        if not isinstance(problem, Problem):
            told = problem if isinstance(problem, str) and problem else FIRST
            self.sessions.begin(str(request.session_hash))
            yield status_html(told, error=True), "", "", "", hidden, *_buttons(False), ""
            return
        key, last = str(request.session_hash), 0.0
        stop = self.sessions.begin(key, problem)  # before the page offers to stop it
        view = Page(problem, earlier=lambda: self._earlier(key))
        with suppress(ConfigError):  # which the adaptation itself tells
            lm = self.workshop.choose(problem, _name(model))
            view.model, view.note = described(lm), beyond(lm, problem.tasks)
        try:
            folder = self.sessions.folder(key)
        except OSError as error:
            logger.warning("No folder for a visitor: %s", error)
            yield view.page(False, NO_ROOM, error=True, download=hidden)
            return
        try:
            yield view.page(True, download=hidden)
            for event in self._begin(problem, model, method, settings, stop, folder):
                if isinstance(event, Outcome):
                    yield self._end(view, event, key)
                    return
                if self.workshop.leases and stop.is_set():  # whose process no sign of ours reaches
                    raise Stopped("Stopped.")
                view.take(event)
                if time.perf_counter() - last > REDRAW or isinstance(event, Replies | Weighed | Measured):
                    last = time.perf_counter()
                    yield view.page(True)
        except HFMassError as error:
            yield view.page(False, str(error), error=True)
        except Exception:  # the page must not stay as if it went on; the log gets the reason
            yield view.page(False, BROKEN, error=True)
            raise
        finally:
            self.sessions.settle(key, folder)

    def _end(self, view: Page, outcome: Outcome, key: str) -> tuple[Any, ...]:
        """The page at the end."""
        view.notes, download = drawing.guard_notes_html(outcome.facts["guard"]), gr.DownloadButton(visible=False)
        if outcome.archive is not None:
            self.sessions.hand_out(key, outcome.archive)
            download = gr.DownloadButton(value=str(outcome.archive), visible=True)
        text = " ".join([view.summary(outcome.facts), *([f"{outcome.lost}."] if outcome.lost else [])])
        failed = outcome.lost is not None or outcome.facts["reason"] is not None
        return view.page(False, text, failed, download)

    def _begin(
        self,
        problem: Problem,
        model: str,
        method: str,
        settings: Mapping[str, Any],
        stop: StopSign | None = None,
        folder: Path | None = None,
    ) -> Iterator[Event | Outcome]:
        """An adaptation, when it is its turn; what cannot be is refused before a GPU is leased for it."""
        if method not in list(METHODS):  # others would be imported, whatever they are
            raise ConfigError(f"method is {shown(method)}; choose one of {list(METHODS)}.")
        name = self.workshop.choose(problem, _name(model)).name
        sign = None if self.workshop.leases else stop
        chosen = chosen_settings(settings)
        return self.line.turn(lambda: self.workshop.adapt(name, problem, method, chosen, sign, folder), stop)

    def stop(self, request: gr.Request) -> Any:
        """The stop button; the last word of an adaptation that has just ended stays."""
        return status_html("Stopping") if self.sessions.stop(str(request.session_hash)) else gr.skip()

    def stopped(self, request: gr.Request) -> Any:
        """After the stop button: the last word of what it ended, which may have reached the page before "Stopping"."""
        word = self.sessions.last_word(str(request.session_hash))
        return gr.skip() if word is None else word

    def downloaded(self, request: gr.Request) -> tuple[Any, Any]:
        """The adapter was asked for, which Gradio hands out by itself: status and button where it cannot."""
        if self.sessions.has_archive(str(request.session_hash)):
            return gr.skip(), gr.skip()
        return status_html(GONE, error=True), gr.DownloadButton(visible=False)

    def here(self, request: gr.Request) -> None:
        """The page says that it is still open."""
        self.sessions.here(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.close(str(request.session_hash))

    # -- for programs -------------------------------------------------------------------------------------------------

    def solve(
        self, problem: str, method: str = "ttt", model: str = "", settings: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Adapt to a problem and answer it. A setting that is left out is the model's own.

        The items before the last one say what goes on; the last one is the result: answers before and after, samples
        with their weights and attributions (positive = helpful), losses, and what the guard did.
        """
        try:
            view = Page(read_problem(problem, "problem", None, LIMITS))
            for event in self._begin(view.problem, model, method, settings or {}):
                if isinstance(event, Outcome):
                    yield {"done": True, **event.facts}
                    return
                view.take(event)
                yield {"done": False, "stage": view.status}
        except HFMassError as error:
            raise gr.Error(str(error), print_exception=False) from error


_NOTHING = (None, status_html(FIRST), *_SAME)


def _refusal(reason: str) -> tuple[Any, ...]:
    return reason, status_html(reason, error=True), *_SAME


def _name(model: str | None) -> str | None:
    return None if model in (None, "", AUTOMATIC) else model


def _buttons(busy: bool) -> tuple[Any, Any]:
    """Start and stop."""
    return gr.Button(interactive=not busy), gr.Button(interactive=busy)
