"""What is drawn is HTML of known tags and attributes alone, whatever users and models write, and can be read aloud."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.app import drawing
from hf_mass.engine.events import Loss, Trial
from hf_mass.methods.base import Answer, GuardEntry
from hf_mass.tasks.problems import Problem, read_problem
from hf_mass.tasks.task import Demonstration, Task

TAGS = {
    "strong",
    "div",
    "span",
    "p",
    "ol",
    "li",
    "h4",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
}
TAGS |= {"svg", "path", "text", "polyline", "circle"}
ATTRIBUTES = {"class", "role", "style", "title", "tabindex", "scope", "aria-label", "aria-live", "aria-hidden"}
ATTRIBUTES |= {"viewbox", "d", "x", "y", "cx", "cy", "r", "points", "text-anchor"}
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</span></div><iframe src='javascript:alert(1)'>",
    "${7*7}{{7*7}}{% raw %}<%= 1 %>",
    "<!-- --><![CDATA[ ]]>&lt;script&gt;",
    "\0\x1b[31m",
]
NAN = float("nan")


class Reader(HTMLParser):
    """Tags, attributes and text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An opening tag."""
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag that closes itself."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """A closing tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data

    def handle_comment(self, data: str) -> None:
        """A comment, of which there are none."""
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        """A declaration, of which there are none."""
        raise AssertionError(data)

    def labels(self) -> list[str]:
        """What a screen reader says."""
        return [str(attributes["aria-label"]) for _, attributes in self.elements if "aria-label" in attributes]


def read(html: str) -> Reader:
    """The pieces of HTML that holds nothing unexpected."""
    reader = Reader(html)
    for tag, attributes in reader.elements:
        assert tag in TAGS, tag
        assert set(attributes) <= ATTRIBUTES, attributes
        assert "aria-label" not in attributes or "role" in attributes, (tag, attributes)  # else it is not read out
        for name in ("class", "style", "role"):
            assert re.fullmatch(r"[-a-zA-Z0-9 :;.,()]*", str(attributes.get(name, ""))), attributes
    return reader


def row(question: str = "q", answer: str = "a", reason: str | None = None, **changes: Any) -> dict[str, Any]:
    """A sample as `sample_rows` has it."""
    values = {"weight": 0.5, "attribution": 0.1, "loss_before": 2.0, "loss_after": 1.0, "reason": reason}
    return {"question": question, "answer": answer, **values, **changes}


def problem_of(text: str, kind: str = "texts") -> Problem:
    """A problem that has the text everywhere."""
    tasks = [Task(text, (Demonstration(text, text),), answer=text, id=text) for _ in range(2)]
    return Problem(text, kind, tuple(tasks))


def answer(text: str | None, score: float | None = None, written: str | None = None) -> Answer:
    """An answer to whatever was asked."""
    return Answer(Task("q"), text, score, written)


WAYS: list[Callable[[str, str], str]] = [
    drawing.value_html,
    lambda text, kind: drawing.pair_html(Demonstration(text, text), kind),
    lambda text, kind: drawing.problem_html(problem_of(text, kind)),
    lambda text, kind: drawing.answers_html(
        problem_of(text, kind),
        [answer(text, 0.0), answer(None, None, text)],
        [answer(text, 1.0, text)],
    ),
    lambda text, kind: drawing.writing_html([text, "", text]),
    lambda text, kind: drawing.samples_html([row(text, text), row(text, text, reason=text)] * 6, kind),
    lambda text, kind: drawing.status_html(text),
    lambda text, kind: drawing.status_html(text, error=True),
]


@pytest.mark.parametrize("kind", ["texts", "grids"])
@pytest.mark.parametrize("text", EVIL)
def test_no_text_becomes_markup(text: str, kind: str) -> None:
    for way in WAYS:
        assert text in read(way(text, kind)).text


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(["texts", "grids"]))
def test_no_text_whatever_becomes_markup(text: str, kind: str) -> None:
    for way in WAYS:
        read(way(text, kind))


