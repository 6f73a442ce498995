"""Bad inputs that the campaign found (examples/benchmarks/bad_inputs.py): each is refused in a line that names it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hf_mass
from hf_mass.errors import CheckpointError, ConfigError, DataError, HFMassError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.saved_defaults import checked_defaults
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.prompt_format import LONGEST, PATIENCE, PromptFormat
from hf_mass.tasks.task import Demonstration, Task

PAIRS = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots")]
HUGE = 10**400


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return hf_mass.load("grids-small")


def task() -> Task:
    return Task.from_pairs([("1 0", "0 1"), ("2 0", "0 2")], "3 0")


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(HFMassError) as caught:
        call()
    text = str(caught.value)
    assert words in text and "\n" not in text and len(text) < 1000, text


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, None, [], b"x", float("nan"), HUGE, Path("x")])
@pytest.mark.parametrize("name", ["problem", "id", "verifier", "domain"])
def test_a_task_has_texts(name: str, value: Any) -> None:
    refused(lambda: Task(**{"problem": "x", name: value}), f"Task.{name} is ")


@pytest.mark.parametrize("value", ["ab", [None], [("a", "b")], 3, {1: 2}, None])
def test_demonstrations_are_demonstrations(value: Any) -> None:
    refused(lambda: Task("x", value), "Task.demonstrations")


def test_a_list_of_demonstrations_becomes_a_tuple() -> None:
    assert Task("x", [Demonstration("a", "b")]).demonstrations == (Demonstration("a", "b"),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda odd: Task(odd), "Task.problem holds"),
        (lambda odd: Task("x", (Demonstration(odd, "b"),)), "Task.demonstrations[0].question holds"),
        (lambda odd: Task("x", answer=odd), "Task.answer holds"),
        (lambda odd: Task("x", fields={"a": odd}), "Task.fields['a'] holds"),
    ],
)
def test_half_a_surrogate_is_no_text(make: Callable[[str], Task], words: str) -> None:
    refused(lambda: make("a\ud800"), words)


@pytest.mark.parametrize("pairs", [3, None, "ab", b"ab", float("nan"), [3], ["ab"], [("a", 3)]])
def test_pairs_are_pairs(pairs: Any) -> None:
    refused(lambda: Task.from_pairs(pairs, "x"), "pairs")


@pytest.mark.parametrize("instruction", [3, [], {}, None])
def test_an_instruction_is_a_text(instruction: Any) -> None:
    refused(lambda: Task.from_pairs(PAIRS, "x", instruction=instruction), "instruction is")


@pytest.mark.parametrize("value", [3, None, b"x", [], {}, Task, "x" * 10_000])
@pytest.mark.parametrize(
    "read", [hf_mass.load_tasks, hf_mass.load_grid_tasks, hf_mass.load_bbh, hf_mass.load_few_shot_file]
)
def test_what_is_no_path_is_refused(read: Callable[[Any], Any], value: Any) -> None:
    refused(lambda: read(value), "no file or folder is called")


# -- patterns of formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [r"(?P<question>(a+)+)$(?P<answer>b)", r"(?P<question>(a|aa)+)$(?P<answer>b)"])
def test_a_pattern_that_backtracks_ends(pattern: str) -> None:
    fmt, begun = PromptFormat(sample_pattern=pattern, solution_pattern=pattern), time.perf_counter()
    assert fmt.parse_sample("a" * 3000 + "!").reason == "no_match"
    assert fmt.split_solution("a" * 3000 + "!") is None
    assert time.perf_counter() - begun < 20 * PATIENCE


@pytest.mark.parametrize("pattern", ["(", "(?P<answer>.{99999999999})", "[" * 500, "(" * 5000, "a" * (LONGEST + 1)])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    refused(lambda: PromptFormat(solution_pattern=pattern), "PromptFormat.solution_pattern")


# -- the public calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, None, b"x", [], {}, HUGE, Task, "x" * 10_000])
def test_what_is_no_model_is_refused(value: Any) -> None:
    refused(lambda: hf_mass.load(value), "model is")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokenizer": 3}, "tokenizer is 3"),
        ({"tokenizer": ""}, "tokenizer is ''"),
        ({"revision": 3}, "revision is 3"),
        ({"device": HUGE}, "device is"),
        ({"device": []}, "device is"),
    ],
)
def test_arguments_of_load(options: dict[str, Any], words: str) -> None:
    refused(lambda: hf_mass.load("grids-small", **options), words)


@pytest.mark.parametrize("name", ["tasks_per_pass", "on_event", "stop", "guard", "method", "seed", "time_limit"])
@pytest.mark.parametrize("value", ["", [], {}, b"x", 1.5j, Task])
def test_arguments_of_adapt(lm: LanguageModel, name: str, value: Any) -> None:
    if (name, value) == ("on_event", Task):
        pytest.skip("a class can be called")
    options: dict[str, Any] = {name: value}
    refused(lambda: hf_mass.adapt(lm, task(), **options), name)


@pytest.mark.parametrize("preset", ["", [], {}, 3, "x" * 10_000])
def test_an_unknown_preset(preset: Any) -> None:
    refused(lambda: hf_mass.TTT(preset=preset), "preset")
    refused(lambda: hf_mass.TTT(settings=preset or 3), "settings")


@pytest.mark.parametrize("value", [1e300, float("nan"), 10**9, HUGE, True])
@pytest.mark.parametrize("name", ["weight_decay", "adam_epsilon", "predict_temperature", "lora_r"])
def test_no_number_is_without_bound(name: str, value: Any) -> None:
    refused(lambda: hf_mass.TTT(**{name: value}), name)


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 4), ("lora_rank", 16), ("lora_alpha", 9)])
def test_an_inner_adapter_of_another_shape_is_not_made_anew(tmp_path: Path, name: str, value: int) -> None:
    folder = shutil.copytree(ASSETS / "conventions-mass", tmp_path / "saved")
    values = json.loads((folder / "mass_config.json").read_text())
    values["inner"][name] = value
    (folder / "mass_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"mass_config\.json is of an inner adapter with .*inner.adapter_config"):
        hf_mass.load(folder)


@pytest.mark.parametrize(
    "defaults",
    [
        3,
        {"ttt": 3},
        {"ttt": {"texts": -1}},
        {"ttt": {"texts": {"preset": 3}}},
        {"ttt": {"texts": {"no_such_setting": 1}}},
        {"ttt": {"texts": {"learning_rate": "x"}}},
        {"ttt": {"texts": {"lora_target_modules": "(.*)*x"}}},
        {"ttt": {"kittens": {}}},
        {"mass": []},
        {"mass": {"inner_adam_beta1": "x"}},
        {"mass": {"prompt_format": []}},
        {"mass": {"format": {"sample_pattern": "("}}},
        {"mass": {"format": 3}},
        {"mass": {"no_such_setting": 1}},
        {"mass": {"samples": HUGE}},
        {"mass": {"inner_target_modules": "(a+)+$"}},
    ],
)
def test_settings_that_travel_are_checked(defaults: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^a/adaptation\.json: .*Save the adaptation again\.$"):
        checked_defaults(defaults, Path("a/adaptation.json"))


def test_settings_of_a_saved_adaptation_pass(lm: LanguageModel, tmp_path: Path) -> None:
    hf_mass.adapt(lm, task(), hf_mass.TTT(max_examples=2, num_train_epochs=1)).save(tmp_path / "a")
    loaded = hf_mass.load(tmp_path / "a")
    assert loaded.defaults["ttt"]["grids"]["max_examples"] == 2
    mass = hf_mass.load("conventions-mass")
    assert checked_defaults(mass.defaults, Path("x")) == mass.defaults


def test_errors_are_of_their_kinds() -> None:
    with pytest.raises(ConfigError):
        hf_mass.load(3)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        hf_mass.load_tasks(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [2, 0, "x", None, [1]])
def test_an_adaptation_of_another_version_is_refused(version: Any, lm: LanguageModel, tmp_path: Path) -> None:
    hf_mass.adapt(lm, task(), hf_mass.TTT(max_examples=2, num_train_epochs=1)).save(tmp_path / "a")
    file = tmp_path / "a" / "adaptation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    with pytest.raises(CheckpointError, match=r"adaptation\.json has format_version .*; this release reads 1"):
        hf_mass.load(tmp_path / "a")
