"""`hf-mass`: help, exit codes and errors; `solve` and `adapt`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from cli_fixtures import FLIPS, FRUIT, GRIDS, WORDS, run, two_questions, write
from model_fixtures import byte_base, byte_tokenizer
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from hf_mass import __version__
from hf_mass.cli import commands, evaluating, groups, options, sharing, showing, solving
from hf_mass.cli.main import app
from hf_mass.engine.models import load
from hf_mass.methods import registry
from hf_mass.methods.registry import register_method
from hf_mass.methods.ttt import TTT

NAMES = [command.__name__ for command in commands.ALL]
CLI: Any = typer.main.get_command(app)
LOADED = (evaluating, sharing, solving)  # so that no command says that it loads its libraries


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
    assert set(options.METHODS) <= set(registry.METHODS)
    registry.make_method("both", dict.fromkeys(groups.SETTINGS))  # which refuses unknown names
    assert set(groups.OFFERED) <= set(groups.SETTINGS)
    assert set(groups.OFFERED) < {p.name for p in CLI.commands["solve"].params}


def test_help_and_version_are_quick_and_load_nothing_heavy(root: Path) -> None:
    for words in (["--help"], ["--version"], ["solve", "--help"], ["solve", "--samples", "none"]):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "hf_mass", *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == (2 if "none" in words else 0), done.stderr
        assert time.perf_counter() - begun < 5  # alone it takes 0.3 s
    code = "import sys, hf_mass.cli.main; print({'torch', 'transformers', 'gradio', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert run("--version").stdout == f"hf-mass {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["solve", "empty.csv"],
        ["solve", "a -> b", "c", "--method", "magic"],
        ["solve", "a -> b", "c", "--set", "lora_r=0"],
        ["adapt", "empty.csv", "--output", "out"],
        ["adapt", "a -> b", "c", "--output", "."],
    ],
)
def test_what_is_refused_loads_no_torch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    code = (
        "import sys, atexit, hf_mass.cli.main as cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'peft', 'gradio', 'numpy'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        f"cli.main({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2) and "hf-mass" in done.stderr, done.stderr
    assert done.stdout == "[]\n"


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "No such command"),
        (["solve", "a", "--nothing"], "No such option"),
        (["solve", "a", "--samples", "0"], "--samples"),
        (["solve", "a", "--method", "magic"], "--method"),
        (["solve", "a", "--samples", "[" * 20_000], "choose a whole number"),
        (["solve", "a", "--chat_template_kwargs", "[" * 20_000], "is no JSON"),
        (["solve", "a", "--model", ""], "is empty"),
        (["demo", "--port", "-1"], "--port"),
        (["demo", "--port", "9" * 400], "--port"),
        (["evaluate", "conventions:test_families", "--seeds", "9" * 5000], "--seeds"),
        (["solve", "a", "--samples", "many"], "'many'; choose a whole number of at least 1"),
        (["solve", "a", "--weigh_by", "magic"], "--weigh_by"),
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
        (["solve", "a -> b", "c", "--set", "lora_r=" + "[" * 20_000], "lora_r is"),
        (["solve", "missing.json"], "There is no file 'missing.json'"),
        (["solve", "."], "is a folder"),
        (["solve", " "], "is empty"),
        (["solve", "pyproject.toml", "x -> y"], "a file among 2 words"),
        (["solve", "a", "b", "--each"], "takes one file or folder"),
        (["solve", "nowhere", "--each"], "There is no file or folder"),
        (
            ["solve", "a -> b", "c", "--learning_rate", "-1"],
            "learning_rate is -1; choose a finite number above 0 and of at most 1e+300.",
        ),
        (
            ["solve", "a -> b", "c", "--set", "lora_r=0"],
            "lora_r is 0; choose a whole number of at least 1 and of at most 4096.",
        ),
        (["solve", "a -> b", "c", "--set", "lora_r"], "--set is 'lora_r'; give NAME=VALUE"),
        (["solve", "a -> b", "c", "--set", "magic=1"], "--set has no setting 'magic'; choose some of"),
        (["solve", "a -> b", "c", "--method", "nowhere:Method"], "method 'nowhere:Method' cannot be imported"),
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
    *progress_lines, last = result.stderr.splitlines()
    assert re.fullmatch(rf"hf-mass: .*{re.escape(told)}.*", last), result.stderr
    introduced = ["Loading conventions-mass", "conventions-mass: 0.1M parameters, float32"]
    assert progress_lines in ([], introduced[:1], introduced)


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


def test_ctrl_c_while_libraries_are_imported_is_130_too(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers turns whatever ends an import of its own into a ModuleNotFoundError."""

    def importing(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module 'BloomPreTrainedModel'.") from error

    monkeypatch.setattr(solving, "solve", importing)
    assert "hf-mass: stopped" in run("solve", puzzle, *GRIDS, code=130).stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_130(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "solve", stopped)
    result = run("solve", puzzle, *GRIDS, code=130)
    assert "stopped" in result.stderr and result.stdout == ""


def test_a_request_to_end_is_143_and_a_line(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "solve", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    result = run("solve", puzzle, *GRIDS, code=143)
    assert "hf-mass: stopped" in result.stderr and result.stdout == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_folder_that_is_gone_is_a_line(puzzle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = run("solve", puzzle, *GRIDS, code=1).stderr
    assert told == "hf-mass: The folder that this was started in was removed. Start it in another one (cd).\n"


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
