"""The commands that texts and result files name: what they start is there, and starts from the folder they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

from paths import EXAMPLES

PLACES = ("*.md", ".github/*.md", "model_cards/*.md", "hf_mass/**/*.md", "hf_mass/**/*.py", "examples/**/*")
TEXTS = sorted({path for place in PLACES for path in ROOT.glob(place) if path.suffix in (".md", ".json", ".py")})


def missing(text: str) -> Iterator[str]:
    """The modules, scripts and tests that a text names and that are not there."""
    for module in re.findall(r"python -m ((?:research|benchmarks|demo|guides)\.[\w.]*\w)", text):
        path = EXAMPLES / f"{module.replace('.', '/')}.py"
        if not path.is_file() or '__name__ == "__main__"' not in path.read_text(encoding="utf-8"):
            yield module
    for name in re.findall(r"\b((?:examples|tests)/[\w/*.]*\.py)\b", text):
        if not list(ROOT.glob(name)):
            yield name


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_there(path: Path) -> None:
    assert list(missing(path.read_text(encoding="utf-8"))) == []


def test_the_check_can_fail() -> None:
    assert list(missing("`python -m research.grids.results --sets arc`, examples/train.py, tests/conftest.py")) == []
    text = "python -m research.results; python -m research.grids.parts; python examples/results.py"
    assert list(missing(text)) == ["research.results", "research.grids.parts", "examples/results.py"]


def test_a_script_starts_from_its_folder() -> None:
    command = [sys.executable, "-m", "demo.problems", "--help"]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "python -m demo.problems" in done.stdout, done.stderr
