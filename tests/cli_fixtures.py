"""What tests of the command line share: running it, and small problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hf_mass.cli.main import app

FLIPS: dict[str, Any] = {
    "train": [
        {"input": [[1, 0, 0], [0, 2, 0]], "output": [[0, 0, 1], [0, 2, 0]]},
        {"input": [[3, 0], [0, 4]], "output": [[0, 3], [4, 0]]},
        {"input": [[5, 6, 7]], "output": [[7, 6, 5]]},
    ],
    "test": [{"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}],
}
FRUIT = {
    "problem": "peach",
    "demonstrations": [{"input": "lemon", "output": "gold"}, {"input": "fig", "output": "gold"}],
    "answer": "red",
    "fields": {"family": "sue"},
}
GRIDS = ("--model", "grids-small", "--max_examples", "4", "--num_train_epochs", "1")
WORDS = ("--model", "conventions-mass", "--samples", "3")


def run(*words: object, code: int = 0, stdin: str | None = None) -> Any:
    """The command line in this process; it must end with the code."""
    result = CliRunner().invoke(app, list(map(str, words)), input=stdin)
    assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.exception!r}"
    return result


def write(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def two_questions() -> dict[str, Any]:
    """A puzzle that asks twice, of which one answer is not known."""
    return {**FLIPS, "test": [*FLIPS["test"], {"input": [[6, 7]]}]}
