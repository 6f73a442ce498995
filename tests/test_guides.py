"""The guides run as they stand, show what is really printed, and name nothing that does not exist."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from guide_blocks import anchors, blocks, run, same_output, wrong_calls
from repository import ROOT
from transformers import HfArgumentParser

import hf_mass
import train
import ttt
from hf_mass.cli.main import app
from hf_mass.methods.registry import METHODS
from hf_mass.store.shipped import shipped_names
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.verifiers import VERIFIERS
from hf_mass.training.meta_adapt_config import MetaAdaptConfig

FOLDER = ROOT / "examples" / "guides"
GUIDES = sorted(path for path in FOLDER.glob("*.md") if path.name not in ("README.md", "api.md"))
RUN_OR_CHECKED = {("python", ""), ("python", "no-run"), ("bash", "no-run"), ("text", "output")}


@pytest.fixture
def registries() -> Iterator[None]:
    """What a guide makes known by name is forgotten afterwards."""
    tables = [VERIFIERS, FORMATS, FEW_SHOT_FORMATS, METHODS]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)  # type: ignore[arg-type]


def of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("guide", GUIDES, ids=of)
def test_guide_runs_and_shows_what_is_printed(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    compared = 0
    for block, printed, shown in run(guide):
        assert same_output(printed, shown), f"{guide.name}:{block.line}\nshown:\n{shown}\nprinted:\n{printed}"
        compared += 1
    assert compared


def test_the_method_shown_is_the_one_beside_the_guide() -> None:
    (shown,) = [block for block in blocks(FOLDER / "write-a-method.md") if block.file == "best_of_n.py"]
    assert shown.code == (FOLDER / "best_of_n.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES, ids=of)
def test_every_block_is_run_or_checked(guide: Path) -> None:
    for block in blocks(guide):
        assert block.file or (block.language, block.mark) in RUN_OR_CHECKED, f"{guide.name}:{block.line}"


@pytest.mark.parametrize("guide", GUIDES, ids=of)
def test_what_is_not_run_fits_the_real_signatures(guide: Path) -> None:
    for block in blocks(guide):
        where = f"{guide.name}:{block.line}"
        if (block.language, block.mark) == ("python", "no-run"):
            assert wrong_calls(block.code) == [], where
        elif block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                check_command(shlex.split(line, comments=True))


def check_command(words: list[str]) -> None:
    """Parse a command of a guide as the program would."""
    scripts = {"examples/train.py": parse_train, "examples/ttt.py": ttt.parse}
    script = next((word for word in words if word in scripts), None)
    if script is not None:
        assert words[:2] == ["accelerate", "launch"]
        scripts[script](words[words.index(script) + 1 :])
    elif words:
        assert words[0] == "hf-mass", words
        command = typer.main.get_command(app)
        sub = command.commands[words[1]]  # type: ignore[attr-defined]
        sub.make_context(words[1], words[2:], resilient_parsing=False)


def parse_train(words: list[str]) -> None:
    HfArgumentParser((train.ScriptArguments, MetaAdaptConfig)).parse_args_into_dataclasses([*words, "--use_cpu"])


@pytest.mark.parametrize("guide", GUIDES, ids=of)
def test_links_lead_somewhere(guide: Path) -> None:
    text = guide.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = guide if not path else FOLDER / path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("guide", GUIDES, ids=of)
def test_settings_and_names_in_the_text_exist(guide: Path) -> None:
    """`MetaAdaptConfig.verifier`, `MassModel.adapt`, `hf_mass.tasks.verifiers`: names with a dot can be looked up."""
    text = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`((?:hf_mass\.[\w.]+)|(?:[A-Z]\w+\.\w+))[(`]", text):
        first, *rest = name.split(".")
        if first == "hf_mass":
            for end in range(len(rest), -1, -1):
                try:
                    thing = importlib.import_module(".".join([first, *rest[:end]]))
                except ModuleNotFoundError:
                    continue
                rest = rest[end:]
                break
        elif first in hf_mass.__all__:
            thing = getattr(hf_mass, first)
        else:
            continue
        for part in rest:
            fields = getattr(thing, "__dataclass_fields__", {})
            assert hasattr(thing, part) or part in fields, name
            thing = getattr(thing, part, None)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_other_pages_name_what_is_there(name: str) -> None:
    text = (ROOT / ".github" / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / ".github" / target).exists(), target
    for path in re.findall(r"`((?:hf_mass|tests|examples|spaces|\.ci)/[^`\s]*)`", text):
        assert list(ROOT.glob(path)), path


def test_the_changelog_lists_what_has_a_name() -> None:
    text = (ROOT / ".github" / "CHANGELOG.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verifiers = ("exact_match", "multiple_choice", "numeric", "math")
    for name in (*FORMATS, *verifiers, *commands, *shipped_names()):
        assert f"`{name}`" in text, name


def test_the_checks_can_fail() -> None:
    assert same_output("a 0.1234 1e-5 3", "a 0.1233 1.0004e-5 3")
    assert not same_output("a 0.1234", "a 0.2")
    assert not same_output("n 3", "n 4") and not same_output("a", "b")
    start = "from hf_mass import MassModel, MetaAdaptConfig, TTTConfig\n"
    assert wrong_calls(start + "m = MassModel.from_pretrained('x')\nm.adapt(t, weigh_by='scorer')") == []
    for bad in (
        "m = MassModel.from_pretrained('x')\nm.adapt(t, weigh='scorer')",
        "MetaAdaptConfig(inner_stepz=1)",
        "MetaAdaptConfig(output_dir='o', outer_loss='gld')",
        "TTTConfig.preset('nothing', output_dir='o')",
    ):
        assert len(wrong_calls(start + bad)) == 1, bad
