"""What the app's page does, called without a page: visitors kept apart, files that go, settings in bounds."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import runpy
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from app_fixtures import SPACE
from model_fixtures import byte_base, byte_tokenizer, snapshot
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_mass.app import controls
from hf_mass.app import workshop as module
from hf_mass.app.app import _reach_directly
from hf_mass.app.controls import AUTOMATIC, MOST, OPTIONS, chosen_settings, model_values, on_page
from hf_mass.app.handlers import Handlers
from hf_mass.app.line import Line
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import EXAMPLES, MODEL_VARIABLE, WORD_EXAMPLES, Outcome, Workshop, example
from hf_mass.engine.events import Event, Loss, Stage
from hf_mass.engine.models import load
from hf_mass.errors import ConfigError
from hf_mass.methods.base import Adaptation
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import Problem, read_problem

RULE = "fruit colours by a hidden rule"
SMALL = {
    "samples": 4,
    "inner_steps": 1,
    "inner_learning_rate": 1.0,
    "weigh_by": AUTOMATIC,
    "max_examples": 6,
    "num_train_epochs": 1,
    "learning_rate": 2e-3,
    "vote": False,
    "seed": 0,
}
LONG = {**SMALL, "max_examples": 60, "num_train_epochs": 8}
ROWS = [[1, 0, 2], [3, 4, 0], [5, 6, 7]]
PAIRS = [{"input": [row], "output": [row[::-1]]} for row in ROWS]


def strips(queries: int = 1) -> str:
    """Rows that are turned around."""
    return json.dumps({"train": PAIRS, "test": [{"input": [[n, 8, 9]]} for n in range(queries)]})


SAME = (gr.skip(),) * (1 + len(OPTIONS))


class Visitor:
    """A page with its session."""

    def __init__(self, do: Handlers, key: str) -> None:
        self.do, self.request = do, types.SimpleNamespace(session_hash=key)

    def adapt(
        self,
        problem: Problem | None,
        method: str = "ttt",
        settings: Mapping[str, Any] = SMALL,
        model: str = "grids-small",
    ) -> Iterator[tuple[Any, ...]]:
        """The page as it is redrawn."""
        return self.do.adapt(problem, model, method, settings, self.request)  # type: ignore[arg-type]

    def file(self, path: Path | None, *form: Any) -> tuple[Any, ...]:
        """A file was uploaded, in this form."""
        return self.do.show_file(None if path is None else str(path), AUTOMATIC, self.request, *form)  # type: ignore[arg-type]

    def stop(self) -> str:
        """The stop button was pressed."""
        return self.do.stop(self.request)  # type: ignore[arg-type]

    def leave(self) -> None:
        """The page was closed."""
        self.do.leave(self.request)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MODEL_VARIABLE, raising=False)
        return Workshop.load(device="cpu")


@pytest.fixture
def do(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handlers:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # below which Gradio copies nothing
    return Handlers(workshop, Visitors(tmp_path / "sessions"))


@pytest.fixture
def visitor(do: Handlers) -> Visitor:
    return Visitor(do, "one")


def download(page: tuple[Any, ...]) -> Path:
    """The file that the page's last state offers."""
    assert page[4].visible
    return Path(page[4].value["path"] if isinstance(page[4].value, dict) else page[4].value)


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


def test_the_columns_of_a_pasted_table_can_be_named(do: Handlers) -> None:
    text = "frage;antwort\nhund;HUND\nkatze;KATZE\nmaus;"
    problem, picture, *_ = do.show_text(text, AUTOMATIC)
    assert not problem.tasks[0].demonstrations and "No solved example was found" in picture
    problem, picture, *_ = do.show_text(text, AUTOMATIC, None, "frage", "antwort", "", True)
    assert [pair.answer for pair in problem.tasks[0].demonstrations] == ["HUND", "KATZE"]
    assert problem.tasks[0].problem == "maus" and "No solved example" not in picture
    problem, *_ = do.show_text(text.partition("\n")[2], AUTOMATIC, None, "", "", ";", False)
    assert [pair.answer for pair in problem.tasks[0].demonstrations] == ["HUND", "KATZE"]
    refused, picture, *_ = do.show_text(text, AUTOMATIC, None, "question", "", "", True)
    assert isinstance(refused, str) and "no column &#x27;question&#x27;" in picture
    assert "No solved example" not in do.show_text("one line", AUTOMATIC)[1]


