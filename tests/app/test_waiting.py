"""Visitors who wait for their turn, and what a page shows of an earlier problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from page_fixtures import LONG, RULE, SAME, Visitor, strips

from hf_mass.app.controls import AUTOMATIC, OPTIONS
from hf_mass.app.handlers import Handlers
from hf_mass.app.line import Line
from hf_mass.app.workshop import Workshop
from hf_mass.tasks.problems import read_problem


def drawn(running: Iterator[tuple[Any, ...]], words: str) -> tuple[Any, ...]:
    """The first state of a page with these words in its status."""
    return next(page for page in running if words in page[0])


def test_those_who_wait_are_told_their_place_and_can_leave_the_line(do: Handlers) -> None:
    first, second, third, fourth = (Visitor(do, key) for key in "abcd")
    running = first.adapt(read_problem(strips()), settings=LONG)
    drawn(running, ", step ")
    waiting = [visitor.adapt(read_problem(strips())) for visitor in (second, third, fourth)]
    for n, each in enumerate(waiting, 1):
        page = drawn(each, "Waiting: ")
        assert f"Waiting: {n} problem{' is' if n == 1 else 's are'} before yours" in page[0] and page[6].interactive
    assert "Stopping" in second.stop()
    *_, last = waiting[0]
    assert "Stopped before its turn" in last[0] and last[5].interactive and not last[6].interactive
    third.leave()
    assert "Stopped before its turn" in list(waiting[1])[-1][0]
    assert drawn(waiting[2], "Waiting: 1 problem is")
    running.close()  # as Gradio does for a page that is gone
    *_, last = waiting[2]
    assert "Done in" in last[0] and do.line._places == []


def test_the_line_has_an_end(do: Handlers) -> None:
    do.line = Line(most=1)
    running = Visitor(do, "a").adapt(read_problem(strips()), settings=LONG)
    waiting = do.solve(strips())
    drawn(running, ", step ")
    assert next(waiting) == {"done": False, "stage": "Waiting: 1 problem is before yours"}
    *_, last = Visitor(do, "c").adapt(read_problem(strips()))
    assert "1 problems wait for their turn already" in last[0] and last[5].interactive
    waiting.close()
    assert drawn(Visitor(do, "c").adapt(read_problem(strips())), "Waiting: 1")


def test_stopping_ends_what_goes_on_at_a_leased_gpu(do: Handlers, workshop: Workshop) -> None:
    """No sign reaches the other process: it ends with the generator that reads from it, and the page gets its end."""
    ended: list[bool] = []

    def lease(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def leased(*args: Any) -> Iterator[Any]:
            assert args[4] is None
            try:
                yield from function(*args)
            finally:
                ended.append(True)

        return leased

    visitor = Visitor(Handlers(Workshop([workshop.models["grids-small"]], lease), do.sessions), "one")
    running = visitor.adapt(read_problem(strips()), settings=LONG)
    drawn(running, ", step ")
    assert "Stopping" in visitor.stop()
    *_, last = running
    assert "Stopped." in last[0] and last[5].interactive and not last[6].interactive and ended == [True]


def test_what_belongs_to_an_earlier_problem_says_so(visitor: Visitor) -> None:
    do, request = visitor.do, visitor.request
    old, new = read_problem(strips()), read_problem("<b> -> B\nc ->", "<i>")
    assert do.earlier(old, request) == ""  # type: ignore[arg-type]
    *_, last = visitor.adapt(old)
    assert last[7] == ""
    assert do.earlier(old, request) == ""  # type: ignore[arg-type]
    for other in (new, None, "could not be read"):
        assert "belongs to an earlier problem, problem. Press" in do.earlier(other, request)  # type: ignore[arg-type]
    list(visitor.adapt(new))
    assert "problem, &lt;i&gt; (&#x27;c&#x27;)" in do.earlier(old, request)  # type: ignore[arg-type]
    first, *_, last = visitor.adapt(new)  # which begins before the page has noticed that another one is chosen
    assert first[7] == last[7] != "" and do.earlier(new, request) == ""  # type: ignore[arg-type]
    list(visitor.adapt(None))
    assert do.earlier(old, request) == ""  # type: ignore[arg-type]


def test_settings_that_a_visitor_changed_stay(visitor: Visitor) -> None:
    """Unless they are others for the new problem."""
    do, request = visitor.do, visitor.request
    first = do.show_text("a -> A\nb", AUTOMATIC, request)  # type: ignore[arg-type]
    assert first[2:] != SAME
    assert do.show_text("a -> A\nb -> B\nc", AUTOMATIC, request)[2:] == SAME  # type: ignore[arg-type]
    rule = do.show_example(RULE, AUTOMATIC, request)  # type: ignore[arg-type]
    assert [value for _, value in rule[2].choices] == ["mass"]
    assert rule[3 + list(OPTIONS).index("samples")].value == 24
    assert rule[3 + list(OPTIONS).index("vote")] == gr.skip()
