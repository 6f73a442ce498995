"""Problems and sets of tasks as the command line names them: files, folders, words, or splits of the designed world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.lab.conventions import ConventionsWorld
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks import reading
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.reading import TaskSet
from hf_mass.tasks.rows import PLAIN
from hf_mass.tasks.tables import TableForm
from hf_mass.tasks.verifiers import get_verifier

WORLD, WORLD_MODEL = "conventions:", "conventions-mass"
WORLD_TASKS = 50
"""Tasks drawn from the designed world where no limit is set."""


def read_problems(words: Sequence[str], each: bool = False, form: TableForm = PLAIN) -> list[Problem]:
    """The problem that words name or are, or with `each` the many of one file or folder.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    if not each:
        return [reading.read_one(words, form)]
    if len(words) != 1:
        raise DataError(f"--each takes one file or folder, and there are {len(words)} words.")
    return reading.read_many(words[0], form)


def read_set(name: str, limit: int | None = None, verifier: str = "exact_match", **how: Any) -> TaskSet:
    """The tasks of a file, a folder, or "conventions:<split>"; arguments as of `hf_mass.tasks.reading.read_set`.

    Raises:
        ConfigError: If the world has no such split.
        DataError: If there is nothing to read, or no task has a known answer.
        VerifierError: If the verifier is unknown.
    """
    if name.startswith(WORLD):
        get_verifier(verifier)
        world = ConventionsWorld(**json.loads((ASSETS / "conventions-base" / "world.json").read_text(encoding="utf-8")))
        return TaskSet(name, "texts", tuple(world.tasks(name.removeprefix(WORLD), limit or WORLD_TASKS)), WORLD_MODEL)
    if not Path(name).expanduser().exists():
        raise DataError(
            f"There is no file or folder {name!r}. Correct the path, or name the designed world as {WORLD}<split>."
        )
    return reading.read_set(name, limit, verifier=verifier, **how)
