"""The settings that the app's page offers: made from the methods' own, as each model has them, in bounds."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from model_fixtures import byte_base, byte_tokenizer
from page_fixtures import RULE, SAME, strips

from hf_mass.app import controls
from hf_mass.app.controls import AUTOMATIC, MOST, OPTIONS, chosen_settings, model_values
from hf_mass.app.handlers import Handlers
from hf_mass.app.workshop import example
from hf_mass.engine.models import load
from hf_mass.errors import ConfigError
from hf_mass.tasks.problems import Problem, read_problem


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


def test_the_guard_is_a_box_that_stands_as_the_model_has_it(do: Handlers) -> None:
    problem = read_problem("abc -> cba\nhello -> olleh\nstone -> enots\nplant -> tnalp\nriver ->")
    assert offered(do, problem)["guard"].value is False  # of a model that ships
    own = load(byte_base(), byte_tokenizer())
    assert model_values(own, problem.tasks)["guard"] is True


def test_an_unknown_model_leaves_the_settings_as_they_are(do: Handlers) -> None:
    assert do.offered(read_problem(strips()), []) == SAME  # type: ignore[arg-type]


def test_a_seed_is_not_rounded() -> None:
    assert controls.control("seed").preprocess(2.5) == 2.5
    with pytest.raises(ConfigError, match=r"seed is 2[.]5; choose a whole number"):
        chosen_settings({"seed": 2.5})