def test_nothing_is_no_error(visitor: Visitor) -> None:
    do = visitor.do
    for page in (do.show_text(" \n", AUTOMATIC), do.show_example(None, AUTOMATIC), visitor.file(None)):
        assert page[0] is None and "Choose an example" in page[1] and 'role="status"' in page[1]
        assert page[2:] == SAME
    assert do.offered(None, None) == SAME


# -- settings ----------------------------------------------------------------------------------------------------------


def offered(do: Handlers, problem: Problem, model: str | None = None) -> dict[str, Any]:
    """Setting → its control."""
    return dict(zip(OPTIONS, do.offered(problem, model)[1:], strict=True))


def test_sliders_stand_at_the_models_own_settings(do: Handlers) -> None:
    on_grids = offered(do, read_problem(strips()))
    expected = {"samples": 8, "inner_steps": 1, "inner_learning_rate": 0.3}
    expected |= {"max_examples": 40, "num_train_epochs": 2, "learning_rate": 2e-3}
    assert {name: on_grids[name].value for name in expected} == expected
    on_rule = offered(do, example(RULE))  # whose model cannot be trained on demonstrations
    assert on_rule["samples"].value == 24 and on_rule["inner_learning_rate"].value == 40.0
    assert not isinstance(on_rule["learning_rate"], gr.Number)
    on_page = do.show_text("fig ->", "conventions-mass")  # chosen beforehand
    assert on_page[3 + list(OPTIONS).index("samples")].value == 24


def test_settings_that_a_page_offers_are_allowed(do: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"samples": 99, "inner_steps": 50, "max_examples": 250}
    monkeypatch.setattr("hf_mass.app.handlers.model_values", lambda model, tasks: large)
    on_page = offered(do, example(RULE))
    for name in large:
        assert on_page[name].value == on_page[name].maximum == MOST[name]
        assert chosen_settings({name: on_page[name].value})
    for name in set(OPTIONS) - set(large):
        assert not isinstance(on_page[name], gr.Slider)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_control_is_made_from_its_setting(name: str) -> None:
    element, option = controls.control(name), OPTIONS[name]
    assert element.info == option.help and element.elem_id == f"setting-{name}"
    if isinstance(element, gr.Slider):
        lowest, highest = type(option.default)(element.minimum), type(option.default)(element.maximum)
        assert option.allows(lowest) and option.allows(highest) and lowest <= element.value <= highest


def test_settings_of_the_page() -> None:
    values = {"samples": 8, "inner_learning_rate": 0.5, "vote": False, "seed": 7, "weigh_by": "scorer"}
    assert chosen_settings(values) == values
    for empty in (0, None, "", AUTOMATIC):
        assert chosen_settings({**dict.fromkeys(OPTIONS, empty), "vote": False}) == {"vote": False}


@pytest.mark.parametrize("name", OPTIONS)
def test_settings_that_are_refused(name: str) -> None:
    bad: dict[str, list[Any]] = {"weigh_by": ["magic"], "vote": ["yes", 1], "seed": ["x", float("nan"), 1.5, [1]]}
    default = [-1, float("nan"), float("inf"), "x", {}, [1], *([10**6, 1.5] if name in MOST else [])]
    for value in bad.get(name, default):
        with pytest.raises(ConfigError, match=rf"^{name} is .*choose"):
            chosen_settings({name: value})


def test_what_is_no_setting_here() -> None:
    for values in ({"lora_r": 4096}, {"transformations": ["geometric"]}, [1], "samples"):
        with pytest.raises(ConfigError, match=r"choose some of|give an object"):
            chosen_settings(values)  # type: ignore[arg-type]


# -- adapting ----------------------------------------------------------------------------------------------------------


def test_the_guard_is_a_box_that_stands_as_the_model_has_it(do: Handlers) -> None:
    problem = read_problem("abc -> cba\nhello -> olleh\nstone -> enots\nplant -> tnalp\nriver ->")
    assert offered(do, problem)["guard"].value is False  # of a model that ships
    own = load(byte_base(), byte_tokenizer())
    assert model_values(own, problem.tasks)["guard"] is True


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
    assert all(len(page) == 8 for page in (first, *redrawn, last))
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


# -- visitors ----------------------------------------------------------------------------------------------------------


def test_stopping_is_ones_own(do: Handlers) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    running, other = one.adapt(read_problem(strips())), two.adapt(read_problem(strips()))
    next(running), next(other)
    two.stop()
    two.stop()
    *_, last = running
    assert "Done in" in last[0]
    *_, last = other
    assert "stopped" in last[0]  # from when their page offers to stop on
    assert two.stop() == gr.skip()  # nothing goes on


