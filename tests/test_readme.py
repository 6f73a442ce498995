"""README, and the pages that it leads to, are true: what they show runs, their tables are the measured ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from guide_blocks import anchors, wrong_calls
from hub_emulator import Account, EmulatedHub
from model_fixtures import BASE, conventions_model
from repository import ROOT
from transformers import AutoModelForCausalLM

from hf_mass.training.meta_adapt_config import MetaAdaptConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "examples" / "results"
GUIDES = ROOT / "examples" / "guides"
REAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}(?: no-run)?\n(.*?)```", page, re.DOTALL)


def block(text: str, page: Path) -> str:
    """The one block of Python of a page that holds a text."""
    (code,) = [code for code in blocks("python", page.read_text(encoding="utf-8")) if text in code]
    return code


def between(marker: str) -> str:
    """What stands between two comments of the page of results."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    return page.split(f"<!-- {marker}:begin -->")[1].split(f"<!-- {marker}:end -->")[0].strip()


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and folder of README's main command, made short."""
    command = re.search(r"&& (accelerate launch examples/train\.py)", README)
    assert command, "README must name the main job"
    output = tmp_path_factory.mktemp("main-job")
    arguments = ["--max_steps", "1", "--test_tasks", "2", "--output_dir", str(output)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *command.group(1).split()[2:], *arguments]
    done = subprocess.run(launch, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, output


@pytest.mark.slow
def test_main_job_reports_and_saves(main_job: tuple[str, Path]) -> None:
    text, output = main_job
    for row in ("base", "TT-SS (raw self-generated)", "solver GRPO, equal wall time", "MASS, scored"):
        assert re.search(rf"^{re.escape(row)}\s", text, re.MULTILINE), row
    for name in ("results.json", "results.md", "results.png", "training.png", "adapters/mass_config.json"):
        assert (output / name).is_file(), name
    assert str(output / "adapters") in text


def test_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120 and sum(line.startswith("|") for line in lines) <= 14


def test_the_first_example_runs_on_a_model_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[0]
    assert wrong_calls(code) == [] and REAL_MODEL in code
    exec(code.replace(REAL_MODEL, "strings-base"), {})
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[0].splitlines()
    assert len(printed) == len(shown) == code.count("print(")
    assert all(" -> " in line for line in printed)


def test_the_example_without_a_download_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code = block('"strings-base"', ROOT / "README.md")
    exec(code, {})
    assert capsys.readouterr().out.strip() == code.strip().rpartition("  # ")[2]


def usage_example() -> str:
    return block('"conventions-mass"', GUIDES / "train-mass.md")


def test_usage_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(usage_example(), {})
    *samples, answers = capsys.readouterr().out.splitlines()
    assert len(samples) == 24 and answers == "white -> red"  # red is right


@pytest.mark.slow
def test_usage_example_runs_on_what_the_main_job_left(
    main_job: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(usage_example().replace("conventions-mass", str(main_job[1] / "adapters")), {})
    assert "->" in capsys.readouterr().out


def test_extras_are_the_real_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    (line,) = re.findall(r"^Extras: .*$", README, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == extras
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    table = page.split("| extra | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|.*\|)", table)) == extras
    for text in (README, page, *(guide.read_text(encoding="utf-8") for guide in GUIDES.glob("*.md"))):
        for listed in re.findall(r"pip install -e \"\.\[([\w,]+)\]\"", text):
            assert set(listed.split(",")) <= extras, listed


def test_hub_example_runs(hub: EmulatedHub) -> None:
    code = block('push_to_hub("user/name"', GUIDES / "train-mass.md")
    mass = conventions_model(trained=True)
    names = {"mass": mass, "base": AutoModelForCausalLM.from_pretrained(BASE)}
    hub.accounts["hf_..."] = hub.accounts["hf_alice"] = Account("user")
    exec(code, names)
    assert hub.repos["user/name"].private


def test_trainer_example_names_real_settings() -> None:
    code = block("train_dataset=dataset", GUIDES / "train-mass.md")
    names = set(re.findall(r"(\w+)=", re.search(r"MetaAdaptConfig\((.*?)\)", code, re.DOTALL).group(1)))  # type: ignore[union-attr]
    assert names and names <= set(MetaAdaptConfig.__dataclass_fields__)


def test_test_time_training_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block('"data/evaluation"', GUIDES / "ttt-few-shot.md")
    strip = {"input": [[1, 0, 2]], "output": [[2, 0, 1]]}, {"input": [[3, 4]], "output": [[4, 3]]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text(json.dumps({"train": list(strip), "test": [strip[0]]}))
    replaced: dict[str, str | Path] = {"data/evaluation": tmp_path / "data", "outputs/arc": tmp_path / "out"}
    replaced["grids-base"] = "grids-small"
    for old, new in replaced.items():
        assert f'"{old}"' in code
        code = code.replace(f'"{old}"', repr(str(new)))
    exec(code, {})
    assert "TaskScore(" in capsys.readouterr().out


def test_test_time_training_tables_are_the_measured_ones() -> None:
    """Each row and goal shown is one of a report that a script of `examples/research` wrote."""
    reports = [*RESULTS.glob("ttt/report-*.md"), RESULTS / "grid-mass/results.md", RESULTS / "strings/results.md"]
    measured = "".join(report.read_text() for report in reports).splitlines()
    rows = [line for line in between("ttt").splitlines() if line.startswith(("|", "- met", "- MISSED"))]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_the_table_of_a_real_model_is_the_measured_one() -> None:
    shown = README.split("<!-- real:begin -->")[1].split("<!-- real:end -->")[0]
    report = (RESULTS / "real-models" / "results.md").read_text(encoding="utf-8")
    first = report.split("## ")[1]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert 5 <= len(rows) <= 16 and set(rows) <= set(first.splitlines())
    (tasks,) = re.findall(r"on (\d+) few-shot tasks", shown)
    assert f"(n = {tasks})" in first.splitlines()[0]


def test_results_table_is_the_measured_one() -> None:
    shown = between("results")
    assert shown, "the page shows no results"
    assert (RESULTS / "results.md").read_text().strip() in shown


def test_cost_tables_are_the_measured_ones() -> None:
    """Each row shown is a row of a file that a benchmark wrote."""
    measured = "".join((RESULTS / name).read_text() for name in ("metagrad.md", "tasks.md")).splitlines()
    rows = [line for line in between("cost").splitlines() if line.startswith("|")]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_file_tree_is_true() -> None:
    page = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = next(text for text in blocks("text", page) if "hf_mass/core" in text)
    listed = [line.split()[0] for line in tree.strip().splitlines()]
    assert all((ROOT / path).exists() for path in listed)
    folders = {f"hf_mass/{p.name}" for p in (ROOT / "hf_mass").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set(listed)


PAGES = ("README.md", "examples/README.md", "examples/results/README.md", "examples/guides/command-line.md")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for targets in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        target, _, anchor = (targets[0] or targets[1]).partition("#")
        if not target.startswith("https://"):
            linked = page.parent / target if target else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"
