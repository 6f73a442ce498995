"""What the app's page does, called without a page: problems shown or refused in words, adapting, the API."""

from __future__ import annotations

import json
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from page_fixtures import PAIRS, ROWS, SAME, SMALL, Visitor, download, strips
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_mass.app.controls import AUTOMATIC, OPTIONS, on_page
from hf_mass.app.handlers import Handlers
from hf_mass.app.workshop import EXAMPLES
from hf_mass.engine.events import Event, Stage
from hf_mass.engine.models import load
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import Problem, read_problem

# -- the problem -------------------------------------------------------------------------------------------------------


def test_good_input_is_shown(visitor: Visitor, tmp_path: Path) -> None:
    do = visitor.do
    file = tmp_path / "mine.json"
    file.write_text(strips())
    for problem, picture, method, *settings in (
        visitor.file(file),
        do.show_text(strips(), AUTOMATIC),
        do.show_text("a -> b\nc", AUTOMATIC),
        do.show_text("peach?", AUTOMATIC),
        *(do.show_example(name, AUTOMATIC) for name in EXAMPLES),
    ):
        assert isinstance(problem, Problem) and "hm-pairs" in picture
        assert [value for _, value in method.choices][-1:] and len(settings) == len(OPTIONS)
    assert visitor.file(file)[0].name == "mine"
    assert [value for _, value in do.show_text(strips(), None)[2].choices] == ["mass", "ttt", "both"]
    assert [value for _, value in do.show_text("peach?", None)[2].choices] == ["mass"]


def test_bad_input_is_refused_in_words(visitor: Visitor, tmp_path: Path) -> None:
    do = visitor.do
    for name, content, words in (
        ("a.json", b"{half", "could not be read as JSON"),
        ("a.json", b"\x89PNG\r\n\x1a\n", "is no text, but a picture"),
        ("a.csv", b"<script>alert(1)</script>\nx", "no column &#x27;input&#x27;"),
        ("a.json", b'{"<img src=x>": 1}', "&lt;img src=x&gt;"),
        ("a.json", b" " * 200_001, "at most 200,000 are read"),
        ("a.exe", b"x", "unknown kind"),
        ("a.json", json.dumps({"train": PAIRS, "test": [{"input": [[1], [1, 2]]}]}).encode(), "ragged"),
    ):
        (tmp_path / name).write_bytes(content)
        problem, picture, *rest = visitor.file(tmp_path / name)
        assert isinstance(problem, str) and words in picture and 'role="alert"' in picture and len(rest) == len(SAME)
        assert str(tmp_path) not in picture and "<img" not in picture and "<script" not in picture
    for text in ("{", "a -> b", "x" * 5000):
        problem, picture, *_ = do.show_text(text, AUTOMATIC)
        assert isinstance(problem, str) and 'role="alert"' in picture


def test_what_a_table_does_not_say_is_told_beside_it(visitor: Visitor, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes("frage;note;antwort\nBär;x;Bären\nTür;x;Türen\nKuh;x;\n".encode("cp850"))
    plain = ("", "", "", "", True)
    assert isinstance(visitor.file(file, *plain)[0], str)  # refused, and still there to be told more about
    problem, *_ = visitor.file(file, "frage", "antwort", "cp850", ";", True)
    assert [pair.answer for pair in problem.tasks[0].demonstrations] == ["Bären", "Türen"]
    assert problem.tasks[0].problem == "Kuh"
    for form, words in (
        (("frage", "antwort", "cp850", "two", True), "“Between cells” is"),
        (("frage", "antwort", "klingon", ";", True), "Name one as utf-8, cp1252"),
        (("question", "antwort", "cp850", ";", True), "no column &#x27;question&#x27;"),
    ):
        refused, picture, *_ = visitor.file(file, *form)
        assert isinstance(refused, str) and words in picture
    file.write_text("a\tb\nc\td\ne\t\n")
    problem, *_ = visitor.file(file, None, None, None, "tab", False)
    assert [pair.question for pair in problem.tasks[0].demonstrations] == ["a", "c"]
    file.write_text("input,output\na,b\nc,d\n")
    assert visitor.file(file, *plain)[0] == visitor.file(file)[0]


def test_nothing_is_no_error(visitor: Visitor) -> None:
    do = visitor.do
    for page in (do.show_text(" \n", AUTOMATIC), do.show_example(None, AUTOMATIC), visitor.file(None)):
        assert page[0] is None and "Choose an example" in page[1] and 'role="status"' in page[1]
        assert page[2:] == SAME
    assert do.offered(None, None) == SAME


# -- adapting ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_guard_did(visitor: Visitor, do: Handlers) -> None:
    rows = [*ROWS, [8, 0, 1], [2, 2, 5]]
    problem = read_problem(
        json.dumps(
            {"train": [{"input": [row], "output": [row[::-1]]} for row in rows], "test": [{"input": [[7, 8, 9]]}]}
        )
    )
    *_, last = visitor.adapt(problem, settings={**SMALL, "guard": True})
    assert "Guard, " in last[2] and "left-out gain" in last[2] and "the rate" in last[2] and "Done in" in last[0]
    *_, few = visitor.adapt(read_problem(strips()), settings={**SMALL, "guard": True})
    assert "off: 3 demonstrations, and the guard needs 4" in few[2] and "<th" not in few[2]
    *_, bare = visitor.adapt(problem)
    assert "Guard" not in bare[2]
    *_, done = do.solve(json.dumps([*PAIRS, {"input": [[7, 8, 9]]}]), settings={"guard": True, "max_examples": 4})
    assert [guard["note"][:3] for guard in done["guard"]] == ["off"]


def test_a_whole_adaptation(visitor: Visitor, tmp_path: Path) -> None:
    first, *redrawn, last = visitor.adapt(read_problem(strips(), "<b>"), "both")
    assert (first[5].interactive, first[6].interactive) == (False, True)
    assert (last[5].interactive, last[6].interactive) == (True, False)
    assert all(len(page) == 7 for page in (first, *redrawn, last))
    assert "Done in" in last[0] and "After" in last[1] and "<svg" in last[2] and "<table" in last[3]
    with zipfile.ZipFile(download(last)) as archive:
        archive.extractall(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "grids-small")
    assert PeftModel.from_pretrained(base, str(tmp_path / "out")).peft_config["default"].r > 0
    assert load(tmp_path / "out").kinds == ("grids",)


def test_without_a_problem(visitor: Visitor) -> None:
    (page,) = visitor.adapt(None)
    assert "Choose an example" in page[0] and 'role="alert"' in page[0] and page[5].interactive


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "magic"}, "model is &#x27;magic&#x27;"),
        ({"method": "magic"}, "method is &#x27;magic&#x27;"),
        ({"settings": {"samples": 999}}, "at most 32"),
        ({"model": "conventions-mass"}, "is made for texts"),
    ],
)
def test_what_cannot_be_adapted_to(visitor: Visitor, changes: dict[str, Any], words: str) -> None:
    *_, page = visitor.adapt(read_problem(strips()), **changes)
    assert words in page[0] and page[5].interactive and not page[6].interactive


