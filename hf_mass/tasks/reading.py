"""From what a person names (a file, a folder, stdin, or words) to problems, or to a set of tasks with known answers.

What is missing or cannot be read raises DataError.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError, DataWarning
from hf_mass.tasks.arc import is_beside_puzzles, is_kaggle_folder, is_puzzle, load_grid_tasks, visible_files
from hf_mass.tasks.bbh import BBH_TASKS, load_bbh
from hf_mass.tasks.checks import as_path, no_file, shown
from hf_mass.tasks.decoding import decoded
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.problems import KINDS, Limits, Problem, read_object, read_problem, read_problem_file
from hf_mass.tasks.rows import ALIASES, PLAIN, as_pairs, as_rows, few_shot_rows, pair_columns, read_json, read_rows
from hf_mass.tasks.tables import TableForm
from hf_mass.tasks.task import Task
from hf_mass.tasks.unread import is_about
from hf_mass.tasks.verifiers import get_verifier

# -- problems ----------------------------------------------------------------------------------------------------------


def read_one(words: Sequence[str], form: TableForm = PLAIN) -> Problem:
    """The problem that an argument names: a file, "-" for stdin, or the words as lines of a text."""
    if list(words) == ["-"]:
        return read_problem(decoded(sys.stdin.buffer.read(), "stdin", form.encoding), "stdin", form=form)
    if len(words) == 1 and _is_path(words[0]):
        if Path(words[0]).expanduser().is_dir():
            raise DataError(f"{words[0]!r} is a folder. Name one of its files, or take all of them by --each.")
        return read_problem_file(words[0], form=form)
    if paths := [word for word in words if _is_path(word)]:
        raise DataError(f"{paths[0]!r} is a file among {len(words)} words. Give one file, or a folder with --each.")
    return read_problem("\n".join(words), form=form)


def _is_path(word: str) -> bool:
    """Returns True if a word names a file: there is one, or it looks like one that is missing."""
    if not word or "\n" in word or len(word) > 1000:
        return False
    path = Path(word).expanduser()
    try:
        return path.exists() or (path.suffix.lower() in KINDS and " " not in word)
    except (OSError, ValueError):  # a name too long, or a zero byte
        return False


def read_many(name: str, form: TableForm = PLAIN) -> list[Problem]:
    """The problems of a folder, of a Kaggle file of challenges, or of a file of one object a problem."""
    path = _existing(name)
    if path.is_dir() and not is_kaggle_folder(path):
        files = visible_files(path, KINDS)
        if not files:
            raise DataError(f"The folder {name!r} has no file of one of {', '.join(KINDS)}. Give one that has.")
        return [read_problem_file(file, form=form) for file in _problems_of(files)]
    rows = _json_rows(path, form)
    if rows is None:
        groups: dict[str, list[Task]] = {}
        for task in load_grid_tasks(path, answers=False):
            groups.setdefault(task.fields["file"], []).append(task)
        names = {file: file.rpartition("#")[2] if "#" in file else Path(file).stem for file in groups}
        return [Problem(names[file], "grids", tuple(group)) for file, group in groups.items()]
    if rows and "problem" in rows[0]:
        return [_row_problem(row, f"{path.stem}_{n}") for n, row in enumerate(rows)]
    return [read_problem_file(path, form=form)]


def _problems_of(files: Sequence[Path]) -> list[Path]:
    """The files but for objects of JSON that are no problem, such as metadata.json; a warning names them."""
    others = []
    for file in files:
        content = read_json(file) if file.suffix.lower() == ".json" and file.stat().st_size <= Limits.bytes else None
        if isinstance(content, dict) and not {"problem", "examples"} & set(content) and is_beside_puzzles(content):
            others.append(file)
    if others and len(others) < len(files):
        names = ", ".join(file.name for file in others)
        warnings.warn(f"Files that hold no problem are left out: {names:.300}", DataWarning, stacklevel=3)
        return [file for file in files if file not in others]
    return list(files)


def _existing(name: str) -> Path:
    path = as_path("The file or folder", name)
    if not path.is_file() and not path.is_dir():
        raise no_file(path, repr(name), "file or folder")
    return path


def _json_rows(path: Path, form: TableForm = PLAIN) -> list[dict[str, Any]] | None:
    """The rows of a file in JSON, none of one in another form; None for what may hold puzzles: a folder, an object."""
    if path.is_dir():
        return None
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        return []
    if path.suffix.lower() == ".json" and isinstance(content := read_json(path, form.encoding), dict):
        if isinstance(content.get("examples"), list) and "train" not in content:
            return as_rows(content["examples"], repr(str(path)))
        return [content] if "problem" in content else None
    rows = read_rows(path, form)
    return None if rows and is_puzzle(rows[0]) else rows


def _row_problem(row: Mapping[str, Any], name: str, verifier: str | None = None) -> Problem:
    """The problem of a row, which may name the "verifier" (else `verifier`) and the "domain" of its task."""
    if "problem" not in row:
        raise DataError(f"{name!r} has no 'problem', found {sorted(row)!r:.60}. Give every object one.")
    settings = {key: row[key] for key in ("verifier", "domain") if row.get(key) is not None}
    for key, value in settings.items():
        if not isinstance(value, str):
            raise DataError(f"{name!r}: {key} is {value!r:.60}. Give a text.")
    if verifier is not None:
        settings.setdefault("verifier", verifier)
    if "verifier" in settings:
        get_verifier(settings["verifier"])
    content = {key: value for key, value in row.items() if key == "id" or not (key == "verifier" or is_about(key))}
    (task,) = read_object(content, name).tasks
    task = replace(task, **settings)
    return Problem(task.id, kind_of([task]), (task,))


# -- sets of tasks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSet:
    """Tasks with known answers.

    Args:
        name: What the set is called.
        kind: "grids" or "texts".
        tasks: The tasks.
        model: The model that was made for them, where it is not that of their kind.
    """

    name: str
    kind: str
    tasks: tuple[Task, ...]
    model: str | None = None


def read_set(
    name: str,
    limit: int | None = None,
    demonstrations: int = 10,
    verifier: str = "exact_match",
    form: TableForm = PLAIN,
) -> TaskSet:
    """The tasks of a file or folder whose answers are known.

    Args:
        name: The file or folder.
        limit: Tasks at most.
        demonstrations: Rows of a few-shot file, or examples of BIG-Bench Hard, that become demonstrations.
        verifier: Judge of texts, where a task does not name its own.
        form: How a file of rows is written, where it does not say so itself.

    Raises:
        DataError: If there is nothing to read, or no task has a known answer.
        VerifierError: If the verifier is unknown.
    """
    get_verifier(verifier)
    path = _existing(name)
    tasks = _read_tasks(path, demonstrations, verifier, form)
    solved = [task for task in tasks if task.answer is not None or task.solution is not None][:limit]
    if not solved:
        raise DataError(f"None of the {len(tasks)} tasks of {name!r} has a known answer. Add answers to evaluate by.")
    return TaskSet(path.absolute().stem, kind_of(solved), tuple(solved))


def _read_tasks(path: Path, demonstrations: int, verifier: str, form: TableForm) -> list[Task]:
    if names := [task for task in BBH_TASKS if (path / f"{task}.json").is_file()]:
        return [task for tasks in load_bbh(path, names, demonstrations).values() for task in tasks]
    rows = _json_rows(path, form)
    if rows is None:
        return load_grid_tasks(path, answers=False)
    is_named = form.input_column is not None or form.output_column is not None
    if not rows:  # a table, where a cell without a text is a null
        rows = [{key: cell or None for key, cell in row.items()} for row in read_rows(path, form)]
    if rows and "problem" in rows[0] and not is_named:
        return [task for n, row in enumerate(rows) for task in _row_problem(row, f"{path.stem}_{n}", verifier).tasks]
    where = repr(str(path))
    pairs = as_pairs(rows, where, form)
    usual = pair_columns(set.intersection(*map(set, rows))) if rows and form == PLAIN else None
    if usual is not None and all(name in row for row in rows for name in usual):
        return few_shot_rows(
            path, rows, usual, demonstrations, verifier=verifier
        )  # errors name the columns as they are
    if any(not {*ALIASES[0]} <= set(row) for row in pairs):
        columns = set.intersection(*map(set, rows))
        raise DataError(
            f"{where} has no columns of inputs and outputs that all of its rows have. Columns found: "
            f"{shown(sorted(columns), 200)}. Call them input and output. Or name them "
            "(--input_column, --output_column)."
        )
    return few_shot_rows(path, pairs, ALIASES[0], demonstrations, verifier=verifier)
