"""What the elements of the app's page do: read a problem, adapt to it while the page is redrawn, stop, clean up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import make_archive, rmtree
from typing import Any

import gradio as gr

from hf_mass.app.drawing import (
    answers_html,
    loss_text,
    losses_html,
    problem_html,
    samples_html,
    status_html,
    writing_html,
)
from hf_mass.app.sessions import Sessions
from hf_mass.app.workshop import Workshop, example
from hf_mass.engine.events import Answer, Answered, Event, LiveConfig, Loss, Outcome, Stage, Weighed, Writing
from hf_mass.errors import ConfigError, HFMassError
from hf_mass.tasks.problems import Limits, Problem, read_problem, read_problem_file

LIMITS = Limits(bytes=200_000)
TIME_LIMIT = 120.0
"""Seconds that one adaptation may take."""
REDRAW = 0.1
"""Seconds between two redraws."""
AUTOMATIC = "automatic"
MOST = {"samples": 32, "inner_steps": 8, "max_examples": 100, "num_train_epochs": 8}
"""The most that one visitor may ask for."""
METHOD_NAMES = {"ttt": "TTT", "mass": "MASS", "both": "both"}
FIRST = "Choose an example, upload a file, or paste a problem."


@dataclass
class View:
    """What the page shows of one adaptation so far."""

    problem: Problem
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    stage: str = "Waiting for the model"
    samples: str = ""
    losses: list[Loss] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Note an event."""
        match event:
            case Stage(text):
                self.stage = text
            case Writing(texts=texts):
                self.samples = writing_html(texts)
            case Weighed(rows=rows):
                self.samples = samples_html(rows, self.problem.kind)
            case Answered("before", answers):
                self.before = answers
            case Answered(_, answers):
                self.after = answers
            case Loss():
                self.losses.append(event)
                name = METHOD_NAMES[event.method]
                self.stage = f"{name}: step {event.step + 1} of {event.steps}, loss {event.value:.3f}"

    def summary(self, outcome: Outcome) -> str:
        """The end in a line."""
        parts = [f"Done in {outcome.seconds:.1f} s", loss_text(self.losses)]
        if outcome.sampled_tokens:
            parts.append(f"{outcome.sampled_tokens} tokens sampled")
        if outcome.reason:
            parts[0] = f"Ended after {outcome.seconds:.1f} s: {outcome.reason}"
        return ". ".join(part for part in parts if part) + "."


