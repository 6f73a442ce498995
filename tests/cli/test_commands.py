"""`hf-mass solve`, `adapt` and `demo`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import FLIPS, GRIDS, WORDS, run, two_questions, write
from model_fixtures import byte_base, byte_tokenizer
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from hf_mass.cli import evaluating, groups, sharing, showing, solving
from hf_mass.engine.models import load
from hf_mass.methods import registry
from hf_mass.methods.registry import register_method
from hf_mass.methods.ttt import TTT

LOADED = (evaluating, sharing, solving)  # so that no command says that it loads its libraries


# -- solve -------------------------------------------------------------------------------------------------------------


def test_solve_shows_answers_before_and_after(puzzle: Path) -> None:
    text = run("solve", puzzle, *GRIDS, "--method", "both", "--samples", "2", "--inner-steps", "2").stdout
    for told in (
        "flips",
        "solved 1",
        "samples by weight",
        "attribution",
        "TTT loss",
        "before",
        "after",
        "right answer",
    ):
        assert told in text
    assert (
        re.search(r"loss \d\.\d{3} → \d\.\d{3}", text) and "grids-small: 0.2M parameters, float32; method both" in text
    )
    assert " 2 1" in text and "\x1b" not in text  # the known answer; no colours where there is no terminal


@pytest.mark.parametrize("method", ["none", "mass", "ttt", "both", "vote"])
def test_solve_as_json(method: str, puzzle: Path) -> None:
    result = run("solve", puzzle, *GRIDS, "--method", method, "--samples", "2", "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["problem"] == "flips" and found["method"] == method and found["model"] == "grids-small"
    assert found["before"][0]["gold"] == "2 1\n4 3" and found["kind"] == "grids"
    assert len(found["after"]) == (method != "none")
    assert len(found["samples"]) == (method in ("mass", "both"))
    assert {loss["method"] for loss in found["losses"]} == {"none": set(), "vote": set(), "both": {"mass", "ttt"}}.get(
        method, {method}
    )
    assert "\n" not in result.stderr.strip() or "Error" not in result.stderr


def test_settings_arrive_under_both_spellings(fruit: Path) -> None:
    for rate in ("--inner_learning_rate", "--inner-learning-rate"):
        words = (*WORDS, "--inner_steps", "2", rate, "0.5", "--weigh_by", "uniform", "--seed", "3", "--json")
        found = json.loads(run("solve", fruit, *words).stdout)
        assert len(found["samples"][0]) == 3 and len(found["losses"]) == 3  # before the steps and after each
        assert {sample["attribution"] for sample in found["samples"][0]} == {None}
        again = json.loads(run("solve", fruit, *words).stdout)
        assert again["samples"] == found["samples"]


def test_the_method_follows_the_problem(puzzle: Path, fruit: Path) -> None:
    assert json.loads(run("solve", puzzle, *GRIDS, "--json").stdout)["method"] == "ttt"
    assert json.loads(run("solve", fruit, *WORDS, "--json").stdout)["method"] == "mass"


def test_a_problem_from_stdin(puzzle: Path) -> None:
    found = json.loads(run("solve", "-", *GRIDS, "--json", stdin=puzzle.read_text()).stdout)
    assert found["problem"] == "stdin" and found["queries"] == ["1 2\n3 4"]


def test_words_and_a_model_of_ones_own(tmp_path: Path) -> None:
    byte_base().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    words = ("1 -> 2", "2 -> 3", "3 -> 4", "4", "--model", tmp_path, "--max_examples", "2", "--json")
    found = json.loads(run("solve", *words).stdout)
    assert found["queries"] == ["4"] and found["before"][0]["gold"] is None
    assert found["method"] == "ttt" and found["losses"] and found["model"] == str(tmp_path)


def test_solve_each_writes_a_line_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "puzzles"
    write(folder / "a.json", two_questions())
    write(folder / "b" / "c.json", FLIPS)
    alone = {"train": FLIPS["train"][:1], "test": [{"input": [[1] * 30] * 30}]}
    write(folder / "long.json", {**alone, "train": [{"input": [[1] * 30] * 30, "output": [[1] * 30] * 30}] * 2})
    result = run("solve", folder, "--each", *GRIDS, "--json", code=1)
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert [len(first["after"]), len(second["after"])] == [2, 1]
    assert third["problem"] == "long" and "error" in third  # too long for the model; the others went on
    text = run("solve", folder, "--each", *GRIDS, "--method", "none", code=1).stdout
    assert "1 of 3" in text and "2 problems, 1 failed, before" in text


def test_json_is_all_that_reaches_stdout(puzzle: Path, root: Path) -> None:
    command = [sys.executable, "-m", "hf_mass", "solve", "-", *GRIDS, "--json"]
    done = subprocess.run(command, cwd=root, input=puzzle.read_text(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["after"] and "\r" not in done.stderr and "%" not in done.stderr  # and no bar


def test_any_other_setting(fruit: Path) -> None:
    def losses(*words: str) -> list[float]:
        options = (*WORDS, "--inner_steps", "2", "--weigh_by", "uniform", "--json", *words)
        return [loss["loss"] for loss in json.loads(run("solve", fruit, *options).stdout)["losses"]]

    plain_sgd = losses()
    assert losses("--set", "inner-optimizer=adamw") != plain_sgd
    assert losses("--set", "inner_optimizer=sgd", "--set", "samples=3") == plain_sgd


def test_a_setting_may_be_none() -> None:
    settings = groups.checked(assignments=["max_grad_norm=null", 'transformations=["none"]', "vote=flat"], vote=False)
    assert settings == {"vote": "flat", "max_grad_norm": None, "transformations": ["none"]}
    made = registry.make_method("ttt", settings)
    assert isinstance(made, TTT) and made.changes["max_grad_norm"] is None and made.changes["vote"] == "flat"


OWN = """
from hf_mass import Adaptation, Answer, Method, register_method

