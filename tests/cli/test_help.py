"""`hf-mass --help`: every option, none that there is not, and nothing heavy loaded for it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_fixtures import plain, run

from hf_mass import __version__
from hf_mass.cli import commands, groups, options
from hf_mass.cli.main import app
from hf_mass.methods import registry

NAMES = [command.__name__ for command in commands.ALL]
CLI: Any = typer.main.get_command(app)


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