def test_a_grid_is_read_out_row_by_row() -> None:
    reader = read(drawing.grid_html(((0, 1), (2, 9))))
    assert reader.labels() == ["grid of 2 by 2: 0 1; 2 9"]
    titles = [attributes["title"] for _, attributes in reader.elements if "title" in attributes]
    assert titles == ["black", "blue", "red", "maroon"]
    assert reader.text == "0129"
    strip = read(drawing.grid_html(((1,) * 100,)))
    assert strip.text == "" and len(strip.elements) == 101  # too small for digits


@pytest.mark.parametrize("text", ["0 1\n2", "0 1 x", "12 3", "", "[[0, 1]", "0 1\n\n2 3", "١ ٢"])
def test_what_is_no_grid_is_shown_as_it_was_written(text: str) -> None:
    reader = read(drawing.value_html(text, "grids"))
    assert reader.text == text and reader.labels() == []
    assert read(drawing.value_html("0 1\n2 3", "texts")).text == "0 1\n2 3"
    assert "grid of" in drawing.value_html("0 1\n2 3", "grids")


def test_a_problem() -> None:
    problem = read_problem("a -> 1\nb -> 2\nc ->\nd", "mine")
    reader = read(drawing.problem_html(problem))
    assert reader.labels() == ["problem mine", "becomes", "becomes"]
    assert "Solved examples (2)" in reader.text and "Asked (2)" in reader.text
    alone = read(drawing.problem_html(read_problem("why?")))
    assert "Solved" not in alone.text and "why?" in alone.text


def test_answers_before_and_after() -> None:
    problem = read_problem("a -> 1\nb -> 2\nc -> 3")
    before, after = answer("7", 0.0), answer("3", 1.0)
    assert "–" in read(drawing.answers_html(problem, [], [])).text
    reader = read(drawing.answers_html(problem, [before], [after]))
    assert "Before ✗ wrong7" in reader.text and "After ✓ right3" in reader.text and "Right answer3" in reader.text
    unknown = read(drawing.answers_html(read_problem("a -> 1\nc"), [answer(None, written="<b>")], [answer("x")]))
    assert "nothing that could be read" in unknown.text and "written: <b>" in unknown.text
    assert "Right" not in unknown.text and "✓" not in unknown.text and "✗" not in unknown.text
    halves = read(drawing.answers_html(problem, [before], [replace(after, cut=True)]))
    assert halves.text.count("cut off: it has as many tokens") == 1


def test_samples_by_weight() -> None:
    rows = [row(f"q{n}", weight=n / 45, attribution=None) for n in range(10)]
    reader = read(drawing.samples_html(rows, "texts"))
    assert re.findall(r"q\d", reader.text) == [f"q{n}" for n in range(9, -1, -1)]
    assert "2 more of less weight" in reader.text
    assert "samples" in reader.labels() and "A positive attribution means" in reader.text
    assert read(drawing.samples_html([], "texts")).elements


def test_values_that_are_no_numbers() -> None:
    nan = row("bad", weight=NAN, attribution=NAN, loss_before=NAN, loss_after=float("inf"))
    lost = row("", "", "no match", weight=0.0, attribution=None, loss_before=NAN, loss_after=NAN)
    reader = read(drawing.samples_html([nan, lost, row("good")], "texts"))
    assert "nan" not in reader.text and "inf" not in reader.text
    assert reader.text.index("good") < reader.text.index("bad")
    assert "not usable: no match" in reader.text
    everything = drawing.samples_html([lost, lost], "texts")
    assert "nan" not in everything and read(everything)
    losses = [Loss("ttt", 0, 0, 3, 2.0), Loss("ttt", 0, 1, 3, NAN), Loss("mass", 1, 0, 2, float("inf"))]
    assert "nan" not in drawing.losses_html(losses) and "inf" not in drawing.losses_html(losses[1:])
    assert read(drawing.losses_html(losses)).labels() == ["TTT loss 2.000 → –, MASS loss – → –"]


