"""What the tiny models that ship are made for, and what they are not."""

from __future__ import annotations

import pytest
from model_fixtures import WORLD, byte_base, byte_tokenizer

import hf_mass
from hf_mass import Task
from hf_mass.engine.models import SHIPPED
from hf_mass.errors import ModelWarning
from hf_mass.lm.suitability import beyond

WORDS = Task.from_pairs([("cat", "cats"), ("dog", "dogs")], "fox")
GRIDS = Task.from_pairs([("1 2", "2 1"), ("3 4", "4 3")], "5 6")
QUESTIONS = Task.from_pairs([("What is the capital of France?", "Paris")], "What is the capital of Italy?")


@pytest.mark.parametrize(
    ("model", "task", "reason"),
    [
        ("strings-base", WORDS, None),
        ("strings-base", Task("fox"), "has no solved examples"),
        ("strings-base", QUESTIONS, "has 6 words, where it knows texts of 5 at most"),
        ("strings-base", GRIDS, "this problem is of grids"),
        ("strings-base", Task.from_pairs([("犬", "dog")], "猫"), "has no tokens for all of '犬'"),
        ("grids-base", GRIDS, None),
        ("grids-small", WORDS, "this problem is of texts"),
        ("grids-base", Task("5 6"), "has no solved examples"),
        ("conventions-mass", WORDS, "has no tokens for all of 'cat'"),
    ],
)
def test_what_a_toy_is_made_for(model: str, task: Task, reason: str | None) -> None:
    note = beyond(hf_mass.load(model, device="cpu"), [task])
    if reason is None:
        assert note is None
    else:
        assert note is not None and reason in note and note.startswith(f"{model} is a toy ({SHIPPED[model].about})")


def test_its_own_world_is_what_the_conventions_model_is_made_for() -> None:
    assert beyond(hf_mass.load("conventions-mass", device="cpu"), WORLD.tasks("test_conventions", 5)) is None


def test_other_models_are_made_for_anything() -> None:
    lm = hf_mass.load(byte_base(), byte_tokenizer())
    assert all(beyond(lm, [task]) is None for task in (WORDS, GRIDS, QUESTIONS, Task("fox")))


def test_python_warns() -> None:
    lm = hf_mass.load("strings-base", device="cpu")
    with pytest.warns(ModelWarning, match="strings-base is a toy .* texts of 5 at most: its answers mean little"):
        hf_mass.adapt(lm, QUESTIONS, "none")