def test_stopping_ends_what_goes_on(do: Handlers, workshop: Workshop) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    before = snapshot(workshop.models["grids-small"].model)
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running), next(running)
    two.stop()
    two.leave()
    next(running)
    assert "Stopping" in one.stop()
    *_, last = running
    assert "stopped" in last[0] and 'role="alert"' in last[0] and last[5].interactive and not last[4].visible
    after = snapshot(workshop.models["grids-small"].model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_visitors_get_what_each_gets_alone(do: Handlers) -> None:
    problems = [read_problem(strips()), example(RULE)]

    def last(n: int) -> tuple[Any, ...]:
        *_, page = Visitor(do, str(n)).adapt(problems[n], ("ttt", "mass")[n], model=("grids-small", AUTOMATIC)[n])
        return page

    alone = [last(n)[1:4] for n in (0, 1)]
    pages: dict[int, tuple[Any, ...]] = {}
    threads = [threading.Thread(target=lambda n=n: pages.update({n: last(n)})) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [pages[n][1:4] for n in (0, 1)] == alone
    assert download(pages[0]).parent != download(pages[1]).parent


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


def test_a_download_that_is_gone_is_told(visitor: Visitor) -> None:
    do, request = visitor.do, visitor.request
    assert "Adapt again" in do.downloaded(request)[0]  # type: ignore[arg-type]
    archive = download([*visitor.adapt(read_problem(strips()))][-1])
    assert do.downloaded(request) == (gr.skip(), gr.skip())  # type: ignore[arg-type]
    archive.unlink()
    status, button = do.downloaded(request)  # type: ignore[arg-type]
    assert "no longer on the server" in status and not button.visible
    assert download([*visitor.adapt(read_problem(strips()))][-1]) == archive
    list(visitor.adapt(read_problem(strips()), settings={"samples": 999}))
    assert "Adapt again" in do.downloaded(request)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["save", "make_archive"])
def test_answers_are_shown_if_the_disk_is_full(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret")

    monkeypatch.setattr(Adaptation if name == "save" else module.shutil, name, fail)
    *_, last = visitor.adapt(read_problem(strips()))
    assert "Done in" in last[0] and "could not be written (No space left on device), so" in last[0]
    assert 'role="alert"' in last[0] and "After" in last[1] and not last[4].visible and "secret" not in last[0]
    assert "/secret" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_mass.app.visitors.tempfile.mkdtemp", fail)
    (page,) = visitor.adapt(read_problem(strips()))
    assert "no room" in page[0] and page[5].interactive and not visitor.do.sessions._open["one"].busy
    monkeypatch.undo()
    folder = visitor.do.sessions.folder("one")
    folder.rmdir()  # by others, who tidy away what is old
    assert visitor.do.sessions.folder("one").is_dir()


def test_leaving_takes_ones_own_files_along(do: Handlers, tmp_path: Path) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    uploads = {}
    for visitor in (one, two):
        folder = tmp_path / visitor.request.session_hash
        folder.mkdir()
        uploads[visitor] = folder / "a.json"
        uploads[visitor].write_text(strips())
    archives = {v: download([*v.adapt(v.file(uploads[v])[0])][-1]) for v in (one, two)}
    one.leave()
    assert not archives[one].exists() and not uploads[one].parent.exists()
    assert archives[two].exists() and uploads[two].exists()
    one.leave()
    two.leave()
    assert list(do.sessions.root.iterdir()) == []


@pytest.mark.parametrize("key", ["../outside", "{outside}", "..", ".", "", "a/b", "a\0b", "x" * 500])
def test_a_key_is_no_path(tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    sessions = Visitors(tmp_path / "sessions")
    key = key.format(outside=outside)
    folder = sessions.folder(key)
    assert folder.parent == sessions.root and folder == sessions.folder(key) != sessions.folder("other")
    sessions.close(key)
    assert not folder.exists() and (outside / "kept").exists() and sessions.root.exists()


def test_a_new_adaptation_stops_the_earlier_one() -> None:
    sessions = Visitors(Path("unused"))
    first, other = sessions.begin("one"), sessions.begin("two")
    second = sessions.begin("one")
    assert first.is_set() and not second.is_set() and not other.is_set()
    sessions.close("one")
    assert second.is_set() and not other.is_set()
    sessions.close("nobody")


def test_leaving_stops(do: Handlers) -> None:
    one = Visitor(do, "one")
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running), next(running)
    one.leave()
    *_, last = running
    assert "stopped" in last[0] and not last[4].visible


# -- models ------------------------------------------------------------------------------------------------------------


def test_the_model_for_a_problem(workshop: Workshop) -> None:
    grids, words, family = read_problem(strips()), read_problem("a -> b\nc"), example(RULE)
    assert workshop.choose(grids).name == "grids-base"
    assert workshop.choose(words).name == "strings-base"
    assert workshop.choose(family).name == "conventions-mass"
    assert workshop.choose(words, "conventions-mass").name == "conventions-mass"
    assert workshop.methods(family) == ["mass"]
    with pytest.raises(ConfigError, match=r"model is 'magic'; choose one of \['grids-base'"):
        workshop.choose(grids, "magic")
    two = Workshop([workshop.models["grids-small"], workshop.models["conventions-mass"]])
    with pytest.raises(ConfigError, match=r"model is 'grids-base'; choose one of \['grids-small'"):
        two.choose(grids)
    alone = Workshop([workshop.models["grids-small"]])
    assert alone.choose(words).name == alone.choose(grids).name == "grids-small"


def test_looking_at_a_problem_touches_no_model() -> None:
    """It happens while another visitor's problem is adapted to."""
    lm, problem = load("grids-small", device="cpu"), read_problem(strips())
    modules, state = [name for name, _ in lm.model.named_modules()], torch.get_rng_state()
    assert Workshop([lm]).methods(problem) == ["mass", "ttt", "both"]
    assert model_values(lm, problem.tasks)["samples"] == 8
    assert [name for name, _ in lm.model.named_modules()] == modules
    assert torch.equal(torch.get_rng_state(), state)


def test_a_lease_covers_the_whole_adaptation(do: Handlers, workshop: Workshop) -> None:
    held: list[bool] = []
    seen: list[Any] = []

    def lease(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def leased(*args: Any) -> Iterator[Any]:
            held.append(True)
            for event in function(*args):
                seen.append(pickle.loads(pickle.dumps(event)))  # as it comes from another process
                yield seen[-1]
            held.append(False)

        return leased

    leasing = Workshop([workshop.models["grids-small"]], lease)
    visitor = Visitor(Handlers(leasing, do.sessions), "one")
    *_, last = visitor.adapt(read_problem(strips()), model=AUTOMATIC)
    assert "Done in" in last[0] and held[0] is True and held.count(True) == 1
    assert isinstance(seen[0], Stage) and isinstance(seen[-1], Outcome)
    assert any(isinstance(event, Loss) for event in seen) and download(last).exists()
    assert max(len(pickle.dumps(event)) for event in seen) < 100_000  # no model among them


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


def test_the_space_leases_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    spaces = types.ModuleType("spaces")
    spaces.GPU = lambda duration: asked.append(duration) or "the decorator"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setattr("hf_mass.app.app.launch", lambda **settings: asked.append(settings))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert asked == [{"lease": None}]
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert asked[1:] == [120, {"lease": "the decorator"}]


def test_a_visitor_who_leaves_while_their_archive_is_written_leaves_nothing(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page closes between the adapter and the archive."""
    sessions, key = visitor.do.sessions, str(visitor.request.session_hash)

    def leave_first(name: str, kind: str, source: Path) -> str:
        sessions.close(key)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{name}.{kind}").write_bytes(b"late")
        return f"{name}.{kind}"

    monkeypatch.setattr(module.shutil, "make_archive", leave_first)
    list(visitor.adapt(read_problem(json.dumps({"train": PAIRS, "test": PAIRS[:1]}))))
    assert [path for path in sessions.root.rglob("*") if path.is_file()] == []


# -- a model that is guarded -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_page() -> Handlers:
    """The app on a model as if it did not ship: any kind of problem, and a guard."""
    lm = load("strings-base", device="cpu")
    lm.kinds = ()
    return Handlers(Workshop([lm]), Visitors(Path("unused")))


def test_a_language_model_gets_problems_in_words(guarded_page: Handlers, do: Handlers) -> None:
    names, first = guarded_page.workshop.examples()
    assert names == list(WORD_EXAMPLES) and first in names
    assert do.workshop.examples() == (list(EXAMPLES), "grid mirrored tiles")
    for name in WORD_EXAMPLES:
        problem = example(name)
        assert problem.kind == "texts" and len(problem.tasks) == 1 and problem.tasks[0].answer
        assert len(problem.tasks[0].demonstrations) >= 5  # enough for a guard
    (readme,) = re.findall(r"examples = \[.*?\n\]", (ASSETS.parents[1] / "README.md").read_text(), re.DOTALL)[:1]
    shown = [f'("{pair.question}", "{pair.answer}")' for pair in example(first).tasks[0].demonstrations]
    assert re.findall(r"\(\".+?\"\)", readme) == shown


@pytest.mark.parametrize("adapted", [True, False])
def test_left_out_gains_and_losses_of_trials_move_on_the_page(
    guarded_page: Handlers, adapted: bool, tmp_path: Path
) -> None:
    guarded_page.sessions.root = tmp_path
    answers = ["cba", "olleh", "enots", "tnalp", "pmal"] if adapted else ["b", "zz", "q", "r", "u"]
    rows = zip(["abc", "hello", "stone", "plant", "lamp"], answers, strict=True)
    problem = read_problem("\n".join(f"{a} -> {b}" for a, b in rows) + "\nriver")
    visitor = Visitor(guarded_page, "guarded")
    pages = list(visitor.adapt(problem, settings={**SMALL, "max_examples": 12, "num_train_epochs": 2}, model=AUTOMATIC))
    last = pages[-1]
    gains = [page[2].count("of the steps") for page in pages]
    read = {0, 2} if adapted else {0, 2, 4}  # a strength is read twice, and a weaker one tried where it does not help
    assert gains == sorted(gains) and read <= set(gains)
    assert any("Trying on left-out demonstrations" in page[0] and ", loss " in page[0] for page in pages)
    assert "answered by <strong>strings-base, 1.3M parameters, float32</strong>" in last[1]
    assert ("chosen" in last[2]) == adapted and "hm-error" not in last[0] and "Done in" in last[0]
    assert ("Left-out gain +" in last[0]) == adapted and ("not adapted: nothing is gained" in last[0]) != adapted


@pytest.mark.parametrize("before", ["", "corp.example,localhost"])
def test_the_page_reaches_itself_past_a_proxy(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before)
    _reach_directly("127.0.0.1")
    with httpx.Client() as client:
        paths = {str(pattern.pattern): transport for pattern, transport in client._mounts.items()}
    assert paths["all://localhost"] is None and paths["all://127.0.0.1"] is None
    assert os.environ["no_proxy"].startswith(before)


# -- visitors who are gone without a word ------------------------------------------------------------------------------


def test_the_silent_are_swept(tmp_path: Path) -> None:
    """Who was heard of lately, and for whom something goes on, stays."""
    sessions = Visitors(tmp_path / "sessions", keep=0.05)
    silent, busy, heard = (sessions.folder(key) for key in ("silent", "busy", "heard"))
    sessions.settle("silent", silent)
    sessions.settle("heard", heard)
    sign = sessions.begin("silent")
    time.sleep(0.1)
    sessions.here("heard")
    sessions.here("nobody")
    sessions.sweep()
    assert not silent.exists() and sign.is_set() and busy.exists() and heard.exists()
    sessions.settle("busy", busy)
    time.sleep(0.1)
    sessions.sweep()
    assert not busy.exists() and not heard.exists() and not sessions._open


def test_sweeping_goes_on_by_itself(tmp_path: Path) -> None:
    sessions = Visitors(tmp_path / "sessions", keep=0.01)
    folder = sessions.folder("one")
    sessions.settle("one", folder)
    sessions.keep_swept(every=0.02)
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not folder.exists()


def test_an_upload_of_two_visitors_stays_until_both_have_left(tmp_path: Path) -> None:
    sessions, upload = Visitors(tmp_path / "sessions"), tmp_path / "upload" / "rows.csv"
    upload.parent.mkdir()
    upload.touch()
    sessions.keep("one", upload)
    sessions.keep("two", upload)
    sessions.close("one")
    assert upload.exists()
    sessions.close("two")
    assert not upload.parent.exists()


def test_an_unknown_model_leaves_the_settings_as_they_are(do: Handlers) -> None:
    assert do.offered(read_problem(strips()), []) == SAME  # type: ignore[arg-type]


def test_a_seed_is_not_rounded() -> None:
    assert controls.control("seed").preprocess(2.5) == 2.5
    with pytest.raises(ConfigError, match=r"seed is 2[.]5; choose a whole number"):
        chosen_settings({"seed": 2.5})


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