class Fixed(Method):
    name = "fixed"
    def begin(self, lm, tasks, seed): return tuple(tasks)
    def step(self, lm, state): return state
    def stop(self, state): return True
    def finish(self, lm, state): return [Adaptation(task) for task in state]
    def answer(self, lm, tasks, adaptations, seed): return [Answer(task, f"always {seed}") for task in tasks]
"""


def test_a_method_of_ones_own(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    for method in ("my_methods:Fixed", "mine"):
        words = (*WORDS, "--method", method, "--seed", "7", "--json")
        found = json.loads(run("solve", fruit, *words).stdout)
        assert found["method"] == "fixed" and found["after"][0]["answer"] == "always 7"
        registry.METHODS.pop("mine", None)
        register_method("mine")(sys.modules["my_methods"].Fixed)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_grids_are_coloured_and_control_characters_are_not_obeyed() -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as capture:
        console.print(showing.value("1 2\n3 4", "grids"), showing.value("red\x1b[2J[bold]x", "texts"))
    text = capture.get()
    assert "\x1b[37;48;5;33m 1" in text and len(set(showing.COLOURS)) == 10
    assert "\x1b[2J" not in text and r"\x1b[2J[bold]x" in text


def test_a_grid_without_room_is_named_by_its_size() -> None:
    assert str(showing.value("1 2 3\n3 4 5", "grids", room=4)) == "grid of 2 × 3"


# -- adapt -------------------------------------------------------------------------------------------------------------


def test_adapt_saves_what_peft_loads(puzzle: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    found = json.loads(run("adapt", puzzle, "--output", output, *GRIDS, "--json").stdout)
    assert found["adapters"] == [str(output)] and found["after"]
    base = AutoModelForCausalLM.from_pretrained(found["base_model"])
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    model = PeftModel.from_pretrained(base, output)
    assert not torch.equal(model(ids).logits, before)
    assert "is there already" in run("adapt", puzzle, "-o", output, *GRIDS, code=1).stderr
    text = run("adapt", puzzle, "-o", output, *GRIDS, "--overwrite").stdout
    code = text.split("load it by")[1]
    exec(code, {})
    assert str(output) in code


def test_adapt_tells_before_it_adapts_that_it_cannot_save(
    puzzle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_mass.cli.solving.Solver", lambda *_: pytest.fail("it adapts"))
    (tmp_path / "file").touch()
    assert "could not be written" in run("adapt", puzzle, "-o", tmp_path / "file" / "out", *GRIDS, code=1).stderr


@pytest.mark.parametrize("method", ["ttt", "mass", "both"])
def test_solve_starts_from_what_adapt_saved(method: str, puzzle: Path, tmp_path: Path) -> None:
    output, words = tmp_path / "adapter", (*GRIDS[2:], "--samples", "16", "--method", method, "--json")
    first = json.loads(run("adapt", puzzle, "-o", output, *GRIDS[:2], *words).stdout)
    second = json.loads(run("solve", puzzle, "--model", output, *words).stdout)
    assert second["model"] == str(output) and second["method"] == method
    assert first["before"] != first["after"] == second["before"]
    assert second["losses"][0]["loss"] != first["losses"][0]["loss"] and len(second["after"]) == 1


def test_a_meta_trained_model_keeps_its_prompts_where_it_is_adapted(fruit: Path, tmp_path: Path) -> None:
    words = ("--samples", "4", "--json")
    first = json.loads(run("adapt", fruit, "-o", tmp_path / "a", "--model", "conventions-mass", *words).stdout)
    second = json.loads(run("solve", fruit, "--model", tmp_path / "a", *words).stdout)
    assert first["before"] != first["after"] == second["before"]
    assert first["before"][0]["answer"] is not None and second["after"][0]["answer"] is not None


def test_adapt_to_each_question_by_mass(tmp_path: Path) -> None:
    puzzle, output = write(tmp_path / "two.json", two_questions()), tmp_path / "adapters"
    words = (*GRIDS, "--method", "mass", "--samples", "4")
    found = json.loads(run("adapt", puzzle, "-o", output, *words, "--json").stdout)
    assert found["adapters"] == [str(output / "question-1"), str(output / "question-2")]
    for folder in found["adapters"]:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found["base_model"]), folder)


def test_nothing_to_save_is_an_error(puzzle: Path, tmp_path: Path) -> None:
    result = run("adapt", puzzle, "-o", tmp_path / "out", *GRIDS, "--method", "none", code=1)
    assert "no adapted weights" in result.stderr and not (tmp_path / "out").exists()


# -- demo --------------------------------------------------------------------------------------------------------------


def test_demo_launches_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def launch(**given: Any) -> None:
        seen.clear()
        seen.update(given)

    monkeypatch.setattr("hf_mass.app.app.launch", launch)
    run("demo", "--model", "grids-small", "--port", "8000")
    assert seen == {
        "model": "grids-small",
        "host": None,
        "port": 8000,
        "share": False,
    }
    chosen = (
        "--chat",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--chat_template_kwargs",
        '{"enable_thinking": false}',
    )
    run("demo", "--model", "user/name", "--revision", "v1", *chosen)
    assert seen == {
        "model": "user/name",
        "host": None,
        "port": None,
        "share": False,
        "revision": "v1",
        "device": "cpu",
        "dtype": "bfloat16",
        "chat": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_threads_are_few_for_a_small_model(puzzle: Path) -> None:
    torch.set_num_threads(2)
    try:
        run("solve", puzzle, *GRIDS, "--method", "none")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_small_model_is_what_ships() -> None:
    assert load("grids-base").size < solving.SMALL


@pytest.mark.parametrize("name", ["solve", "evaluate", "adapt"])
def test_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would do all of the work and write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(name, "grids", code=1).stderr.startswith("hf-mass: WORLD_SIZE is 2:")
    monkeypatch.setenv("WORLD_SIZE", "1")
    run(name, "--help")


def test_a_proxy_that_cannot_be_used_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(**settings: Any) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setattr("hf_mass.app.app.launch", launch)
    said = run("demo", code=1).stderr
    assert said.startswith("hf-mass: all_proxy is socks5://127.0.0.1:9, which needs the package socksio.")
