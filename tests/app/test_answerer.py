"""The page says which model answers, how large it is, and when that is not made for the problem."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import Outcome, Workshop
from hf_mass.engine.models import load
from hf_mass.errors import ModelWarning
from hf_mass.tasks.problems import read_problem

QUICK = {"max_examples": 2, "num_train_epochs": 1}
SHORT = "ab -> b\ncd -> d\nef ->"
LONG = (
    "What is the capital of France? -> Paris\nWhat is the capital of Italy? -> Rome\nWhat is the capital of Spain? ->"
)


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop([load("strings-base", device="cpu")])


@pytest.fixture
def do(workshop: Workshop, tmp_path: Path) -> Handlers:
    return Handlers(workshop, Visitors(tmp_path))


def pages(do: Handlers, text: str) -> list[tuple[Any, ...]]:
    visitor: Any = types.SimpleNamespace(session_hash="one")
    return list(do.adapt(read_problem(text), "strings-base", "ttt", QUICK, visitor))


def test_the_page_names_and_sizes_what_answers(do: Handlers) -> None:
    *_, last = pages(do, SHORT)
    assert (
        "answered by <strong>strings-base, 1.3M parameters, float32</strong>" in last[1]
        and 'role="note"' not in last[1]
    )


def test_a_note_stands_above_the_answers_of_a_toy_that_is_not_made_for_this(do: Handlers) -> None:
    with pytest.warns(ModelWarning, match="strings-base is a toy"):
        for page in pages(do, LONG):
            assert 'role="note"' in page[1] and "texts of 5 at most: its answers mean little" in page[1]


def test_programs_are_told_too(workshop: Workshop) -> None:
    for text, noted in ((SHORT, False), (LONG, True)):
        *_, outcome = workshop.adapt("strings-base", read_problem(text), "none", {})
        assert isinstance(outcome, Outcome)
        facts = outcome.facts
        assert (facts["model"], facts["parameters"], facts["precision"]) == ("strings-base", 1293824, "float32")
        assert (facts["note"] is not None) == noted


def test_settings_of_the_command_line_reach_the_models() -> None:
    lm = Workshop.load("strings-base", dtype="bfloat16", device="cpu", chat=False).models["strings-base"]
    assert (lm.precision, lm.chat) == ("bfloat16", False)
