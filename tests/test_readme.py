"""The README is true: its commands run, its table is the one in the results folder, its file tree exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hub_emulator import Account, EmulatedHub
from model_fixtures import BASE, conventions_model
from peft import PeftModel
from repository import ROOT
from transformers import AutoModelForCausalLM

from hf_mass.methods.mass_model import MassModel

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and folder of README's main command, made short."""
    command = re.search(r"&& (accelerate launch examples/train\.py)", README)
    assert command, "README must name the main job"
    output = tmp_path_factory.mktemp("main-job")
    arguments = ["--max_steps", "2", "--test_tasks", "5", "--output_dir", str(output)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *command.group(1).split()[2:], *arguments]
    done = subprocess.run(launch, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, output


def test_main_job_reports_and_saves(main_job: tuple[str, Path]) -> None:
    text, output = main_job
    for row in ("base", "TT-SS (raw self-generated)", "solver GRPO, equal wall time", "MASS, scored"):
        assert re.search(rf"^{re.escape(row)}\s", text, re.MULTILINE), row
    for name in ("results.json", "results.md", "results.png", "training.png", "adapters/mass_config.json"):
        assert (output / name).is_file(), name
    assert str(output / "adapters") in text


def test_the_first_example_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out == blocks("text")[0]


def usage_example() -> str:
    (code,) = [block for block in blocks("python") if '"conventions-mass"' in block]
    return code


def test_usage_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(usage_example(), {})
    *samples, answers = capsys.readouterr().out.splitlines()
    assert len(samples) == 24 and answers == "white -> red"  # red is right


def test_usage_example_runs_on_what_the_main_job_left(
    main_job: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(usage_example().replace("conventions-mass", str(main_job[1] / "adapters")), {})
    assert "->" in capsys.readouterr().out


def test_extras_are_the_real_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("| extra | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|.*\|)", table)) == set(project["optional-dependencies"])
    for listed in re.findall(r"pip install -e \"\.\[([\w,]+)\]\"", README):
        assert set(listed.split(",")) <= set(project["optional-dependencies"]), listed


def test_hub_example_runs(hub: EmulatedHub) -> None:
    code = next(block for block in blocks("python") if "push_to_hub(" in block)
    mass = conventions_model(trained=True)
    names = {"mass": mass, "base": AutoModelForCausalLM.from_pretrained(BASE), "MassModel": MassModel}
    hub.accounts["hf_..."] = hub.accounts["hf_alice"] = Account("user")
    exec(code, {**names, "PeftModel": PeftModel})
    assert hub.repos["user/name"].private


def test_trainer_example_names_real_settings() -> None:
    code = next(block for block in blocks("python") if "MetaAdaptTrainer(" in block)
    from hf_mass.training.meta_adapt_config import MetaAdaptConfig

    names = set(re.findall(r"(\w+)=", re.search(r"MetaAdaptConfig\((.*?)\)", code, re.DOTALL).group(1)))  # type: ignore[union-attr]
    assert names <= set(MetaAdaptConfig.__dataclass_fields__)


def test_test_time_training_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in blocks("python") if "TTTTrainer(" in block)
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
    results = ROOT / "examples" / "results"
    reports = [*results.glob("ttt/report-*.md"), results / "grid-mass/results.md", results / "strings/results.md"]
    measured = "".join(report.read_text() for report in reports).splitlines()
    shown = README.split("<!-- ttt:begin -->")[1].split("<!-- ttt:end -->")[0].splitlines()
    rows = [line for line in shown if line.startswith(("|", "- met", "- MISSED"))]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_results_table_is_the_measured_one() -> None:
    shown = README.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0].strip()
    assert shown, "README shows no results"
    assert (ROOT / "examples" / "results" / "results.md").read_text().strip() in shown


def test_cost_tables_are_the_measured_ones() -> None:
    """Each row shown is a row of a file that a benchmark wrote."""
    files = "metagrad.md", "tasks.md"
    measured = "".join((ROOT / "examples" / "results" / name).read_text() for name in files).splitlines()
    shown = README.split("<!-- cost:begin -->")[1].split("<!-- cost:end -->")[0].splitlines()
    rows = [line for line in shown if line.startswith("|")]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_file_tree_is_true() -> None:
    tree = next(block for block in blocks("text") if "hf_mass/core" in block)
    listed = [line.split()[0] for line in tree.strip().splitlines()]
    assert all((ROOT / path).exists() for path in listed)
    folders = {f"hf_mass/{p.name}" for p in (ROOT / "hf_mass").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set(listed)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", README):
        target = target[0] or target[1]
        assert target.startswith("https://") or (ROOT / target).exists(), target
