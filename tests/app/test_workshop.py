"""Which model the app answers with, under which lease, and what a model that does not ship shows on the page."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from app_fixtures import SPACE
from page_fixtures import RULE, SMALL, Visitor, download, strips

from hf_mass.app.app import _reach_directly
from hf_mass.app.controls import AUTOMATIC, model_values
from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import EXAMPLES, WORD_EXAMPLES, Outcome, Workshop, example
from hf_mass.engine.events import Loss, Stage
from hf_mass.engine.models import load
from hf_mass.errors import ConfigError
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import read_problem


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