def test_an_error_of_ours_gives_the_buttons_back(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Iterator[Event]:
        yield Stage("begins")
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(visitor.do.workshop, "adapt", fail)
    pages = []
    with pytest.raises(RuntimeError):
        for page in visitor.adapt(read_problem(strips())):
            pages.append(page)
    assert pages[-1][5].interactive and 'role="alert"' in pages[-1][0] and "secret" not in pages[-1][0]


def test_the_archive_holds_the_last_problem_alone(visitor: Visitor) -> None:
    *_, many = visitor.adapt(read_problem(strips(2)), "both")
    names = zipfile.ZipFile(download(many)).namelist()
    assert {name.split("/")[0] for name in names} == {"query-0", "query-1"}
    *_, one = visitor.adapt(read_problem(strips()))
    names = zipfile.ZipFile(download(one)).namelist()
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "adaptation.json"} <= set(names)
    assert not any("query" in name for name in names)


def test_the_api(do: Handlers) -> None:
    *steps, outcome = do.solve(strips(), "ttt", "grids-small", {"max_examples": 6})
    assert outcome["done"] and outcome["model"] == "grids-small" and len(outcome["after"]) == 1
    assert not any(step["done"] for step in steps)
    json.dumps([*steps, outcome], allow_nan=False)
    for arguments, words in (
        (("{",), "could not be read"),
        ((strips(), "magic"), "method is"),
        ((strips(), "hf_mass.methods.ttt:TTT"), "method is"),  # nothing is imported that a visitor names
        ((strips(), "ttt", "magic"), "model is"),
        ((strips(), "ttt", "", {"samples": 999}), "at most 32"),
        (("why?", "ttt"), "no solved examples"),
    ):
        with pytest.raises(gr.Error, match=words):
            list(do.solve(*arguments))  # type: ignore[arg-type]


# -- visitors who are gone without a word ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, [], {}, True, float("nan"), "no such thing", "x" * 10_000, "a\0b"])
def test_handlers_are_given_anything(do: Handlers, value: Any) -> None:
    """Anybody can call them without the page."""
    request: Any = types.SimpleNamespace(session_hash="one")
    for call in (
        lambda: do.show_example(value, None)[0],
        lambda: do.show_file(value, None, request)[0],
        lambda: list(do.adapt(value, "", "ttt", {}, request))[-1][0],
    ):
        assert isinstance(call(), str) or value in ([], {})  # nothing chosen yet
    if not isinstance(value, str):
        assert isinstance(do.show_text(value, None)[0], str)
        with pytest.raises(gr.Error, match="problem"):
            list(do.solve(value))
    with pytest.raises(gr.Error, match="model is"):
        list(do.solve(strips(), model=value))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("name them (--input_column, --output_column)", "name them (“Column of inputs”, “Column of outputs”)"),
        ("say so (--no_header).", "say so (“The first row names the columns”)."),
        ("its encoding (encoding='cp1252', --encoding cp1252).", "its encoding (“Encoding” cp1252)."),
        ("Say which (delimiter=..., --delimiter).", "Say which (“Between cells”)."),
        ("delimiter is 'ab'; give one", "“Between cells” is 'ab'; give one"),
        ("Give one of them, or take all (--each).", "Give one of them."),
    ],
)
def test_errors_name_what_is_on_the_page(error: str, shown: str) -> None:
    assert on_page(error) == shown