class Handlers:
    """What the page's elements do.

    Args:
        workshop: The models.
        sessions: The visitors.
    """

    def __init__(self, workshop: Workshop, sessions: Sessions) -> None:
        self.workshop, self.sessions = workshop, sessions

    # -- the problem --------------------------------------------------------------------------------------------------

    def show_example(self, name: str | None) -> tuple[Any, ...]:
        """An example was picked."""
        return self._shown(lambda: example(name)) if name else self._nothing()

    def show_file(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A file was uploaded."""
        if path is None:
            return self._nothing()
        file = Path(path)
        if not file.is_file():
            return self._refused("The file is no longer here. Upload it again.")
        self.sessions.keep(str(request.session_hash), file)
        shown = self._shown(lambda: read_problem_file(file, LIMITS))
        if not isinstance(shown[0], Problem):
            file.unlink(missing_ok=True)
        return shown

    def show_text(self, text: str) -> tuple[Any, ...]:
        """A text was pasted."""
        return self._shown(lambda: read_problem(text, "pasted", None, LIMITS)) if text.strip() else self._nothing()

    def _nothing(self) -> tuple[Any, ...]:
        return None, status_html(FIRST), *_SAME

    def _refused(self, reason: str) -> tuple[Any, ...]:
        return reason, status_html(reason, error=True), *_SAME

    def _shown(self, read: Any) -> tuple[Any, ...]:
        """(problem, or why there is none; its picture; methods to choose from)."""
        try:
            problem = read()
        except HFMassError as error:
            return self._refused(str(error))
        return problem, problem_html(problem), *self.offered(problem, None)

    def offered(self, problem: Problem | str | None, model: str | None) -> tuple[Any, ...]:
        """The methods that suit a problem, and the model's own settings on the sliders."""
        if not isinstance(problem, Problem):
            return _SAME
        methods = self.workshop.methods(problem, _named(model))
        radio = gr.Radio(
            choices=[(METHOD_NAMES[method], method) for method in methods],
            value="ttt" if "ttt" in methods else methods[0],
        )
        own = self.workshop.choose(problem, _named(model)).defaults(problem.kind)
        return (
            radio,
            _count_slider("samples", own.samples),
            _count_slider("inner_steps", own.inner_steps),
            _rate_slider(own.inner_learning_rate),
            _count_slider("max_examples", own.max_examples),
            _count_slider("num_train_epochs", own.num_train_epochs),
            _rate_slider(own.learning_rate),
        )

    # -- adapting -----------------------------------------------------------------------------------------------------

    def adapt(
        self,
        problem: Problem | str | None,
        model: str,
        method: str,
        samples: int,
        inner_steps: int,
        inner_learning_rate: float,
        max_examples: int,
        num_train_epochs: int,
        learning_rate: float,
        vote: bool,
        seed: int,
        weigh_by: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Adapt, and redraw the page as it goes on: status, answers, losses, samples, download, buttons."""
        if not isinstance(problem, Problem):
            yield (
                status_html(problem or FIRST, error=True),
                "",
                "",
                "",
                gr.DownloadButton(visible=False),
                *_buttons(False),
            )
            return
        view, key = View(problem), str(request.session_hash)
        yield status_html(view.stage), "", "", "", gr.DownloadButton(visible=False), *_buttons(True)
        try:
            config = live_config(
                method,
                samples,
                inner_steps,
                inner_learning_rate,
                max_examples,
                num_train_epochs,
                learning_rate,
                vote,
                seed,
                weigh_by,
            )
            name = self.workshop.choose(problem, _named(model)).name
            stop = None if self.workshop.leases else self.sessions.begin(key)
            drawn = 0.0
            for event in self.workshop.adapt(name, problem, config, stop):
                if isinstance(event, Outcome):
                    yield *self._end(view, event, key), *_buttons(False)
                    return
                view.take(event)
                if time.perf_counter() - drawn > REDRAW or isinstance(event, Answered | Weighed):
                    drawn = time.perf_counter()
                    yield *_drawn(view), gr.skip(), *_buttons(True)
        except HFMassError as error:
            yield status_html(str(error), error=True), *_drawn(view)[1:], gr.skip(), *_buttons(False)
        except Exception:  # the page must not stay as if it went on; the log gets the reason
            text = "Something went wrong that should not. Try another problem or other settings."
            yield status_html(text, error=True), *_drawn(view)[1:], gr.skip(), *_buttons(False)
            raise

    def _end(self, view: View, outcome: Outcome, key: str) -> tuple[Any, ...]:
        view.before, view.after = outcome.before, outcome.after
        download = gr.DownloadButton(visible=False)
        if outcome.adapters:
            download = gr.DownloadButton(value=str(self._archive(outcome, key)), visible=True)
        status = status_html(view.summary(outcome), error=outcome.reason is not None)
        return status, *_drawn(view)[1:], download

    def _archive(self, outcome: Outcome, key: str) -> Path:
        """The adapters as one zip file, each in a folder that `PeftModel.from_pretrained` reads."""
        folder = self.sessions.folder(key)
        made = folder / "adapter"
        try:
            rmtree(made, ignore_errors=True)  # of an earlier problem with other queries
            for number, adapter in enumerate(outcome.adapters):
                adapter.save(made / f"query-{number}" if len(outcome.adapters) > 1 else made)
            return Path(make_archive(str(folder / "adapter"), "zip", made))
        finally:
            self.sessions.settle(key, folder)

    def stop(self, request: gr.Request) -> str:
        """The stop button."""
        self.sessions.stop(str(request.session_hash))
        return status_html("Stopping")

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.close(str(request.session_hash))

    # -- for programs -------------------------------------------------------------------------------------------------

    def solve(
        self,
        problem: str,
        method: str = "ttt",
        model: str = "",
        samples: int = 0,
        inner_steps: int = 0,
        inner_learning_rate: float = 0.0,
        max_examples: int = 0,
        num_train_epochs: int = 0,
        learning_rate: float = 0.0,
        vote: bool = True,
        seed: int = 0,
        weigh_by: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Adapt to a problem and answer it. Zero, or an empty text, stands for the model's own setting.

        The items before the last one say what goes on; the last one is the outcome: answers before and after, samples
        with their weights and attributions, losses.
        """
        try:
            read = read_problem(problem, "problem", None, LIMITS)
            config = live_config(
                method,
                samples,
                inner_steps,
                inner_learning_rate,
                max_examples,
                num_train_epochs,
                learning_rate,
                vote,
                seed,
                weigh_by,
            )
            view, name = View(read), self.workshop.choose(read, _named(model)).name
            for event in self.workshop.adapt(name, read, config, None):
                if isinstance(event, Outcome):
                    yield {"done": True, "model": name, **event.to_dict()}
                    return
                view.take(event)
                yield {"done": False, "stage": view.stage}
        except HFMassError as error:
            raise gr.Error(str(error), print_exception=False) from error


def live_config(
    method: str,
    samples: int,
    inner_steps: int,
    inner_learning_rate: float,
    max_examples: int,
    num_train_epochs: int,
    learning_rate: float,
    vote: bool,
    seed: int,
    weigh_by: str,
) -> LiveConfig:
    """Settings as the page gives them; 0 and the empty text stand for the model's own.

    Raises:
        ConfigError: If one is out of its range, or beyond what one visitor may ask for.
    """
    counts = {
        "samples": samples,
        "inner_steps": inner_steps,
        "max_examples": max_examples,
        "num_train_epochs": num_train_epochs,
    }
    whole = {name: _whole(name, value) for name, value in counts.items()}
    for name, value in whole.items():
        if value > MOST[name]:
            raise ConfigError(f"{name} is {value}; at most {MOST[name]} are allowed here.")
    return LiveConfig(
        method=method,
        weigh_by=None if weigh_by in ("", AUTOMATIC) else weigh_by,
        inner_learning_rate=inner_learning_rate or None,
        learning_rate=learning_rate or None,
        vote=bool(vote),
        seed=_whole("seed", seed),
        time_limit=TIME_LIMIT,
        **{name: value or None for name, value in whole.items()},
    )


def _whole(name: str, value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is {value!r:.60}; choose a whole number.") from error


def _named(model: str | None) -> str | None:
    return None if model in (None, "", AUTOMATIC) else model


_SAME = (gr.skip(),) * 7
"""The method and six sliders, as they are."""


def _count_slider(name: str, own: int | None) -> Any:
    """A slider at the model's own setting, as far as one visitor may ask for it."""
    return gr.skip() if own is None else gr.Slider(value=min(own, MOST[name]))


def _rate_slider(own: float | None) -> Any:
    """A slider from a tenth of the model's own rate to four times it."""
    return gr.skip() if own is None else gr.Slider(minimum=own / 10, maximum=own * 4, step=own / 10, value=own)


def _buttons(running: bool) -> tuple[Any, Any]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _drawn(view: View) -> tuple[str, str, str, str]:
    answers = answers_html(view.problem, view.before, view.after)
    return status_html(view.stage), answers, losses_html(view.losses), view.samples