def test_losses() -> None:
    assert drawing.loss_text([]) == ""
    assert read(drawing.losses_html([])).elements == []
    read(drawing.losses_html([Loss("ttt", 0, 0, 1, 0.0)]))
    losses = [Loss("ttt", 0, n, 2, 3.0 - n) for n in range(2)] + [
        Loss("mass", q, n, 2, 1.0) for q in (0, 1) for n in (0, 1)
    ]
    reader = read(drawing.losses_html(losses))
    assert drawing.loss_text([Loss("mine", 0, 0, 1, 2.0)]) == "MINE loss 2.000 → 2.000"  # somebody's own method
    assert reader.labels() == ["TTT loss 3.000 → 2.000, MASS loss 1.000 → 1.000, MASS loss 1.000 → 1.000"]
    lines = [attributes["points"] for tag, attributes in reader.elements if tag == "polyline"]
    assert [len(str(points).split()) for points in lines] == [2, 4]
    assert "TTT" in reader.text and "MASS" in reader.text


@pytest.mark.parametrize(
    ("value", "label"), [(0.004891, "0.0049"), (12.34, "12"), (2.345, "2.3"), (1.234e-5, "1.2e-05")]
)
def test_the_largest_loss_has_room_beside_the_axis(value: float, label: str) -> None:
    chart = drawing.losses_html([Loss("ttt", 0, 0, 1, value)])
    assert f'text-anchor="end">{label}</text>' in chart
    assert 6.5 * len(label) <= drawing.LEFT - 6  # a digit is six and a half wide


def test_losses_of_trials_are_lines_of_their_own() -> None:
    trials = [Trial(stage, n, 2, 4.0 - n) for stage in ("trying one", "trying another") for n in range(2)]
    reader = read(drawing.losses_html([Loss("ttt", 0, n, 3, 3.0 - n) for n in range(3)], trials))
    lines = [attributes for tag, attributes in reader.elements if tag == "polyline"]
    assert [line["class"] for line in lines] == ["hm-trial", "hm-trial", "hm-ttt"]
    assert [len(str(line["points"]).split()) for line in lines] == [2, 2, 3]
    assert "on half of the examples" in reader.text and "step 3" in reader.text
    assert read(drawing.losses_html([], trials)).labels() == [""]


def test_left_out_gains() -> None:
    assert drawing.gains_html([]) == ""
    entries = (
        GuardEntry("the <rate>", 0.5, 1.5),
        GuardEntry("a third", 1.0, 3.0, chosen=True),
        GuardEntry("twice", 1.0, -0.75),
        GuardEntry("ten times", 1.0, float("-inf"), reason="the loss is not finite"),
    )
    reader = read(drawing.gains_html(entries))
    assert "the <rate>50% of the steps+1.50 ± 0.00" in reader.text and "twice100% of the steps-0.75" in reader.text
    assert "+3.00 ± 0.00 chosen" in reader.text and reader.text.count("chosen") == 1 and "inf" not in reader.text
    bars = [attributes for tag, attributes in reader.elements if tag == "span"]
    assert [bar["style"] for bar in bars] == [f"width:{size}rem" for size in ("3.00", "6.00", "1.50", "0.00")]
    assert [bar["class"] for bar in bars] == ["hm-bar", "hm-bar", "hm-bar hm-loss", "hm-bar hm-loss"]


def test_what_answers_is_named() -> None:
    problem = read_problem("a -> 1\nb -> 2\nc -> 3", "mine")
    assert "mine, answered by <strong>&lt;x&gt;, 1.3M parameters</strong>" in drawing.answers_html(
        problem, [], [], "<x>, 1.3M parameters"
    )


def test_the_status_is_announced() -> None:
    for error, role in ((False, "status"), (True, "alert")):
        ((_, attributes),) = read(drawing.status_html("x", error)).elements
        assert (attributes["role"], attributes["aria-live"]) == (role, "polite")


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_generated_grid(rows: list[list[int]]) -> None:
    text = "\n".join(" ".join(map(str, cells)) for cells in rows)
    reader = read(drawing.value_html(text, "grids"))
    ragged = len({len(cells) for cells in rows}) > 1
    assert (reader.text == text) if ragged else ("grid of" in reader.labels()[0])
