"""`hf-mass`: help, exit codes and errors; `solve` and `adapt`."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from cli_fixtures import FLIPS, FRUIT, GRIDS, WORDS, run, two_questions, write
from model_fixtures import byte_base, byte_tokenizer
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from hf_mass import __version__
from hf_mass.cli import commands, options, progress, showing, solving
from hf_mass.cli.main import app
from hf_mass.engine.events import METHODS, LiveConfig, Loss, Stage, Writing
from hf_mass.engine.models import load_model
from hf_mass.methods.mass_settings import WEIGHINGS

NAMES = [command.__name__ for command in commands.ALL]
CLI: Any = typer.main.get_command(app)


@pytest.fixture
def puzzle(tmp_path: Path) -> Path:
    return write(tmp_path / "flips.json", FLIPS)


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return write(tmp_path / "fruit.json", FRUIT)


# -- help --------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_every_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = plain(run(name, "--help").stdout)
    for parameter in CLI.commands[name].params:
        for option in [o for o in parameter.opts if o.startswith("--")]:
            assert option in text
        assert getattr(parameter, "help", None), parameter.name
    assert f"hf-mass {name}" in text  # an example


def test_top_help_lists_commands_and_exit_codes() -> None:
    text = plain(run("--help").stdout)
    assert all(re.search(rf"^│ {name} ", text, re.MULTILINE) for name in NAMES)
    assert "Exit codes" in text and "130" in text


def test_examples_in_the_help_have_known_options() -> None:
    callbacks = [app.registered_callback.callback, *commands.ALL]  # type: ignore[union-attr]
    text = "\n".join(str(each.__doc__) for each in callbacks)
    lines = re.findall(r"^\s+(?:cat \S+ \| )?(hf-mass .*?)(?: > \S+)?$", text, re.MULTILINE)
    assert len(lines) > 12
    for line in lines:
        name, *words = shlex.split(line)[1:]
        known = {
            option for parameter in CLI.commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words if word.startswith("--")} <= known, line


def test_names_are_those_of_python() -> None:
    assert get_args(options.MethodName) == METHODS
    assert set(get_args(options.WeighingName)) == set(WEIGHINGS)
    for name in commands._LIVE_SETTINGS:
        assert name in LiveConfig.__dataclass_fields__
        assert any(name in (p.name for p in CLI.commands[c].params) for c in ("solve", "adapt"))


def test_help_and_version_are_quick_and_load_nothing_heavy(root: Path) -> None:
    for words in (["--help"], ["--version"], ["solve", "--help"], ["solve", "--samples", "none"]):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "hf_mass", *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == (2 if "none" in words else 0), done.stderr
        assert time.perf_counter() - begun < 5  # alone it takes 0.3 s
    code = "import sys, hf_mass.cli.main; print({'torch', 'transformers', 'gradio', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert run("--version").stdout == f"hf-mass {__version__}\n"


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "No such command"),
        (["solve", "a", "--nothing"], "No such option"),
        (["solve", "a", "--samples", "0"], "--samples"),
        (["solve", "a", "--method", "magic"], "--method"),
        (["adapt", "a"], "--output"),
        (["evaluate", "conventions:test_families", "--methods", "magic"], "magic"),
        (["evaluate", "conventions:test_families", "--seeds", "one"], "one"),
        (["evaluate", "conventions:test_families", "--resume"], "--output"),
        (["push", "folder"], "REPO_ID"),
    ],
)
def test_a_wrong_command_line_is_2(words: list[str], told: str) -> None:
    assert told in plain(run(*words, code=2).stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["solve", "missing.json"], "There is no file 'missing.json'"),
        (["solve", "."], "is a folder"),
        (["solve", " "], "is empty"),
        (["solve", "pyproject.toml", "x -> y"], "a file among 2 words"),
        (["solve", "a", "b", "--each"], "takes one file or folder"),
        (["solve", "nowhere", "--each"], "There is no file or folder"),
        (["solve", "a -> b", "c", "--learning_rate", "-1"], "learning_rate is -1.0"),
        (["solve", "peach", *WORDS, "--method", "ttt"], "no solved examples"),
        (["card", "nowhere"], "is no folder"),
        (["push", "nowhere", "user/name"], "is no folder"),
        (["push", "nowhere", "user/na me"], "no name of a repository"),
        (["evaluate", "nowhere"], "There is no file or folder"),
        (["evaluate", "conventions:nowhere"], "split is 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_1_and_one_line(words: list[str], told: str) -> None:
    result = run(*words, code=1)
    assert result.stdout == ""
    assert re.fullmatch(rf"hf-mass: .*{re.escape(told)}.*\n", result.stderr), result.stderr


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\0", b"{", b"", b'{"train": []}', b'[{"input": [[1, 2], [3]]}]'])
def test_bad_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    result = run("solve", tmp_path / "bad.json", code=1)
    assert result.stdout == "" and result.stderr.count("\n") == 1 and "bad" in result.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    for words in (["--debug", "solve", "missing.json"], ["solve", "missing.json", "--debug"]):
        result = run(*words, code=1)
        assert isinstance(result.exception, FileNotFoundError | ValueError)
        assert "hf-mass:" not in result.stderr


def test_ctrl_c_is_130(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "solve", stopped)
    result = run("solve", puzzle, *GRIDS, code=130)
    assert "stopped" in result.stderr and result.stdout == ""


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
    assert re.search(r"loss \d\.\d{3} → \d\.\d{3}", text) and "grids-small, method both" in text
    assert " 2 1" in text and "\x1b" not in text  # the known answer; no colours where there is no terminal


@pytest.mark.parametrize("method", ["none", "mass", "ttt", "both"])
def test_solve_as_json(method: str, puzzle: Path) -> None:
    result = run("solve", puzzle, *GRIDS, "--method", method, "--samples", "2", "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["problem"] == "flips" and found["method"] == method and found["model"] == "grids-small"
    assert found["before"][0]["gold"] == "2 1\n4 3" and found["kind"] == "grids"
    assert len(found["after"]) == (method != "none")
    assert len(found["samples"]) == (method in ("mass", "both"))
    assert {loss["method"] for loss in found["losses"]} == {"none": set(), "both": {"mass", "ttt"}}.get(
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


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_grids_are_coloured_and_control_characters_are_not_obeyed() -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as capture:
        console.print(showing.value("1 2\n3 4", "grids"), showing.value("red\x1b[2J[bold]x", "texts"))
    text = capture.get()
    assert "\x1b[37;48;5;33m 1" in text and len(set(showing.COLOURS)) == 10
    assert "\x1b[2J" not in text and r"\x1b[2J[bold]x" in text


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_progress_is_for_who_watches(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, stdout = io.StringIO(), io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    with progress.watched(quiet) as watch:
        for event in (Stage("Writing samples"), Writing(0, ("ab", "abc")), Loss("ttt", 0, 1, 4, 0.5)):
            watch(event)
            watch.bar.refresh()
        print("a library's chatter")
    for told in ("Writing samples", "Writing 2 samples, 3 characters", "Training on the solved examples, loss 0.500"):
        assert (told in stderr.getvalue()) == (terminal and not quiet)
    assert stdout.getvalue() == "" and "chatter" in stderr.getvalue()


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
    monkeypatch.setattr("hf_mass.app.app.launch", lambda **given: seen.update(given))
    run("demo", "--model", "grids-small", "--port", "8000")
    assert seen == {
        "model": "grids-small",
        "host": None,
        "port": 8000,
        "share": False,
        "revision": None,
        "token": None,
        "device": None,
    }


def test_threads_are_few_for_a_small_model(puzzle: Path) -> None:
    torch.set_num_threads(2)
    try:
        run("solve", puzzle, *GRIDS, "--method", "none")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_small_model_is_what_ships() -> None:
    assert load_model("grids-base").mass.model.num_parameters() < solving.SMALL
